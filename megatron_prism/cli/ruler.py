"""`prism ruler`: make RULER samples for a tokenizer, and score a checkpoint, a served model or predictions."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_prism.cli.folder_checks import check_models
from megatron_prism.cli.number_checks import LARGEST_INTEGER, whole_number
from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.generation.engine_config import EngineConfig

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
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="Score this Megatron or Hugging Face folder."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Score predictions made elsewhere: JSON lines with task, length, index and prediction.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="Engine that runs the checkpoint (megatron, hf or vllm), or openai for the model of a server.",
        ),
    ] = "megatron",
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="Option of the engine, for example base_url=http://...; repeat it.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="DIR", help="Folder with the tokenizer; default: the checkpoint's own."
        ),
    ] = None,
    batch_tokens: Annotated[
        int,
        typer.Option(
            "--batch-tokens", help="Maximum number of tokens that engine megatron decodes together."
        ),
    ] = 65536,
    confidence: Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")] = 0.95,
    json_file: JsonOption = None,
) -> None:
    """Score a checkpoint, the model of a server, or predictions made elsewhere on samples."""
    check_json_target(json_file)
    served = engine == "openai"
    if [checkpoint is not None, predictions is not None, served].count(True) != 1:
        raise ConfigError(
            "prism ruler score: give either --checkpoint DIR or --predictions FILE, or --engine openai for the model "
            "of a server"
        )
    if served and tokenizer is None:
        raise ConfigError(
            "prism ruler score --engine openai: name the tokenizer of the model with --tokenizer DIR"
        )
    whole_number(batch_tokens, "--batch-tokens", least=1)
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence {confidence}: must be between 0 and 1, for example 0.95")
    from megatron_prism.data.ruler.samples import read_manifest

    read_manifest(samples)
    if checkpoint is not None:
        check_models(checkpoint)
    from megatron_prism.evaluation.ruler.predictions import score_file
    from megatron_prism.evaluation.ruler.scoring import summary

    if predictions is not None:
        scored = list(score_file(samples, predictions))
    else:
        from megatron_prism.generation.engine_config import EngineConfig
        from megatron_prism.pipeline.config import parse_override

        config = EngineConfig(engine, dict(map(parse_override, options or [])))
        scored = _score_model(
            samples, checkpoint, tokenizer=tokenizer, config=config, batch_tokens=batch_tokens
        )
    result = summary(scored, confidence)
    tasks = list(next(iter(result["lengths"].values()))["tasks"])
    rows = [
        (task, *(_percent(entry["tasks"][task]) for entry in result["lengths"].values())) for task in tasks
    ]
    rows.append(("mean", *(_percent(entry) for entry in result["lengths"].values())))
    title = f"RULER recall in percent, {confidence:.0%} intervals"
    show_table(json_file, title, ["task", *result["lengths"]], rows)
    write_result(json_file, result)


def _score_model(
    samples: Path,
    checkpoint: Path | None,
    *,
    tokenizer: Path | None,
    config: EngineConfig,
    batch_tokens: int,
) -> list[Any]:
    """The scores of a checkpoint, or of the model of a server if `checkpoint` is None."""
    from megatron_prism.data.ruler.samples import read_manifest, read_samples
    from megatron_prism.data.tokenizer_files import tokenizer_of_model
    from megatron_prism.evaluation.ruler.predictions import batch_size, check_positions, predict_all
    from megatron_prism.models.model_folder import longest_sequence
    from megatron_prism.platform.console import progress_bar

    manifest = read_manifest(samples)
    if checkpoint is not None:
        if (longest := longest_sequence(checkpoint)) is not None:
            check_positions(manifest["lengths"], longest, checkpoint)
        tokenizer = tokenizer or tokenizer_of_model(checkpoint)
        if tokenizer is None:
            raise ConfigError(f"{checkpoint}: this model has no tokenizer; name one with --tokenizer DIR")
    assert tokenizer is not None
    if config.tokenizer(tokenizer).identity != manifest["tokenizer"]:
        raise ConfigError(
            f"{samples}: made for another tokenizer than {tokenizer}, so their lengths are wrong; make the samples "
            "again with this tokenizer"
        )
    groups = (
        list(read_samples(samples, task, length))
        for length in manifest["lengths"]
        for task in manifest["tasks"]
    )
    total = manifest["samples"] * len(manifest["lengths"]) * len(manifest["tasks"])
    work = _work_folder(samples, checkpoint, config)
    with (
        config.open(
            model=checkpoint,
            tokenizer=tokenizer,
            batch_size=batch_size(batch_tokens, min(manifest["lengths"])),
            work=work,
        ) as engine,
        progress_bar("answering RULER", total) as bar,
    ):
        found = predict_all(
            engine, groups, batch_tokens, lambda finished: bar.advance(bar.task_ids[0], finished)
        )
        scored = [each.scored() for each in found]
    with suppress(OSError):
        work.rmdir()
    return scored


def _work_folder(samples: Path, checkpoint: Path | None, config: EngineConfig) -> Path:
    """A folder next to the samples, in which a repeated command finds the finished completions of a server."""
    identity = json.dumps([str(checkpoint), config.identity()], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return samples.absolute().with_name(f"{samples.absolute().name}.{digest}.partial")


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
