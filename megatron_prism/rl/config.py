"""The config of the `rl` stage, and its checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.models.architecture import Architecture, check_recompute
from megatron_prism.models.families import family
from megatron_prism.pipeline.config import not_negative, one_of, positive, seeds
from megatron_prism.pipeline.stage import tuning
from megatron_prism.planning.pipeline_split import with_split
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.gate import GateSettings
from megatron_prism.rl.rewards import RewardSettings
from megatron_prism.rl.settings import LoopSettings, Objective
from megatron_prism.training.checkpoint_settings import CheckpointSettings
from megatron_prism.training.guard import GuardSettings
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.log_settings import LogSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.precision import PrecisionSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.verification.settings import GradingSettings


@dataclass
class ReinforceConfig:
    """The fields of the `rl` stage. The model uses the `torch` backend, because the sampler needs it.

    The defaults are the paper's (Table 21), or open-instruct's where the paper names none (docs/rl.md has the sources).

    Attributes:
        architecture: the architecture of the model.
        steps: number of steps, with `loop.prompts_per_step` prompts each.
        parallel: the layout. A run may go on under another one, because its checkpoints load at any layout.
        give_up_after: stop after that many consecutive steps in which every group has equal rewards; 0 for never.
        context_length: maximum number of tokens of a prompt with its answer.
        max_new_tokens: maximum number of tokens of an answer.
        stop: strings that end an answer; the text of the answer does not include them.
        packing, micro_batch_size: how answers become micro-batches, see `policy.BatchShape`.
        kernels: as in the `train` stage, without overlapped gathers of weights. Ranks wait for the one that samples
            longest, so the default timeout of collectives is two hours.
        precision: of the optimizer's state, as in the `train` stage.
        megatron: any other field of Megatron-Core's configs, as in the `train` stage; the reference model has the same.
        evaluate_every: steps between evaluations, with one more at the start and one at the end; 0 for none.
        evaluation_suites: names of the corpus's suites to evaluate; an empty list for all.
        evaluation_problems, evaluation_samples: problems per suite, and answers per problem, which are sampled
            at the temperature of training.
        checkpoint_every: steps between checkpoints to resume from; 0 writes none before the end.
        checkpoints: how many checkpoints are kept, and how they are written. `checkpoints.weights_every=20` keeps the
            weights of every 20th step, as the paper did, to study how they change.
        answers_every: steps between files of all sampled answers; 0 writes none.
        logging: trackers and traces, as in the `train` stage, without norms of components: a step may have several
            updates.
        engine: 'megatron' reads the trained model directly; 'vllm' (one process) receives its weights after each step.
        stop_after_minutes: save and stop when the run has taken this long, so that the same command goes on later; 0
            for no limit.
        slots: maximum number of answers that 'megatron' samples at once, per replica of the model.
        grading: the grading processes, their limits, and how programs that the model wrote are isolated.
    """

    architecture: Architecture
    steps: int = 1000
    give_up_after: int = 0
    seed: int = 1
    dtype: str = "fp32"
    recompute: str = tuning("none")
    loop: LoopSettings = field(default_factory=LoopSettings)
    objective: Objective = field(default_factory=Objective)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    schedule: Schedule = field(
        default_factory=lambda: Schedule(lr=5e-7, warmup_steps=0, style="linear", final_factor=0.0)
    )
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(weight_decay=0.0))
    parallel: ParallelConfig = tuning(default_factory=ParallelConfig)
    guard: GuardSettings = tuning(default_factory=lambda: GuardSettings(spike_zscore=0.0))
    kernels: KernelSettings = tuning(default_factory=lambda: KernelSettings(collective_timeout=120.0))
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    megatron: MegatronBlock = field(default_factory=MegatronBlock)
    context_length: int = 16384
    max_new_tokens: int = 16384
    stop: list[str] = field(default_factory=list)
    packing: bool = tuning(True)
    micro_batch_size: int = tuning(8)
    evaluate_every: int = tuning(20)
    evaluation_suites: list[str] = field(default_factory=list)
    evaluation_problems: int | None = None
    evaluation_samples: int = 1
    checkpoint_every: int = tuning(20)
    checkpoints: CheckpointSettings = tuning(default_factory=CheckpointSettings)
    answers_every: int = tuning(20)
    logging: LogSettings = tuning(default_factory=LogSettings)
    engine: EngineConfig = field(default_factory=EngineConfig)
    stop_after_minutes: float = tuning(0.0)
    slots: int = tuning(256)
    grading: GradingSettings = field(default_factory=GradingSettings)

    def __post_init__(self) -> None:
        positive(
            self,
            "steps",
            "context_length",
            "max_new_tokens",
            "micro_batch_size",
            "evaluation_samples",
            "slots",
        )
        not_negative(self, "stop_after_minutes", "give_up_after")
        not_negative(self, "evaluate_every", "checkpoint_every", "answers_every")
        if self.evaluation_problems is not None:
            positive(self, "evaluation_problems")
        seeds(self, "seed")
        one_of(self.dtype, ("fp32", "bf16"), "dtype")
        # An unknown family would be found only when the model is built.
        family(self.architecture.family)
        if self.guard.spike_zscore or self.guard.on_spike != "log":
            raise ConfigError(
                "guard: the loss of reinforcement learning has no level that a spike could leave; use spike_zscore=0 "
                "and on_spike=log (updates that are not finite are always left out)"
            )
        if self.logging.component_norms_every:
            raise ConfigError(
                f"logging.component_norms_every={self.logging.component_norms_every}: only the `train` stage measures "
                "them, because a step of reinforcement learning may have several updates; set it to 0"
            )
        check_recompute(self.recompute, self.architecture, None)
        if self.loop.samples_per_prompt < 2:
            raise ConfigError(
                f"loop.samples_per_prompt={self.loop.samples_per_prompt}: a group needs at least 2 answers to compare"
            )
        if self.context_length > self.architecture.max_position_embeddings:
            raise ConfigError(
                f"context_length={self.context_length} is longer than architecture.max_position_embeddings="
                f"{self.architecture.max_position_embeddings}"
            )
        if self.engine.name in ("openai", "hf"):
            raise ConfigError(
                f"engine.name={self.engine.name}: it takes no new weights, so its answers would come from a different "
                "model than the trained one; use 'megatron' or 'vllm'"
            )
        if self.engine.name == "vllm" and self.parallel.world_size > 1:
            raise ConfigError(
                f"engine.name=vllm: it samples in the process that trains, so training must use one process, not "
                f"{self.parallel.world_size}; use 'megatron'"
            )
        self.architecture.check_parallel(self.layout)
        if self.kernels.overlap_param_gather:
            raise ConfigError(
                "kernels.overlap_param_gather=true: reinforcement learning samples between its steps; set it to null"
            )
        self.kernels.check(self.architecture, self.layout, "torch")
        self.precision.check(self.architecture, self.layout, self.dtype, None)
        self.megatron.check(self.kernels, self.recompute, fixed_shapes=False)
        self.parallel.check_sequence(self.context_length)

    @property
    def layout(self) -> ParallelConfig:
        """`parallel` with the numbers of layers that a balanced split stands for."""
        return with_split(self.architecture, self.parallel, self.context_length, self.recompute)
