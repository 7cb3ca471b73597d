"""`prism run RECIPE[:STAGE] ... --dry-run=deep`: the real code of every stage in shapes only, on any machine.

Stages that train are built for the ranks that differ, or those of `--ranks`, and take a step without numbers. Of the
others, configs and inputs are checked. Folders that the recipe would read need not exist.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from megatron_prism.cli.output import show_line, show_table, write_result
from megatron_prism.cli.show import show_absent
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.pipeline.graph import Graph
    from megatron_prism.pipeline.node import Node
    from megatron_prism.training.dry_step import RankReport

FAILED = 2
PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "working", "cache", "total")
# The planner's number is marked if it differs by more.
TOLERANCE = 0.1
GB = 1e9


@dataclass
class StageReport:
    """What the dry run found about one stage.

    Attributes:
        same_as: an earlier stage whose ranks do exactly the same.
        lines: what was replaced or counted.
        problems: one line each.
    """

    stage: str
    kind: str
    same_as: str = ""
    lines: list[str] = field(default_factory=list)
    ranks: list[RankReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def split_spelling(arguments: Sequence[str]) -> list[str]:
    """`--dry-run=deep` as the option that Typer knows; a flag of its own cannot take a value.

    Raises:
        ConfigError: for another value.
    """
    given = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--dry-run" and equals:
            if value != "deep":
                raise ConfigError(f"{argument}: use --dry-run, or --dry-run=deep")
            argument = "--dry-run-deep"
        given.append(argument)
    return given


def deep_dry_run(graph: Graph, target: str | None, *, ranks: str | None, json_file: str | None) -> None:
    """Check all stages up to `target`, print what was found, and exit with 2 if a stage would fail."""
    reports = list(_reports(graph, graph.needed(target), _numbers(ranks)))
    _show(json_file, graph.name, reports)
    show_absent(graph, json_file)
    write_result(json_file, {"recipe": graph.name, "stages": [asdict(each) for each in reports]})
    if any(each.problems for each in reports):
        raise typer.Exit(FAILED)


def _numbers(ranks: str | None) -> list[int] | None:
    try:
        return None if ranks is None else [int(each) for each in ranks.split(",")]
    except ValueError:
        raise ConfigError(f"--ranks {ranks}: must be numbers of ranks, such as 0,5,127") from None


def _reports(graph: Graph, nodes: Sequence[Node], chosen: list[int] | None) -> Iterator[StageReport]:
    from megatron_prism.cli.dry_run_checks import check_stage
    from megatron_prism.platform.console import get_logger
    from megatron_prism.training.dry_errors import one_line

    log, known = get_logger(__name__), dict[str, StageReport]()
    # Megatron warns about every library that is not here.
    warnings.simplefilter("ignore")
    for node in nodes:
        report = StageReport(node.name, node.stage.kind)
        try:
            report.lines += check_stage(graph, node)
        except Exception as problem:
            report.problems.append(one_line(problem))
        _dry_run_ranks(node.stage, report, chosen, known)
        for each in report.ranks:
            log.info("%s: rank %d of %d: %.1f s", node.name, each.rank, each.world_size, each.seconds)
        yield report


def _dry_run_ranks(
    stage: Any, report: StageReport, chosen: list[int] | None, known: dict[str, StageReport]
) -> None:
    """Add the ranks of a stage that trains to its report."""
    from megatron_prism.rl import dry_run as rl
    from megatron_prism.rl.stage import Reinforce
    from megatron_prism.training import dry_run as training
    from megatron_prism.training.dry_errors import one_line
    from megatron_prism.training.dry_exchanges import disagreements
    from megatron_prism.training.stage import Train

    module: Any = training if isinstance(stage, Train) else rl if isinstance(stage, Reinforce) else None
    if module is None:
        return
    if (same := known.setdefault(repr(stage), report)) is not report:
        report.same_as, report.problems = same.stage, report.problems + same.problems
        return
    config, lines = module.buildable(stage)
    report.lines += lines
    for rank in module.ranks_of(config) if chosen is None else chosen:
        if not 0 <= rank < stage.world_size:
            report.problems.append(
                f"--ranks {rank}: the stage has the ranks 0 to {stage.world_size - 1}; choose one of them"
            )
            continue
        try:
            report.ranks.append(module.dry_run_rank(config, rank))
        except Exception as problem:
            report.problems.append(f"rank {rank} of {stage.world_size}: {one_line(problem)}")
    if not report.problems:
        report.problems += disagreements(report.ranks, module.trained(config), config.layout)


def _show(json_file: str | None, name: str, reports: Sequence[StageReport]) -> None:
    rows = [row for report in reports for row in _rows(report)]
    columns = ["stage", "rank", "pipeline", "parameters", *PARTS, "seconds", "result"]
    show_table(json_file, f"{name}: one step in shapes; GB (and share of the planner's)", columns, rows)
    for report in reports:
        for line in report.lines:
            show_line(json_file, f"{report.stage}: {line}")
    if any("!" in str(cell) for row in rows for cell in row):
        show_line(json_file, f"!: differs from the planner by more than {TOLERANCE:.0%}")
    for report in reports:
        for problem in report.problems:
            show_line(json_file, f"error: stage '{report.stage}': {problem}")


def _rows(report: StageReport) -> list[list[str]]:
    blank = ["-"] * (len(PARTS) + 1)
    result = "failed" if report.problems else f"as {report.same_as}" if report.same_as else "ok"
    if not report.ranks:
        return [[report.stage, "-", "-", *blank, "-", result]]
    return [
        [
            report.stage,
            f"{each.rank} of {each.world_size}",
            str(each.pipeline_stage),
            f"{each.parameters:,}",
            *(_cell(each.counted, each.planned, part) for part in PARTS),
            f"{each.seconds:.1f}",
            result,
        ]
        for each in report.ranks
    ]


def _cell(counted: Mapping[str, float], planned: Mapping[str, float], part: str) -> str:
    """'12.3 (0.98)': gigabytes, and what they are of the planner's."""
    size, plan = counted[part], planned.get(part, 0.0)
    if not size and not plan:
        return "-"
    if not plan:
        return f"{size / GB:.2f}!"
    ratio = size / plan
    return f"{size / GB:.2f} ({ratio:.2f}{'!' if abs(ratio - 1) > TOLERANCE else ''})"
