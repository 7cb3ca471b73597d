"""`prism analyze landscape`: the pass rate of models between and beyond those of a training run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_prism.cli.analysis_output import print_table
from megatron_prism.cli.eval_model import named_files, pairs, run_name
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
from megatron_prism.cli.output import JsonOption, check_json_target, show_line, write_result
from megatron_prism.cli.run_graph import RunOptions, run_graph
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.pipeline.artifact import Artifact

RUNS = Path("runs") / "landscape"
OVERRIDE = re.compile(r"[a-z_]+\.[\w.]+=")


def _numbers(what: str) -> Any:
    return typer.Option(metavar="LIST", help=f"{what}; commas between them, '' for none.")


def landscape(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE MIDTRAIN [RL] [STAGE.KEY=VALUE]...",
            help="Hugging Face folders, Megatron folders or artifacts; and fields of the stages.",
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="NAME", help="reasoning, shoebox, or a YAML file; repeat it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Run folder, in which a killed run goes on; default runs/landscape/LAST MODEL.",
        ),
    ] = None,
    path: Annotated[bool, typer.Option("--path/--no-path", help="Evaluate the path.")] = True,
    grid: Annotated[
        bool | None, typer.Option("--grid/--no-grid", help="Evaluate the grid; default: with three models.")
    ] = None,
    path_a: Annotated[str | None, _numbers("Path: a from BASE (0) to MIDTRAIN (1)")] = None,
    path_b: Annotated[str | None, _numbers("Path: b from MIDTRAIN (0) to RL (1)")] = None,
    grid_alpha: Annotated[str | None, _numbers("Grid: steps from MIDTRAIN towards RL")] = None,
    grid_beta: Annotated[str | None, _numbers("Grid: steps from MIDTRAIN back to BASE")] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of merged weights: keep (BASE's), fp32, bf16, fp16.")
    ] = "keep",
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="megatron, hf or vllm; default: what fits.")
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
    executor: ExecutorOption = None,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Pass rates of W = BASE + a (MIDTRAIN - BASE) + b (RL - MIDTRAIN) on a path and on a grid."""
    check_json_target(json_file)
    for name, value in (("--samples", samples), ("--limit", limit)):
        if value is not None:
            whole_number(value, name, least=1)
    whole_number(batch_size, "--batch-size", least=1)
    whole_number(seed, "--seed", least=0)
    suites = [part.strip() for text in suite or [] for part in text.split(",") if part.strip()]
    if not suites:
        raise ConfigError("--suite: name what to evaluate: reasoning, shoebox, or a YAML file")
    if engine == "openai":
        raise ConfigError(
            "--engine openai: a server has one model; use 'megatron', 'hf' or 'vllm', which merge many"
        )
    from megatron_prism.pipeline.config import parse_override
    from megatron_prism.platform.console import setup_logging
    from megatron_prism.study.landscape import LandscapeRequest, landscape_graph
    from megatron_prism.study.model_evaluation import EvaluationRequest

    setup_logging()
    named = [each for each in models if not OVERRIDE.match(each)]
    overrides = [each for each in models if OVERRIDE.match(each)]
    plane: dict[str, Any] = {"dtype": dtype}
    given = {"path_a": path_a, "path_b": path_b, "grid_alpha": grid_alpha, "grid_beta": grid_beta}
    for key, text in given.items():
        if text is not None:
            plane[key] = [part.strip() for part in text.split(",") if part.strip()]
    if not path:
        plane |= {"path_a": [], "path_b": []}
    if grid is False:
        plane |= {"grid_alpha": [], "grid_beta": []}
    elif grid and len(named) == 2:
        raise ConfigError("--grid: two models have only the path between them; give three models")
    evaluation = EvaluationRequest(
        "",
        suites,
        engine=engine,
        tokenizer=tokenizer,
        options=pairs("--option", options),
        data={name: str(file) for name, file in named_files(data).items()},
        benchmarks=benchmark or [],
        samples=samples,
        limit=limit,
        seed=seed,
        sandbox=sandbox,
        batch_size=batch_size,
    )
    graph = landscape_graph(LandscapeRequest(named, evaluation, plane))
    graph.override(dict(map(parse_override, overrides)))
    folder = out or RUNS / run_name(named[-1])
    made = run_graph(
        graph,
        "landscape",
        RunOptions(
            folder,
            executor=executor,
            dry_run=dry_run,
            show_scores=False,
            write_stages=dry_run,
            json_file=json_file,
        ),
    )
    if made:
        document = _show(made["landscape"], folder, json_file)
        # Jobs have written their result already.
        if executor is None:
            write_result(json_file, document)


def _show(artifact: Artifact, folder: Path, json_file: str | None) -> dict[str, Any]:
    """Print tables and where to read on; returns the document."""
    from megatron_prism.analysis.result import FIGURES, read_analysis
    from megatron_prism.analysis.view import view

    document = read_analysis(artifact.path, "landscape")
    for table in view(document).tables:
        print_table(table, json_file)
    show_line(json_file, f"figures: {folder / 'landscape' / FIGURES}")
    first = document["points"][0]
    show_line(
        json_file,
        f"read answers: prism eval show {folder / 'landscape' / 'points' / first['name']} "
        f"--wrong {next(iter(document['suites']))} 5",
    )
    return document
