"""Training on packed sequences: padding does not enter the loss, whatever its share of a micro-batch or of a rank."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
import warm
import yaml
from data_artifacts import make_artifact
from tiny_models import VOCABULARY, make_checkpoint

from megatron_prism.conversion.weights import HFWeights
from megatron_prism.data.packed_dataset import packed_dataset
from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.token_files import TokenFile
from megatron_prism.data.tokenizer import ModelTokenizer, Tokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact, Receipt
from megatron_prism.pipeline.worker_task import run_task, write_task
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import BatchConfig

LENGTH = 32
# The learning rate is too small to change a weight, so each step has the loss of the initial weights.
STILL = Schedule(lr=1e-30)


def write_documents(prefix, lengths):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    random = numpy.random.default_rng(11)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for length in lengths:
        builder.add_document(numpy.append(random.integers(2, VOCABULARY, length - 1), 0), [length])
    builder.finalize(f"{prefix}.idx")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint("granite", tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module")
def inputs(model, tmp_path_factory):
    """Three packed sequences of very different lengths, and a source of one that is almost all padding."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "valid"):
        write_documents(folder / "tokens" / split / "mixed", [33, 25, 18])
        write_documents(folder / "tokens" / split / "sparse", [6])
        # Three sequences of 2, 3 and 2 documents.
        write_documents(folder / "tokens" / split / "joined", [20, 13, 14, 11, 8, 17, 15])
    tokens = Artifact(folder / "tokens", Receipt("tokens", "0", "tokens", {}, {}))
    packed = make_artifact(PackDocuments(sequence_length=LENGTH), folder / "packed", tokens=tokens)
    imported = Artifact(model.parent, Receipt("import", "1", "import", {}, {}))
    return {
        "tokens": packed,
        "tokenizer": make_artifact(ModelTokenizer(), folder / "tokenizer", model=imported),
    }


def train(model, folder, source, **changes):
    mixture = folder / f"{source}.yaml"
    mixture.write_text(yaml.safe_dump({"name": source, "weights": {source: 1}}))
    fields = {
        "architecture": HFWeights(model).architecture,
        "mixture": str(mixture),
        "init_from": str(model),
        "steps": 1,
        "schedule": STILL,
        "batch": BatchConfig(LENGTH, 1, 3),
        "validation_batches": 1,
    }
    return Train(**(fields | changes))


def losses_of(model, inputs, samples):
    """Each sample's summed loss and number of tokens by transformers, and the loss of its padding."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = Tokenizer.load(model)
    dataset = packed_dataset(
        inputs["tokens"].path,
        "train",
        {"mixed": 1.0},
        sequence_length=LENGTH,
        num_samples=samples,
        seed=1,
        tokenizer=tokenizer,
    )
    found = []
    for sample in map(dataset.__getitem__, range(samples)):
        with torch.no_grad():
            logits = network(sample["tokens"][None]).logits[0]
        each = torch.nn.functional.cross_entropy(logits, sample["labels"], reduction="none")
        counts = sample["loss_mask"].bool()
        found.append((float(each[counts].sum()), int(counts.sum()), float(each[~counts].sum())))
    return found


def records(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_the_loss_is_that_of_the_documents_tokens(model, inputs, tmp_path):
    made = make_artifact(train(model, tmp_path, "mixed"), tmp_path / "made", **inputs)
    samples = losses_of(model, inputs, 3)
    totals, counts, padding = (numpy.array(column) for column in zip(*samples, strict=True))
    assert sorted(counts) == [17, 24, 32], "one sequence is full, the others are padded"
    loss = records(made.path)[0]["loss"]
    assert loss == pytest.approx(totals.sum() / counts.sum(), rel=1e-5)
    # Validation reads the same sequences in this corpus.
    assert made.metrics["validation"]["mixed"] == pytest.approx(totals.sum() / counts.sum(), rel=1e-5)
    # Negative controls: counting padding, or giving each micro-batch the same weight, gives other numbers.
    with_padding = (totals + padding).sum() / (3 * LENGTH)
    mean_of_means = (totals / counts).mean()
    assert abs(with_padding - loss) > 1e-3
    assert abs(mean_of_means - loss) > 1e-3


def run_on_two_ranks(stage, inputs, out):
    """The launcher's workers without its scheduler, which takes longer to start than they run."""
    out.mkdir()
    task = write_task(stage, inputs, out)
    warm.ranks(run_task, task, world=2)
    return json.loads(task.with_name("metrics.json").read_text())


def test_a_rank_that_holds_padding_only(model, inputs, tmp_path):
    # Of two context-parallel ranks, the second holds the middle half of each sequence: here only padding.
    changes = {"steps": 2, "batch": BatchConfig(LENGTH, 1, 1), "schedule": Schedule(lr=1e-3)}
    alone = make_artifact(train(model, tmp_path, "sparse", **changes), tmp_path / "alone", **inputs)
    halves = train(model, tmp_path, "sparse", parallel=ParallelConfig(context_parallel_size=2), **changes)
    found = run_on_two_ranks(halves, inputs, tmp_path / "two")
    assert records(tmp_path / "two")[1]["loss"] < records(tmp_path / "two")[0]["loss"]
    for one, two in zip(records(alone.path), records(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert found["validation"]["sparse"] == pytest.approx(alone.metrics["validation"]["sparse"], rel=1e-5)


def test_another_sequence_length_is_refused(model, inputs, tmp_path):
    stage = train(model, tmp_path, "mixed", batch=BatchConfig(16, 1, 3))
    with pytest.raises(
        ConfigError, match=r"sequence_length=32, but sequence_length=16 .*batch.sequence_length"
    ):
        stage.run(inputs, tmp_path)


def test_documents_apart_have_the_loss_of_each_alone(model, inputs, tmp_path):
    from transformers import AutoModelForCausalLM

    batch = BatchConfig(LENGTH, 1, 3)
    made = make_artifact(
        train(model, tmp_path, "joined", intra_document=True, batch=batch), tmp_path / "made", **inputs
    )
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    file = TokenFile.open(inputs["tokens"].path / "train" / "joined")
    total, count = 0.0, 0
    for document in numpy.split(numpy.asarray(file.tokens, numpy.int64), file.chunk_bounds[1:-1]):
        ids = torch.from_numpy(document)
        with torch.no_grad():
            logits = network(ids[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    loss = records(made.path)[0]["loss"]
    assert loss == pytest.approx(total / count, rel=1e-5)
    joined = make_artifact(train(model, tmp_path, "joined", batch=batch), tmp_path / "off", **inputs)
    assert abs(records(joined.path)[0]["loss"] - loss) > 5e-4
