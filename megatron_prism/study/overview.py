"""What a recipe is about in a few numbers: its model, its phases, and the GPUs for which it has layouts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from megatron_prism.models.architecture import ATTENTION, MAMBA, Architecture
from megatron_prism.models.families import architecture_from_config, family, parameter_count, published_config
from megatron_prism.pipeline.graph import Graph
from megatron_prism.study.layouts import LayoutTable
from megatron_prism.study.model_recipe import PHASES, ModelRecipe
from megatron_prism.study.registry import Recipe

ALWAYS = "always"


@dataclass(frozen=True)
class Overview:
    """A recipe in a few numbers.

    Attributes:
        model: Hugging Face name; empty for a model that the recipe makes itself.
        layers: as Hugging Face counts them.
        attention, mamba: layers that have attention, and layers that are Mamba.
        phases: parameters that add a phase to the study.
        gpus: numbers of GPUs with layouts; empty for a recipe without a layout file.
    """

    name: str
    model: str
    family: str
    parameters: int
    layers: int
    attention: int
    mamba: int
    phases: tuple[str, ...]
    gpus: tuple[int, ...]


def overview(recipe: Recipe) -> Overview:
    """The overview of any recipe; one that is no `ModelRecipe` is asked for its default graph."""
    made = recipe.function
    if isinstance(made, ModelRecipe):
        architecture: Architecture | None = architecture_from_config(published_config(made.model))
        table = LayoutTable.load(made.name)
        gpus = sorted({number for _, number, _ in table.entries})
        model = made.model
    else:
        architecture, gpus, model = _first_architecture(recipe.build({}, planned=True)), [], ""
    phases = tuple(key for key in PHASES if key in recipe.parameters)
    if architecture is None:
        return Overview(recipe.name, model, "", 0, 0, 0, 0, phases, tuple(gpus))
    kinds = architecture.kinds_of_layers
    return Overview(
        name=recipe.name,
        model=model,
        family=architecture.family,
        parameters=parameter_count(architecture),
        layers=architecture.num_layers // family(architecture.family).layers_per_hf_layer(architecture),
        attention=sum(ATTENTION in kind for kind in kinds),
        mamba=sum(MAMBA in kind for kind in kinds),
        phases=phases,
        gpus=tuple(gpus),
    )


def stages_by_phase(recipe: Recipe) -> tuple[Graph, dict[str, str]]:
    """The graph with all phases, and for each of its stages the phases that add it, or 'always'."""
    phases = [key for key in PHASES if key in recipe.parameters]
    full = recipe.build(dict.fromkeys(phases, True), planned=True)
    found: dict[str, str] = {}
    for some in (chosen for size in range(len(phases) + 1) for chosen in combinations(phases, size)):
        graph = full if len(some) == len(phases) else recipe.build(dict.fromkeys(some, True), planned=True)
        for name in graph.nodes:
            found.setdefault(name, " ".join(some) or ALWAYS)
    return full, {name: found[name] for name in full.nodes}


def _first_architecture(graph: Graph) -> Architecture | None:
    found = (getattr(node.stage, "architecture", None) for node in graph.nodes.values())
    return next((each for each in found if isinstance(each, Architecture)), None)
