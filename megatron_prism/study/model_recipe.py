"""The recipe of a published model: every stage of the study, from the import of its weights to the report.

    import -> midtrain -> merge -> extend -> difficulty -> rl -> export -> evaluate -> report

`recipes/MODEL.py` says what differs from model to model; everything else is here and in the other files of this folder.
docs/recipes.md explains the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.mix import UNBALANCED
from megatron_prism.study.analyses import add_study_analyses, keep_weights_of_steps
from megatron_prism.study.evaluation import REASONING, add_evaluations
from megatron_prism.study.layouts import RL, LayoutTable, layout_follows
from megatron_prism.study.long_context import ALL, LongContext, add_long_context
from megatron_prism.study.long_context import MIXTURE as LONG_MIXTURE
from megatron_prism.study.midtraining import (
    add_export_and_report,
    add_midtraining,
    add_tiny_midtraining,
    miniature,
    published_model,
)
from megatron_prism.study.parameters import parameter_notes
from megatron_prism.study.reinforcement import (
    BOTH,
    RLChoice,
    add_study_reinforcement,
    paper_rl_stages,
    tiny_rl_stages,
)
from megatron_prism.verification.sandbox.isolation import STRONG

GPUS = 8
# Parameters that add a phase to the study.
PHASES = ("long_context", "rl", "evaluate", "analyze")
# Parameters that only one phase reads, or only a full-size run, with the values that change nothing.
PHASE_OF = {
    "extension": ("long_context", ALL),
    "extension_gpus": ("long_context", 0),
    "prompts": ("rl", ""),
    "method": ("rl", "paper"),
    "rl_mix": ("rl", "mcs"),
    "rl_balance": ("rl", UNBALANCED),
    "rl_start": ("rl", BOTH),
    "suites": ("evaluate", REASONING),
}
# Parameters that name files or folders of the user.
PATHS = ("checkpoint", "data", "prompts", "suites")
FULL_SIZE_ONLY = {
    "checkpoint": "",
    "data": "",
    "prompts": "",
    "suites": REASONING,
    "gpus": GPUS,
    "extension_gpus": 0,
}


@dataclass(frozen=True)
class ModelRecipe:
    """What one model has of its own; calling it makes the graph.

    Attributes:
        name: of the recipe, and of its file in `recipes/layouts`.
        model: Hugging Face name.
        learning_rate: of mid-training (Table 16 of the paper gives one for all models).
        steps: of mid-training.
        rope_theta: the rotary base with which the context is extended, for a rotary model with fewer than 128k
            positions.
        extension_gpus: the least number of GPUs on which 128k tokens fit.
        tiny_parallel: the layout of the miniature, on two processes.
    """

    name: str
    model: str
    learning_rate: float = 5e-5
    steps: int = 25_000
    rope_theta: float | None = None
    extension_gpus: int = GPUS
    tiny_parallel: ParallelConfig = field(
        default_factory=lambda: ParallelConfig(tensor_model_parallel_size=2)
    )

    @property
    def paths(self) -> tuple[str, ...]:
        return PATHS

    @property
    def notes(self) -> dict[str, str]:
        """What each parameter does, and its allowed values."""
        return parameter_notes(self.name)

    def __call__(
        self,
        *,
        checkpoint: str = "",
        data: str = "",
        mixture: str = "mcs",
        seed: int = 1,
        tiny: bool = False,
        gpus: int = GPUS,
        long_context: bool = False,
        extension: str = ALL,
        extension_gpus: int = 0,
        rl: bool = False,
        prompts: str = "",
        rl_mix: str = "mcs",
        rl_balance: str = UNBALANCED,
        rl_start: str = BOTH,
        method: str = "paper",
        evaluate: bool = False,
        suites: str = REASONING,
        sandbox: str = STRONG,
        analyze: bool = False,
    ) -> Graph:
        check_parameters(dict(locals()))
        graph, layouts = Graph(self.name), LayoutTable.load(self.name)
        choice = RLChoice(prompts, rl_mix, rl_balance, rl_start, method, sandbox)
        restoration = LongContext(
            layouts, extension, extension_gpus or max(gpus, self.extension_gpus), self.rope_theta
        )
        if tiny:
            inputs = miniature(graph, self.model, seed)
            midtrain = add_tiny_midtraining(graph, inputs, mixture, parallel=self.tiny_parallel, seed=seed)
        else:
            mixtures = [mixture, LONG_MIXTURE] if long_context else [mixture]
            inputs = published_model(graph, self.model, checkpoint=checkpoint, data=data, mixtures=mixtures)
            midtrain = add_midtraining(
                graph,
                inputs,
                mixture,
                steps=self.steps,
                learning_rate=self.learning_rate,
                layouts=layouts,
                gpus=gpus,
                seed=seed,
            )
        models = {"base": inputs.imported, "midtrain": midtrain}
        trained = midtrain
        runs: dict[str, Node] = {}
        evaluations: list[Node] = []
        if long_context:
            trained = add_long_context(
                graph, inputs, midtrain, long_context=restoration, seed=seed, tiny=tiny
            )
            models[trained.name] = trained
        if rl:
            implied = None if tiny else layout_follows(layouts, RL, gpus)
            stages = (
                tiny_rl_stages(inputs.architecture, choice, self.tiny_parallel, seed)
                if tiny
                else paper_rl_stages(inputs.architecture, choice, seed)
            )
            if analyze:
                stages = keep_weights_of_steps(stages)
            runs = add_study_reinforcement(
                graph,
                stages,
                inputs,
                midtrain=midtrain,
                trained=trained,
                start=rl_start,
                implied=implied,
            )
            # The exported model comes last, because the report shows changes from the first to the last model.
            models |= dict(reversed(runs.items()))
        if evaluate:
            evaluations = add_evaluations(
                graph, inputs, models, suites=suites, sandbox=sandbox, seed=seed, tiny=tiny
            )
        if analyze:
            add_study_analyses(graph, inputs, models, runs=runs, evaluations=evaluations, tiny=tiny)
        return add_export_and_report(graph, self.model, next(iter(runs.values()), trained), tiny)


def check_parameters(values: dict[str, Any]) -> None:
    """Refuse a parameter that would have no effect.

    Raises:
        ConfigError: names it, and the one that would give it an effect.
    """
    for key, (phase, neutral) in PHASE_OF.items():
        if values[key] != neutral and not values[phase]:
            raise ConfigError(
                f"{key}={values[key]}: has no effect without {phase}=true; add that, or remove {key}"
            )
    for key, neutral in FULL_SIZE_ONLY.items():
        if values["tiny"] and values[key] != neutral:
            raise ConfigError(
                f"{key}={values[key]}: has no effect with tiny=true, which makes its own model and text on two "
                f"processes; remove {key}, or tiny"
            )
    if values["seed"] < 0:
        raise ConfigError(f"seed={values['seed']}: must be 0 or more")
