"""The `te` backend against the `torch` one: the same checkpoint keys, read off the specs, and the same model.

Where Transformer Engine is missing its modules stand in the specs by name, with `specs_te.PARAMETERS` for what they
own. Plain-torch stand-ins of the same shape then show that the specs build, load and compute.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron.core.extensions import transformer_engine as upstream
from megatron.core.ssm import mamba_block
from megatron.core.ssm.mamba_mixer import MambaMixer
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel import layers as upstream_linear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from tiny_models import randomize
from torch import nn

from megatron_prism.errors import ConfigError
from megatron_prism.models import specs_te, specs_torch
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import load_weights, model_state, write_checkpoint
from megatron_prism.models.layers.attention import SDPACoreAttention
from megatron_prism.models.layers.mamba import TorchMambaMixer
from megatron_prism.models.layers.multipliers import scaled_bias_dropout_add
from megatron_prism.models.layers.norm import RMSNorm
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import cuda_requests_on_cpu, session

GRANITE = Architecture(
    family="granite",
    vocab_size=61,
    hidden_size=64,
    num_layers=2,
    ffn_hidden_size=96,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=16,
    max_position_embeddings=64,
    attention_multiplier=0.2,
    embedding_multiplier=6.0,
    residual_multiplier=0.4,
    logits_scaling=4.0,
)
UNTIED = dataclasses.replace(GRANITE, tie_word_embeddings=False, attention_multiplier=None)
NEMOTRON = Architecture(
    family="nemotron_h",
    vocab_size=61,
    hidden_size=64,
    num_layers=4,
    ffn_hidden_size=96,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=16,
    activation="squared_relu",
    max_position_embeddings=64,
    tie_word_embeddings=False,
    position_embedding="none",
    hybrid_pattern="M-M*",
    mamba_num_heads=8,
    mamba_head_dim=16,
    mamba_state_dim=16,
    mamba_num_groups=2,
)
ALL = pytest.mark.parametrize(
    "architecture", [GRANITE, UNTIED, NEMOTRON], ids=["granite", "untied", "nemotron_h"]
)

NAMES = specs_te.Modules(
    norm_and_column="TELayerNormColumnParallelLinear",
    row="TERowParallelLinear",
    attention="TEDotProductAttention",
    norm="TENorm",
    mixer=MambaMixer,
    stack=mamba_block.MambaStack,
)
MIXER = ("A_log", "D", "dt_bias", "conv1d.weight", "conv1d.bias", "norm.weight")
# The parameters of the other modules of both trees; the comparison with built models checks them.
OWNED = {
    "ColumnLinear": ("weight",),
    "RowLinear": ("weight",),
    "RMSNorm": ("weight",),
    "SDPACoreAttention": (),
    "MambaMixer": MIXER,
    "TorchMambaMixer": MIXER,
    "SelfAttention": (),
    "RotatingSelfAttention": (),
    "MLP": (),
    "PlainMLP": (),
    "MambaLayer": (),
    "MLPLayer": (),
    "TransformerLayer": (),
}
# The stack names its last norm itself; the spec does not name it.
FINAL_NORM = {mamba_block.MambaStack: mamba_block.TENorm, specs_torch.HybridStack: RMSNorm}
LAYER = {"M": "mamba_layer", "*": "attention_layer", "-": "mlp_layer"}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


def owned(module):
    name = module if isinstance(module, str) else module.__name__
    return (specs_te.PARAMETERS | OWNED)[name]


def spec_keys(spec, prefix):
    """Checkpoint keys of what a spec builds: its modules' own, its submodules', then its renames."""
    module = spec.module if isinstance(spec, ModuleSpec) else spec
    submodules = getattr(spec, "submodules", None)
    keys = {prefix + name for name in owned(module)}
    renames = {}
    for field in dataclasses.fields(submodules) if submodules else ():
        child = getattr(submodules, field.name)
        if field.name == "sharded_state_dict_keys_map":
            renames = {prefix + old: prefix + new for old, new in child.items()}
        elif child not in (None, IdentityOp) and not field.name.endswith("_bda"):
            keys |= spec_keys(child, f"{prefix}{field.name}.")
    for old, new in renames.items():
        keys = {new + key.removeprefix(old) if key.startswith(old) else key for key in keys}
    return keys


def checkpoint_keys(architecture, backend, **modules):
    """Keys of a whole model by its spec; a dense model's layers are one key with a layer axis."""
    keys = {"embedding.word_embeddings.weight"}
    if not architecture.tie_word_embeddings:
        keys.add("output_layer.weight")
    if architecture.is_hybrid:
        stack = backend.hybrid_stack_spec(architecture.residual_multiplier, **modules)
        for index, kind in enumerate(architecture.hybrid_pattern):
            keys |= spec_keys(getattr(stack.submodules, LAYER[kind]), f"decoder.layers.{index}.")
        return keys | spec_keys(FINAL_NORM[stack.module], "decoder.final_norm.")
    config = build_model(architecture).config
    block = backend.dense_block_spec(config, architecture.residual_multiplier, **modules)
    assert len(block.layer_specs) == architecture.num_layers
    for layer in block.layer_specs:
        keys |= spec_keys(layer, "decoder.layers.")
    return keys | spec_keys(block.layer_norm, "decoder.final_layernorm.")


def te_keys(architecture):
    return checkpoint_keys(architecture, specs_te, modules=NAMES)


def built_keys(model):
    return {tensor.key for tensor in model_state([model])["model"].values()}


@ALL
def test_both_backends_write_the_same_checkpoint_keys(architecture):
    keys = te_keys(architecture)
    assert keys == checkpoint_keys(architecture, specs_torch)
    assert keys == built_keys(build_model(architecture))
    fused = "mixer.in_proj" if architecture.is_hybrid else "self_attention.linear_qkv"
    assert any(key.endswith(f"{fused}.layer_norm_weight") for key in keys)


@ALL
@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        ("TELayerNormColumnParallelLinear", ("norm_weight", "weight")),
        ("TELayerNormColumnParallelLinear", ("layer_norm_weight", "weight", "bias")),
        ("TERowParallelLinear", ()),
        ("TEDotProductAttention", ("softmax_offset",)),
        ("TENorm", ("weight", "bias")),
    ],
)
def test_a_wrong_table_entry_would_show(architecture, module, parameters, monkeypatch):
    monkeypatch.setitem(specs_te.PARAMETERS, module, parameters)
    assert te_keys(architecture) != built_keys(build_model(architecture))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (GRANITE, "ATTENTION_KEYS"),
        (GRANITE, "MLP_KEYS"),
        (NEMOTRON, "ATTENTION_KEYS"),
        (NEMOTRON, "MLP_KEYS"),
        (NEMOTRON, "MAMBA_KEYS"),
    ],
)
def test_a_dropped_keys_map_would_show(architecture, name, monkeypatch):
    keys = te_keys(architecture)
    monkeypatch.setattr(specs_torch, name, {})
    assert keys != checkpoint_keys(architecture, specs_torch)
    assert keys != built_keys(build_model(architecture))


def test_the_names_are_upstreams():
    modules = specs_te.upstream_modules()
    for field in ("norm_and_column", "row", "attention", "norm"):
        assert getattr(modules, field) is getattr(upstream, getattr(NAMES, field))
    assert (modules.mixer, modules.stack) == (NAMES.mixer, NAMES.stack)
    assert set(specs_te.PARAMETERS) < set(vars(upstream))


def test_the_table_is_what_upstream_reads():
    source = inspect.getsource(upstream.split_te_layernorm_column_parallel_linear)
    read = {
        owner: set(re.findall(rf"{owner}\.(\w*weight)\b", source)) for owner in ("fused_layer", "norm_layer")
    }
    assert read["fused_layer"] == set(specs_te.PARAMETERS["TELayerNormColumnParallelLinear"])
    assert read["norm_layer"] == set(specs_te.PARAMETERS["TENorm"])


def shard_axes(module, name):
    """The axis on which a class's `sharded_state_dict` cuts each parameter; from its source, as TE's may be a mock."""
    tree = ast.parse(Path(module.__file__).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    (method,) = (
        node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "sharded_state_dict"
    )
    (axes,) = (node for node in ast.walk(method) if isinstance(node, ast.Dict) and node.keys)
    return ast.literal_eval(axes)


def test_both_backends_cut_weights_along_the_same_axis():
    column = shard_axes(upstream_linear, "ColumnParallelLinear")
    assert column["weight"] == 0
    assert shard_axes(upstream, "TELayerNormColumnParallelLinear") == column
    assert shard_axes(upstream, "TERowParallelLinear") == shard_axes(upstream_linear, "RowParallelLinear")


class NormAndColumn(ColumnParallelLinear):
    """Stands in for TELayerNormColumnParallelLinear: the same parameters, the same forward."""

    def __init__(self, input_size, output_size, *, config, **kwargs):
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.layer_norm_weight = nn.Parameter(
            torch.ones(input_size, dtype=config.params_dtype, device=self.weight.device)
        )

    def forward(self, x):
        weight = self.layer_norm_weight
        return super().forward(nn.functional.rms_norm(x, weight.shape, weight, self.config.layernorm_epsilon))


STAND_INS = specs_te.Modules(
    norm_and_column=NormAndColumn,
    row=RowParallelLinear,
    attention=SDPACoreAttention,
    norm=RMSNorm,
    mixer=TorchMambaMixer,
    stack=specs_torch.HybridStack,
)


def te_model(monkeypatch, architecture, modules=None):
    """A model on specs_te's specs: `build_model` finds them in the place of the torch backend's."""
    with monkeypatch.context() as patch:
        for name in ("dense_block_spec", "hybrid_stack_spec"):
            patch.setattr(specs_torch, name, functools.partial(getattr(specs_te, name), modules=modules))
        model = build_model(architecture).to(device())
    assert any(name.endswith("layer_norm_weight") for name, _ in model.named_parameters())
    return model


def torch_model(architecture):
    """Weights large enough that every norm and the residual multiplier matter."""
    model = build_model(architecture).to(device())
    assert not any(name.endswith("layer_norm_weight") for name, _ in model.named_parameters())
    randomize(model, torch.Generator().manual_seed(3), dt_bias=-3)
    return model


@torch.no_grad()
def logits(model):
    tokens = torch.randint(61, (2, 32), generator=torch.Generator().manual_seed(0)).to(device())
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    with cuda_requests_on_cpu():
        return model.eval()(tokens, positions, None).float()


def through_a_checkpoint(source, target, folder):
    folder.mkdir()
    with cuda_requests_on_cpu():
        write_checkpoint(model_state([source]), folder)
    load_weights([target], folder)


@ALL
def test_a_torch_checkpoint_loads_and_computes_the_same(architecture, monkeypatch, tmp_path):
    ours, theirs = torch_model(architecture), te_model(monkeypatch, architecture, STAND_INS)
    assert (logits(ours) - logits(theirs)).abs().max() > 0.1
    through_a_checkpoint(ours, theirs, tmp_path / "checkpoint")
    assert logits(ours).abs().max() > 0.5
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)


@ALL
def test_fresh_weights_are_the_same(architecture, monkeypatch):
    models = []
    for make in (build_model, functools.partial(te_model, monkeypatch, modules=STAND_INS)):
        torch.manual_seed(5)
        models.append(make(architecture))
    theirs = {specs_te.unfused_name(name): value for name, value in models[1].named_parameters()}
    ours = dict(models[0].named_parameters())
    assert theirs.keys() == ours.keys()
    # Mamba's parameters are drawn from the tensor-parallel random state, which advances between the two models.
    drawn = [name for name in ours if not re.search(r"dt_bias|A_log|conv1d", name)]
    assert all(torch.equal(ours[name], theirs[name]) for name in drawn)


@pytest.mark.parametrize("architecture", [GRANITE, dataclasses.replace(NEMOTRON, residual_multiplier=0.4)])
def test_the_residual_multiplier_is_in_every_branch(architecture, monkeypatch):
    model = te_model(monkeypatch, architecture, STAND_INS)
    branches = [
        getattr(layer, name)
        for layer in model.decoder.layers
        for name in ("self_attn_bda", "mlp_bda", "mamba_bda")
        if hasattr(getattr(layer, name, None), "__code__")
    ]
    # Two in a dense layer, one in a hybrid's; the branches a layer lacks have IdentityFuncOp's add.
    scaled = scaled_bias_dropout_add(0.4).__code__
    expected = architecture.num_layers * (1 if architecture.is_hybrid else 2)
    assert sum(branch.__code__ is scaled for branch in branches) == expected
    x, residual = torch.full((2, 1, 3), 10.0), torch.ones(2, 1, 3)
    for branch in branches:
        if branch.__code__ is scaled:
            assert torch.allclose(branch(False, False)((x, None), residual, 0.0), torch.tensor(5.0))


def test_the_import_loads_neither_te_nor_megatron():
    code = (
        "import sys, megatron_prism.models.specs_te\n"
        "print([name for name in sys.modules if name.startswith(('megatron.core', 'transformer_engine'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def absent(monkeypatch, names, problem=ModuleNotFoundError, gpu=True):
    """A machine where importing each of `names` raises `problem`, and importing the rest of the extra does not."""
    real = importlib.import_module

    def import_module(name):
        if name in names:
            raise problem(f"no {name} here\nand more lines")
        if name.partition(".")[0] in ("transformer_engine", "mamba_ssm", "causal_conv1d"):
            return None
        return real(name)

    monkeypatch.setattr(specs_te.importlib, "import_module", import_module)
    monkeypatch.setattr(specs_te, "has_gpu", lambda: gpu)


@pytest.mark.parametrize("problem", [ModuleNotFoundError, RuntimeError, OSError])
def test_without_transformer_engine_one_line_says_so(monkeypatch, problem):
    absent(monkeypatch, ["transformer_engine.pytorch"], problem)
    with pytest.raises(ConfigError) as raised:
        specs_te.dense_block_spec(None, 1.0)
    assert str(raised.value) == (
        "backend=te: no Transformer Engine (no transformer_engine.pytorch here); "
        "pip install 'megatron-prism[gpu]' on a machine with CUDA, or use backend=torch"
    )
    with pytest.raises(ConfigError, match="Transformer Engine"):
        specs_te.hybrid_stack_spec(1.0)


@pytest.mark.parametrize("package", ["mamba_ssm", "causal_conv1d"])
def test_a_hybrid_needs_its_kernels_and_a_dense_model_does_not(monkeypatch, package):
    absent(monkeypatch, [package])
    monkeypatch.setattr(upstream, "HAVE_TE", True)
    assert specs_te.missing() is None
    with pytest.raises(ConfigError, match=rf"backend=te: no {package} \(no {package} here\); pip install"):
        specs_te.hybrid_stack_spec(1.0)


def test_a_te_that_megatron_cannot_use_is_missing(monkeypatch):
    absent(monkeypatch, [])
    monkeypatch.setattr(upstream, "HAVE_TE", False)
    assert specs_te.missing() == "no Transformer Engine (Megatron-Core cannot use the installed version)"


def test_without_cuda_it_is_missing_too(monkeypatch):
    absent(monkeypatch, [], gpu=False)
    monkeypatch.setattr(upstream, "HAVE_TE", True)
    assert specs_te.missing(hybrid=True) == "no CUDA GPU"


def test_fp8_is_refused_where_it_would_be_ignored(monkeypatch):
    absent(monkeypatch, ["transformer_engine.pytorch"])
    specs_te.require_fp8(None, "te")
    specs_te.require_fp8(None, "torch")
    with pytest.raises(ConfigError, match="fp8=hybrid: no Transformer Engine"):
        specs_te.require_fp8("hybrid", "te")
    with pytest.raises(ConfigError, match="fp8=hybrid: backend=torch would silently compute without it"):
        specs_te.require_fp8("hybrid", "torch")
    absent(monkeypatch, [])
    monkeypatch.setattr(upstream, "HAVE_TE", True)
    specs_te.require_fp8("hybrid", "te")


@pytest.mark.skipif(upstream.HAVE_TE, reason="upstream ignores FP8 only without Transformer Engine")
def test_upstream_still_ignores_fp8(monkeypatch):
    """This is the reason for `require_fp8`. If this test fails, upstream has begun to check FP8."""
    monkeypatch.setattr(specs_te, "require_fp8", lambda fp8, backend: None)
    plain, fp8 = (build_model(GRANITE, fp8=fp8).to(device()) for fp8 in (None, "hybrid"))
    fp8.load_state_dict(plain.state_dict())
    assert torch.equal(logits(plain), logits(fp8))


@pytest.mark.gpu
@ALL
def test_both_backends_compute_the_same_on_cuda(architecture, monkeypatch, tmp_path):
    if (reason := specs_te.missing(architecture.is_hybrid)) is not None:
        pytest.skip(reason)
    ours, theirs = torch_model(architecture), te_model(monkeypatch, architecture)
    assert built_keys(ours) == built_keys(theirs)
    through_a_checkpoint(ours, theirs, tmp_path / "checkpoint")
    a, b = logits(ours), logits(theirs)
    # TE multiplies fp32 matrices in TF32, whose 10-bit mantissa rounds at 1e-3.
    assert (a - b).abs().max() < 0.02 * a.abs().max()
