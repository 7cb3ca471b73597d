"""The config of the `train` stage, and the checks that need no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_prism.data.mixture import MAX_SEED, YAML_SUFFIXES
from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import BACKENDS, Architecture, check_recompute
from megatron_prism.models.extension import ContextExtension, extended
from megatron_prism.models.families import family
from megatron_prism.pipeline.config import not_negative, one_of, positive, seeds
from megatron_prism.pipeline.stage import tuning
from megatron_prism.planning.pipeline_split import with_split
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint_settings import CheckpointSettings
from megatron_prism.training.data_settings import DataSettings
from megatron_prism.training.fp8_shapes import check_fp8_shapes
from megatron_prism.training.guard import GuardSettings
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.log_settings import LogSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.precision import PrecisionSettings
from megatron_prism.training.retention_watch import RetentionWatch
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.trainable import check_trainable

FP8_FORMATS = ("hybrid", "e4m3")


@dataclass
class TrainConfig:
    """The fields of the `train` stage.

    Attributes:
        architecture: of the model that training starts from.
        extension: extends the context length and changes the rotary settings of that model.
        mixture: name of a packaged mixture, or path of a YAML file.
        init_from: a Hugging Face or Megatron folder to start from, in place of the input `init`.
        dtype: 'fp32', or 'bf16' with fp32 main weights in the optimizer.
        fp8: 'hybrid' or 'e4m3', Megatron's FP8 formats, with bf16 weights; needs Transformer Engine.
        parallel: the layout. A run may go on under another one, because its checkpoints load at any layout.
        backend: 'te', 'torch', or 'auto', which chooses 'te' if this machine has what it needs.
        trainable: 'all' parameters, or 'attention': the query, key, value and output projections of self-attention.
            All other tensors stay bit-identical. TFLOP/s and MFU always count the work of training all parameters.
        recompute: what is computed again in the backward pass, which changes memory and time but not the numbers.
            'none'; 'selective': what takes no matrix product, and Mamba's scan; 'full': each layer but its input, for a
            third more compute.
        compile: fuse norms, activation functions, rotary positions and gates of the `torch` backend with torch.compile.
        intra_document: the documents of a training row do not see each other: attention and the state of Mamba layers
            end with each document, and its last token predicts nothing. Off, as in the paper.
        data: how the samples are read.
        kernels: overlap of communication, fused kernels, and the timeout of collectives.
        precision: FP8 recipe, and the precision and place of optimizer state.
        megatron: any other field of Megatron-Core's configs, by its upstream name.
        validation_batches: global batches of held-out text per source.
        validate_every: steps between validations; 0 validates at the end only.
        checkpoint_every: steps between checkpoints to resume from; 0 writes none before the end.
        checkpoints: how many checkpoints are kept, and how they are written.
        stop_after_minutes: save and stop when the run has taken this long, so that the same command goes on later; 0
            for no limit.
        logging: trackers, traces and further measurements.
        watch: losses on text that the model should not forget, and when they end the run.
        log_every: steps between lines on the console; metrics.jsonl and TensorBoard get every step.
    """

    architecture: Architecture
    mixture: str
    init_from: str = ""
    extension: ContextExtension | None = None
    steps: int = 100
    seed: int = 1
    dtype: str = "fp32"
    fp8: str | None = None
    backend: str = tuning("auto")
    trainable: str = "all"
    intra_document: bool = False
    data: DataSettings = tuning(default_factory=DataSettings)
    recompute: str = tuning("none")
    compile: bool = tuning(False)
    batch: BatchConfig = field(default_factory=BatchConfig)
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    parallel: ParallelConfig = tuning(default_factory=ParallelConfig)
    guard: GuardSettings = tuning(default_factory=GuardSettings)
    kernels: KernelSettings = tuning(default_factory=KernelSettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    megatron: MegatronBlock = field(default_factory=MegatronBlock)
    validation_batches: int = tuning(4)
    validate_every: int = tuning(0)
    checkpoint_every: int = tuning(0)
    checkpoints: CheckpointSettings = tuning(default_factory=CheckpointSettings)
    log_every: int = tuning(1)
    logging: LogSettings = tuning(default_factory=LogSettings)
    watch: RetentionWatch = field(default_factory=RetentionWatch)
    stop_after_minutes: float = tuning(0.0)

    def __post_init__(self) -> None:
        positive(self, "steps", "validation_batches", "log_every")
        not_negative(self, "stop_after_minutes", "validate_every", "checkpoint_every")
        seeds(self, "seed", most=MAX_SEED)
        one_of(self.dtype, ("fp32", "bf16"), "dtype")
        # An unknown family would be found only when the model is built.
        family(self.architecture.family)
        if Path(self.mixture).suffix in YAML_SUFFIXES:
            # Launched workers may run in another working directory.
            self.mixture = str(Path(self.mixture).resolve())
        one_of(self.backend, BACKENDS, "backend")
        if self.fp8 is not None:
            one_of(self.fp8, FP8_FORMATS, "fp8")
            if self.dtype != "bf16":
                raise ConfigError(f"fp8={self.fp8} needs dtype=bf16, not dtype={self.dtype}")
        if self.init_from:
            self.init_from = str(Path(self.init_from).resolve())
        trained = self.trained_architecture
        if self.batch.sequence_length > trained.max_position_embeddings:
            owner, remedy = (
                ("architecture", "; an `extension` increases it")
                if self.extension is None
                else ("extension", "")
            )
            raise ConfigError(
                f"batch.sequence_length={self.batch.sequence_length} is longer than "
                f"{owner}.max_position_embeddings={trained.max_position_embeddings}{remedy}"
            )
        if self.guard.on_spike == "rollback" and not self.checkpoint_every:
            raise ConfigError(
                "guard.on_spike=rollback: there is no checkpoint to return to; set checkpoint_every, or "
                "guard.on_spike=skip"
            )
        check_recompute(self.recompute, trained, self.fp8)
        layout = self.layout
        check_trainable(self.trainable, trained, layout)
        self.kernels.check(trained, layout, self.backend)
        self.precision.check(trained, layout, self.dtype, self.fp8)
        self.megatron.check(self.kernels, self.recompute, fixed_shapes=not self.intra_document)
        self.architecture.check_parallel(layout)
        layout.check_sequence(self.batch.sequence_length)
        self.batch.check_layout(layout)
        if self.fp8 is not None:
            check_fp8_shapes(trained, layout, self.batch)

    @property
    def layout(self) -> ParallelConfig:
        """`parallel` with the numbers of layers that a balanced split stands for."""
        length = self.batch.sequence_length
        return with_split(self.trained_architecture, self.parallel, length, self.recompute)

    @property
    def trained_architecture(self) -> Architecture:
        """The architecture of the trained model: `architecture` with the `extension`, if there is one."""
        return extended(self.architecture, self.extension) if self.extension else self.architecture
