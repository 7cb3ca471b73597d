"""Import and export: dtypes, shards, memory, copied files, and failures that leave nothing behind."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
import torch
import warm
from safetensors.torch import load_file
from tiny_models import make_checkpoint, make_tokenizer

from megatron_prism.conversion.config_json import updated_config
from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.stage import ExportHF, ImportHF
from megatron_prism.conversion.torch_dist.reader import CheckpointReader
from megatron_prism.conversion.weights import MegatronWeights, open_weights
from megatron_prism.errors import ArtifactError, CheckpointError, ConfigError, DataError
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import load_weights, model_state, write_checkpoint
from megatron_prism.models.families import architecture_from_config
from megatron_prism.pipeline.output_folder import whole_folder
from megatron_prism.platform.process_groups import cuda_requests_on_cpu, session


def imported(name, tmp_path, dtype=None, **changes):
    hf = make_checkpoint(name, tmp_path / "hf", **changes)
    (tmp_path / "megatron").mkdir()
    import_checkpoint(hf, tmp_path / "megatron", dtype)
    return hf, tmp_path / "megatron"


def export(folder, out, **options):
    out.mkdir()
    export_checkpoint(MegatronWeights(folder), out, **options)
    return {name: t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("name", ["llama", "nemotron-h"])
def test_a_requested_dtype_rounds_once(name, tmp_path):
    hf, megatron = imported(name, tmp_path, torch.bfloat16)
    before = load_file(hf / "model.safetensors")
    after = export(megatron, tmp_path / "back")
    assert all(torch.equal(after[key], before[key].to(torch.bfloat16)) for key in before)
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == "bfloat16"
    halves = export(megatron, tmp_path / "half", dtype=torch.float16)
    assert all(torch.equal(halves[key], after[key].to(torch.float16)) for key in before)


def test_shards_of_limited_size_load_in_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    hf, megatron = imported("granite-h", tmp_path)
    after = export(megatron, tmp_path / "back", max_shard_bytes=20_000)
    before = load_file(hf / "model.safetensors")
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 3
    assert all(torch.equal(after[key], before[key]) for key in before)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    whole = AutoModelForCausalLM.from_pretrained(hf).state_dict()
    assert all(torch.equal(loaded[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ["granite", "nemotron-h"])
def test_a_checkpoint_that_megatron_wrote_is_read_the_same(name, tmp_path):
    hf, megatron = imported(name, tmp_path)
    with session(seed=1):
        model = build_model(MegatronWeights(megatron).architecture)
        load_weights([model], megatron / "checkpoint")
        (tmp_path / "again/checkpoint").mkdir(parents=True)
        with cuda_requests_on_cpu():
            write_checkpoint(model_state([model]), tmp_path / "again/checkpoint")
    MegatronWeights(megatron).architecture.save(tmp_path / "again/architecture.json")
    out = tmp_path / "back"
    after = export(tmp_path / "again", out, tokenizer=hf)
    before = load_file(hf / "model.safetensors")
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_tensor_that_is_not_stored_row_by_row_is_still_read_right(tmp_path):
    """A transposed view, as another program may have saved it: its bytes must not be copied in storage order."""
    import torch.distributed.checkpoint as dcp

    tensor = torch.randn(6, 4).t()
    dcp.save({"t": tensor}, checkpoint_id=tmp_path / "c", no_dist=True)
    (tmp_path / "c/metadata.json").write_text("{}")
    reader = CheckpointReader(tmp_path / "c")
    assert torch.equal(reader.rows("t", None, 1, 2), tensor[1:3])
    with pytest.raises(CheckpointError, match="not stored row by row"):
        reader.ranges("t", None, 1, 2)


def test_memory_is_bounded_by_a_tensor_group_and_no_model_is_built(tmp_path):
    """A 200 MB checkpoint: 6 layers of 33 MB; the largest group is 12.6 MB."""
    code = f"""
import json, sys
sys.path.insert(0, {str(tmp_path.parent)!r})
from pathlib import Path
import torch
from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.weights import MegatronWeights
from megatron_prism.conversion.hf_folder.writer import FolderWriter
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import hf_config, hf_shapes
from megatron_prism.platform.hardware import peak_memory_bytes
root = Path({str(tmp_path)!r})
def make(folder, architecture):
    folder.mkdir()
    shapes = hf_shapes(architecture)
    with FolderWriter(folder, {{n: (torch.bfloat16, s) for n, s in shapes.items()}}) as writer:
        for n, s in shapes.items():
            writer.write(n, torch.ones(s, dtype=torch.bfloat16))
    (folder / "config.json").write_text(json.dumps(hf_config(architecture)))
def convert(name, dtype):
    made, exported = root / f"{{name}} {{dtype}} m", root / f"{{name}} {{dtype}} e"
    made.mkdir()
    exported.mkdir()
    import_checkpoint(root / name, made, dtype)
    export_checkpoint(MegatronWeights(made), exported)
make(root / "small", Architecture("llama", 8, 8, 1, 8, 2, 2, 4))
big = Architecture("llama", 4096, 1024, 6, 3072, 16, 8, 64, tie_word_embeddings=False)
make(root / "big", big)
convert("small", None)
for dtype in (None, torch.float32):
    before = peak_memory_bytes()
    convert("big", dtype)
    print(peak_memory_bytes() - before)
print("megatron.core" in sys.modules)
"""
    group = 2 * 2 * 3072 * 1024
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, converted, megatron = done.stdout.split()
    assert int(kept) <= 1.5 * group
    # The peak of the first conversion is not counted again; all tensors in float32 would be 400 MB more.
    assert int(converted) <= 6 * group
    assert megatron == "False"


def with_small_files(*command):
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    warm.run_program("-m", "megatron_prism", *command)


@pytest.mark.parametrize(("verb", "where"), [("import", "checkpoint"), ("export", "model.safetensors")])
def test_a_full_disk_names_the_tensor_and_leaves_no_output(verb, where, tmp_path):
    hf, megatron = imported("granite", tmp_path)
    source = hf if verb == "import" else megatron
    done = warm.Child(with_small_files, "convert", verb, str(source), str(tmp_path / "out"))
    assert done.wait(60) == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert where in line
    assert "tensor '" in line
    assert "File too large" in line
    assert not list(tmp_path.glob("out*"))


def test_a_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "out"

    def stopped_half_way():
        with whole_folder(out) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with whole_folder(out) as folder:
        (folder / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
    with pytest.raises(DataError, match="not an empty folder"), whole_folder(out):
        pass


def test_a_shard_truncated_after_opening_is_named(tmp_path, monkeypatch):
    from megatron_prism.conversion import import_hf

    hf = make_checkpoint("granite", tmp_path / "hf")
    honest = import_hf.write_checkpoint

    def truncate_first(folder, tensors, progress):
        path = hf / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-5000])
        honest(folder, tensors, progress)

    monkeypatch.setattr(import_hf, "write_checkpoint", truncate_first)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends before byte"):
        import_checkpoint(hf, tmp_path / "out")


@pytest.mark.parametrize("damage", ["truncate", "metadata", "missing"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    _, megatron = imported("granite", tmp_path)
    data = megatron / "checkpoint/__0_0.distcp"
    if damage == "truncate":
        data.write_bytes(data.read_bytes()[:20_000])
    elif damage == "metadata":
        (megatron / "checkpoint/.metadata").write_bytes(b"no pickle")
    else:
        (megatron / "checkpoint/metadata.json").unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="checkpoint"):
        export_checkpoint(MegatronWeights(megatron), tmp_path / "out")


def test_tensors_of_one_parameter_need_one_dtype(tmp_path):
    from safetensors.torch import save_file

    hf = make_checkpoint("granite", tmp_path / "hf")
    state = load_file(hf / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file(state | {name: state[name].half()}, hf / "model.safetensors", {"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="one dtype, so convert all"):
        import_checkpoint(hf, tmp_path / "out")
    mlp = "model.layers.1.mlp.down_proj.weight"
    save_file(state | {mlp: state[mlp].half()}, hf / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"down_proj.*--dtype fp32"):
        import_checkpoint(hf, tmp_path / "out")


def test_a_folder_of_neither_kind(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        open_weights(tmp_path / "none")


def test_a_model_without_a_tokenizer_needs_one_named(tmp_path):
    _, megatron = imported("granite", tmp_path)
    subprocess.run(["rm", "-r", str(megatron / "hf")], check=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="no tokenizer"):
        export_checkpoint(MegatronWeights(megatron), tmp_path / "out")
    make_tokenizer(tmp_path / "tokenizer")
    export_checkpoint(MegatronWeights(megatron), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_only_changed_keys_of_a_config_are_written():
    old = {
        "model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "rope_theta": 500.0, "rope_scaling": None, "max_position_embeddings": 64,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.0",
    }  # fmt: skip
    architecture = architecture_from_config(old)
    assert updated_config(old, architecture) == old
    architecture.rope_theta, architecture.max_position_embeddings = 9000.0, 512
    new = updated_config(old, architecture)
    assert architecture_from_config(new) == architecture
    assert new["rope_theta"] == new["rope_parameters"]["rope_theta"] == 9000.0
    assert new["rope_scaling"] is None
    assert new["transformers_version"] == "4.43.0"


def test_the_stages_refuse_invalid_configs(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        ImportHF(source="x", dtype="bf17")
    with pytest.raises(ConfigError, match="check=tensors compares bits"):
        ExportHF(check="tensors", dtype="bf16")
    for odd in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="tolerance="):
            ExportHF(tolerance=odd)
    with pytest.raises(ConfigError, match="not both"):
        ImportHF().run({}, tmp_path)
