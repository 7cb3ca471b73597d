import os
import shutil
import warnings

import pytest
import torch
import torch.distributed as dist
import warm

from megatron_prism.data.blend import IndexFolder, blended_dataset, source_counts, token_sources
from megatron_prism.data.mixture import Mixture
from megatron_prism.data.tokenization import write_tokens
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.platform.waiting import wait_for_all

LENGTH = 64
SHARES = Mixture.load("shoebox-mcs").weights


@pytest.fixture(scope="module")
def tokenizer(tokenizer_artifact):
    return Tokenizer.load(tokenizer_artifact.path)


@pytest.fixture
def blend(tokens, tokenizer, tmp_path):
    def build(split="train", weights=SHARES, samples=300, seed=1, folder=tokens.path, length=LENGTH):
        return blended_dataset(
            folder,
            split,
            weights,
            sequence_length=length,
            num_samples=samples,
            seed=seed,
            indices=IndexFolder(tmp_path / "cache"),
            tokenizer=tokenizer,
        )

    return build


def rows(dataset, count):
    return torch.stack([dataset[index]["tokens"] for index in range(count)])


def test_a_sample(blend):
    sample = blend()[0]
    assert {"tokens", "labels", "loss_mask", "position_ids"} <= sample.keys()
    assert "attention_mask" not in sample
    for key in ("tokens", "labels", "loss_mask", "position_ids"):
        assert sample[key].shape == (LENGTH,)
    assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
    assert torch.equal(sample["position_ids"], torch.arange(LENGTH))
    assert sample["loss_mask"].sum() == LENGTH


def test_shares_over_any_prefix(blend):
    dataset = blend(samples=2000)
    assert len(dataset) >= 2000
    for first in (10, 77, 500, 2000):
        counts = source_counts(dataset, list(SHARES), first)
        assert sum(counts.values()) == first
        for source, share in SHARES.items():
            assert abs(counts[source] / first - share) <= 1 / first
    # Negative control: equal shares fail the same bound.
    equal = source_counts(blend(weights=dict.fromkeys(SHARES, 1.0), samples=2000), list(SHARES), 2000)
    assert abs(equal["math"] / 2000 - SHARES["math"]) > 0.1


def test_samples_come_from_their_source(blend, tokenizer):
    names = ["math", "code"]
    dataset = blend(weights={"math": 1, "code": 1}, samples=60)
    math = [tokenizer.decode(dataset[i]["tokens"]) for i in range(60) if dataset.dataset_index[i] == 0]
    assert len(math) == source_counts(dataset, names, 60)["math"] == 30
    assert all("Assistant:" in text or "answer" in text for text in math)


def test_the_seed_decides_the_order(blend, tmp_path):
    first = rows(blend(), 300)
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(first, rows(blend(), 300))
    assert not torch.equal(first, rows(blend(seed=2), 300))


def test_a_small_source_is_read_several_times(tokens, blend):
    counts = tokens.metrics["tokens"]["valid"]["chat"]
    samples = 5 * counts // LENGTH
    dataset = blend(split="valid", weights={"chat": 1.0}, samples=samples)
    assert len(dataset) >= samples
    assert source_counts(dataset, ["chat"], samples) == {"chat": samples}
    assert int((rows(dataset, samples) == 0).sum()) > 3 * counts // 100


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("weights", [SHARES, {"chat": 1e-6, "math": 1.0, "web": 0.3}])
def test_few_samples_never_exhaust_a_source(blend, tmp_path, tokenizer, samples, weights):
    # Each source has the tokens of exactly one sample per epoch, where Megatron's rounding matters most.
    for source in weights:
        write_tokens(["ab " * 16], tokenizer, tmp_path / "t" / "train" / source)
    dataset = blend(folder=tmp_path / "t", weights=weights, samples=samples, length=8)
    assert len(dataset) >= samples
    assert rows(dataset, samples).shape == (samples, 8)


def test_indices_stay_in_the_cache_and_half_written_ones_are_not_used(tokens, blend, tmp_path):
    before = sorted(tokens.path.rglob("*"))
    first = rows(blend(), 50)
    assert sorted(tokens.path.rglob("*")) == before
    [folder] = (tmp_path / "cache").iterdir()
    (folder / "complete").unlink()
    for file in folder.glob("*shuffle_index.npy"):
        file.write_bytes(file.read_bytes()[:40])
    assert torch.equal(first, rows(blend(), 50))


def test_changed_contents_of_the_same_file(blend, tokenizer, tmp_path):
    source = tmp_path / "t" / "train" / "a"
    write_tokens(["one two three " * 40], tokenizer, source)
    old = rows(blend(folder=tmp_path / "t", weights={"a": 1}, samples=4), 4)
    write_tokens([f"{number} is another text " * 9 for number in range(40)], tokenizer, source)
    assert not torch.equal(old, rows(blend(folder=tmp_path / "t", weights={"a": 1}, samples=4), 4))


def test_no_process_group_is_left_behind(blend):
    blend(samples=5)
    assert not dist.is_initialized()


def test_one_token_for_end_and_padding(tokens, tokenizer, tmp_path):
    shared = Tokenizer(tokenizer._backend, tokenizer.eos_id, tokenizer.eos_id, tokenizer.policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dataset = blended_dataset(
            tokens.path,
            "train",
            {"math": 1},
            sequence_length=LENGTH,
            num_samples=20,
            seed=1,
            indices=IndexFolder(tmp_path / "cache"),
            tokenizer=shared,
        )
    # The end token of a document is trained on, and not masked as padding.
    assert any((dataset[i]["labels"] == shared.eos_id).any() for i in range(20))
    assert all(dataset[i]["loss_mask"].all() for i in range(20))


def test_refusals(blend, tokens, tmp_path, tokenizer):
    with pytest.raises(DataError, match="no source 'maths'; did you mean 'math'"):
        blend(weights={"maths": 1.0})
    with pytest.raises(DataError, match=r"no \.bin file"):
        blend(split="test")
    for wrong in ({"samples": 0}, {"length": 0}, {"seed": -1}, {"weights": {}}, {"weights": {"math": 0.0}}):
        with pytest.raises(ConfigError):
            blend(**wrong)
    shutil.copytree(tokens.path / "valid", tmp_path / "t" / "train")
    data = tmp_path / "t" / "train" / "math.bin"
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"math\.bin: \d+ bytes, but its index says"):
        blend(folder=tmp_path / "t")
    index = data.with_suffix(".idx")
    whole = index.read_bytes()
    for damaged in (b"", b"nonsense, not an index" * 9, whole[:20], whole[:-4]):
        index.write_bytes(damaged)
        with pytest.raises(DataError, match=r"math\.idx: not a complete index"):
            blend(folder=tmp_path / "t")
    index.unlink()
    with pytest.raises(DataError, match=r"math\.idx: missing"):
        token_sources(tmp_path / "t", "train")


def _rows_of_a_rank(tokens, tokenizer, work):
    shares = {"math": 0.6, "web": 0.4}
    dataset = blended_dataset(
        tokens,
        "train",
        shares,
        sequence_length=LENGTH,
        num_samples=100,
        seed=3,
        indices=IndexFolder.of(work / "cache", per_node=False, minutes=5),
        tokenizer=Tokenizer.load(tokenizer),
    )
    torch.save(rows(dataset, 100), work / f"{dist.get_rank()}.pt")


def test_two_ranks_see_the_same_samples(tokens, tokenizer_artifact, blend, tmp_path):
    warm.ranks(_rows_of_a_rank, tokens.path, tokenizer_artifact.path, tmp_path, world=2)
    alone = rows(blend(weights={"math": 0.6, "web": 0.4}, samples=100, seed=3), 100)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone)


def _rows_of_a_node(tokens, tokenizer, work):
    rank = dist.get_rank()
    os.environ["LOCAL_RANK"] = "0"
    dataset = blended_dataset(
        tokens,
        "train",
        {"math": 0.6, "web": 0.4},
        sequence_length=LENGTH,
        num_samples=100,
        seed=3,
        indices=IndexFolder.of(work / f"node{rank}", per_node=True, minutes=5),
        tokenizer=Tokenizer.load(tokenizer),
    )
    torch.save(rows(dataset, 100), work / f"{rank}.pt")
    assert dist.get_rank() == rank, "Megatron's builder saw another rank, but nobody else"
    try:
        if rank == 0:
            wait_for_all(0.02)
    except RuntimeError as problem:
        (work / "late.txt").write_text(str(problem))


def test_each_node_writes_its_own_indices_and_a_late_rank_is_named(
    tokens, tokenizer_artifact, blend, tmp_path
):
    warm.ranks(_rows_of_a_node, tokens.path, tokenizer_artifact.path, tmp_path, world=2)
    alone = rows(blend(weights={"math": 0.6, "web": 0.4}, samples=100, seed=3), 100)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone)
        [folder] = (tmp_path / f"node{rank}").iterdir()
        assert (folder / "complete").exists()
        assert list(folder.glob("*.npy"))
    assert "1" in (tmp_path / "late.txt").read_text()


def test_who_writes_the_indices(tmp_path, monkeypatch):
    # The second process of the second of two nodes with two processes each, and the first one there.
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not IndexFolder.of(tmp_path, per_node=False, minutes=1).writes
    assert not IndexFolder.of(tmp_path, per_node=True, minutes=1).writes
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not IndexFolder.of(tmp_path, per_node=False, minutes=1).writes
    assert IndexFolder.of(tmp_path, per_node=True, minutes=1).writes
