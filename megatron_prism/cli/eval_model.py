"""`prism eval MODEL --suite NAME`: score a model on suites of problems, on lm-eval's tasks, and on RULER."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_prism.cli.evaluation_options import (
    BatchSizeOption,
    BenchmarkOption,
    DataOption,
    DryRunOption,
    EngineOptions,
    ExecutorOption,
    LimitOption,
    SamplesOption,
    SandboxOption,
    SeedOption,
    TokenizerOption,
)
from megatron_prism.cli.number_checks import whole_number
from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table
from megatron_prism.cli.run_graph import RunOptions, run_graph
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.pipeline.artifact import Artifact

RUNS = Path("runs") / "eval"
# The stages that score the model.
SCORING = ("evaluate", "ruler", "harness")


def model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder, Megatron folder, artifact (runs/shoebox/extend), or http://HOST:PORT/v1.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE.KEY=VALUE]...", help="Fields of the stages.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="reasoning, general, long, shoebox, lm-eval:TASK, or a YAML file; repeat it, or use commas.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder; default runs/eval/NAME OF THE MODEL."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="megatron, hf, vllm or openai; default: what fits."),
    ] = None,
    options: EngineOptions = None,
    tokenizer: TokenizerOption = None,
    data: DataOption = None,
    benchmark: BenchmarkOption = None,
    samples: SamplesOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    sandbox: SandboxOption = "strong",
    show_prompt: Annotated[
        int | None,
        typer.Option(
            "--show-prompt", metavar="N", help="Print N prompts of each benchmark as sent, and stop."
        ),
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade the kept answers again; only missing ones are sampled.")
    ] = False,
    executor: ExecutorOption = None,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Score a model; what is done is skipped, and completions that exist are not sampled again."""
    check_json_target(json_file)
    for name, value in (("--samples", samples), ("--limit", limit), ("--show-prompt", show_prompt)):
        if value is not None:
            whole_number(value, name, least=1)
    whole_number(batch_size, "--batch-size", least=1)
    whole_number(seed, "--seed", least=0)
    suites = [part.strip() for text in suite or [] for part in text.split(",") if part.strip()]
    if not suites:
        raise ConfigError("--suite: name what to evaluate: reasoning, general, long, shoebox, or a YAML file")
    from megatron_prism.pipeline.config import parse_override
    from megatron_prism.platform.console import setup_logging
    from megatron_prism.study.model_evaluation import EvaluationRequest, evaluation_graph

    setup_logging()
    request = EvaluationRequest(
        model,
        suites,
        engine=engine,
        tokenizer=tokenizer,
        options=pairs("--option", options),
        data={name: str(path) for name, path in named_files(data).items()},
        benchmarks=benchmark or [],
        samples=samples,
        limit=limit,
        seed=seed,
        sandbox=sandbox,
        batch_size=batch_size,
    )
    graph = evaluation_graph(request)
    graph.override(dict(parse_override(text) for text in overrides or []))
    folder = out or RUNS / run_name(model)
    if show_prompt is not None:
        from megatron_prism.cli.eval_prompts import show_prompts

        show_prompts(graph, folder, show_prompt, json_file)
        return
    if regrade and "evaluate" not in graph.nodes:
        raise ConfigError("--regrade: grades answers to suites of problems; name one with --suite")
    made = run_graph(
        graph,
        "eval",
        RunOptions(
            folder,
            from_stage="evaluate" if regrade else None,
            executor=executor,
            dry_run=dry_run,
            show_scores=False,
            json_file=json_file,
        ),
    )
    if made:
        _show_scores(made, folder, json_file)


def run_name(model: str) -> str:
    """A folder's name for a model: RUN-STAGE for an artifact of a run, HOST-PORT for a server."""
    if "://" in model:
        parts = [model.split("://")[1].split("/")[0]]
    else:
        path = Path(model).absolute()
        in_run = (path.parent / "graph.json").is_file()
        parts = [path.parent.name, path.name] if in_run else [path.name]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def pairs(option: str, texts: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE of a repeated option; values are read as YAML."""
    from megatron_prism.pipeline.config import parse_override

    for text in texts or []:
        if "=" not in text:
            raise ConfigError(f"{option} {text}: must be KEY=VALUE")
    return dict(map(parse_override, texts or []))


def named_files(texts: list[str] | None) -> dict[str, Path]:
    """BENCHMARK=FILE of `--data`."""
    found = {}
    for text in texts or []:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--data {text}: must be BENCHMARK=FILE, for example --data math500=test.jsonl")
        found[name] = Path(path)
    return found


def _show_scores(made: Mapping[str, Artifact], folder: Path, json_file: str | None) -> None:
    """A table with a line per suite, and what a reader of it must know."""
    from megatron_prism.report.answers import OUTCOMES

    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for stage in SCORING:
        if stage not in made:
            continue
        metrics = made[stage].metrics
        averages = metrics.get("averages", {})
        for name, average in averages.items():
            rows.append((name, "", _percent(average, "score"), *[""] * len(OUTCOMES), average["interval"]))
            rows += [
                (f"  {benchmark}", "", _percent(each, "score"), *[""] * len(OUTCOMES), each["interval"])
                for benchmark, each in average["benchmarks"].items()
            ]
        # The tasks of a leaderboard are too many for a table; scores.json has them.
        for suite, values in metrics["suites"].items() if not averages else ():
            outcomes = values.get("outcomes", {})
            rows.append(
                (
                    suite,
                    f"{values['problems']:,} x {values['samples'] // max(1, values['problems'])}",
                    _percent(values, "pass_rate"),
                    *(f"{outcomes[key]:,}" if key in outcomes else "" for key in OUTCOMES),
                    values["interval"],
                )
            )
            if values.get("dropped_problems"):
                notes.append(
                    f"{suite}: {values['dropped_problems']} problems cannot be graded, and are left out"
                )
    columns = ["suite", "problems", "score", *OUTCOMES.values(), "interval"]
    show_table(json_file, "scores in percent, with their intervals", columns, rows)
    for note in notes:
        show_line(json_file, note)
    if "evaluate" in made:
        first = next(iter(made["evaluate"].metrics["suites"]))
        show_line(json_file, f"read answers: prism eval show {folder / 'evaluate'} --wrong {first} 5")


def _percent(entry: Mapping[str, Any], key: str) -> str:
    return f"{100 * entry[key]:.1f} ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
