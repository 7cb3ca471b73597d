"""The files next to the weights are copied and read back by transformers: code (never run), licence, templates."""

from __future__ import annotations

import json
import os

import pytest
from tiny_models import CONFIGS, make_tokenizer
from transformers import AutoConfig, AutoTokenizer

from megatron_prism.conversion.side_files.carry import carry_files, replace_tokenizer
from megatron_prism.conversion.side_files.remote_code import drop_incomplete_auto_maps
from megatron_prism.errors import CheckpointError
from megatron_prism.pipeline.json_text import LFS_POINTER

CARRIED = (
    *("config.json", "generation_config.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"),
    *(
        "tokenizer.model",
        "tokenizer.model.v3",
        "tekken.json",
        "added_tokens.json",
        "vocab.txt",
        "spiece.model",
    ),
    *("LICENSE", "LICENSE.txt", "License.md", "NOTICE", "USE_POLICY.md", "preprocessor_config.json"),
    *("reasoning_parser.py", "tokenization_x.py"),
)
LEFT = ("README.md", "params.json", "notes.csv", "original/params.json")
SILENT = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", ".gitattributes")
CODE = {
    "configuration_x.py": "from transformers import LlamaConfig\nfrom .shared_x import BASE\n"
    "class XConfig(LlamaConfig):\n    pass\n",
    "shared_x.py": "import pathlib\npathlib.Path('MARKER').touch()\nBASE = 1\n",
}
AUTO_MAP = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "elsewhere/x--modeling_x.XModel"}


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith(".json") else f"this is {name}")
    return folder


def with_code(folder, marker):
    """A model folder whose config class is defined in two Python files of the folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"auto_map": AUTO_MAP}))
    for name, text in CODE.items():
        (folder / name).write_text(text.replace("MARKER", str(marker)))
    return folder


def test_all_other_files_are_copied_or_named(tmp_path):
    source = fill(tmp_path / "source", (*CARRIED, *LEFT, *SILENT))
    (source / "LICENSE").unlink()
    (source / "LICENSE").symlink_to(source / "NOTICE")  # as a Hugging Face cache lays files out
    (remark,) = carry_files(source, tmp_path / "hf")
    assert carry_files(tmp_path / "hf", tmp_path / "again") == []
    for folder in (tmp_path / "hf", tmp_path / "again"):
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert found == sorted(CARRIED)
        assert not (folder / "LICENSE").is_symlink()
        assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in CARRIED)
    assert remark == f"{source}: not copied: README.md, notes.csv, original/, params.json"


def test_code_is_copied_and_never_run(tmp_path, monkeypatch):
    source = with_code(tmp_path / "source", tmp_path / "ran")
    assert carry_files(source, tmp_path / "out") == []
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "XConfig"
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", CODE)
def test_an_auto_map_without_its_files_is_removed_with_a_remark(missing, tmp_path):
    source = with_code(tmp_path / "source", tmp_path / "ran")
    os.remove(source / missing)
    before = json.loads((source / "config.json").read_text())
    (remark,) = carry_files(source, tmp_path / "out")
    assert f"config.json: auto_map needs {missing}" in remark
    after = json.loads((tmp_path / "out/config.json").read_text())
    assert after == {key: value for key, value in before.items() if key != "auto_map"}
    loaded = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "LlamaConfig"
    assert drop_incomplete_auto_maps(tmp_path / "out") == []


def test_the_tokenizers_own_map_may_hold_nulls(tmp_path):
    source = fill(tmp_path / "source", ["tokenization_x.py"])
    auto_map = {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}
    (source / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    assert carry_files(source, tmp_path / "out") == []
    (source / "tokenization_x.py").unlink()
    assert "tokenization_x.py" in carry_files(source, tmp_path / "other")[0]
    assert json.loads((tmp_path / "other/tokenizer_config.json").read_text()) == {}


def test_a_tokenizer_replaces_all_files_of_the_one_before(tmp_path):
    old = fill(tmp_path / "old", CARRIED)
    make_tokenizer(tmp_path / "new")
    (tmp_path / "new/chat_template.jinja").write_text("new")
    assert replace_tokenizer(tmp_path / "new", old) == []
    for name in (
        "tokenizer.model",
        "tokenizer.model.v3",
        "tekken.json",
        "additional_chat_templates/tool.jinja",
    ):
        assert not (old / name).exists(), name
    assert AutoTokenizer.from_pretrained(old).chat_template == "new"
    assert (old / "LICENSE").is_file()


def test_json_is_copied_without_a_byte_order_mark(tmp_path):
    """transformers cannot read a file with a byte order mark, so the written files must have none."""
    source = tmp_path / "source"
    make_tokenizer(source)
    (source / "config.json").write_text(json.dumps(CONFIGS["llama"]))
    marked = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in marked:
        (source / name).write_bytes(b"\xef\xbb\xbf" + (source / name).read_bytes())
    (remark,) = carry_files(source, tmp_path / "out")
    assert f"{source}: {', '.join(marked)}: copied without the byte order mark" in remark
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size == CONFIGS["llama"]["vocab_size"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id == 0


def test_links_and_pointers_in_place_of_files_give_a_remark(tmp_path):
    source = fill(tmp_path / "source", ["config.json", "tokenizer_config.json"])
    (source / "tokenizer.json").symlink_to(tmp_path / "nothing")
    (source / "tokenizer.model").write_bytes(LFS_POINTER + b"v1\noid sha256:00\nsize 1\n")
    link, pointer = carry_files(source, tmp_path / "out")
    assert f"{source}/tokenizer.json: not copied: a link to a missing file" in link
    assert f"{source}/tokenizer.model: this is a Git LFS pointer" in pointer
    assert "git lfs pull" in pointer


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("text", ["null", "{", LFS_POINTER.decode()])
def test_a_file_that_is_not_an_object_is_named(name, text, tmp_path):
    source = fill(tmp_path / "source", ["config.json"])
    (source / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"^{source}/{name}: "):
        carry_files(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_inside_its_source_is_not_listed_as_not_copied(tmp_path):
    source = fill(tmp_path / "source", ["config.json", "kept/notes"])
    assert carry_files(source, source / "out.partial" / "hf") == [f"{source}: not copied: kept/"]
