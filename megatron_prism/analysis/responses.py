"""The responses that an evaluation kept, reduced to what the study of confidence needs: one number for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.answers import answer_batches
from megatron_prism.evaluation.generations import FOLDER, REFUSED, read_identity
from megatron_prism.evaluation.scores import SCORES
from megatron_prism.pipeline.json_text import read_object

COLUMNS = ("id", "sample", "correct", "token_ids", "logprobs", "finish_reason")
# What the log-probabilities of each engine are (Completion.logprobs; vLLM is opened with logprobs_mode=raw_logprobs).
RAW = "raw: the model's own distribution, before temperature and nucleus"
SERVER = "the server's: raw for vLLM with its defaults, else see the server's documentation"
UNKNOWN = "not recorded: the evaluation does not name its engine"
DISTRIBUTIONS = {"megatron": RAW, "hf": RAW, "vllm": RAW, "openai": SERVER}


@dataclass(frozen=True)
class Responses:
    """All responses of one model to one suite, in the order of problems and samples; arrays are `[responses]`.

    Attributes:
        ids: of the problems.
        samples: the number of each among the responses to its problem.
        clusters: the number of its problem, from 0.
        correct: its verdict; a refused one is not correct.
        refused: whether the engine could not make it, because of the prompt; it then has no tokens.
        tokens: its length, with the end token.
        truncated: whether it reached the maximum length.
        mean_nlp: the mean of -ln p over its tokens; NaN without tokens.
    """

    ids: list[str]
    samples: NDArray[np.int64]
    clusters: NDArray[np.int64]
    correct: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    mean_nlp: NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """How the responses of an evaluation were made: the engine, and the sampling of each suite, as far as recorded."""

    engine: str | None
    sampling: Mapping[str, Mapping[str, Any]]

    @property
    def distribution(self) -> str:
        """Of which distribution its log-probabilities are."""
        return DISTRIBUTIONS.get(self.engine or "", UNKNOWN)


def read_source(folder: Path) -> Source:
    """The source of an evaluation's responses; its files may be missing, then nothing is known."""
    recorded = read_identity(folder) or {}
    sampling = recorded.get("suites", {})
    engine = recorded.get("from", {}).get("engine", {}).get("name")
    if engine is None and (folder / SCORES).is_file():
        engine = read_object(folder / SCORES, ArtifactError).get("engine")
    return Source(engine, sampling)


def read_responses(folder: Path, suite: str) -> Responses:
    """The responses to one suite. Memory holds the tokens of a few hundred of them at a time.

    Raises:
        ArtifactError: naming the file, if there are no log-probabilities, or they are not finite numbers.
    """
    ids: list[str] = []
    columns: dict[str, list[NDArray[Any]]] = {}
    for _, batch in answer_batches(folder, suite, COLUMNS):
        ids += batch["id"].to_pylist()
        reasons = batch["finish_reason"].to_pylist()
        counts = _lengths(batch["token_ids"])
        found = {
            "samples": batch["sample"].to_numpy(zero_copy_only=False),
            "correct": batch["correct"].to_numpy(zero_copy_only=False).astype(bool),
            "refused": np.array([reason == REFUSED for reason in reasons]),
            "truncated": np.array([reason == "length" for reason in reasons]),
            "tokens": counts,
            "mean_nlp": _mean_nlp(folder / FOLDER / f"{suite}.parquet", suite, batch, counts),
        }
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    if not ids:
        raise ArtifactError(f"{folder / FOLDER / suite}.parquet: has no answers; evaluate again")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Responses(ids=ids, clusters=np.array([numbers[each] for each in ids]), **joined)


def _lengths(column: Any) -> NDArray[np.int64]:
    from pyarrow import compute

    lengths = compute.fill_null(compute.list_value_length(column), 0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)


def _mean_nlp(file: Path, suite: str, batch: Any, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """-1 / n times the sum of the log-probabilities of each response, in fp64."""
    counts = _lengths(batch["logprobs"])
    if (wrong := np.flatnonzero(counts != tokens)).size:
        row = int(wrong[0])
        what = "no" if counts[row] == 0 else f"{counts[row]}"
        raise ArtifactError(
            f"{file}: suite '{suite}' has {what} log-probabilities for the {tokens[row]} tokens of sample "
            f"{batch['sample'][row]} of '{batch['id'][row]}'; evaluate with an engine that records them (an 'openai' "
            "engine needs logprobs: true)"
        )
    values = np.asarray(batch["logprobs"].flatten().to_numpy(zero_copy_only=False), np.float64)
    owners = np.repeat(np.arange(len(counts)), counts)
    if not np.isfinite(values).all():
        row = int(owners[np.flatnonzero(~np.isfinite(values))[0]])
        raise ArtifactError(
            f"{file}: suite '{suite}' has a log-probability that is not a finite number, in sample "
            f"{batch['sample'][row]} of '{batch['id'][row]}'; evaluate again"
        )
    sums = np.bincount(owners, values, len(counts))
    return np.divide(-sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
