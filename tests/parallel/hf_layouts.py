"""Worker of test_hf_layouts.py: what each rank loads from a Hugging Face folder, for the layouts of one world size.

The folders lie under `FOLDER/NAME`: `hf` made by transformers, `megatron` imported from it. Findings of all ranks go to
`FOLDER/worldN.json`, exports to `FOLDER/exports`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from parallel_runs import layout, sample, write_results

from megatron_prism.conversion.export_hf import export_running
from megatron_prism.conversion.hf_folder import reader
from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.errors import ParallelError
from megatron_prism.models.checkpoint_io import load_weights, unwrap
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training import wrapped_model
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

ODD = 61  # tensor parallelism pads it
LENGTH, BATCH = 32, 4
FOUR: dict[str, Any] = {"num_hidden_layers": 4}
# tiny_models' name of each kind, and changes: four dense layers divide into two stages of two chunks each.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-scaled-tied": ("llama-scaled-tied", FOUR),
    "mistral-wide-heads": ("mistral-wide-heads", FOUR),
    "granite-untied": ("granite-untied", FOUR | {"num_key_value_heads": 2}),
    "granite4": ("granite4", FOUR | {"layer_types": ["attention"] * 4}),
    "granite-h": ("granite-h", {}),
    "granite-h-groups": ("granite-h-rope-groups", {}),
    "nemotron-h": ("nemotron-h", {}),
}
HYBRID = ("granite-h", "granite-h-groups", "nemotron-h")
LAYOUTS: dict[int, dict[str, ParallelConfig]] = {
    1: {"one": layout()},
    2: {
        "tp2": layout(tp=2),
        "tp2sp": layout(tp=2, sp=True),
        "pp2": layout(pp=2),
        "pp2vp2": layout(pp=2, vp=2),
        "pp2first1": layout(pp=2, first=1),
        "cp2": layout(cp=2),
    },
    4: {"tp2pp2": layout(tp=2, pp=2)},
}
# Kinds that are also split unevenly over the stages of a pipeline.
UNEVEN = ("granite-untied", "granite-h", "nemotron-h")
# Kinds that are also made in bfloat16, which training uses.
HALF = ("llama-scaled-tied", "nemotron-h")
# Kinds in which a swap of the two tensor-parallel shards of one parameter must be seen, and that parameter.
SWAPPED = {
    "mistral-wide-heads": "decoder.layers.1.self_attention.linear_qkv.weight",
    "nemotron-h": "decoder.layers.3.self_attention.linear_proj.weight",
    "granite-h-groups": "decoder.layers.4.mixer.in_proj.weight",
}


def folder_name(kind: str, vocabulary: int = ODD, dtype: torch.dtype = torch.float32) -> str:
    return f"{kind}-{vocabulary}" + ("-bf16" if dtype is torch.bfloat16 else "")


def fits(kind: str, parallel: ParallelConfig) -> bool:
    """Whether a kind is tried in this layout; `refusals` tests those that it does not support."""
    if kind == "granite-h" and parallel.tensor_model_parallel_size > 1:
        return False
    if parallel.is_uneven and kind not in UNEVEN:
        return False
    return not (kind in HYBRID and parallel.virtual_pipeline_model_parallel_size)


class FixedTokens:
    """The same random sequences in all layouts, without tokens that only the larger vocabulary has."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        drawn = torch.randint(ODD, (LENGTH + 1,), generator=torch.Generator().manual_seed(index))
        return sample(drawn)


def trainer(hf: Path, parallel: ParallelConfig, dtype: torch.dtype = torch.float32) -> Trainer:
    batch = BatchConfig(LENGTH, micro_batch_size=2, global_batch_size=BATCH)
    return Trainer(HFWeights(hf).architecture, parallel, batch, OptimizerSettings(), dtype=dtype)


def weights(models: list[Any], vocabulary: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Copies of this rank's parameters without the rows that pad the vocabulary, and those rows."""
    kept, padding = {}, []
    for index, model in enumerate(models):
        for name, parameter in unwrap(model).named_parameters():
            tensor = parameter.detach().clone()
            if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
                rows = vocabulary - parallel_state.get_tensor_model_parallel_rank() * len(tensor)
                padding.append(tensor[rows:])
                tensor = tensor[:rows]
            kept[f"{index}.{name}"] = tensor
    return kept, padding


@torch.no_grad()
def poison(models: list[Any]) -> None:
    """Fill with NaN, so that a weight that a load misses is noticed."""
    for model in models:
        for parameter in model.parameters():
            parameter.fill_(torch.nan)


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """Bytes read from safetensors files inside the block, one number per system call."""

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def preadv(self, *arguments: Any) -> int:
            counts.append(os.preadv(*arguments))
            return counts[-1]

    counts: list[int] = []
    honest = reader.os
    reader.os = Counting()
    try:
        yield counts
    finally:
        reader.os = honest


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@torch.no_grad()
def swap_shards(models: list[Any], name: str) -> None:
    """Exchange one parameter between the two tensor-parallel ranks."""
    for model in models:
        for each, parameter in unwrap(model).named_parameters():
            if each == name:
                parts = [torch.empty_like(parameter) for _ in range(2)]
                group = parallel_state.get_tensor_model_parallel_group()
                dist.all_gather(parts, parameter.detach().contiguous(), group=group)
                parameter.copy_(parts[1 - group.rank()])


def measure(
    folder: Path, kind: str, name: str, parallel: ParallelConfig, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Load in both ways, export, and compute the loss; lists hold one entry per rank."""
    source = folder / folder_name(kind, dtype=dtype)
    with session(parallel, seed=5):
        run = trainer(source / "hf", parallel, dtype)
        architecture = HFWeights(source / "hf").architecture
        poison(run.models)
        load_weights(run.models, source / "megatron/checkpoint")
        resharded, padding = weights(run.models, architecture.vocab_size)
        if padding and any(len(rows) for rows in padding):
            padded_by_checkpoint = float(max(rows.abs().max() for rows in padding if len(rows)))
        else:
            padded_by_checkpoint = None
        poison(run.models)
        with counted_reads() as counts:
            load_hf_weights(run.models, architecture, source / "hf")
        direct, padding = weights(run.models, architecture.vocab_size)
        found: dict[str, Any] = {"loss": run.evaluate(FixedTokens(), 1)}
        own = {
            "different": differing(direct, resharded),
            "padding": sum(len(rows) for rows in padding),
            "padding_is_zero": not any(rows.any() for rows in padding),
            "padding_from_checkpoint": padded_by_checkpoint,
            "read": sum(counts),
            "held": sum(tensor.nbytes for tensor in direct.values()),
        }
        export(run, source, folder / "exports" / f"{source.name}-{name}")
        if name == "tp2" and kind in SWAPPED:
            swap_shards(run.models, SWAPPED[kind])
            own["swapped_different"] = differing(weights(run.models, ODD)[0], resharded)
            export(run, source, folder / "exports" / f"{source.name}-{name}-swapped")
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
    return found | {"ranks": everyone}


def export(run: Trainer, source: Path, out: Path) -> None:
    if dist.get_rank() == 0:
        out.mkdir(parents=True)
    dist.barrier()
    export_running(run.models, HFWeights(source / "hf").architecture, out, files=source / "hf")


def loss(hf: Path, parallel: ParallelConfig) -> float:
    with session(parallel, seed=5):
        run = trainer(hf, parallel)
        load_hf_weights(run.models, HFWeights(hf).architecture, hf)
        return run.evaluate(FixedTokens(), 1)


@contextmanager
def padding_with_probability() -> Iterator[None]:
    """Negative control: the rows that pad the vocabulary take part in the softmax."""
    honest = wrapped_model.install_vocabulary_limit
    wrapped_model.install_vocabulary_limit = lambda output_layer, limit: None
    try:
        yield
    finally:
        wrapped_model.install_vocabulary_limit = honest


def refusals(folder: Path) -> dict[str, str]:
    """The errors of building a model with a layout that it does not support."""
    messages = {}
    parallel = layout(tp=2)
    with session(parallel, seed=5):
        for name in ("granite-h-61", "one-group"):
            try:
                trainer(folder / name / "hf", parallel)
            except ParallelError as problem:
                messages[name] = str(problem)
    return messages


def findings(folder: Path, world: int) -> dict[str, Any]:
    """Everything for one world size."""
    results: dict[str, Any] = {}
    for name, parallel in LAYOUTS[world].items():
        # One process group for all models: each of them starts as NaN and draws no random number.
        with session(parallel, seed=5):
            for kind in KINDS:
                if not fits(kind, parallel):
                    continue
                results[f"{kind}/{name}"] = measure(folder, kind, name, parallel)
                if name == "tp2":
                    with padding_with_probability():
                        hf = folder / folder_name(kind) / "hf"
                        results[f"{kind}/{name}"]["padded_loss"] = loss(hf, parallel)
            for kind in HALF if name in ("tp2", "pp2") else ():
                results[f"{kind}/{name}-bf16"] = measure(folder, kind, name, parallel, torch.bfloat16)
    if world == 2:
        results["refusals"] = refusals(folder)
    return results


def main(folder: Path) -> None:
    write_results(folder, findings(folder, dist.get_world_size()))
