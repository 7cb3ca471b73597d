"""Tables from receipts: scores and their changes, validation losses, configs and versions.

The row classes hold numbers; functions such as `stage_table` format them for a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.comparison import compare
from megatron_prism.evaluation.scored_model import ScoredModel
from megatron_prism.evaluation.statistics.intervals import Estimate
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.platform.text_table import Table

EVALUATION_KIND = "evaluation"
DASH = "–"
MINUS = "−"
# Config keys to show in the overview, in this order.
KEY_CONFIG = (
    *("model", "steps", "global_batch_size", "micro_batch_size", "sequence_length", "seq_length"),
    *("lr", "learning_rate", "weights", "vocab_size", "suites", "samples_per_problem", "limit", "seed"),
)


@dataclass(frozen=True)
class ScoreRow:
    """One suite of one evaluation; `model` is the label of the evaluated model."""

    suite: str
    evaluation: str
    model: str
    estimate: Estimate
    problems: int
    samples: int


@dataclass(frozen=True)
class Difference:
    """The change of one suite's pass rate from the first evaluated model to the last, in 0..1."""

    suite: str
    before: ScoreRow
    after: ScoreRow
    change: float
    low: float
    high: float


def evaluations(artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The evaluation artifacts, in order."""
    return {name: artifact for name, artifact in artifacts.items() if artifact.kind == EVALUATION_KIND}


def model_labels(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """Evaluation stage -> label of its model: the stage that made it, with the evaluation if there are several."""
    makers = {artifact.fingerprint: name for name, artifact in artifacts.items()}
    models = {
        name: makers.get(artifact.receipt.inputs.get("model", ""), name)
        for name, artifact in evaluations(artifacts).items()
    }
    shared = {label for label in models.values() if list(models.values()).count(label) > 1}
    return {name: f"{label} ({name})" if label in shared else label for name, label in models.items()}


def score_rows(artifacts: Mapping[str, Artifact]) -> list[ScoreRow]:
    """A row for every suite of every evaluation among `artifacts` (by stage name).

    Raises:
        ArtifactError: if a receipt lacks a value.
    """
    labels = model_labels(artifacts)
    return [
        _score_row(artifact, suite, values, evaluation=name, model=labels[name])
        for name, artifact in evaluations(artifacts).items()
        for suite, values in artifact.metrics.get("suites", {}).items()
    ]


def differences(rows: Sequence[ScoreRow], artifacts: Mapping[str, Artifact]) -> list[Difference]:
    """For each suite with at least two evaluations, the change from the first to the last on the same problems.

    None where the two have other problems, or other numbers of samples; `prism eval compare` says which.
    """
    found = []
    for suite in dict.fromkeys(row.suite for row in rows):
        same = [row for row in rows if row.suite == suite]
        if len(same) < 2:
            continue
        before, after = same[0], same[-1]
        try:
            models = {
                row.evaluation: ScoredModel.read(artifacts[row.evaluation].path) for row in (before, after)
            }
            compared = compare(models, confidence=after.estimate.confidence, suites=[suite])
        except ArtifactError:
            continue
        test = compared[0].test
        found.append(Difference(suite, before, after, change=test.change, low=test.low, high=test.high))
    return found


def validation_table(artifacts: Mapping[str, Artifact]) -> Table:
    """Final validation loss (nats per token) of every training stage, a column per source."""
    stages = {
        name: artifact.metrics["validation"]
        for name, artifact in artifacts.items()
        if isinstance(artifact.metrics.get("validation"), dict) and artifact.metrics["validation"]
    }
    sources = sorted({source for values in stages.values() for source in values})
    rows = [
        [name, *(f"{values[source]:.3f}" if source in values else DASH for source in sources)]
        for name, values in stages.items()
    ]
    return Table(["stage", *sources], rows, [False, *[True] * len(sources)])


def training_table(artifacts: Mapping[str, Artifact]) -> Table:
    """Size and speed of every training stage."""
    rows = []
    for name, artifact in artifacts.items():
        m = artifact.metrics
        if "tokens_per_second" not in m:
            continue
        mfu = DASH
        if m.get("mfu") is not None:
            mfu = f"{100 * m['mfu']:.1f} % of {m.get('peak', 'an unnamed peak')}"
        rows.append(
            [
                name,
                *(_number(m.get(key)) for key in ("parameters", "steps", "tokens", "tokens_per_second")),
                f"{m['loss']:.3f}" if m.get("loss") is not None else DASH,
                mfu,
            ]
        )
    columns = ["stage", "parameters", "steps", "tokens", "tokens/s", "last loss", "MFU"]
    return Table(columns, rows, [False, *[True] * 5, False])


def stage_table(artifacts: Mapping[str, Artifact]) -> Table:
    """A row per stage: kind, time, size, processes and the main config keys."""
    rows = [
        [
            name,
            artifact.kind,
            duration(artifact.receipt.wall_seconds),
            size(sum(output.size for output in artifact.receipt.outputs)),
            str(artifact.receipt.world_size),
            key_config(artifact.receipt.config),
            artifact.fingerprint[:12],
        ]
        for name, artifact in artifacts.items()
    ]
    columns = ["stage", "kind", "wall time", "size", "processes", "key settings", "fingerprint"]
    return Table(columns, rows, [False, False, True, True, True, False, False])


def provenance(artifacts: Mapping[str, Artifact]) -> list[tuple[str, str]]:
    """Machine, versions and dates as (name, value); if stages differ, every value with its stages."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, artifact in artifacts.items():
        facts = {**artifact.receipt.machine, **artifact.receipt.versions}
        for key, value in facts.items():
            found.setdefault(key, {}).setdefault(str(value), []).append(name)
    started = sorted(artifact.receipt.started for artifact in artifacts.values() if artifact.receipt.started)
    rows = [(key.replace("_", " "), _values(values)) for key, values in found.items()]
    if started:
        first, last = started[0], started[-1]
        rows.insert(0, ("started", first if first == last else f"{first}, last stage {last}"))
    return rows


def key_config(config: Mapping[str, Any]) -> str:
    """The keys of `KEY_CONFIG` in a config, nested ones included, as 'key=value, ...'."""
    flat: dict[str, Any] = {}
    _flatten(config, flat)
    shown = [f"{key}={_short(flat[key])}" for key in KEY_CONFIG if flat.get(key) is not None]
    return ", ".join(shown) or DASH


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes as '512 B', '1.5 KiB', '20.0 MiB'."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def _score_row(
    artifact: Artifact, suite: str, values: Mapping[str, Any], *, evaluation: str, model: str
) -> ScoreRow:
    try:
        rate, low, high, confidence = (float(values[k]) for k in ("pass_rate", "low", "high", "confidence"))
        estimate = Estimate(rate, low, high, confidence, str(values["interval"]))
        return ScoreRow(
            suite=suite,
            evaluation=evaluation,
            model=model,
            estimate=estimate,
            problems=int(values["problems"]),
            samples=int(values["samples"]),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise ArtifactError(
            f"{artifact.path}: the receipt's metrics for suite '{suite}' are not scores ({problem!r}); "
            "evaluate again"
        ) from None


def signed(rate: float) -> str:
    """A difference of rates in points with its sign, '+12.5' or '−3.0'."""
    points = f"{abs(100 * rate):.1f}"
    if points == "0.0":
        return points
    return f"{'+' if rate > 0 else MINUS}{points}"


def _number(value: Any) -> str:
    return DASH if value is None else f"{round(value):,}"


def _values(values: Mapping[str, list[str]]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({', '.join(stages)})" for value, stages in values.items())


def _flatten(config: Mapping[str, Any], into: dict[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in KEY_CONFIG:
            _flatten(value, into)
        else:
            into.setdefault(key, value)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
