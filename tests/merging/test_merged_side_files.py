"""Whose config and tokenizer a merge keeps, read back by transformers; a note names every difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_checkpoint
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.merging.merge import MergeSettings, merge, plan_merge

END, A = 0, 34


def rewrite(path, **changes):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base, and a chat model of the same vocabulary: another end token, template, licence and length."""
    root = tmp_path_factory.mktemp("pair")
    base = make_checkpoint("llama", root / "base")
    chat = root / "chat"
    shutil.copytree(base, chat)
    rewrite(chat / "tokenizer_config.json", eos_token="A")
    rewrite(chat / "config.json", eos_token_id=[END, A], max_position_embeddings=256)
    rewrite(chat / "generation_config.json", eos_token_id=[END, A], temperature=0.6)
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    (chat / "LICENSE").write_text("of the chat model")
    for name in ("base", "chat"):
        (root / f"{name}-megatron").mkdir()
        import_checkpoint(root / name, root / f"{name}-megatron")
    return base, chat


def merged(out, models, weights=(0.15, 0.85), base=None, format=None, method="linear", **choices):
    out.mkdir()
    plan = plan_merge(
        MergeSettings(method=method, weights=weights), models, base=base, format=format, **choices
    )
    return merge(plan, out)["remarks"]


def story(folder):
    """What the files say: end tokens of config, generation config and tokenizer, positions, and whether it chats."""
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    ends = (config.eos_token_id, generation.eos_token_id, tokenizer.eos_token_id)
    return ends, config.max_position_embeddings, tokenizer.chat_template is not None


BASE_STORY, CHAT_STORY = ((END, END, END), 128, False), (([END, A], [END, A], A), 256, True)


@pytest.mark.parametrize(("weights", "expected"), [((0.15, 0.85), CHAT_STORY), ((0.85, 0.15), BASE_STORY)])
@pytest.mark.parametrize("megatron", [False, True])
def test_the_files_of_the_model_with_the_largest_weight_are_kept(megatron, weights, expected, pair, tmp_path):
    models = [folder.with_name(f"{folder.name}-megatron") if megatron else folder for folder in pair]
    remarks = merged(tmp_path / "out", models, weights)
    files = tmp_path / "out/hf" if megatron else tmp_path / "out"
    assert story(files) == expected
    assert (files / "LICENSE").exists() == (expected is CHAT_STORY)
    if megatron:
        architecture = json.loads((tmp_path / "out/architecture.json").read_text())
        assert architecture["max_position_embeddings"] == expected[1]
    difference = next(remark for remark in remarks if "are kept (it has the largest weight)" in remark)
    for fact in (
        "config.json eos_token_id",
        "generation_config.json temperature",
        "tokenizer_config.json eos_token",
    ):
        assert fact in difference
    assert ("no LICENSE" if expected is CHAT_STORY else "LICENSE (not kept)") in difference
    assert any("has max_position_embeddings=" in remark for remark in remarks)


def test_equal_weights_keep_the_first_models_files(pair, tmp_path):
    base, _ = pair
    twin = tmp_path / "twin"
    shutil.copytree(base, twin)
    assert merged(tmp_path / "twins", [base, twin], (0.5, 0.5)) == []
    merged(tmp_path / "out", list(pair), (0.5, 0.5))
    assert story(tmp_path / "out") == BASE_STORY


def test_a_chosen_tokenizer_brings_its_ids(pair, tmp_path):
    base, chat = pair
    remarks = merged(tmp_path / "out", [base, chat], (0.85, 0.15), tokenizer_from=chat)
    ends, positions, chats = story(tmp_path / "out")
    assert (ends, positions, chats) == (CHAT_STORY[0], 128, True)
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.6
    assert not (tmp_path / "out/LICENSE").exists()
    assert any("(tokenizer_from)" in remark for remark in remarks)
    merged(tmp_path / "back", [base, chat], (0.15, 0.85), tokenizer_from=base)
    assert story(tmp_path / "back") == (BASE_STORY[0], 256, False)
    with pytest.raises(ConfigError, match="is not one of the merged models"):
        plan_merge(MergeSettings(weights=(1, 0)), [base, chat], tokenizer_from=tmp_path)


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        ("task-arithmetic", (0.4,), BASE_STORY),
        ("task-arithmetic", (0.6,), CHAT_STORY),
        ("slerp", (0.3, 0.7), CHAT_STORY),
    ],
)
def test_the_weight_of_a_base_is_one_minus_the_others(method, weights, expected, pair, tmp_path):
    base, chat = pair
    if method == "slerp":
        merged(tmp_path / "out", [base, chat], weights, method=method)
    else:
        merged(tmp_path / "out", [chat], weights, base, method=method)
    assert story(tmp_path / "out") == expected


def test_the_model_with_the_largest_weight_is_found_for_each_alpha(pair, tmp_path):
    (tmp_path / "out").mkdir()
    merge(plan_merge(MergeSettings(alphas=(0.2, 0.8)), list(pair)), tmp_path / "out")
    assert story(tmp_path / "out/alpha-0.2") == BASE_STORY
    assert story(tmp_path / "out/alpha-0.8") == CHAT_STORY


@pytest.mark.parametrize("format", ["hf", "megatron"])
def test_a_requested_dtype_is_that_of_tensors_and_config(format, pair, tmp_path):
    remarks = merged(tmp_path / "out", list(pair), format=format, dtype=torch.bfloat16)
    assert sum("the result is torch.bfloat16, as requested" in remark for remark in remarks) == 2
    kept = merged(tmp_path / "fp32", list(pair))
    assert not any("float" in remark for remark in kept)
    if format == "hf":
        found, exact = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "fp32"))
        assert all(torch.equal(found[name], exact[name].bfloat16()) for name in exact)
    files = tmp_path / "out" / ("hf" if format == "megatron" else "")
    assert AutoConfig.from_pretrained(files).dtype is torch.bfloat16


def test_a_model_without_a_tokenizer_gives_a_remark(pair, tmp_path):
    base, chat = pair
    bare = tmp_path / "bare"
    shutil.copytree(chat, bare)
    (bare / "tokenizer.json").unlink()
    remarks = merged(tmp_path / "out", [base, bare])
    assert story(tmp_path / "out") == (BASE_STORY[0], 256, False)
    assert any(
        f"{bare}: has no tokenizer to compare; the result keeps that of {base}" in each for each in remarks
    )
    with pytest.raises(ConfigError, match="has no tokenizer; name another"):
        plan_merge(MergeSettings(weights=(0.5, 0.5)), [base, bare], tokenizer_from=bare)


def test_other_files_of_a_model_without_a_tokenizer_give_a_remark(pair, tmp_path):
    """The model with the largest weight has no tokenizer, so its end tokens and template are not kept."""
    base, chat = pair
    bare = tmp_path / "bare"
    shutil.copytree(chat, bare)
    (bare / "tokenizer.json").unlink()
    remarks = " ".join(merged(tmp_path / "out", [base, bare]))
    assert f"config.json eos_token_id [{END}, {A}] (kept: {END})" in remarks
    assert f"generation_config.json eos_token_id [{END}, {A}] (kept: {END})" in remarks
    assert "generation_config.json temperature 0.6" in remarks
    assert "chat_template.jinja (not kept)" in remarks
    assert "LICENSE (not kept)" not in remarks
    assert (tmp_path / "out/LICENSE").is_file()


def test_ids_of_a_tokenizer_without_a_config_are_used(pair, tmp_path):
    base, chat = pair
    bare = tmp_path / "bare"
    shutil.copytree(Path(f"{chat}-megatron"), bare)
    (bare / "hf/config.json").unlink()
    merged(tmp_path / "out", [base, bare], format="hf")
    assert story(tmp_path / "out")[0] == (A, [END, A], A)


def test_a_chosen_tokenizer_gives_no_remark_on_other_files(pair, tmp_path):
    base, chat = pair
    remarks = merged(tmp_path / "out", [base, chat], tokenizer_from=base)
    assert (tmp_path / "out/LICENSE").read_text() == "of the chat model"
    assert not any("LICENSE" in each and str(base) in each.partition(" are kept")[0] for each in remarks)
    assert any(f"the other files of {chat} are kept" in each and "no LICENSE" in each for each in remarks)


def test_a_tokenizer_larger_than_the_model_gives_a_remark(pair, tmp_path):
    base, chat = pair
    for each in (base, chat):
        shutil.copytree(each, tmp_path / each.name)
        (tmp_path / each.name / "added_tokens.json").write_text('{"<|new|>": 61}')
    both = [tmp_path / "base", tmp_path / "chat"]
    assert any("'<|new|>' of its tokenizer has the id 61" in each for each in merged(tmp_path / "out", both))
    (both[0] / "added_tokens.json").write_text('{"<|other|>": 61}')
    with pytest.raises(CheckpointError, match=r"the id 61 is token '<\|new\|>'.*token '<\|other\|>'"):
        merged(tmp_path / "out2", both)


def test_tokenizers_that_split_text_differently_need_a_choice(pair, tmp_path):
    base, chat = pair
    other = tmp_path / "other"
    shutil.copytree(chat, other)
    rewrite(other / "tokenizer.json", normalizer={"type": "Lowercase"})
    settings = MergeSettings(weights=(0.5, 0.5))
    with pytest.raises(CheckpointError, match=r"splits text differently.*--tokenizer-from"):
        plan_merge(settings, [base, other])
    plan = plan_merge(settings, [base, other], tokenizer_from=other)
    assert any("splits text differently" in remark for remark in plan.remarks)
    vocabulary = json.loads((other / "tokenizer.json").read_text())["model"]
    vocabulary["vocab"]["A"], vocabulary["vocab"]["B"] = vocabulary["vocab"]["B"], vocabulary["vocab"]["A"]
    rewrite(other / "tokenizer.json", model=vocabulary)
    with pytest.raises(CheckpointError, match="share a vocabulary"):
        plan_merge(settings, [base, other], tokenizer_from=other)


def test_paths_are_compared_as_folders_not_as_text(pair, monkeypatch):
    base, chat = pair
    monkeypatch.chdir(base.parent)
    plan = plan_merge(MergeSettings(weights=(0.9, 0.1)), [base, chat], tokenizer_from=Path("chat"))
    assert plan.sources[0].tokenizer == chat
