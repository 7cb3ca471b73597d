"""The deep dry run of training: every published model, the same bytes as real runs, and no trace in the process."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import real_runs
import torch
import torch.distributed as dist
import warm
from parallel_runs import Motifs, layout

from megatron_prism.models.extension import ContextExtension
from megatron_prism.models.families import (
    FAMILIES,
    architecture_from_config,
    parameter_count,
    published_config,
)
from megatron_prism.platform.process_groups import session
from megatron_prism.study.layouts import TRAIN, LayoutTable
from megatron_prism.study.registry import list_recipes, load_recipe
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.dry_run import buildable, dry_run_rank, ranks_of
from megatron_prism.training.dry_step import one_rank
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.precision import PrecisionSettings
from megatron_prism.training.stage import Train
from megatron_prism.training.training_run import build_trainer

# One layout of 128 GPUs each, so that all parallel dimensions occur.
PUBLISHED = {
    "ibm-granite/granite-3.3-8b-base": layout(tp=2, dp=64, sp=True),
    "ibm-granite/granite-4.0-micro-base": layout(pp=2, vp=2, dp=64),
    "ibm-granite/granite-4.0-h-micro-base": layout(cp=2, dp=64),
    "meta-llama/Llama-3.1-8B": layout(tp=2, pp=4, cp=2, dp=8, sp=True),
    "mistralai/Mistral-7B-v0.1": layout(tp=4, dp=32, sp=True),
    "mistralai/Mistral-Small-24B-Base-2501": layout(tp=8, pp=2, dp=8, sp=True),
    "nvidia/Nemotron-H-8B-Base-8K": layout(tp=8, pp=2, dp=8, sp=True),
}


def test_every_published_model_has_a_layout_here():
    assert set(PUBLISHED) == {name for family in FAMILIES.values() for name in family.published}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_step_of_128_ranks(name):
    """All parameters of the model are on the ranks of its pipeline stages, each once."""
    architecture, parallel = architecture_from_config(published_config(name)), PUBLISHED[name]
    batch = BatchConfig(min(8192, architecture.max_position_embeddings), 1, 256)
    config, lines = buildable(Train(architecture, "mcs", dtype="bf16", batch=batch, parallel=parallel))
    assert lines == ["backend=auto: built with backend=torch, which has the same parameters"]
    stages = parallel.pipeline_model_parallel_size
    reports = [dry_run_rank(config, rank) for rank in ranks_of(config)]
    if len(reports) == stages and parallel.tensor_model_parallel_size == 1:
        tied = architecture.padded_vocab_size(1) * architecture.hidden_size if stages > 1 else 0
        assert sum(each.parameters for each in reports) - tied == parameter_count(architecture)
    for report in reports:
        counted = report.counted
        assert counted["weights"] >= 2 * report.parameters
        assert counted["gradients"] >= 4 * report.parameters
        share = 12 * report.parameters / (parallel.data_parallel_size * parallel.context_parallel_size)
        assert counted["optimizer"] == pytest.approx(share, rel=0.1)
        assert counted["activations"] > 0
    # The first stage runs the furthest ahead.
    assert all(a.counted["activations"] > b.counted["activations"] for a, b in pairwise(reports))


VARIANTS = {
    "documents, pipeline": {"parallel": layout(pp=2, vp=2, dp=4), "intra_document": True},
    "documents, context": {"parallel": layout(cp=2, tp=2, dp=2, sp=True), "intra_document": True},
    "documents, hybrid": {
        "parallel": layout(pp=2, cp=2),
        "intra_document": True,
        "architecture": real_runs.HYBRID,
    },
    "attention, recomputed": {
        "parallel": layout(tp=2, pp=2, dp=4),
        "trainable": "attention",
        "recompute": "full",
    },
    "extension": {
        "parallel": layout(cp=4, dp=2),
        "extension": ContextExtension(max_position_embeddings=8192, rope_theta=1e6),
        "recompute": "selective",
    },
    "uneven": {"parallel": layout(pp=2, dp=8, first=1), "dtype": "bf16"},
    "balanced": {"parallel": layout(pp=2, dp=8, split="balanced"), "architecture": real_runs.HYBRID},
    "fp32 state in bf16": {"precision": PrecisionSettings(grad_reduce_in_fp32=False), "dtype": "bf16"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_that_changes_a_step(name):
    config, _ = buildable(real_runs.stage(VARIANTS[name], length=1024))
    for rank in ranks_of(config):
        report = dry_run_rank(config, rank)
        for part in ("weights", "gradients"):
            assert report.counted[part] == report.planned[part]
        assert report.counted["activations"] > 0


def test_what_cannot_be_built_here_is_said():
    changes = {
        "dtype": "bf16",
        "backend": "te",
        "fp8": "hybrid",
        "precision": PrecisionSettings(precision_aware_optimizer=True, exp_avg_dtype="bf16"),
        "kernels": KernelSettings(gradient_accumulation_fusion=False, cp_comm_type="a2a"),
        "megatron": MegatronBlock(transformer={"cuda_graph_impl": "local"}),
    }
    config, lines = buildable(real_runs.stage(changes))
    assert [line.partition(":")[0] for line in lines] == [
        "backend=te",
        "fp8=hybrid",
        "precision.precision_aware_optimizer",
        "megatron.transformer.cuda_graph_impl",
    ]
    assert dry_run_rank(config, 0).parameters > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("trainable", ["all", "attention"])
def test_an_extension_to_128k_tokens_on_144_ranks(name, trainable):
    """The planner's bytes are those of the modules; activations within a tenth."""
    published, parallel = architecture_from_config(published_config(name)), layout(cp=4, dp=36)
    positions = max(131072, published.max_position_embeddings)
    rotary = published.position_embedding == "rope" and positions > published.max_position_embeddings
    extension = ContextExtension(max_position_embeddings=positions, keep_rope=rotary)
    stage = Train(
        published, "long-context", dtype="bf16", batch=BatchConfig(131072, 1, 36), parallel=parallel,
        extension=extension, recompute="full", trainable=trainable,
    )  # fmt: skip
    report = dry_run_rank(buildable(stage)[0], 0)
    for part in ("weights", "gradients", "optimizer"):
        assert report.counted[part] == pytest.approx(report.planned[part], rel=0.01)
    assert report.counted["activations"] == pytest.approx(report.planned["activations"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in list_recipes() if name != "shoebox"])
@pytest.mark.parametrize("gpus", [8, 128, 144])
def test_all_layouts_of_the_recipes(recipe, gpus):
    """Those of 131,072 tokens take minutes."""
    architecture = architecture_from_config(published_config(load_recipe(recipe).function.model))
    table = LayoutTable.load(recipe)
    entries = {tokens: table.entries[key] for key in table.entries for kind, number, tokens in [key]
               if (kind, number) == (TRAIN, gpus)}  # fmt: skip
    assert entries
    for tokens, chosen in entries.items():
        parallel, rows = chosen.parallel, chosen.micro_batch_size
        batch = BatchConfig(
            tokens, rows, rows * parallel.data_parallel_size * parallel.pipeline_model_parallel_size
        )
        longer = replace(
            architecture, max_position_embeddings=max(tokens, architecture.max_position_embeddings)
        )
        stage = Train(
            longer,
            "mcs",
            dtype="bf16",
            batch=batch,
            parallel=parallel,
            recompute=chosen.recompute,
            backend="torch",
        )
        config, _ = buildable(stage)
        report = dry_run_rank(config, ranks_of(config)[0])
        for part in ("weights", "gradients", "activations"):
            assert report.counted[part] == pytest.approx(report.planned[part], rel=0.1), (tokens, part)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, int]]]:
    folder = tmp_path_factory.mktemp("bytes")
    warm.ranks(real_runs.main, folder, world=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", real_runs.TWO)
def test_state_bytes_are_those_of_two_real_ranks(two_ranks, name):
    for rank, real in enumerate(two_ranks):
        report = dry_run_rank(real_runs.stage(real_runs.TWO[name]), rank, gpu=False)
        found = report.counted | {"parameters": report.parameters}
        for part in ("parameters", "weights", "gradients", "optimizer"):
            assert found[part] == real[name][part], (rank, part)
        assert found["activations"] == pytest.approx(real[name]["activations"], rel=0.01), rank


@pytest.mark.parametrize("name", real_runs.ONE)
def test_what_forward_keeps_is_what_a_real_one_keeps(name):
    config = real_runs.stage(real_runs.ONE[name], length=256)
    real, found = real_runs.held(config), dry_run_rank(config, 0, gpu=False).counted
    assert found["activations"] == pytest.approx(real["activations"], rel=0.01)


def losses() -> list[float]:
    config = real_runs.stage({})
    with session(config.parallel, 3):
        trainer = build_trainer(config, initialize=True)
        return [trainer.step(Motifs(64), 4 * step, 1e-3)[0] for step in range(2)]


def test_a_dry_run_leaves_no_trace():
    """The same process trains as before, and its random states are where they were."""
    before = losses()
    random_states = random.getstate(), torch.get_rng_state()
    functions = torch.cuda.current_device, torch.autograd._engine_run_backward, dist.new_group
    dry_run_rank(real_runs.stage({"parallel": layout(tp=2, dp=4), "dtype": "bf16"}), 3)
    with pytest.raises(RuntimeError, match="planted"), one_rank(layout(tp=2), 1):
        raise RuntimeError("planted")
    assert functions == (torch.cuda.current_device, torch.autograd._engine_run_backward, dist.new_group)
    assert not dist.is_initialized()
    assert random.getstate() == random_states[0]
    assert torch.equal(torch.get_rng_state(), random_states[1])
    assert losses() == before
