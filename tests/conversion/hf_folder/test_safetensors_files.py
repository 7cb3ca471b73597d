"""Hugging Face weight files: all damage is an error that names the file and the tensor."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint

from megatron_prism.conversion.hf_folder.reader import HFFolder
from megatron_prism.conversion.hf_folder.writer import FolderWriter
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.errors import CheckpointError, ConfigError

INDEX = "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def single(tmp_path):
    return make_checkpoint("granite", tmp_path / "hf")


@pytest.fixture
def sharded(single):
    """The same folder in two files with an index."""
    state = load_file(single / "model.safetensors")
    names = sorted(state)
    halves = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, single / file, {"format": "pt"})
    weight_map = {name: file for file, part in halves.items() for name in part}
    (single / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (single / "model.safetensors").unlink()
    return single


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def edit_tensors(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def test_reads_rows_of_single_and_sharded_folders(single, request):
    state = load_file(single / "model.safetensors")
    folder = HFWeights(single)
    out = torch.empty(5, 32)
    folder.read(Q, 7, out)
    assert torch.equal(out, state[Q][7:12])
    folder = HFWeights(request.getfixturevalue("sharded"))
    assert folder.shapes.keys() == state.keys()
    assert all(torch.equal(folder.tensor(name), state[name]) for name in state)


def test_a_shard_that_is_missing(sharded):
    (sharded / "b.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"b\.safetensors: missing; according to the index it holds 'model\."
    ):
        HFFolder(sharded)


@pytest.mark.parametrize("keep", [4, 60, -10])
def test_a_shard_that_is_truncated(single, keep):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        HFFolder(single)


def test_a_file_that_is_something_else(single):
    (single / "model.safetensors").write_bytes(b"<html>not found</html>" * 10)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        HFFolder(single)
    (single / "model.safetensors").write_bytes(struct.pack("<Q", 5) + b"{no!}" + b"0" * 9)
    with pytest.raises(CheckpointError, match="header is not JSON"):
        HFFolder(single)


@pytest.mark.parametrize(
    "target", ["../outside.safetensors", "/etc/passwd", "sub/../../b.safetensors", "..", ""]
)
def test_an_index_whose_path_leaves_the_folder(sharded, target):
    edit_index(sharded, lambda weight_map: weight_map.update({Q: target}))
    with pytest.raises(CheckpointError, match=rf"'{Q}' in '.*', which is outside the folder"):
        HFFolder(sharded)


def test_an_index_that_is_wrong(sharded):
    edit_index(sharded, lambda weight_map: weight_map.update({"model.absent": "a.safetensors"}))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: has no tensor 'model\.absent'"):
        HFFolder(sharded)
    for index, named in (
        ("[]", "a JSON object is needed, found list"),
        ('{"weight_map": []}', "not a readable index"),
        ('{"weight_map": {"a": 1}}', "not a readable index"),
        ('{"weight_map": {}}', "its weight_map is empty"),
        ("[" * 10**5, "nested more than 100 levels deep"),
    ):
        (sharded / INDEX).write_text(index)
        with pytest.raises(CheckpointError, match=named):
            HFFolder(sharded)


def test_missing_extra_and_misshapen_tensors(single):
    edit_tensors(single, lambda state: state.update({Q: state[Q][:, :16].contiguous()}))
    with pytest.raises(
        CheckpointError, match=rf"'{Q}' has shape \[32, 16\], but config.json needs \[32, 32\]"
    ):
        HFWeights(single)
    edit_tensors(single, lambda state: state.pop(Q))
    with pytest.raises(CheckpointError, match=f"no tensor '{Q}', which granite needs"):
        HFWeights(single)


def test_an_extra_tensor(single):
    edit_tensors(single, lambda state: state.update({"model.layers.9.x": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"'model\.layers\.9\.x' is not part of family 'granite'"):
        HFWeights(single)


def test_a_dtype_that_is_not_a_float(single):
    edit_tensors(single, lambda state: state.update({Q: state[Q].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=f"'{Q}' has dtype I8"):
        HFWeights(single)


def test_a_tied_head_must_equal_the_embedding(single):
    embedding = "model.embed_tokens.weight"
    edit_tensors(single, lambda state: state.update({"lm_head.weight": state[embedding].clone()}))
    assert "lm_head.weight" not in HFWeights(single).shapes
    edit_tensors(single, lambda state: state.update({"lm_head.weight": state[embedding] + 1}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings=true"):
        HFWeights(single)


def test_a_folder_without_weights_or_config(single, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        HFFolder(tmp_path / "none")
    (single / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        HFFolder(single)


def test_a_config_that_is_missing_or_not_json(single):
    (single / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        HFWeights(single)
    (single / "config.json").write_text('{"model_type": "' + "\\ud83d" + '"}')
    with pytest.raises(CheckpointError, match=r"config\.json: 'model_type' holds half a surrogate pair"):
        HFWeights(single)
    (single / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        HFWeights(single)


def test_a_byte_order_mark_is_ignored(sharded):
    expected = HFWeights(sharded).architecture
    for name in ("config.json", INDEX):
        (sharded / name).write_bytes(b"\xef\xbb\xbf" + (sharded / name).read_bytes())
    assert HFWeights(sharded).architecture == expected


def test_writes_what_safetensors_reads_in_files_of_limited_size(tmp_path):
    state = {f"t{i}": torch.randn(4, i + 1).to(torch.bfloat16) for i in range(6)}
    announced = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    with FolderWriter(tmp_path, announced, max_shard_bytes=100) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor)
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert set(weight_map) == set(state)
    assert len(set(weight_map.values())) > 1
    for name, file in weight_map.items():
        assert torch.equal(load_file(tmp_path / file)[name], state[name])
        assert (tmp_path / file).stat().st_size < 500
    with pytest.raises(ConfigError, match="max_shard_bytes"):
        FolderWriter(tmp_path, announced, max_shard_bytes=0)
