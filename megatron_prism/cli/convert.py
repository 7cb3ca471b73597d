"""`prism convert`: convert between Hugging Face folders and Megatron checkpoints, verify, and quantize."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_prism.cli.folder_checks import check_folders, check_models
from megatron_prism.cli.logits import compare_logits
from megatron_prism.cli.number_checks import above_zero, whole_number
from megatron_prism.cli.output import (
    JsonOption,
    bytes_bar,
    check_json_target,
    show_line,
    show_remarks,
    show_table,
    write_result,
)
from megatron_prism.errors import CheckpointError, ConfigError

app = typer.Typer(help="Convert checkpoints between Hugging Face and Megatron-Core.")

HFFolderArgument = Annotated[
    Path, typer.Argument(metavar="HF_DIR", help="Folder with config.json and safetensors.")
]
MegatronArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Folder with architecture.json and checkpoint/.")
]
OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder to create; it appears when it is complete.")
]
# One exabyte: no file is larger, so a larger number has the same effect.
LARGEST_SHARD_GB = 1e9
DtypeOption = Annotated[str, typer.Option("--dtype", help="keep, fp32, bf16 or fp16.")]


@app.callback()
def _setup() -> None:
    from megatron_prism.platform.console import setup_logging

    setup_logging()


@app.command("import")
def import_(
    hf_dir: HFFolderArgument, out: OutArgument, dtype: DtypeOption = "keep", json_file: JsonOption = None
) -> None:
    """Stream a Hugging Face folder into a Megatron checkpoint that loads at any parallel layout."""
    check_json_target(json_file)
    check_folders(hf_dir, out=out, dtype=dtype)
    check_models(hf_dir, megatron=False)
    from megatron_prism.conversion.hf_folder.reader import HFFolder
    from megatron_prism.conversion.import_hf import import_checkpoint
    from megatron_prism.pipeline.output_folder import whole_folder

    wanted = _dtype(dtype)
    total = sum(stored.nbytes for stored in HFFolder(hf_dir).stored.values())
    with whole_folder(out) as folder, bytes_bar("import", total) as advance:
        metrics = import_checkpoint(hf_dir, folder, wanted, advance)
    _report(json_file, f"imported {_size(metrics)} into {out}", metrics, out)


@app.command("export")
def export(
    checkpoint: MegatronArgument,
    out: OutArgument,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR", help="Tokenizer to export; default: the model's own."),
    ] = None,
    dtype: DtypeOption = "keep",
    max_shard_gb: Annotated[
        float, typer.Option("--max-shard-gb", help="Largest weight file, in 10^9 bytes.")
    ] = 5.0,
    json_file: JsonOption = None,
) -> None:
    """Stream a Megatron checkpoint into a Hugging Face folder."""
    check_json_target(json_file)
    check_folders(checkpoint, *([tokenizer] if tokenizer else []), out=out, dtype=dtype)
    shard = _shard_bytes(max_shard_gb)
    check_models(checkpoint, hugging_face=False)
    from megatron_prism.conversion.export_hf import export_checkpoint
    from megatron_prism.conversion.weights import MegatronWeights
    from megatron_prism.models.families import parameter_count
    from megatron_prism.pipeline.output_folder import whole_folder

    wanted = _dtype(dtype)
    source = MegatronWeights(checkpoint)
    total = parameter_count(source.architecture) * next(iter(source.dtypes.values())).itemsize
    with whole_folder(out) as folder, bytes_bar("export", total) as advance:
        metrics = export_checkpoint(
            source, folder, tokenizer=tokenizer, dtype=wanted, max_shard_bytes=shard, progress=advance
        )
    _report(json_file, f"exported {_size(metrics)} to {out}", metrics, out)


@app.command("verify")
def verify(
    first: Annotated[Path, typer.Argument(metavar="A", help="A folder of either kind.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="A folder of either kind.")],
    logits: Annotated[
        bool, typer.Option("--logits", help="Also run both models and compare their logits.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text to run both on, with the tokenizer of A or B; default: random tokens.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Dtype of the computation: fp32, bf16 or fp16.")
    ] = "fp32",
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            help="Largest allowed difference of logits; if all are below 1, relative to the largest.",
        ),
    ] = 1e-4,
    json_file: JsonOption = None,
) -> None:
    """Compare two checkpoints tensor by tensor, bit for bit; with --logits also their logits."""
    check_json_target(json_file)
    check_folders(first, second, dtype=dtype)
    above_zero(tolerance, "--tolerance")
    if text is not None and not logits:
        raise ConfigError(f"--text {text}: a text is used only with --logits; add --logits")
    check_models(first, second)
    from megatron_prism.conversion.verify import compare_tensors
    from megatron_prism.conversion.weights import open_weights
    from megatron_prism.models.families import parameter_count

    a, b = open_weights(first), open_weights(second)
    show_remarks(a.remarks + b.remarks)
    total = parameter_count(a.architecture) * next(iter(a.dtypes.values())).itemsize
    with bytes_bar("compare", total) as advance:
        differences = compare_tensors(a, b, advance)
    result: dict[str, Any] = {
        "tensors": len(a.shapes),
        "identical": len(a.shapes) - len(differences),
        "differences": [asdict(each) for each in differences],
    }
    if differences:
        rows = [
            (each.name, each.reason, "same values" if each.max_abs is None else f"{each.max_abs:.3g}")
            for each in differences[:20]
        ]
        show_table(json_file, "tensors that differ", ["tensor", "how", "max abs difference"], rows)
    show_line(json_file, f"{result['identical']} of {result['tensors']} tensors are identical, bit for bit")
    problem = (
        None
        if not differences
        else f"{len(differences)} tensors differ, the first is '{differences[0].name}'"
    )
    if logits:
        compared, allowed, what = compare_logits(a, b, text=text, dtype=dtype, tolerance=tolerance)
        result["logits"] = asdict(compared) | {"allowed": allowed, "input": what}
        show_table(
            json_file,
            f"logits in {dtype} of {what}",
            [
                "max abs difference",
                "allowed",
                "largest logit",
                "smallest cosine",
                "top-1 agreement",
                "departs at",
            ],
            [
                (
                    f"{compared.max_abs_difference:.3g}",
                    f"{allowed:.3g}",
                    f"{compared.max_abs_logit:.3g}",
                    f"{compared.cosine:.8f}",
                    f"{compared.top1_agreement:.2%}",
                    compared.departs or "nowhere",
                )
            ],
        )
        if not compared.max_abs_difference <= allowed:
            problem = (
                f"logits differ by {compared.max_abs_difference:.3g}, more than {allowed:.3g}, "
                f"beginning at {compared.departs or 'the head'}"
            )
    write_result(json_file, result)
    if problem:
        raise CheckpointError(f"{second} differs from {first}: {problem}")


@app.command("quantize")
def quantize(
    hf_dir: HFFolderArgument,
    out: OutArgument,
    scheme: Annotated[str, typer.Option("--scheme", help="fp8, int8; nvfp4 and mxfp8 need CUDA.")] = "fp8",
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text, JSON lines or Parquet, similar to the text the model will be used on.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Windows of text to calibrate on.")] = 128,
    length: Annotated[int, typer.Option("--length", help="Tokens per window.")] = 512,
    json_file: JsonOption = None,
) -> None:
    """Quantize an exported Hugging Face folder with NVIDIA ModelOpt (extra: modelopt)."""
    check_json_target(json_file)
    check_folders(hf_dir, out=out)
    whole_number(samples, "--samples", least=1)
    whole_number(length, "--length", least=2)
    check_models(hf_dir, megatron=False)
    from megatron_prism.conversion.quantization.quantize import quantize_checkpoint
    from megatron_prism.data.readers import read_texts

    texts = None if calibration is None else read_texts(calibration)
    metrics = quantize_checkpoint(hf_dir, out, scheme, texts, samples=samples, length=length)
    show_remarks(metrics["remarks"])
    show_table(
        json_file,
        f"{scheme} in {out}",
        [
            "layers",
            "bytes before",
            "bytes after",
            "weight error",
            "top-1 agreement",
            "loss before",
            "loss after",
        ],
        [
            (
                metrics["quantized_layers"],
                metrics["bytes_before"],
                metrics["bytes_after"],
                f"{metrics['weight_error']:.4f}",
                f"{metrics['top1_agreement']:.2%}",
                f"{metrics['loss_before']:.4f}",
                f"{metrics['loss_after']:.4f}",
            )
        ],
    )
    write_result(json_file, {**metrics, "out": str(out)})


def _dtype(name: str) -> Any:
    from megatron_prism.conversion.stage import DTYPES, torch_dtype
    from megatron_prism.pipeline.config import one_of

    one_of(name, DTYPES, "--dtype")
    return torch_dtype(name)


def _shard_bytes(gigabytes: float) -> int:
    """The largest size of a weight file, in bytes."""
    above_zero(gigabytes, "--max-shard-gb")
    return max(1, int(min(gigabytes, LARGEST_SHARD_GB) * 1e9))


def _report(json_file: str | None, line: str, metrics: dict[str, Any], out: Path) -> None:
    show_remarks(metrics["remarks"])
    show_line(json_file, line)
    write_result(json_file, {**metrics, "out": str(out)})


def _size(metrics: dict[str, Any]) -> str:
    return f"{metrics['parameters']:,} parameters, {metrics['bytes'] / 1e9:.2f} GB,"
