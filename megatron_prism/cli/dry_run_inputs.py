"""What a deep dry run checks of given files without reading data: the headers of a checkpoint, the names of suites."""

from __future__ import annotations

from pathlib import Path

from megatron_prism.conversion.stage import ImportHF
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.shoebox.corpus import SUITES, ShoeboxCorpus
from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.evaluation.suites.stage import BenchmarkFiles
from megatron_prism.pipeline.node import Node
from megatron_prism.rl.stage import Reinforce


def check_headers(stage: ImportHF) -> list[str]:
    """Compare names, shapes and dtypes of a checkpoint's tensors, from its headers, with the model of its config.json.

    Returns:
        lines for the user; none without a folder.

    Raises:
        CheckpointError: naming the file and the first tensor that is missing, too much, cut off, or of another shape.
    """
    from megatron_prism.conversion.weights import HFWeights

    folder = Path(stage.source)
    if not stage.source or not folder.is_dir():
        return []
    if not any(folder.glob("*.safetensors*")):
        return [f"{folder}: there are no weights yet; only config.json was compared"]
    weights = HFWeights(folder)
    dtypes = sorted({str(dtype).removeprefix("torch.") for dtype in weights.dtypes.values()})
    count = f"{folder}: {len(weights.shapes)} tensors of {' and '.join(dtypes)}, as the model needs them"
    return [count, *weights.remarks]


def check_suites(node: Node) -> None:
    """The suites that a stage names are in its corpus, as far as that is known before the corpus exists.

    Raises:
        ConfigError: naming the suite, the corpus, and the suites that it has.
    """
    stage, corpus = node.stage, node.inputs.get("corpus")
    if corpus is None or not isinstance(stage, Evaluate | Reinforce):
        return
    key, named = (
        ("suites", stage.suites)
        if isinstance(stage, Evaluate)
        else ("evaluation_suites", stage.evaluation_suites if stage.evaluate_every else [])
    )
    known = _suites(corpus)
    for name in named:
        if known is not None and name not in known:
            has = suggest(name, known) or "; it has no suites"
            raise ConfigError(f"{key}: '{name}' is not in the corpus of stage '{corpus.name}'{has}")


def _suites(corpus: Node) -> list[str] | None:
    """The suites that a corpus will have; None if that is not known here."""
    made = corpus.stage
    if isinstance(made, ShoeboxCorpus):
        return list(SUITES)
    if isinstance(made, FileCorpus):
        return []
    if isinstance(made, BenchmarkFiles) and not made.planned:
        return [definition.name for definition in made.definitions()]
    return None
