"""Two sets of weights, an outdated index, tensors in unexpected files: read as in transformers, or refused."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, make_checkpoint
from transformers import AutoModelForCausalLM

from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.weights import HFWeights, MegatronWeights, open_weights
from megatron_prism.errors import CheckpointError
from megatron_prism.merging.inputs import open_models
from megatron_prism.pipeline.json_text import LFS_POINTER

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
Q = "model.layers.1.self_attn.q_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in one file and the same model times 1.5 in three, made once; tests change copies."""
    single = make_checkpoint("llama-scaled-tied", tmp_path_factory.mktemp("made") / "single")
    sharded = single.parent / "sharded"
    shutil.copytree(single, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: tensor * 1.5 for name, tensor in load_file(single / SINGLE).items()}
    weight_map = {name: f"model-0000{1 + index % 3}-of-00003.safetensors" for index, name in enumerate(state)}
    for file in set(weight_map.values()):
        save_file(
            {name: state[name] for name in state if weight_map[name] == file},
            sharded / file,
            {"format": "pt"},
        )
    (sharded / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return single, sharded


@pytest.fixture
def folder(made, tmp_path):
    """`folder('single')`, `folder('sharded')` or `folder('single', 'sharded')`: a copy of one, or of both in one."""

    def copy(*kinds):
        for kind in kinds:
            shutil.copytree(made[kind == "sharded"], tmp_path / "".join(kinds), dirs_exist_ok=True)
        return tmp_path / "".join(kinds)

    return copy


def edit(path, change):
    state = load_file(path)
    save_file(change(state), path, {"format": "pt"})


def edit_map(folder, change):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))


def edit_config(folder, **keys):
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))


def loaded_by_transformers(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_read_as_transformers(folder, remarked):
    weights, theirs = HFWeights(folder), loaded_by_transformers(folder)
    assert all(torch.equal(weights.tensor(name), theirs[name]) for name in weights.shapes)
    assert any(remarked in remark for remark in weights.remarks), weights.remarks


def test_the_set_of_weights_that_transformers_loads_is_read(folder):
    assert_read_as_transformers(folder("single", "sharded"), f"{INDEX} is not; remove the outdated one")
    weights = HFWeights(folder("single", "sharded"))
    assert any("model-00001-of-00003.safetensors (and 2 more) is not read" in r for r in weights.remarks)


def test_an_index_of_an_earlier_save_is_ignored(folder):
    hf = folder("single", "sharded")
    for path in hf.glob("model-*"):
        path.unlink()
    assert_read_as_transformers(hf, "(it names model-00001-of-00003.safetensors, which is not there) is not")
    (hf / INDEX).write_text("{")
    assert_read_as_transformers(hf, "(not readable) is not")


def test_a_folder_with_one_set_of_weights_gives_no_remark(folder):
    assert HFWeights(folder("single")).remarks == []
    assert HFWeights(folder("sharded")).remarks == []


def test_pickled_weights_beside_are_not_read(folder):
    hf = folder("single")
    torch.save({}, hf / "pytorch_model.bin")
    assert_read_as_transformers(
        hf, "pytorch_model.bin is not read; the weights are read from model.safetensors"
    )


def test_only_pickled_weights_or_an_adapter_are_refused_with_the_remedy(folder):
    hf = folder("single")
    (hf / SINGLE).rename(hf / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"the weights are pickled \(pytorch_model.bin\).*save_pretrained"
    ):
        HFWeights(hf)
    (hf / "pytorch_model.bin").rename(hf / "adapter_model.safetensors")
    (hf / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"an adapter \(adapter_config.json\) without its model.*merge_and_unload"
    ):
        HFWeights(hf)


@pytest.mark.parametrize(("name", "layout"), [(SINGLE, "single"), (INDEX, "sharded")])
def test_a_link_or_pointer_in_place_of_the_weights_is_named(name, layout, folder, tmp_path):
    hf = folder(layout)
    (hf / name).write_bytes(LFS_POINTER + b"v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match=rf"{hf}/{name}: this is a Git LFS pointer.*git lfs pull"):
        HFWeights(hf)
    (hf / name).unlink()
    (hf / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to a missing file"):
        HFWeights(hf)


def test_shards_without_an_index_or_a_variant_are_named(folder):
    hf = folder("single")
    (hf / SINGLE).rename(hf / "model.fp16.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model.fp16.safetensors is there, but neither .*download the index"
    ):
        HFWeights(hf)


def test_one_file_of_a_sharded_model_under_the_single_name_is_refused(folder):
    hf = folder("sharded")
    shutil.copy(hf / "model-00001-of-00003.safetensors", hf / SINGLE)
    with pytest.raises(
        CheckpointError,
        match=r"no tensor .*which llama needs \(.*model\.safetensors is read.*index\.json is not",
    ):
        HFWeights(hf)


def test_a_tensor_outside_the_index_is_read(folder):
    hf = folder("sharded")
    edit_map(hf, lambda weight_map: {name: file for name, file in weight_map.items() if name != Q})
    assert_read_as_transformers(hf, f"does not put '{Q}' in model-0000")
    # The index puts it in another file than the one that holds it.
    wrong = {"1": "2", "2": "3", "3": "1"}
    where = next(path.name for path in hf.glob("model-*") if Q in load_file(path))
    other = where[:10] + wrong[where[10]] + where[11:]
    edit_map(hf, lambda weight_map: weight_map | {Q: other})
    assert_read_as_transformers(hf, f"does not put '{Q}' in {where}")


def test_a_tied_head_outside_the_index_is_dropped(folder):
    hf = folder("sharded")
    embedding = next(load_file(path) for path in hf.glob("model-*") if EMBEDDING in load_file(path))[
        EMBEDDING
    ]
    edit(hf / "model-00003-of-00003.safetensors", lambda state: state | {HEAD: embedding.clone()})
    assert_read_as_transformers(hf, "does not put 'lm_head.weight'")
    assert HEAD not in HFWeights(hf).shapes


@pytest.mark.parametrize("kept", [1, 3])
def test_a_tensor_in_two_files_is_read_only_where_the_index_agrees_with_transformers(kept, folder):
    hf = folder("sharded")
    tensor = next(load_file(path) for path in hf.glob("model-*") if Q in load_file(path))[Q]
    for number in (1, 2, 3):
        path = hf / f"model-0000{number}-of-00003.safetensors"
        others = {name: value for name, value in load_file(path).items() if name != Q}
        save_file(others | ({Q: tensor * number} if number != 2 else {}), path, {"format": "pt"})
    edit_map(hf, lambda weight_map: weight_map | {Q: f"model-0000{kept}-of-00003.safetensors"})
    if kept == 1:
        with pytest.raises(
            CheckpointError, match=rf"'{Q}' is in model-00001.* and in model-00003.*remove one"
        ):
            HFWeights(hf)
    else:
        assert torch.equal(HFWeights(hf).tensor(Q), loaded_by_transformers(hf)[Q])


def test_shards_may_be_in_a_subfolder_and_be_links(folder, tmp_path):
    hf = folder("sharded")
    (hf / "shards").mkdir()
    (tmp_path / "blobs").mkdir()
    for path in sorted(hf.glob("model-*")):
        path.rename(tmp_path / "blobs" / path.name)
        (hf / "shards" / path.name).symlink_to(f"../../blobs/{path.name}")
    edit_map(hf, lambda weight_map: {name: f"shards/{file}" for name, file in weight_map.items()})
    theirs = loaded_by_transformers(hf)
    assert all(torch.equal(HFWeights(hf).tensor(name), theirs[name]) for name in HFWeights(hf).shapes)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((0, 32), "(shape [0, 32], not [61, 32])"),
        ((), "(shape [], not"),
        ((62, 32), "(shape [62, 32], not"),
        ((61, 32), ""),
    ],
)
def test_a_tied_head_of_another_shape_or_value_is_refused_before_it_is_read(shape, named, folder):
    hf = folder("single")
    edit(hf / SINGLE, lambda state: state | {HEAD: torch.ones(shape)})
    with pytest.raises(CheckpointError, match=f"tie_word_embeddings=true, but '{HEAD}' .*{re.escape(named)}"):
        HFWeights(hf)


def test_empty_tensors_of_a_partitioned_save_are_refused(folder):
    hf = folder("single")
    edit(hf / SINGLE, lambda state: {name: torch.zeros(0) for name in [*state, HEAD]})
    with pytest.raises(CheckpointError, match=r"has shape \[0\], but config.json needs \[61, 32\].*ZeRO-3"):
        HFWeights(hf)


def test_a_missing_head_names_the_remedy(folder):
    hf = folder("single")
    edit_config(hf, tie_word_embeddings=False)
    with pytest.raises(
        CheckpointError, match=f"no tensor '{HEAD}'.*set the key if the embedding is also the head"
    ):
        HFWeights(hf)


def entry(**values):
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | values})


@pytest.mark.parametrize(
    "header",
    [
        *("[]", '{"a": 3}', "[" * 10**5, entry(data_offsets=["0", "4"]), entry(data_offsets=[-4, 0])),
        *(
            entry(shape=[-1]),
            entry(shape=1),
            entry(shape=[1.0]),
            entry(dtype=["F32"]),
            entry(data_offsets=[4, 0]),
        ),
    ],
    ids=range(10),
)
def test_a_header_with_wrong_values_is_one_line(header, folder):
    hf = folder("single")
    text = header.encode()
    (hf / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        HFWeights(hf)


def frequencies(hf, change=lambda frequency: frequency, name="model.layers.{}.self_attn.rotary_emb.inv_freq"):
    """Store the frequencies that transformers computes, after `change`."""
    own = AutoModelForCausalLM.from_pretrained(hf).model.rotary_emb.inv_freq
    edit(hf / SINGLE, lambda state: state | {name.format(i): change(own).clone() for i in range(3)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
)
def test_stored_rotary_frequencies_that_agree_are_dropped(dtype, name, folder, tmp_path):
    hf = folder("single")
    frequencies(hf, lambda frequency: frequency.to(dtype), name)
    weights = HFWeights(hf)
    assert not any("inv_freq" in stored for stored in weights.shapes)
    assert any("inv_freq'" in remark and "dropped" in remark for remark in weights.remarks)
    (tmp_path / "megatron").mkdir()
    metrics = import_checkpoint(hf, tmp_path / "megatron")
    assert any("dropped" in remark for remark in metrics["remarks"])
    assert any("dropped" in remark for remark in open_models([hf, hf])[1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda frequency: frequency * 1.01, "the last is"),
        (lambda frequency: frequency[:-1], "shape"),
        (lambda frequency: frequency[0], "shape"),
        (lambda frequency: frequency * float("nan"), "nan"),
    ],
)
def test_other_rotary_frequencies_are_refused(change, named, folder):
    hf = folder("single")
    frequencies(hf, change)
    with pytest.raises(CheckpointError, match=f"inv_freq' differs from the rotary frequencies.*{named}"):
        HFWeights(hf)


def test_a_config_with_two_dtypes_gives_a_remark(folder):
    hf = folder("single")
    edit_config(hf, dtype="bfloat16", torch_dtype="float32")
    assert any("dtype='bfloat16' and torch_dtype='float32' differ" in each for each in HFWeights(hf).remarks)


@pytest.mark.parametrize(
    ("keys", "has_remark"),
    [
        ({"dtype": "float16"}, True),
        ({"dtype": None, "torch_dtype": "torch.bfloat16"}, True),
        ({"dtype": "auto", "torch_dtype": "auto"}, True),
        ({"dtype": "float32", "torch_dtype": "torch.float32"}, False),
        ({"dtype": None}, False),
    ],
)
def test_a_config_with_another_dtype_than_the_tensors_gives_a_remark(keys, has_remark, folder):
    hf = folder("single")
    edit_config(hf, **keys)
    remarks = HFWeights(hf).remarks
    assert [
        f"{hf}/config.json: dtype=" in each and "the tensors are float32" in each for each in remarks
    ] == [True] * has_remark


def test_tensors_are_converted_to_a_requested_dtype(folder, tmp_path):
    hf = folder("single")
    edit(hf / SINGLE, lambda state: {name: t if name == Q else t.bfloat16() for name, t in state.items()})
    stored = load_file(hf / SINGLE)
    for dtype in (torch.float32, torch.bfloat16):
        out = tmp_path / str(dtype)
        out.mkdir()
        import_checkpoint(hf, out, dtype)
        imported = MegatronWeights(out)
        assert all(torch.equal(imported.tensor(name), tensor.to(dtype)) for name, tensor in stored.items())
    (tmp_path / "keep").mkdir()
    with pytest.raises(CheckpointError, match=rf"'{Q}' torch.float32, .*--dtype fp32"):
        import_checkpoint(hf, tmp_path / "keep")


def test_a_running_model_starts_from_tensors_of_two_dtypes(folder, tmp_path):
    from megatron_prism.conversion.gather import gather_hf
    from megatron_prism.conversion.init_from_hf import load_hf_weights
    from megatron_prism.models.build import build_model
    from megatron_prism.platform.process_groups import session

    hf = folder("single")
    edit(hf / SINGLE, lambda state: {name: t if name == Q else t.bfloat16() for name, t in state.items()})
    architecture = open_weights(hf).architecture
    with session(seed=1):
        models = [build_model(architecture, torch.float32)]
        load_hf_weights(models, architecture, hf)
        gathered = gather_hf(models, architecture)
        assert gathered is not None
        held = dict(gathered[1])
    assert all(torch.equal(held[name], tensor.float()) for name, tensor in load_file(hf / SINGLE).items())


def test_the_tiny_model_has_a_tied_head():
    assert CONFIGS["llama-scaled-tied"]["tie_word_embeddings"]
