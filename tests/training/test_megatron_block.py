"""The `megatron` block: what it accepts and refuses, and that its fields reach the configs and change the run."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig
from parallel_runs import HYBRID, VOCABULARY, Motifs, layout

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import MEGATRON_RECOMPUTE
from megatron_prism.pipeline.config import apply_overrides, to_mapping
from megatron_prism.platform.process_groups import session
from megatron_prism.rl.stage import Reinforce
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.megatron_owned import CONSTANT, DEFAULTS, OWNED, REFUSED
from megatron_prism.training.megatron_table import TABLE, fields_of, upstream_table
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.precision import PrecisionSettings
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import Trainer

DENSE = Architecture("granite", VOCABULARY, 32, 4, 48, 4, 2, 8, max_position_embeddings=64)
MODELS = {"dense": DENSE, "hybrid": HYBRID}
CLASSES = {
    "transformer": TransformerConfig,
    "ddp": DistributedDataParallelConfig,
    "optimizer": OptimizerConfig,
}
TRAIN = Train(DENSE, "shoebox-mcs", batch=BatchConfig(32, 2, 8))


def trainer(model: Architecture = DENSE, block: MegatronBlock | None = None, **settings) -> Trainer:
    optimizer = OptimizerSettings(eps=1e-8)
    return Trainer(
        *(model, layout(), BatchConfig(16, 2, 4), optimizer),
        dtype=settings.pop("dtype", torch.float32),
        megatron=block,
        **settings,
    )


def losses(run: Trainer, first: int = 0, end: int = 3) -> list[float]:
    return [run.step(Motifs(16), step * 4, 1e-2)[0] for step in range(first, end)]


def trained(model: Architecture, block: MegatronBlock | None) -> list[float]:
    with session(layout(), seed=5):
        return losses(trainer(model, block))


def test_the_table_is_that_of_the_installed_megatron():
    import json

    assert json.loads(TABLE.read_text()) == json.loads(json.dumps(upstream_table())), (
        "run python -m megatron_prism.training.megatron_table"
    )


def test_owned_fields_are_those_that_the_code_sets(monkeypatch):
    passed: dict[str, set[str]] = {group: set() for group in CLASSES}
    for group, each in CLASSES.items():
        honest = each.__init__

        def watched(self, *positional, group=group, honest=honest, **named):
            assert not positional
            passed[group].update(named)
            honest(self, **named)

        monkeypatch.setattr(each, "__init__", watched)
    for model in MODELS.values():
        for settings in ({}, {"recompute": "full", "initialize": False}):
            with session(layout(), seed=5):
                trainer(model, **settings)
    # What only Transformer Engine and several ranks make the code set.
    passed["transformer"].update(KernelSettings().transformer_fields(DENSE, layout(cp=2), "te", gpu=False))
    passed["transformer"].update(PrecisionSettings(fp8_param_gather=True).transformer_fields("hybrid"))
    passed["transformer"].update(*MEGATRON_RECOMPUTE.values())
    for group in CLASSES:
        assert passed[group] == set(OWNED[group]) | set(CONSTANT[group]) | DEFAULTS[group]


def test_refused_fields_exist_and_are_not_owned():
    for group in CLASSES:
        decided = set(OWNED[group]) | set(CONSTANT[group]) | DEFAULTS[group]
        assert not set(OWNED[group]) & set(CONSTANT[group])
        for pattern in REFUSED[group]:
            matched = {name for name in fields_of(group) if fnmatchcase(name, pattern)}
            assert matched, pattern
            assert not matched & decided, pattern


def test_keys_that_errors_name_exist():
    config = to_mapping(TRAIN)
    for group in CLASSES:
        for key in OWNED[group].values():
            inside = config
            for part in key.split("."):
                assert part in inside, key
                inside = inside[part]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"transformer.hidden_size": 64}, r"set architecture\.hidden_size instead"),
        ({"optimizer.adam_eps": 1e-8}, r"set optimizer\.eps instead"),
        ({"ddp.overlap_grad_reduce": True}, r"set kernels\.overlap_grad_reduce instead"),
        ({"transformer.attention_dropot": 0.1}, "did you mean 'attention_dropout'"),
        ({"ddp.attention_dropout": 0.1}, "megatron.transformer has a field of that name"),
        ({"optimizer.xyzzy": 1}, "OptimizerConfig has no such field"),
        ({"transformer.attention_dropout": "much"}, "='much': must be a number"),
        ({"transformer.fp8_margin": 0.5}, "=0.5: must be a whole number"),
        ({"transformer.fp8_margin": True}, "=True: must be a whole number"),
        ({"transformer.cuda_graph_impl": "full"}, "must be none or local or transformer_engine"),
        ({"transformer.offload_modules": ["core_attn", 3]}, "must be a list, each element a text or null"),
        ({"transformer.grad_scale_func": "f"}, "a config file cannot hold such a value"),
        ({"transformer.autocast_dtype": "bf16"}, "a config file cannot hold such a value"),
        ({"transformer.normalization": "LayerNorm"}, "all families have RMSNorm"),
        ({"transformer.num_moe_experts": 8}, "have no experts"),
        ({"transformer.moe_router_topk": 2}, "have no experts"),
        ({"ddp.average_in_collective": True}, "the loss is a mean over tokens"),
        ({"optimizer.muon_momentum": 0.9}, "always Adam"),
        ({"transformer.cuda_graph_impl": "transformer_engine"}, "use local"),
        ({"transformer.cuda_graph_scope": "attn,full_iteration"}, "choose parts of a layer"),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_remedy(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(TRAIN, {f"megatron.{key}": value for key, value in override.items()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels.overlap_param_gather": True}, r"kernels\.overlap_param_gather=true: layers that wait"),
        ({"recompute": "full"}, "recompute=full: Megatron does not capture"),
        ({"intra_document": True}, "micro-batches of one shape"),
    ],
)
def test_cuda_graphs_are_refused_with_what_cannot_be_captured(settings, message):
    graphs = {"megatron.transformer.cuda_graph_impl": "local"}
    apply_overrides(TRAIN, graphs)
    apply_overrides(TRAIN, settings)
    with pytest.raises(ConfigError, match=message):
        apply_overrides(TRAIN, graphs | settings)
    with pytest.raises(ConfigError, match="micro-batches of one shape"):
        apply_overrides(Reinforce(DENSE, context_length=64), graphs)


def test_cuda_graphs_need_a_gpu():
    with session(layout(), seed=5), pytest.raises(ConfigError, match="CUDA graphs need a GPU"):
        trainer(block=MegatronBlock({"cuda_graph_impl": "local"}))


def test_what_upstream_refuses_names_the_block():
    block = MegatronBlock({"cpu_offloading": True, "cpu_offloading_num_layers": 9})
    with (
        session(layout(), seed=5),
        pytest.raises(ConfigError, match=r"refuses this run with megatron.*offloading"),
    ):
        trainer(block=block)


@pytest.mark.parametrize("stage", [TRAIN, Reinforce(DENSE, context_length=64)], ids=["train", "rl"])
def test_the_block_is_part_of_the_identity_only_if_it_is_set(stage):
    same = apply_overrides(stage, {"megatron.transformer.attention_dropout": 1})
    found = {
        stage.fingerprint({}),
        same.fingerprint({}),
        apply_overrides(stage, {"megatron.optimizer.decoupled_weight_decay": False}).fingerprint({}),
    }
    assert len(found) == 3
    assert "megatron" not in stage.identity()
    assert apply_overrides(stage, {"megatron.transformer": {"attention_dropout": 1.0}}).fingerprint(
        {}
    ) == same.fingerprint({})
    assert same.remarks() == ["megatron.transformer.attention_dropout=1.0"]
    assert to_mapping(same)["megatron"]["transformer"] == {"attention_dropout": 1.0}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_each_group_changes_the_run(model):
    plain = trained(model, None)
    assert trained(model, MegatronBlock()) == plain
    dropout = trained(model, MegatronBlock({"hidden_dropout": 0.5}))
    assert dropout != plain
    assert trained(model, MegatronBlock({"hidden_dropout": 0.5})) == dropout
    assert trained(model, MegatronBlock({"embedding_init_method_std": 0.5}))[0] != plain[0]
    decayed = trained(model, MegatronBlock(optimizer={"decoupled_weight_decay": False}))
    assert (decayed[0] == plain[0], decayed[2] == plain[2]) == (True, False)


def test_buckets_follow_ddp_fields_and_a_checkpoint_is_read_without_them(tmp_path):
    padded = MegatronBlock(ddp={"pad_buckets_for_high_nccl_busbw": True}, optimizer={"loss_scale": 1024})
    plain, sizes = trained(DENSE, None), []
    with session(layout(), seed=5):
        run = trainer(block=padded)
        sizes.append(run.models[0].buffers[0].grad_data.numel())
        found = losses(run, 0, 2)
        save_checkpoint(tmp_path / "step", run.models, run.optimizer, TrainingState(2, 8))
    with session(layout(), seed=6):
        run = trainer()
        sizes.append(run.models[0].buffers[0].grad_data.numel())
        load_checkpoint(tmp_path / "step", run.models, run.optimizer)
        found += losses(run, 2, 3)
    assert sizes[0] % 2**16 == 0
    assert sizes[1] % 2**16
    assert found == plain
