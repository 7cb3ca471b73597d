"""Given files in a deep dry run: a checkpoint's headers against its model, and names of suites against the corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint

from megatron_prism.cli.dry_run_checks import check_stage
from megatron_prism.cli.main import main
from megatron_prism.conversion.hf_folder import reader
from megatron_prism.conversion.stage import ImportHF
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.shoebox.corpus import ShoeboxCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.evaluation.suites.stage import BenchmarkFiles
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.stage import Stage

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint("llama", tmp_path / "hf", torch.bfloat16)


def checked(folder: Path) -> list[str]:
    graph = Graph("small")
    return check_stage(graph, graph.add("import", ImportHF(source=str(folder))))


def test_headers_are_read_and_no_number(checkpoint, monkeypatch):
    monkeypatch.setattr(reader, "os", None)
    lines = checked(checkpoint)
    count = len(load_file(checkpoint / "model.safetensors"))
    assert lines[0] == f"{checkpoint}: {count} tensors of bfloat16, as the model needs them"
    # Negative control: reading a number of the data would have failed.
    with pytest.raises(AttributeError):
        reader.HFFolder(checkpoint).read(NAME, 0, torch.empty(1, 48, dtype=torch.bfloat16))


def rewritten(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return plant


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def shard_missing(folder: Path) -> None:
    index = {
        "weight_map": {name: "model-1-of-1.safetensors" for name in load_file(folder / "model.safetensors")}
    }
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FAULTS = {
    "a name": (rewritten(lambda tensors: tensors.pop(NAME)), NAME),
    "one too many": (
        rewritten(lambda tensors: tensors.update({"model.extra": torch.ones(2)})),
        "model.extra",
    ),
    "a shape": (rewritten(lambda tensors: tensors.update({NAME: tensors[NAME][:-1].clone()})), NAME),
    "a dtype": (rewritten(lambda tensors: tensors.update({NAME: tensors[NAME].to(torch.int8)})), NAME),
    "a file that is cut off": (cut_off, "model.safetensors"),
    "a shard": (shard_missing, "model-1-of-1.safetensors: missing"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_checkpoint_is_found(checkpoint, name):
    plant, expected = FAULTS[name]
    plant(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        checked(checkpoint)
    assert expected in str(caught.value)


def test_it_is_one_line_of_the_command(checkpoint, monkeypatch, capfd):
    FAULTS["a shape"][0](checkpoint)
    (checkpoint.parent / "small.py").write_text(
        "from megatron_prism.conversion.stage import ImportHF\nfrom megatron_prism.pipeline.graph import Graph\n\n\n"
        "def recipe(checkpoint: str = '') -> Graph:\n    graph = Graph('small')\n"
        "    graph.add('import', ImportHF(source=checkpoint))\n    return graph\n"
    )
    monkeypatch.chdir(checkpoint.parent)
    # Negative control: the other dry run does not see it.
    for arguments, code in (["--dry-run"], 0), (["--dry-run=deep"], 2):
        with pytest.raises(SystemExit) as ended:
            main(["run", "small.py", f"checkpoint={checkpoint}", *arguments])
        assert (ended.value.code or 0) == code
    (line,) = [each for each in capfd.readouterr().out.splitlines() if each.startswith("error:")]
    assert line.startswith("error: stage 'import': ")
    assert NAME in line


def test_a_folder_with_a_config_only_is_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert checked(checkpoint)[0] == f"{checkpoint}: there are no weights yet; only config.json was compared"


def evaluated(corpus: Stage, suites: list[str]) -> list[str]:
    graph = Graph("small")
    node = graph.add("corpus", corpus)
    text = graph.add("text", ShoeboxCorpus())
    tokenizer = graph.add("tokenizer", TrainTokenizer(), corpus=text)
    model = graph.add("import", ImportHF())
    stage = Evaluate(suites=suites)
    return check_stage(graph, graph.add("evaluate", stage, model=model, tokenizer=tokenizer, corpus=node))


def test_suites_are_in_the_corpus(tmp_path):
    (tmp_path / "aime24.jsonl").write_text("{}\n")
    assert evaluated(ShoeboxCorpus(), ["math", "code"]) == []
    assert evaluated(BenchmarkFiles([str(tmp_path)]), ["aime24"]) == []
    # What a folder will hold that is not there yet is not known.
    assert evaluated(BenchmarkFiles(["<suites>"]), ["aime25"]) == []
    for corpus, name, expected in (
        (
            ShoeboxCorpus(),
            "mathe",
            "suites: 'mathe' is not in the corpus of stage 'corpus'; did you mean 'math'?",
        ),
        (BenchmarkFiles([str(tmp_path)]), "aime25", "did you mean 'aime24'?"),
        (FileCorpus(sources={"text": str(tmp_path)}), "math", "it has no suites"),
    ):
        with pytest.raises(ConfigError) as caught:
            evaluated(corpus, [name])
        assert expected in str(caught.value)
