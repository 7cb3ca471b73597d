"""Runs a graph for a verb: here or as jobs, or shows what would run; prints progress, scores and the report's path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.cli.output import show_line, show_table, write_result
from megatron_prism.cli.show import show_absent
from megatron_prism.errors import ArtifactError

if TYPE_CHECKING:
    from megatron_prism.pipeline.artifact import Artifact
    from megatron_prism.pipeline.graph import Graph
    from megatron_prism.pipeline.node import Located

REPORT_KIND = "report"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class RunOptions:
    """How a graph is run.

    Attributes:
        folder: the run folder.
        target: run only this stage and what it depends on.
        from_stage: run this stage and all that depend on it, even if done.
        force: run the target (or all stages) even if done.
        jobs: processes that run stages in parallel; None: the graph's own number.
        max_restarts: how often a stage that loses a process is started again.
        executor: a file that describes where each stage runs as a job; None: in this process.
        detach: submit the jobs, and do not wait for them.
        dry_run: show the stages or the jobs' scripts, and run nothing.
        show_scores: print a table of the models' scores when they change, and at the end.
        write_stages: write the stages to `json_file`; False: the caller writes a result of its own.
        json_file: the target of `--json`.
    """

    folder: Path
    target: str | None = None
    from_stage: str | None = None
    force: bool = False
    jobs: int | None = None
    max_restarts: int = 0
    executor: Path | None = None
    detach: bool = False
    dry_run: bool = False
    show_scores: bool = True
    write_stages: bool = True
    json_file: str | None = None


def run_graph(graph: Graph, name: str, options: RunOptions) -> dict[str, Artifact]:
    """Run the stages that are not done.

    Args:
        name: of the recipe.

    Returns:
        The artifacts by stage when all are done; none otherwise.
    """
    if options.executor is not None:
        return _launch(graph, name, options.executor, options)
    if options.dry_run:
        _show_plan(graph, name, options)
        return {}
    from megatron_prism.cli.run_progress import Estimate, RunProgress
    from megatron_prism.platform import stop_signals

    nodes, processes = graph.needed(options.target), options.jobs or graph.jobs
    progress = RunProgress(
        nodes,
        Estimate(nodes, processes, graph.expected_seconds),
        lambda artifacts: _show_scores(options, artifacts, "scores so far"),
    )
    with stop_signals.handled(), progress.shown(live=processes > 1):
        artifacts = graph.run(
            options.folder,
            target=options.target,
            start_from=options.from_stage,
            force=options.force,
            jobs=processes,
            max_restarts=options.max_restarts,
            observer=progress,
        )
    report = _finish(options, artifacts)
    results = [_result(stage, artifact, progress.events[stage]) for stage, artifact in artifacts.items()]
    if options.write_stages:
        write_result(
            options.json_file,
            {"recipe": name, "run_dir": str(options.folder), "stages": results, "report": report},
        )
    return artifacts


def _launch(graph: Graph, name: str, executor: Path, options: RunOptions) -> dict[str, Artifact]:
    from megatron_prism.cli.launch import launch
    from megatron_prism.pipeline.node import locate

    made = launch(
        name,
        locate(graph.needed(options.target), options.folder.resolve()),
        executor_file=executor,
        run_dir=options.folder,
        rerun=graph.stages_to_rerun(options.target, options.from_stage, options.force),
        detach=options.detach,
        dry_run=options.dry_run,
        json_file=options.json_file,
    )
    _finish(options, made)
    show_absent(graph, options.json_file)
    return made


def _show_plan(graph: Graph, name: str, options: RunOptions) -> None:
    from megatron_prism.pipeline.node import locate

    rerun = graph.stages_to_rerun(options.target, options.from_stage, options.force)
    located = locate(graph.needed(options.target), options.folder)
    rows = [_planned(each, stage in rerun) for stage, each in located.items()]
    title = f"{name} in {options.folder}"
    show_table(options.json_file, title, list(rows[0]), [list(row.values()) for row in rows])
    remarks = {stage: each.node.stage.remarks() for stage, each in located.items()}
    for stage, lines in remarks.items():
        for line in lines:
            show_line(options.json_file, f"{stage}: {line}")
    show_absent(graph, options.json_file)
    stages = [row | {"remarks": remarks[row["stage"]]} for row in rows]
    result = {"recipe": name, "run_dir": str(options.folder), "stages": stages}
    write_result(options.json_file, result | {"needs": list(graph.absent)})


def _planned(each: Located, rerun: bool) -> dict[str, str]:
    return {
        "stage": each.node.name,
        "kind": each.node.stage.kind,
        "folder": each.folder.name,
        "state": _state(each, rerun),
    }


def _state(each: Located, rerun: bool) -> str:
    from megatron_prism.pipeline.artifact import Artifact, partial_path
    from megatron_prism.pipeline.continuation import shorter_run

    if rerun and each.folder.exists():
        return "again"
    if each.folder.exists():
        try:
            Artifact.open(each.folder, kind=each.node.stage.kind)
        except ArtifactError:
            return "damaged"
        return "done"
    stage = each.node.stage
    if stage.resumable and partial_path(each.folder).exists():
        return "to resume"
    return "to do" if shorter_run(stage, each.lineage, each.folder) is None else "to prolong"


def _finish(options: RunOptions, artifacts: Mapping[str, Artifact]) -> str | None:
    """Show the scores, if there are any, and the path of the report; return that path."""
    _show_scores(options, artifacts, "scores")
    for name, artifact in artifacts.items():
        if artifact.kind == REPORT_KIND:
            page = options.folder / name / REPORT_FILE
            show_line(options.json_file, f"report: {page}")
            return str(page)
    return None


def _show_scores(options: RunOptions, artifacts: Mapping[str, Artifact], title: str) -> None:
    from megatron_prism.platform.console import results
    from megatron_prism.report.score_table import score_tables
    from megatron_prism.report.text_width import terminal_width

    if not options.show_scores:
        return
    for scores in score_tables(artifacts, results.width, terminal_width):
        show_table(options.json_file, f"{title} (%)", scores.columns, scores.rows)


def _result(name: str, artifact: Artifact, event: str) -> dict[str, Any]:
    receipt = artifact.receipt
    return {
        "stage": name,
        "kind": receipt.kind,
        "fingerprint": receipt.fingerprint,
        "folder": str(artifact.path),
        "state": event,
        "wall_seconds": receipt.wall_seconds,
        "metrics": receipt.metrics,
    }
