"""What a suite file says: benchmarks, with where their data are, how they are asked, sampled and graded.

The files are read by yaml_definition.py, which also checks each key; what several keys must satisfy together is checked
here, when a definition is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.plan import DOMAIN, GENERAL, LONG
from megatron_prism.evaluation.suites.prompt_template import placeholders
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.verification.benchmarks import BENCHMARKS

GROUPS = (DOMAIN, GENERAL, LONG)
DOMAINS = {"math": "math", "choice": "science", "short": "science", "code": "code"}
# How rows become problems, see readers.py.
ROWS, LIVECODEBENCH, CODEFORCES = "rows", "livecodebench", "codeforces"
# The file is a suite of problems already (verification/problems.py), with prompts, kinds and tests of its own.
PROBLEMS = "problems"
READERS = (ROWS, LIVECODEBENCH, CODEFORCES, PROBLEMS)
SAME_FOR_ALL, BY_ID = "same_for_all", "by_id"
ORDERS = (SAME_FOR_ALL, BY_ID)
# Problems that this package makes: `generated: shoebox/math`.
GENERATED = ("shoebox/math", "shoebox/science", "shoebox/code")


@dataclass(frozen=True)
class Choices:
    """Options of a choice problem from columns of their own, in a shuffled order.

    Attributes:
        right: column with the right option.
        wrong: columns with the others.
        order: "same_for_all": the shuffle starts anew for every problem, so the right option always has the same
            letter; "by_id": each problem has an order of its own, which follows from its id.
        seed: of the shuffle, `random.Random(seed).shuffle([right, *wrong])`.
    """

    right: str
    wrong: tuple[str, ...]
    order: str = BY_ID
    seed: int = 0


@dataclass(frozen=True)
class BenchmarkDefinition:
    """One benchmark of a suite; docs/benchmarks.md describes the keys.

    Attributes:
        name: of the suite of problems that is made of it.
        kind: how answers are graded: "math", "choice", "short" or "code".
        prompts: value of column `prompt_by` -> template of the text that is sent; with one template its key is "".
        group: what its score stands for: "domain", "general" or "long".
        hub: id of a data set on the Hugging Face hub, with `revision` and the `files` inside it.
        files: paths inside the hub's repository; without `hub`, absolute paths on this machine.
        generated: a suite of problems that this package makes, in place of files.
        columns: our name of a column -> its name in the files.
        where: column -> the condition that a row must satisfy (filters.py).
        limit: number of problems to keep, by the hash of their ids; None: all.
        rules: name of the benchmark whose rules apply (verification/benchmarks.py), or empty.
        problems: how many rows are expected after `where`; None: any number.
        where_written: FILE:LINE of the definition, for error messages.
    """

    name: str
    kind: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    prompt_by: str = ""
    group: str = "domain"
    domain: str = ""
    hub: str = ""
    revision: str = "main"
    files: tuple[str, ...] = ()
    generated: str = ""
    licence: str = ""
    reader: str = ROWS
    columns: dict[str, str] = field(default_factory=dict)
    where: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    choices: Choices | None = None
    rules: str = ""
    stop: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    problems: int | None = None
    where_written: str = field(default="", compare=False)

    @property
    def ready(self) -> bool:
        """Whether its problems have prompts, kinds and rules of their own."""
        return bool(self.generated) or self.reader == PROBLEMS

    def sampling(self, seed: int = 0) -> SamplingParams:
        """How its answers are sampled."""
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p, list(self.stop), seed)

    def record(self) -> dict[str, Any]:
        """The definition as JSON-ready data without the places of files, for a stage's fingerprint."""
        fields = asdict(self)
        del fields["where_written"]
        if not self.hub:
            del fields["files"]
        return fields


@dataclass(frozen=True)
class SuiteDefinition:
    """A suite: its name and its benchmarks."""

    name: str
    benchmarks: tuple[BenchmarkDefinition, ...]
    description: str = ""


Lines = Callable[[str], str]


def check(definition: BenchmarkDefinition, place: Lines) -> None:
    """Refuse a benchmark whose keys contradict each other.

    Args:
        place: key -> FILE:LINE of the key, or of the benchmark if the key is absent.

    Raises:
        ConfigError: naming the line, the key and the remedy.
    """
    who = f"benchmark '{definition.name}'"
    _check_source(definition, place, who)
    if definition.ready:
        _check_ready(definition, place, who)
    else:
        _check_asked(definition, place, who)
    if definition.samples > 1 and definition.temperature == 0:
        raise ConfigError(
            f"{place('samples')}: {who}: samples: {definition.samples} at temperature 0 would all be equal; "
            "set temperature, or samples: 1"
        )
    try:
        definition.sampling()
    except ConfigError as problem:
        raise ConfigError(f"{place(str(problem).partition('=')[0])}: {who}: {problem}") from None


def _check_asked(definition: BenchmarkDefinition, place: Lines, who: str) -> None:
    if not definition.kind:
        raise ConfigError(f"{place('kind')}: {who} has no 'kind'; {_listed(DOMAINS)}")
    if not definition.prompts:
        raise ConfigError(
            f"{place('prompt')}: {who} has no 'prompt': the text that is sent, with {{question}} for a column"
        )
    if definition.prompt_by and set(definition.prompts) == {""}:
        raise ConfigError(
            f"{place('prompt_by')}: {who} has prompt_by, but one prompt; give one per value, prompt: {{VALUE: TEXT}}"
        )
    if not definition.prompt_by and set(definition.prompts) != {""}:
        raise ConfigError(
            f"{place('prompt')}: {who} has several prompts; name the column that chooses with prompt_by"
        )
    for text in definition.prompts.values():
        if not placeholders(text):
            raise ConfigError(
                f"{place('prompt')}: the prompt of {who} names no column, so that all problems would be the same; "
                "write {question} for the column 'question'"
            )
    if definition.rules:
        rules = BENCHMARKS.get(definition.rules)
        if rules is None:
            raise ConfigError(
                f"{place('rules')}: {who}: there are no rules '{definition.rules}'"
                f"{suggest(definition.rules, BENCHMARKS)}"
            )
        if rules.kind != definition.kind:
            raise ConfigError(
                f"{place('rules')}: {who}: rules '{definition.rules}' are for kind '{rules.kind}', not "
                f"'{definition.kind}'"
            )
    if definition.choices and definition.kind != "choice":
        raise ConfigError(f"{place('choices')}: {who}: choices need kind: choice, not '{definition.kind}'")
    if definition.reader != ROWS and definition.kind != "code":
        raise ConfigError(f"{place('reader')}: {who}: reader '{definition.reader}' needs kind: code")


def _check_source(definition: BenchmarkDefinition, place: Lines, who: str) -> None:
    given = [key for key in ("hub", "generated") if getattr(definition, key)]
    if not definition.hub and definition.files:
        given.append("file")
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no data"
        raise ConfigError(
            f"{place('name')}: {who} {found}; give one of file: PATH, hub: ID with files: [PATH], or "
            f"generated: {GENERATED[0]}"
        )
    if definition.hub and not definition.files:
        raise ConfigError(f"{place('hub')}: {who} has hub, but no files: [PATH inside the repository]")


def _check_ready(definition: BenchmarkDefinition, place: Lines, who: str) -> None:
    for key in ("kind", "prompts", "rules", "choices", "columns", "where"):
        if getattr(definition, key):
            shown = "prompt" if key == "prompts" else key
            raise ConfigError(
                f"{place(shown)}: {who}: its problems are ready, with a {shown} of their own; remove the key"
            )
    if len(definition.files) > 1:
        raise ConfigError(
            f"{place('files')}: {who}: reader '{PROBLEMS}' takes one file; join them, or make two benchmarks"
        )


def unique(names: Iterable[str], what: str) -> None:
    """Raise a ConfigError if a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{what}: benchmark '{name}' occurs twice; give each a name of its own")
        seen.add(name)


def _listed(values: Iterable[str]) -> str:
    return "one of " + ", ".join(values)
