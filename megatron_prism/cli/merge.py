"""`prism merge`: merge checkpoints of one architecture into one, or into one for each alpha of a list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from megatron_prism.cli.folder_checks import check_folders, check_models
from megatron_prism.cli.number_checks import whole_number
from megatron_prism.cli.output import (
    JsonOption,
    bytes_bar,
    check_json_target,
    show_line,
    show_remarks,
    write_result,
)
from megatron_prism.errors import ConfigError


def merge(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to create; it appears when it is complete.")
    ],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            metavar="PATH=WEIGHT",
            help="A Hugging Face or Megatron folder with its weight; repeat for each. With --alpha, only PATH.",
        ),
    ],
    method: Annotated[
        str,
        typer.Option("--method", help="linear, task-arithmetic, slerp, ties, dare or interpolate."),
    ] = "linear",
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="DIR",
            help="The model that changes are relative to: task-arithmetic, ties, dare, interpolate.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="COMPONENT=ALPHA,...",
            help="The last model's weight per component: attention, mlp, mamba, embedding, head, norm.",
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            "--alpha",
            metavar="A,B,...",
            help="One merge of two models per alpha, (1 - alpha) first + alpha last, in OUT/alpha-A ...",
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="Divide the weights by their sum; default: use them as they are."),
    ] = False,
    density: Annotated[
        float | None, typer.Option("--density", help="ties, dare: the fraction of each change to keep.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="dare: random seed of the dropped elements.")] = 1,
    format: Annotated[
        str | None, typer.Option("--format", help="hf or megatron; default: that of the first model.")
    ] = None,
    tokenizer_from: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer-from",
            metavar="MODEL",
            help="Keep the tokenizer, generation config and token ids of this model; "
            "default: the one with the largest weight.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="keep (the first model's), fp32, bf16 or fp16.")
    ] = "keep",
    json_file: JsonOption = None,
) -> None:
    """Merge checkpoints of one architecture, streamed: linear, task arithmetic, SLERP, TIES, DARE, interpolation."""
    check_json_target(json_file)
    from megatron_prism.conversion.stage import DTYPES, torch_dtype
    from megatron_prism.merging.decimals import exact_number, parse_weights
    from megatron_prism.merging.settings import MergeSettings
    from megatron_prism.pipeline.config import one_of
    from megatron_prism.pipeline.output_folder import whole_folder

    one_of(dtype, DTYPES, "--dtype")
    whole_number(seed, "--seed", least=0)
    alphas = [exact_number(each, "--alpha") for each in alpha.split(",")] if alpha is not None else []
    pairs = [_path_only(each) if alphas else _split(each) for each in model]
    settings = MergeSettings(
        method=method,
        weights=[] if alphas else [exact_number(weight, f"--model {path}") for path, weight in pairs],
        component_weights={} if weights is None else parse_weights(weights, "--weights"),
        alphas=alphas,
        normalize=normalize,
        density=density,
        seed=seed,
    )
    models = [Path(path) for path, _ in pairs]
    folders = [*models, *([base] if base else [])]
    check_folders(*folders, out=out)
    check_models(*folders)
    from megatron_prism.merging.merge import merge as merge_models
    from megatron_prism.merging.merge import plan_merge

    plan = plan_merge(
        settings,
        models,
        base=base,
        format=format,
        tokenizer_from=tokenizer_from,
        dtype=torch_dtype(dtype),
    )
    show_remarks(plan.remarks)
    with whole_folder(out) as folder, bytes_bar("merge", plan.bytes) as advance:
        metrics = merge_models(plan, folder, advance)
    show_remarks(metrics["remarks"][len(plan.remarks) :])
    what = f"{len(plan.blends)} merges" if len(plan.blends) > 1 else "a merge"
    show_line(
        json_file,
        f"wrote {what} of {len(plan.models)} models, {metrics['parameters']:,} parameters, "
        f"{metrics['bytes'] / 1e9:.2f} GB, to {out}",
    )
    write_result(json_file, {**metrics, "format": plan.format, "out": str(out)})


def _path_only(model: str) -> tuple[str, str]:
    """The path and no weight, for --alpha."""
    path, equals, _ = model.rpartition("=")
    if equals and not os.path.exists(model) and os.path.exists(path):
        raise ConfigError(f"--model {model}: with --alpha a model has no weight; give --model {path}")
    return model, ""


def _split(model: str) -> tuple[str, str]:
    """Split PATH=WEIGHT at the last '=', because a path may contain others."""
    path, equals, weight = model.rpartition("=")
    if not equals or not path:
        raise ConfigError(f"--model {model}: expected PATH=WEIGHT, for example --model {model or 'DIR'}=0.5")
    return path, weight
