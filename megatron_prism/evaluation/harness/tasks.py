"""The tasks of lm-evaluation-harness by name, with their data: from the hub, from the cache, or from local files.

A task whose data is not there is an error that says what to give instead, before any model is loaded.
"""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_prism.errors import ConfigError, DataError, suggest
from megatron_prism.evaluation.harness.definitions import Benchmark
from megatron_prism.evaluation.harness.package import quiet, seeded
from megatron_prism.pipeline.file_hash import hash_file
from megatron_prism.platform.console import get_logger

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
# Files of definitions: YAML, their functions, and the templates that they include, which have no ending.
DEFINITIONS = (".yaml", ".yml", ".py", "")
# Names in the line about tasks that lack their data.
SHOWN = 4

log = get_logger(__name__)


def load_tasks(names: Sequence[str], include_path: Path | None) -> dict[str, dict[str, Any]]:
    """Name -> {name of a task: lm-eval's task}, with their documents loaded; groups become their tasks.

    Raises:
        ConfigError: for an unknown name, or a definition that lm-eval cannot use.
        DataError: if the data of a task is neither here nor to be had.
    """
    manager = _manager(names, include_path)
    found: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    # Some definitions print while they are imported.
    silence = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
    with quiet(), _offline_without_network(), silence[0], silence[1]:
        for name in names:
            try:
                with seeded():
                    found[name] = dict(manager.load([name])["tasks"])
            except (OSError, ValueError) as problem:
                if not _about_data(problem):
                    raise _unusable(name, problem) from None
                missing[name] = str(problem).splitlines()[0]
            except Exception as problem:
                # Definitions hold templates and Python functions, which fail in their own ways.
                raise _unusable(name, problem) from None
    if missing:
        raise DataError(_without_data(missing))
    return found


def check_requests(task: Any, num_fewshot: int | None, limit: int | None = None) -> None:
    """Set the number of examples in the prompt, build the requests of the first document, and look at the right answers
    of the first `limit`.

    Raises:
        ConfigError: if the definition does not fit the data, or the task runs what the model wrote.
        DataError: if no document has its right answer among its choices.
    """
    name = task.config.task
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"task '{name}' runs programs that the model wrote, without isolation; use a suite of kind 'code' instead "
            "(docs/verification.md)"
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task '{name}' needs a model that sees images or hears; choose a task of texts")
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    try:
        with quiet(), seeded():
            task.build_all_requests(limit=1)
            faulty, documents = without_answer(task, limit), len(task.eval_docs)
    except Exception as problem:
        raise _unusable(name, problem) from None
    if len(faulty) == min(limit or documents, documents):
        raise DataError(
            f"task '{name}': no document has its right answer among its choices; correct doc_to_target or doc_to_choice"
        )
    if faulty:
        log.warning(
            "task '%s': %d documents, the first of them %d, do not have their right answer among the choices; lm-eval "
            "counts them as wrong",
            *(name, len(faulty), faulty[0]),
        )


def check_nltk(benchmark: Benchmark) -> None:
    """A DataError if the metrics of a benchmark need data of nltk that is not there."""
    import nltk

    if benchmark.nltk is not None:
        try:
            nltk.data.find(benchmark.nltk)
        except LookupError:
            name = benchmark.nltk.rpartition("/")[2]
            raise DataError(
                f"{benchmark.name}: nltk's data '{name}' is missing; run 'python -m nltk.downloader {name}' on a "
                "machine with a network, and set NLTK_DATA to the folder"
            ) from None


def without_answer(task: Any, limit: int | None) -> list[int]:
    """The documents of a plain multiple-choice task, among the first `limit`, whose right answer is no choice."""
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results) or task.multiple_input:
        return []
    faulty = []
    for number, document in zip(range(limit or sys.maxsize), task.eval_docs, strict=False):
        choices, target = task.doc_to_choice(document), task.doc_to_target(document)
        known = [
            right in (range(len(choices)) if isinstance(right, int) else choices)
            for right in (target if isinstance(target, list) else [target])
        ]
        if not all(known):
            faulty.append(number)
    return faulty


def source(task: Any) -> dict[str, Any]:
    """Where a task's documents come from, for the record: path, config, and revision or hashes of local files."""
    config = task.config
    files = _data_files(config.dataset_kwargs)
    record = {
        "path": config.dataset_path,
        "name": config.dataset_name,
        "files": {file: hash_file(Path(file)) for file in files if Path(file).is_file()} or None,
        "revision": None if files else _revision(task.dataset),
        "documents": len(task.eval_docs),
    }
    return {key: value for key, value in record.items() if value is not None}


def definition_hashes(include_path: Path) -> dict[str, str]:
    """Path -> sha256 of every definition in a folder, and of the data files that they name."""
    if not include_path.is_dir():
        raise ConfigError(
            f"include_path={include_path}: no such folder; give one with task definitions (*.yaml)"
        )
    paths = (path for path in include_path.rglob("*") if path.suffix in DEFINITIONS and path.is_file())
    hashes = {}
    for path in sorted(paths):
        hashes[str(path.relative_to(include_path))] = hash_file(path)
        for named in _data_files(_plain_yaml(path).get("dataset_kwargs")):
            if Path(named).is_file():
                hashes[named] = hash_file(Path(named))
    return hashes


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            # lm-eval's own fifteen thousand definitions take five seconds to read.
            return own
    everything = TaskManager(include_path=None if include_path is None else str(include_path))
    known = everything.all_tasks
    for name in names:
        if name not in known:
            raise ConfigError(f"task '{name}': neither in lm-eval nor in include_path{suggest(name, known)}")
    return everything


def _about_data(problem: Exception) -> bool:
    """Whether `datasets` could not get the documents, not whether a definition is wrong."""
    from datasets.exceptions import DatasetNotFoundError

    text = str(problem)
    return (
        isinstance(problem, FileNotFoundError | ConnectionError | DatasetNotFoundError)
        or "on the Hub" in text
        or "offline" in text.lower()
        or "Cannot find data file" in text
    )


def _without_data(missing: Mapping[str, str]) -> str:
    names = list(missing)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"task {', '.join(names[:SHOWN])}{more}: no data ({missing[names[0]]}); give HF_DATASETS_CACHE a folder in "
        "which another machine has loaded the dataset, or include_path a folder with a YAML of the same task name, "
        "'dataset_path: json' and 'dataset_kwargs: {data_files: FILE.jsonl}' (docs/harness.md)"
    )


def _unusable(name: str, problem: Exception) -> ConfigError:
    what = str(problem).strip().splitlines() or [""]
    return ConfigError(
        f"task '{name}': lm-eval cannot use its definition or data ({type(problem).__name__}: {what[0]}); correct its "
        "YAML or the data that it names"
    )


@contextmanager
def _offline_without_network() -> Iterator[None]:
    """If the hub's name cannot be resolved, only the cache is read: otherwise each dataset waits 20 s in vain."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not any(map(os.environ.get, PROXIES)):
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _revision(dataset: Any) -> str | None:
    """The hub's commit, which names the folder of the cached files."""
    for split in dataset.values():
        for file in split.cache_files:
            return Path(file["filename"]).parent.name
    return None


def _data_files(options: Any) -> list[str]:
    """The local files that `dataset_kwargs` names."""
    named = options.get("data_files") if isinstance(options, Mapping) else None
    values = named.values() if isinstance(named, Mapping) else [named]
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return [each for each in flat if isinstance(each, str)]


def _plain_yaml(path: Path) -> dict[str, Any]:
    """A definition without its functions (`!function`); an unreadable one is lm-eval's to refuse."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        # SafeLoader, which ignores unknown tags.
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    return data if isinstance(data, dict) else {}
