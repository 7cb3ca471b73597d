"""The options of the verbs that sample answers, `prism eval MODEL` and `prism analyze landscape`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EngineOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Option of the engine; repeat it."),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="DIR", help="Folder with the tokenizer; default: the model's."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="BENCHMARK=FILE", help="A local file with a benchmark's problems; repeat it."
    ),
]
BenchmarkOption = Annotated[
    list[str] | None,
    typer.Option("--benchmark", metavar="NAME", help="Only this benchmark of the suites; repeat it."),
]
SamplesOption = Annotated[
    int | None, typer.Option("--samples", help="Completions per problem; default: as the suite says.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Problems per benchmark or task; default: all.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the sampled completions.")]
BatchSizeOption = Annotated[
    int, typer.Option("--batch-size", help="Completions that an engine in this process decodes together.")
]
SandboxOption = Annotated[
    str, typer.Option("--sandbox", help="'strong', or 'weak', which does not isolate programs.")
]
ExecutorOption = Annotated[
    Path | None,
    typer.Option("--executor", metavar="FILE", help="Run the stages as jobs on what this file describes."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the stages without running them.")]
