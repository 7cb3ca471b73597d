"""`prism analyze cka`: how similar the hidden states of models are, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.analysis_output import OutOption, deliver
from megatron_prism.cli.number_checks import whole_number
from megatron_prism.cli.output import JsonOption
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.analysis.cka.comparison import ComparedModel
    from megatron_prism.analysis.result import Analysis


def cka(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Two or more: a Hugging Face or Megatron folder, or runs/RUN/STAGE. Every pair is compared.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs",
            metavar="NAME=FILE[#KEY]",
            help="A set of texts: .txt (one in each line), .jsonl or .parquet with the text under KEY; repeat it. "
            "Default: three sets that need no download.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Texts of each set: the first so many.")] = 200,
    resamples: Annotated[int, typer.Option("--resamples", help="Of the bootstrap.")] = 20,
    resample_size: Annotated[
        int, typer.Option("--resample-size", help="Texts of a resample, none of them twice.")
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Of the resamples.")] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help="Longer texts are cut; default: 512, or what the models can read."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="DIR", help="Of all models; default: each model's own."),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="In which the models compute: fp32 or bf16.")
    ] = "fp32",
    out: OutOption = None,
    json_file: JsonOption = None,
) -> None:
    """Linear CKA of mean-pooled hidden states, for every pair of models, layer and set of inputs, with a bootstrap."""
    for name, value, least in (
        ("--samples", samples, 1),
        ("--resamples", resamples, 2),
        ("--resample-size", resample_size, 1),
        ("--seed", seed, 0),
        ("--max-tokens", max_tokens, 1),
    ):
        if value is not None:
            whole_number(value, name, least=least)

    def make() -> Analysis:
        from megatron_prism.platform.console import progress_bar, setup_logging

        # It hides warnings that Megatron gives when it is imported.
        setup_logging()
        from megatron_prism.analysis.cka.comparison import DTYPES, Resampling, analyze_cka
        from megatron_prism.analysis.cka.input_sets import file_sets, installed_sets
        from megatron_prism.pipeline.config import one_of

        one_of(dtype, DTYPES, "--dtype")
        resampling = Resampling(resamples, resample_size, seed)
        resampling.check(samples)
        compared = _models(models, tokenizer)
        sets = file_sets(inputs, samples) if inputs else installed_sets(samples)
        with progress_bar("texts", len(compared) * len(sets) * samples) as bar:
            return analyze_cka(
                compared,
                sets,
                resampling,
                max_tokens=max_tokens,
                dtype=dtype,
                progress=lambda rows: bar.advance(bar.task_ids[0], rows),
            )

    deliver(make, out, json_file)


def _models(names: list[str], tokenizer: str | None) -> list[ComparedModel]:
    from megatron_prism.analysis.cka.comparison import ComparedModel
    from megatron_prism.analysis.labels import labels
    from megatron_prism.evaluation.given_model import (
        ADDRESS,
        find_given_model,
        folder_engine,
        named_tokenizer,
        own_tokenizer,
    )

    if len(names) < 2:
        raise ConfigError(f"{names[0]}: give two or more models, which are compared with each other")
    seen: set[Path] = set()
    for name in names:
        if ADDRESS.match(name):
            raise ConfigError(f"{name}: a server does not give hidden states; give the folder of its model")
        if Path(name).resolve() in seen:
            raise ConfigError(f"{name}: given twice; every model must be another one")
        seen.add(Path(name).resolve())
    common = None if tokenizer is None else named_tokenizer(tokenizer)
    found = []
    for label, name in zip(labels(names), names, strict=True):
        folder = find_given_model(name)
        found.append(
            ComparedModel(
                label,
                folder,
                folder_engine(folder, None),
                common or own_tokenizer(Path(name), folder),
            )
        )
    return found
