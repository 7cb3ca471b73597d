"""The stage that makes problem suites of benchmarks: from the hub, from files, or generated.

Its artifact has `problems/NAME.jsonl`, as a corpus has, and `suites.json`, which says how each is sampled and where it
is from: {NAME: {group, samples, sampling, source, problems, dropped, ...}}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.shoebox.corpus import ShoeboxCorpus
from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.plan import PROBLEMS_FOLDER, SUITES
from megatron_prism.evaluation.suites.definition import BenchmarkDefinition, unique
from megatron_prism.evaluation.suites.folder import folder_definitions
from megatron_prism.evaluation.suites.hub import is_commit
from megatron_prism.evaluation.suites.problems import Found, check_count, read_problems
from megatron_prism.evaluation.suites.sources import Source, contents_hash, local_files, open_sources
from megatron_prism.evaluation.suites.yaml_definition import (
    SUFFIXES,
    load_suite_definition,
    packaged_suites,
)
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import LARGEST_COUNT, positive
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.placeholder import is_placeholder, resolved
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

log = get_logger(__name__)


@dataclass
class BenchmarkFiles(Stage):
    """No inputs. Output: `problems/BENCHMARK.jsonl`, the problems that can be graded, and `suites.json`.

    Attributes:
        suites: names of packaged suites, YAML files, or folders with a file `SUITE.jsonl` per benchmark.
        data: benchmark -> a local file with the same columns in place of its own, or a folder with its files.
        only: these benchmarks; empty: all of the suites.
        most_new_tokens: a bound on the suites' max_new_tokens, for models with few positions; None: none.
    """

    kind: ClassVar[str] = "suites"
    version: ClassVar[int] = 2  # version 1 took folders only

    suites: list[str] = field(default_factory=lambda: ["reasoning"])
    data: dict[str, str] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    most_new_tokens: int | None = None

    def __post_init__(self) -> None:
        self.suites = [resolved(suite) if _is_path(suite) else suite for suite in self.suites]
        self.data = {name: resolved(path) for name, path in self.data.items()}
        if self.most_new_tokens is not None:
            positive(self, "most_new_tokens")
        if not self.suites:
            raise ConfigError("suites=[]: name at least one suite, for example [reasoning]")
        if self.planned:
            return
        known = self._all_names()
        for key, names in (("data", self.data), ("only", self.only)):
            for name in names:
                if name not in known:
                    raise ConfigError(
                        f"{key}: '{name}' is not a benchmark of {self.suites}{suggest(name, known)}"
                    )

    @property
    def planned(self) -> bool:
        """Whether a path is only a placeholder, so that nothing can be read."""
        return any(map(is_placeholder, [*self.suites, *self.data.values()]))

    def definitions(self) -> list[BenchmarkDefinition]:
        """The benchmarks that the stage makes, in the order of their suites.

        Raises:
            ConfigError: for a fault of a suite file, or a name that two suites share.
        """
        found = [each for suite in self.suites for each in suite_benchmarks(suite)]
        unique([each.name for each in found], "suites")
        most = self.most_new_tokens or LARGEST_COUNT
        return [
            replace(each, max_new_tokens=min(each.max_new_tokens, most))
            for each in found
            if not self.only or each.name in self.only
        ]

    def identity(self) -> dict[str, Any]:
        """The definitions and the contents of local files in place of paths; the hub's data by their revision."""
        if self.planned:
            return super().identity()
        return {"benchmarks": [each.record() | {"data": self._contents(each)} for each in self.definitions()]}

    def remarks(self) -> list[str]:
        """Benchmarks whose data may change although their definition does not."""
        if self.planned:
            return []
        return [
            f"{each.name}: revision '{each.revision}' of {each.hub} may move; a commit does not"
            for each in self.definitions()
            if each.hub and each.name not in self.data and not is_commit(each.revision)
        ]

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        (out / PROBLEMS_FOLDER).mkdir()
        records = {}
        definitions = self.definitions()
        sources = open_sources(definitions, self.data)
        for definition in definitions:
            found = Found()
            source = sources.get(definition.name)
            kept = 0
            with record_writer(out / PROBLEMS_FOLDER / f"{definition.name}.jsonl") as write:
                for problem in read_problems(definition, source, found):
                    write(problem.record())
                    kept += 1
            if warning := check_count(definition, found):
                log.warning("%s", warning)
            log.info("%s: %d problems of %d rows", definition.name, kept, found.rows)
            records[definition.name] = _record(definition, source, found, kept)
        write_json(out / SUITES, records)
        dropped = {name: record["dropped"] for name, record in records.items() if record["dropped"]}
        counts = {name: record["problems"] for name, record in records.items()}
        return {"problems": counts, "dropped": dropped, "benchmarks": records}

    def _contents(self, definition: BenchmarkDefinition) -> list[str] | None:
        """Hashes of what a benchmark is made of on this machine; None for files of the hub."""
        if definition.generated:
            return [ShoeboxCorpus().fingerprint({})]
        local = local_files(definition, self.data)
        return None if local is None else [contents_hash(path) for path in local.values()]

    def _all_names(self) -> list[str]:
        return [each.name for suite in self.suites for each in suite_benchmarks(suite)]


def suite_benchmarks(suite: str) -> list[BenchmarkDefinition]:
    """The benchmarks of a packaged suite, a suite file, or a folder of suites.

    Raises:
        ConfigError: for an unknown name or a fault of the file.
    """
    if _is_path(suite) and Path(suite).suffix not in SUFFIXES:
        return folder_definitions(Path(suite))
    return list(load_suite_definition(suite).benchmarks)


def benchmark_files(
    suites: Iterable[str],
    data: Mapping[str, str] | None = None,
    only: Iterable[str] = (),
    most_new_tokens: int | None = None,
) -> BenchmarkFiles:
    """The stage for suites as the command line names them.

    Raises:
        ConfigError: for an unknown suite or benchmark.
    """
    return BenchmarkFiles(list(suites), dict(data or {}), list(only), most_new_tokens)


def _record(
    definition: BenchmarkDefinition, source: Source | None, found: Found, kept: int
) -> dict[str, Any]:
    sampling = definition.sampling()
    return {
        "group": definition.group,
        "samples": definition.samples,
        "sampling": {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": sampling.stop,
        },
        "source": {"generated": definition.generated}
        if source is None
        else source.record(definition.licence),
        "problems": kept,
        "rows": found.rows,
        "selected": found.chosen,
        "expected": definition.problems,
        "dropped": found.dropped,
        "notes": dict(found.notes),
    }


def _is_path(suite: str) -> bool:
    """Whether a suite is a file or folder rather than the name of a packaged one."""
    if is_placeholder(suite) or "/" in suite or Path(suite).suffix in SUFFIXES:
        return True
    return suite not in packaged_suites() and Path(suite).is_dir()
