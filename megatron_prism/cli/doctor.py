"""`prism doctor`: the hardware, packages, programs, folders and services of this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_table, write_result

UNHEALTHY = 1

RunDirOption = Annotated[
    Path, typer.Option("--run-dir", help="The folder of the runs, whose file system is tried.")
]
HealthOption = Annotated[
    bool,
    typer.Option("--health", help="Only what every run needs; exit code 1 if it is missing (HEALTHCHECK)."),
]


def doctor(
    run_dir: RunDirOption = Path("runs"), health: HealthOption = False, json_file: JsonOption = None
) -> None:
    """Show what this machine has, what each thing is needed for, and what to do where it is missing."""
    check_json_target(json_file)
    if health:
        _health(run_dir, json_file)
        return
    from rich.markup import escape

    from megatron_prism.platform.check import Check
    from megatron_prism.platform.doctor import diagnose
    from megatron_prism.verification.sandbox.bubblewrap import bubblewrap_version
    from megatron_prism.verification.sandbox.isolation import sandbox_problem

    problem = sandbox_problem()
    found = f"bubblewrap {bubblewrap_version()}, tested with a program" if problem is None else problem
    unlocks = "grading programs in isolation; without it only with sandbox=weak"
    checks = [*diagnose(run_dir), Check("sandbox", problem is None, found, unlocks)]
    rows = [
        ("yes" if check.found else "no", check.name, escape(check.detail), escape(check.unlocks))
        for check in checks
    ]
    show_table(json_file, "this machine", ["found", "what", "details", "needed for"], rows)
    missing = [(check.name, escape(check.remedy)) for check in checks if not check.found and check.remedy]
    show_table(json_file, "what to do where something that you need is missing", ["what", "remedy"], missing)
    write_result(json_file, [asdict(check) for check in checks])


def _health(run_dir: Path, json_file: str | None) -> None:
    from megatron_prism.platform.doctor import vital_problems

    problems = vital_problems(run_dir)
    write_result(json_file, [asdict(check) for check in problems])
    for check in problems:
        typer.echo(f"unhealthy: {check.name}: {check.detail}. {check.remedy}", err=True)
    if problems:
        raise typer.Exit(UNHEALTHY)
