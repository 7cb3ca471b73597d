"""Samples and folders of samples: LENGTH/TASK.jsonl.zst, and a `ruler.json` that describes how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError, suggest
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.json_text import read_object, read_records

MANIFEST = "ruler.json"
SUFFIX = ".jsonl.zst"
METRICS = ("recall", "any")
# For each key: whether the value is a list, and the type of the value or of the list's elements.
TEXT, WHOLE, NUMBER = (str,), (int,), (int, float)
NAMES: Mapping[tuple[type, ...], str] = {TEXT: "text", WHOLE: "a whole number", NUMBER: "a number"}
Types = Mapping[str, tuple[bool, tuple[type, ...]]]
MANIFEST_TYPES: Types = {
    "tasks": (True, TEXT),
    "lengths": (True, WHOLE),
    "samples": (False, WHOLE),
    "seed": (False, WHOLE),
    "tokenizer": (False, TEXT),
}
SAMPLE_TYPES: Types = {
    **{key: (False, TEXT) for key in ("task", "prompt", "metric", "source")},
    **{key: (False, WHOLE) for key in ("length", "index", "seed", "tokens", "max_new_tokens")},
    "answers": (True, TEXT),
    "depths": (True, NUMBER),
}


@dataclass(frozen=True)
class Sample:
    """One prompt and its answers.

    Attributes:
        task, length, index: identify the sample; `length` is the target in tokens.
        seed: seed of the run; with task, length and index it determines the sample.
        tokens: tokens of the prompt by `Tokenizer.encode`; tokens + max_new_tokens is at most `length`.
        max_new_tokens: room for the answer.
        prompt: the text up to the first word of the answer.
        answers: strings that the completion should contain.
        metric: "recall" (share of the answers found) or "any" (one is enough, after normalisation).
        depths: position of each queried needle in the context, from 0 (beginning) to 1 (end).
        source: origin of the text: the name of a file, "built in", or a stand-in.
    """

    task: str
    length: int
    index: int
    seed: int
    tokens: int
    max_new_tokens: int
    prompt: str
    answers: list[str]
    metric: str
    depths: list[float]
    source: str


def sample_file(folder: Path, task: str, length: int) -> Path:
    """The file with the samples of a task at a length."""
    return folder / str(length) / f"{task}{SUFFIX}"


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write one file, which has its final name only when it is complete."""
    with record_writer(path) as write:
        for sample in samples:
            write(asdict(sample))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `ruler.json` of a folder.

    Raises:
        DataError: if it is missing or in the wrong form.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise DataError(f"{path}: no such file; make the samples with `prism ruler make`")
    try:
        manifest = read_object(path)
        for key in MANIFEST_TYPES:
            _checked(manifest, key, str(path), MANIFEST_TYPES)
    except DataError as problem:
        raise DataError(
            f"{problem}; not a folder of RULER samples; make it again with `prism ruler make`"
        ) from None
    return manifest


def read_samples(folder: Path, task: str, length: int) -> Iterator[Sample]:
    """The samples of a task at a length, in order.

    Raises:
        DataError: if the file is missing, damaged or in the wrong form.
    """
    path = sample_file(Path(folder), task, length)
    if not path.exists():
        raise DataError(f"{path}: no such file; make the samples with `prism ruler make`")
    try:
        for record, where in read_records(path):
            sample = Sample(**{name: _checked(record, name, where, SAMPLE_TYPES) for name in SAMPLE_TYPES})
            if sample.metric not in METRICS:
                raise DataError(f"{where}: metric '{sample.metric}'{suggest(sample.metric, METRICS)}")
            if (sample.task, sample.length) != (task, length):
                raise DataError(
                    f"{where}: the sample belongs to task '{sample.task}' at length {sample.length}"
                )
            yield sample
    except DataError as problem:
        raise DataError(
            f"{problem}; not readable RULER samples; make them again with `prism ruler make`"
        ) from None


def _checked(record: Mapping[str, Any], key: str, where: str, types: Types) -> Any:
    """The value of a key, after checking its type."""
    if key not in record:
        raise DataError(f"{where}: key '{key}' is missing")
    listed, wanted = types[key]
    value = record[key]
    elements = value if listed and isinstance(value, list) else [value]
    if listed is isinstance(value, list) and all(
        isinstance(each, wanted) and not isinstance(each, bool) for each in elements
    ):
        return value
    raise DataError(
        f"{where}: '{key}' must be {'a list of ' * listed}{NAMES[wanted]}, found {json.dumps(value)[:40]}"
    )
