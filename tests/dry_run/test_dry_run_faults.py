"""Faults that only a step can show: each is planted, found by --dry-run=deep in one line, and unseen by --dry-run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from megatron_prism.cli.main import main
from megatron_prism.models import build, families
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.layers import activation, norm, token_loss
from megatron_prism.platform.process_groups import ParallelConfig

RECIPE = """
from megatron_prism.conversion.stage import ImportHF
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import ModelTokenizer
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.stage import Train


def recipe(checkpoint: str = "", tp: int = 2, pp: int = 2, cp: int = 2, length: int = 64, first: int = 0) -> Graph:
    graph = Graph("small")
    model = graph.add("import", ImportHF(source=checkpoint))
    corpus = graph.add("corpus", FileCorpus(sources={"text": "text.txt"}))
    tokenizer = graph.add("tokenizer", ModelTokenizer(), model=model)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    train = Train(
        architecture=Architecture("granite", 97, 32, 4, 48, 4, 2, 8), mixture="shoebox-mcs", dtype="bf16",
        batch=BatchConfig(length, 1, 16),
        parallel=ParallelConfig(tp, pp, None, cp, 8, tp > 1, layers_in_first_stage=first or None),
    )
    graph.add("midtrain", train, tokens=tokens, tokenizer=tokenizer, init=model)
    return graph
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "small.py").write_text(RECIPE)
    (tmp_path / "text.txt").write_text("text\n")
    monkeypatch.chdir(tmp_path)
    return "small.py"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    return int(ended.value.code or 0)


def shape_in_a_layer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(activation, "_swiglu", lambda x: x)


def dtype_of_a_product(patch: pytest.MonkeyPatch) -> None:
    correct = norm.rms_norm
    patch.setattr(norm, "rms_norm", lambda x, weight, eps: correct(x, weight, eps).float())


def tensor_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    correct = token_loss._whole
    patch.setattr(
        token_loss, "_whole", lambda hidden, head: correct(hidden, head) * torch.ones(hidden.shape[-1])
    )


def number_that_decides_a_size(patch: pytest.MonkeyPatch) -> None:
    correct = token_loss._whole

    def shortened(hidden: Any, head: Any) -> Any:
        return correct(hidden, head)[: int((hidden.flatten() > 0).sum())]

    patch.setattr(token_loss, "_whole", shortened)


def tensor_between_stages(patch: pytest.MonkeyPatch) -> None:
    correct = P2PCommunicator.send_forward_recv_backward

    def send(self: Any, output: Any, *others: Any) -> Any:
        return correct(self, [each.float() for each in output], *others)

    patch.setattr(P2PCommunicator, "send_forward_recv_backward", send)


def both_ends(patch: pytest.MonkeyPatch) -> None:
    """Megatron's config gets another number of layers than the layout says."""
    correct = build.transformer_config

    def config(architecture: Any, parallel: Any, *inputs: Any, **settings: Any) -> Any:
        last = {"num_layers_in_last_pipeline_stage": 1} if parallel.pipeline_model_parallel_size > 1 else {}
        return correct(architecture, parallel, *inputs, **settings, **last)

    patch.setattr(build, "transformer_config", config)


def unchecked(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, lambda self, *inputs: None)


def parameter_table(patch: pytest.MonkeyPatch) -> None:
    correct = families.FAMILIES["granite"]

    def rules(architecture: Architecture) -> list[Any]:
        return [rule for rule in correct.rules(architecture) if "linear_fc2" not in rule.megatron]

    patch.setitem(families.FAMILIES, "granite", dataclasses.replace(correct, rules=rules))


FAULTS = {
    "a shape inside a layer": (shape_in_a_layer, [], "stage 'midtrain': rank 0 of 64: RuntimeError"),
    "a dtype": (dtype_of_a_product, [], "a matrix product of torch.float32 and torch.bfloat16"),
    "a tensor on the CPU": (tensor_on_the_cpu, [], "was left on the cpu"),
    "a number": (number_that_decides_a_size, [], "may decide a size"),
    "a tensor between stages": (
        tensor_between_stages, [], "stage 'midtrain': activations from pipeline stage 0 to 1: 0 sends",
    ),
    "heads": (unchecked(Architecture, "check_parallel"), ["tp=3", "length=48"], "parallel.tensor_model_parallel_size"),
    "a pipeline split": (both_ends, ["first=1"], "parallel.layers_in_first_stage"),
    "a context-parallel length": (
        unchecked(ParallelConfig, "check_sequence"), ["length=66"], "parallel.context_parallel_size",
    ),
    "a parameter table": (parameter_table, [], "parameter 'decoder.layers.0.mlp.linear_fc2.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_in_one_line(recipe, monkeypatch, capfd, name):
    plant, overrides, expected = FAULTS[name]
    with monkeypatch.context() as patch:
        plant(patch)
        # Negative control: the other dry run does not see it.
        assert run(recipe, *overrides, "--dry-run") == 0
        capfd.readouterr()
        assert run(recipe, *overrides, "--dry-run=deep") == 2
    printed = capfd.readouterr().out
    errors = [line for line in printed.splitlines() if line.startswith("error: stage")]
    assert expected in "\n".join(errors), printed
    assert "Traceback" not in printed


def test_without_a_fault_every_stage_is_ok(recipe, tmp_path):
    """And the result is the same after all the errors above."""
    assert run(recipe, "--dry-run=deep", "--json", "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    stages = {each["stage"]: each for each in found["stages"]}
    assert not any(each["problems"] for each in stages.values())
    assert [each["rank"] for each in stages["midtrain"]["ranks"]] == [0, 32]
    assert [each["pipeline_stage"] for each in stages["midtrain"]["ranks"]] == [0, 1]
    assert stages["import"]["lines"] == ["the parameter table of family granite covers all 26 tensors"]
    for rank in stages["midtrain"]["ranks"]:
        # The planner's optimizer is that of the rank that owns the most, which in so small a model differs.
        for part in ("weights", "gradients"):
            assert rank["counted"][part] == rank["planned"][part]


def test_chosen_ranks_and_mistakes(recipe, tmp_path, capfd):
    assert run(recipe, "--dry-run=deep", "--ranks", "0,63", "--json", "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())["stages"]
    assert [each["rank"] for each in found[-1]["ranks"]] == [0, 63]
    assert run(recipe, "--dry-run=deep", "--ranks", "64") == 2
    assert "error: stage 'midtrain': --ranks 64: the stage has the ranks 0 to 63" in capfd.readouterr().out
    for arguments, expected in {
        ("--dry-run=deeper",): "error: --dry-run=deeper: use --dry-run, or --dry-run=deep",
        ("--ranks", "0", "--dry-run"): "error: --ranks 0: only --dry-run=deep builds single ranks",
        ("--ranks", "first", "--dry-run=deep"): "error: --ranks first: must be numbers of ranks",
    }.items():
        assert run(recipe, *arguments) == 2
        assert expected in capfd.readouterr().err


def test_models_that_do_not_fit_together(recipe, tmp_path, capfd):
    """The checkpoint that is imported has another size than the stage that trains it."""
    folder = tmp_path / "model"
    folder.mkdir()
    published = families.published_config("ibm-granite/granite-3.3-8b-base")
    (folder / "config.json").write_text(json.dumps(published))
    assert run(recipe, f"checkpoint={folder}", "--dry-run=deep") == 2
    assert "error: stage 'midtrain': the model of stage 'import': the checkpoint has vocab_size=49152" in (
        capfd.readouterr().out
    )
