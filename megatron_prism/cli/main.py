"""The entry point: registers the verbs and turns a PrismError into one line and exit code 2.

Exit codes: 0 done, 2 a user's mistake or a failed stage, 75 stopped on request (the same command goes on), 130
interrupted. A bug ends with its traceback and code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from megatron_prism import __version__
from megatron_prism.cli import (
    analyze,
    convert,
    doctor,
    eval,
    grade,
    jobs,
    merge,
    plan,
    recipes,
    report,
    ruler,
    run,
)
from megatron_prism.cli.dry_run import split_spelling
from megatron_prism.errors import REQUEUE_EXIT, USER_ERROR_EXIT, PrismError, Requeue

# Typer has its own copy of click; its UsageError is reachable as the base of BadParameter.
USAGE_ERROR: Any = typer.BadParameter.__base__
INTERRUPTED = 130

app = typer.Typer(
    help="Mid-training, restoration, RL, evaluation and analysis of language models on Megatron-Core.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("recipes")(recipes.recipes)
app.command("jobs")(jobs.jobs)
app.command("logs")(jobs.logs)
app.command("cancel")(jobs.cancel)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)
app.command("merge")(merge.merge)
app.command("grade")(grade.grade)
app.add_typer(convert.app, name="convert")
app.add_typer(ruler.app, name="ruler")
app.add_typer(eval.app, name="eval")
app.add_typer(analyze.app, name="analyze")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prism {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        given = split_spelling(sys.argv[1:] if arguments is None else arguments)
        code = app(args=given, standalone_mode=False)
    except Requeue as stopped:
        print(stopped, file=sys.stderr)
        return REQUEUE_EXIT
    except PrismError as problem:
        return _complain(str(problem))
    except USAGE_ERROR as problem:
        return _complain(f"{problem.format_message()} (see prism --help)")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    # Typer itself returns this code after Ctrl-C, without a message.
    if code == INTERRUPTED:
        print("interrupted; run the same command again to continue", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR_EXIT
