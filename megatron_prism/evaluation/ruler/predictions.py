"""Predictions for samples: from an engine, or from a file that another program wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.data.ruler.samples import Sample, read_manifest, read_samples
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.evaluation.ruler.scoring import Scored, score
from megatron_prism.generation.engine import Engine, SamplingParams
from megatron_prism.pipeline.json_text import read_records

# The record of a prediction holds this many characters of the end of the prompt.
PROMPT_END = 300


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a sample, and its score."""

    sample: Sample
    text: str
    recall: float

    def scored(self) -> Scored:
        return Scored(self.sample.task, self.sample.length, self.sample.index, self.recall)

    def record(self) -> dict[str, Any]:
        """One line of predictions. It has no context, because (task, length, seed, index) reproduce it."""
        sample = self.sample
        return {
            "task": sample.task,
            "length": sample.length,
            "index": sample.index,
            "seed": sample.seed,
            "tokens": sample.tokens,
            "prompt_end": sample.prompt[-PROMPT_END:],
            "answers": sample.answers,
            "depths": sample.depths,
            "source": sample.source,
            "prediction": self.text,
            "recall": self.recall,
        }


def predict(
    engine: Engine,
    samples: Sequence[Sample],
    progress: Callable[[int], None] = lambda finished: None,
    batch_size: int | None = None,
) -> list[Prediction]:
    """Greedy completions of samples of one task and length, scored.

    Args:
        batch_size: maximum number of samples decoded together; None: the engine's own maximum.

    Raises:
        RuntimeError: if the engine does not return one completion per prompt.
    """
    params = SamplingParams(max_new_tokens=samples[0].max_new_tokens, temperature=0.0)
    prompts = [sample.prompt for sample in samples]
    completions = engine.generate(prompts, params, progress=progress, batch_size=batch_size)
    if [len(row) for row in completions] != [1] * len(samples):
        raise RuntimeError("the engine did not return one completion for each of its prompts")
    return [
        Prediction(sample, row[0].text, score(sample, row[0].text))
        for sample, row in zip(samples, completions, strict=True)
    ]


def predict_all(
    engine: Engine,
    groups: Iterable[Sequence[Sample]],
    batch_tokens: int,
    progress: Callable[[int], None] = lambda finished: None,
) -> Iterator[Prediction]:
    """`predict` for samples grouped by task and length, with as many decoded together as `batch_tokens` allows."""
    for samples in groups:
        yield from predict(engine, samples, progress, batch_size(batch_tokens, samples[0].length))


def batch_size(batch_tokens: int, length: int) -> int:
    """How many samples of `length` tokens are decoded together: as many as `batch_tokens` allows, but at least one."""
    return max(1, batch_tokens // length)


def check_positions(lengths: Iterable[int], max_position_embeddings: int, model: Path) -> None:
    """Refuse lengths that exceed the positions of a model.

    Raises:
        ConfigError: naming the length, max_position_embeddings and the remedy.
    """
    for length in lengths:
        if length > max_position_embeddings:
            raise ConfigError(
                f"length {length}: {model} has max_position_embeddings={max_position_embeddings}; choose shorter "
                "lengths, or extend the model first"
            )


def score_file(samples_folder: Path, predictions: Path) -> Iterator[Scored]:
    """Scores of predictions from a file: JSON lines (also .zst) with task, length, index and prediction.

    Raises:
        DataError: for a line in the wrong form, an unknown sample, two predictions for one sample, or a missing
            prediction.
    """
    manifest = read_manifest(samples_folder)
    found: dict[tuple[str, int, int], str] = {}
    for record, where in read_records(predictions, keep_half_pairs=True):
        try:
            key = (record["task"], record["length"], record["index"])
            text = record["prediction"]
        except KeyError as problem:
            raise DataError(
                f"{where}: not an object with task, length, index and prediction (no {problem})"
            ) from None
        if not isinstance(text, str):
            raise DataError(f"{where}: 'prediction' must be text, found {type(text).__name__}")
        known = key[0] in manifest["tasks"] and key[1] in manifest["lengths"]
        if not known or key[2] not in range(manifest["samples"]):
            raise DataError(
                f"{where}: {samples_folder} has no sample task={key[0]} length={key[1]} index={key[2]}; use the folder "
                "that the prompts came from"
            )
        if key in found:
            raise DataError(
                f"{where}: a second prediction for task={key[0]} length={key[1]} index={key[2]}; keep one"
            )
        found[key] = text
    for length in manifest["lengths"]:
        for task in manifest["tasks"]:
            for sample in read_samples(samples_folder, task, length):
                key = (task, length, sample.index)
                if key not in found:
                    raise DataError(
                        f"{predictions}: no prediction for task={task} length={length} index={sample.index}; add one "
                        "for every sample"
                    )
                yield Scored(*key, score(sample, found[key]))
