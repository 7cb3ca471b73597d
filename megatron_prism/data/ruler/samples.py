"""One sample, and folders of them: LENGTH/TASK.jsonl.zst under a `ruler.json` that says how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError

MANIFEST = "ruler.json"
SUFFIX = ".jsonl.zst"
COMPRESSION_LEVEL = 3


@dataclass(frozen=True)
class Sample:
    """One prompt and its answers.

    Attributes:
        task, length, index: who it is; `length` is the target in tokens.
        seed: of the run; with who it is, it decides the sample.
        tokens: of the prompt, as `Tokenizer.encode` gives it; tokens + max_new_tokens is at most `length`.
        max_new_tokens: room left for the answer.
        prompt: up to the first word of the answer.
        answers: strings that should be in the completion.
        metric: "recall" (share of the answers found) or "any" (one is enough, normalised).
        depths: where in the context (0 beginning, 1 end) each needle that is asked for stands.
        source: where the text comes from: a file's name, "built in", or a stand-in.
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
    """Where the samples of a task at a length lie."""
    return folder / str(length) / f"{task}{SUFFIX}"


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write one file; under its final name it is complete."""
    import zstandard

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with zstandard.open(partial, "wb", cctx=zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)) as handle:
            for sample in samples:
                handle.write(json.dumps(asdict(sample), ensure_ascii=False).encode("utf-8") + b"\n")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `ruler.json` of a folder.

    Raises:
        DataError: when it is missing or not one.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        [manifest[key] for key in ("tasks", "lengths", "samples", "seed", "tokenizer")]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; make the samples with `prism ruler make`") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise DataError(f"{path}: not a folder of RULER samples ({problem!r}); make it anew") from None
    return dict(manifest)


def read_samples(folder: Path, task: str, length: int) -> Iterator[Sample]:
    """The samples of a task at a length, in order.

    Raises:
        DataError: naming the file when it is missing, damaged or not of this format.
    """
    import zstandard

    path = sample_file(Path(folder), task, length)
    names = {field.name for field in fields(Sample)}
    try:
        with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as handle:
            for line in handle:
                record = json.loads(line)
                yield Sample(**{name: record[name] for name in names})
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; make the samples with `prism ruler make`") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zstandard.ZstdError) as problem:
        raise DataError(f"{path}: not readable as RULER samples ({problem!r}); make them anew") from None
