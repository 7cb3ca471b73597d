"""`prism ruler`: make RULER's samples for a tokenizer, and score a checkpoint or predictions made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_prism.cli.folder_checks import check_models
from megatron_prism.cli.number_checks import LARGEST_INTEGER, whole_number
from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError
from megatron_prism.models.model_folder import ARCHITECTURE, CONFIG, HF_FILES

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
    tasks: Annotated[str, typer.Option("--tasks", help="Names with commas; 'all' are RULER's 13.")] = "all",
    lengths: Annotated[
        str, typer.Option("--lengths", help="Tokens of prompt and answer, with commas.")
    ] = "8192,16384,32768,65536,131072",
    samples: Annotated[int, typer.Option("--samples", help="Per task and length.")] = 100,
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
            "--words", metavar="FILE", help="cwe: a text file of English words; default: the essays'."
        ),
    ] = None,
    repeat_haystack: Annotated[
        bool, typer.Option("--repeat-haystack", help="Let essays shorter than a length begin again.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", help="Processes.")] = 2,
    json_file: JsonOption = None,
) -> None:
    """Make samples of every task at every length; text that no option names comes from this machine, and says so."""
    check_json_target(json_file)
    whole_number(samples, "--samples", least=1)
    whole_number(seed, "--seed", least=0)
    whole_number(workers, "--workers", least=1)
    from megatron_prism.data.ruler.generate import Plan, make_folder, stated_sources
    from megatron_prism.data.ruler.sources import load_sources
    from megatron_prism.data.ruler.tasks import RULER_TASKS, named_tasks
    from megatron_prism.data.tokenizer_files import TokenizerFolder
    from megatron_prism.pipeline.output_folder import whole_folder
    from megatron_prism.platform.console import progress_bar

    names = list(RULER_TASKS) if tasks == "all" else _split(tasks)
    plan = Plan(tuple(named_tasks(names)), _lengths(lengths), samples, seed)
    # Opened before the sources are: to find text on this machine takes seconds.
    TokenizerFolder(tokenizer)
    total = len(plan.tasks) * len(plan.lengths) * plan.samples
    with whole_folder(out) as folder, progress_bar("making samples", total) as bar:
        sources = load_sources(plan.tasks, essays, squad, hotpot, words, repeat_haystack)
        manifest = make_folder(
            *(plan, tokenizer, sources, folder, workers),
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
            f"stand-in text of this machine, not RULER's: {', '.join(stand_ins)}; name --essays, --squad and --hotpot",
        )
    write_result(json_file, {**manifest, "out": str(out)})


@app.command("score")
def score(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="A folder of `prism ruler make`.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="DIR", help="A Megatron folder to ask, with its tokenizer in hf/."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="JSON lines with task, length, index and prediction, from any engine.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="DIR", help="Default: the checkpoint's hf/.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", help="Most tokens decoded together.")
    ] = 65536,
    confidence: Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")] = 0.95,
    json_file: JsonOption = None,
) -> None:
    """Score a checkpoint (asked here) or predictions (made elsewhere) on samples."""
    check_json_target(json_file)
    if (checkpoint is None) == (predictions is None):
        raise ConfigError("prism ruler score: give either --checkpoint DIR or --predictions FILE")
    whole_number(batch_tokens, "--batch-tokens", least=1)
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence {confidence}: must lie between 0 and 1, for example 0.95")
    from megatron_prism.data.ruler.samples import read_manifest

    read_manifest(samples)
    if checkpoint is not None and not (checkpoint / CONFIG).is_file():
        check_models(checkpoint, hugging_face=False)
    from megatron_prism.evaluation.ruler.predictions import score_file
    from megatron_prism.evaluation.ruler.scoring import summary

    if predictions is not None:
        scored = list(score_file(samples, predictions))
    else:
        assert checkpoint is not None
        scored = _asked(samples, checkpoint, tokenizer, batch_tokens)
    result = summary(scored, confidence)
    tasks = list(next(iter(result["lengths"].values()))["tasks"])
    rows = [
        (task, *(_percent(entry["tasks"][task]) for entry in result["lengths"].values())) for task in tasks
    ]
    rows.append(("mean", *(_percent(entry) for entry in result["lengths"].values())))
    title = f"RULER recall in percent, {confidence:.0%} intervals"
    show_table(json_file, title, ["task", *result["lengths"]], rows)
    write_result(json_file, result)


def _asked(samples: Path, checkpoint: Path, tokenizer: Path | None, batch_tokens: int) -> list[Any]:
    from megatron_prism.data.ruler.samples import read_manifest, read_samples
    from megatron_prism.data.tokenizer import Tokenizer
    from megatron_prism.evaluation.ruler.predictions import check_positions, predict_all
    from megatron_prism.generation.megatron_engine import MegatronEngine
    from megatron_prism.models.architecture import Architecture
    from megatron_prism.platform.console import progress_bar

    if (checkpoint / CONFIG).is_file():
        raise ConfigError(
            f"{checkpoint}: a Hugging Face folder; make a Megatron folder of it first: prism convert import"
        )
    manifest = read_manifest(samples)
    architecture = Architecture.load(checkpoint / ARCHITECTURE)
    check_positions(manifest["lengths"], architecture.max_position_embeddings, checkpoint)
    folder = tokenizer or checkpoint / HF_FILES
    if tokenizer is None and not folder.is_dir():
        raise ConfigError(f"{checkpoint}: no tokenizer came with this model; name one with --tokenizer DIR")
    if Tokenizer.load(folder).identity != manifest["tokenizer"]:
        raise ConfigError(
            f"{samples}: made for another tokenizer than {folder}; lengths would be wrong: make them anew with it"
        )
    groups = (
        list(read_samples(samples, task, length))
        for length in manifest["lengths"]
        for task in manifest["tasks"]
    )
    total = manifest["samples"] * len(manifest["lengths"]) * len(manifest["tasks"])
    with (
        MegatronEngine.load(checkpoint, folder, 1) as engine,
        progress_bar("answering RULER", total) as bar,
    ):
        found = predict_all(
            engine, groups, batch_tokens, lambda finished: bar.advance(bar.task_ids[0], finished)
        )
        return [each.scored() for each in found]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lengths(text: str) -> tuple[int, ...]:
    parts = _split(text)
    for part in parts:
        # Python refuses to read a number of thousands of digits.
        if not part.isdecimal() or len(part) > len(str(LARGEST_INTEGER)):
            raise ConfigError(f"--lengths: '{part[:40]}' is no number of tokens; for example 8192,16384")
    return tuple(map(int, parts))


def _extremes(files: dict[str, Any]) -> tuple[int, int]:
    """Fewest and most tokens of a prompt."""
    return min(each["min_tokens"] for each in files.values()), max(
        each["max_tokens"] for each in files.values()
    )


def _percent(entry: dict[str, Any]) -> str:
    return f"{100 * entry['recall']:.1f} ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
