"""`prism ruler`: make RULER samples for a tokenizer, and score predictions that another program made from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_prism.cli.number_checks import LARGEST_INTEGER, whole_number
from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    pass

app = typer.Typer(help="RULER: long-context tasks at any length, made for a tokenizer, scored by recall.")


@app.callback()
def _quietly() -> None:
    from megatron_prism.platform.console import setup_logging

    setup_logging()


@app.command("make")
def make(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder; it appears when it is complete.")],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", metavar="DIR", help="Folder with the model's tokenizer.")
    ],
    tasks: Annotated[
        str, typer.Option("--tasks", help="Names, separated by commas; 'all' for RULER's 13.")
    ] = "all",
    lengths: Annotated[
        str, typer.Option("--lengths", help="Tokens of prompt plus answer, separated by commas.")
    ] = "8192,16384,32768,65536,131072",
    samples: Annotated[int, typer.Option("--samples", help="Samples per task and length.")] = 100,
    seed: Annotated[int, typer.Option("--seed")] = 1,
    essays: Annotated[
        Path | None,
        typer.Option("--essays", metavar="PATH", help="Haystack: text, JSON lines, Parquet, or a folder."),
    ] = None,
    squad: Annotated[
        Path | None, typer.Option("--squad", metavar="FILE", help="qa_1: JSON as SQuAD publishes it.")
    ] = None,
    hotpot: Annotated[
        Path | None, typer.Option("--hotpot", metavar="FILE", help="qa_2: JSON as HotpotQA publishes it.")
    ] = None,
    words: Annotated[
        Path | None,
        typer.Option(
            "--words",
            metavar="FILE",
            help="cwe: a text file of English words; default: the words of the essays.",
        ),
    ] = None,
    repeat_haystack: Annotated[
        bool, typer.Option("--repeat-haystack", help="Repeat essays that are shorter than a length.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", help="Processes.")] = 2,
    json_file: JsonOption = None,
) -> None:
    """Make samples of every task at every length. Missing sources are replaced by text found on this machine."""
    check_json_target(json_file)
    whole_number(samples, "--samples", least=1)
    whole_number(seed, "--seed", least=0)
    whole_number(workers, "--workers", least=1)
    from megatron_prism.data.ruler.generate import Plan
    from megatron_prism.data.ruler.sample_folder import make_folder, stated_sources
    from megatron_prism.data.ruler.sources import load_sources
    from megatron_prism.data.ruler.tasks import RULER_TASKS, named_tasks
    from megatron_prism.data.tokenizer_files import TokenizerFolder
    from megatron_prism.pipeline.output_folder import whole_folder
    from megatron_prism.platform.console import progress_bar

    names = list(RULER_TASKS) if tasks == "all" else _split(tasks)
    plan = Plan(tuple(named_tasks(names)), _lengths(lengths), samples, seed)
    # Checked before the sources are loaded, because finding text on this machine takes seconds.
    TokenizerFolder(tokenizer)
    total = len(plan.tasks) * len(plan.lengths) * plan.samples
    with whole_folder(out) as folder, progress_bar("making samples", total) as bar:
        sources = load_sources(
            plan.tasks,
            essays=essays,
            squad=squad,
            hotpot=hotpot,
            words=words,
            repeat_haystack=repeat_haystack,
        )
        manifest = make_folder(
            plan,
            tokenizer,
            sources,
            folder,
            workers=workers,
            progress=lambda finished: bar.advance(bar.task_ids[0], finished),
        )
    rows = [
        (length, sum(each["samples"] for each in files.values()), *_extremes(files))
        for length, files in manifest["files"].items()
    ]
    show_table(
        json_file, f"{len(plan.tasks)} tasks in {out}", ["length", "samples", "shortest", "longest"], rows
    )
    stand_ins = {
        task: source for task, source in stated_sources(manifest).items() if source.startswith("stand-in")
    }
    if stand_ins:
        show_line(
            json_file,
            f"tasks made from text of this machine instead of RULER's: {', '.join(stand_ins)}; "
            "set --essays, --squad and --hotpot to use RULER's",
        )
    write_result(json_file, {**manifest, "out": str(out)})


@app.command("score")
def score(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="A folder of `prism ruler make`.")],
    predictions: Annotated[
        Path,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="JSON lines with task, length, index and prediction.",
        ),
    ],
    confidence: Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")] = 0.95,
    json_file: JsonOption = None,
) -> None:
    """Score predictions that another program made from the samples; `prism eval MODEL --suite long` asks a model."""
    check_json_target(json_file)
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence {confidence}: must be between 0 and 1, for example 0.95")
    from megatron_prism.data.ruler.samples import read_manifest
    from megatron_prism.evaluation.ruler.predictions import score_file
    from megatron_prism.evaluation.ruler.scoring import summary

    read_manifest(samples)
    result = summary(score_file(samples, predictions), confidence)
    tasks = list(next(iter(result["lengths"].values()))["tasks"])
    rows = [
        (task, *(_percent(entry["tasks"][task]) for entry in result["lengths"].values())) for task in tasks
    ]
    rows.append(("mean", *(_percent(entry) for entry in result["lengths"].values())))
    title = f"RULER recall in percent, {confidence:.0%} intervals"
    show_table(json_file, title, ["task", *result["lengths"]], rows)
    write_result(json_file, result)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lengths(text: str) -> tuple[int, ...]:
    parts = _split(text)
    for part in parts:
        # Python refuses to parse numbers of thousands of digits.
        if not part.isdecimal() or len(part) > len(str(LARGEST_INTEGER)):
            raise ConfigError(f"--lengths: '{part[:40]}' is not a number of tokens; for example 8192,16384")
    return tuple(map(int, parts))


def _extremes(files: dict[str, Any]) -> tuple[int, int]:
    """Minimum and maximum number of tokens of a prompt."""
    return min(each["min_tokens"] for each in files.values()), max(
        each["max_tokens"] for each in files.values()
    )


def _percent(entry: dict[str, Any]) -> str:
    return f"{100 * entry['recall']:.1f} ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
