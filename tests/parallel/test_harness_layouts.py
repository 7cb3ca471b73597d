"""lm-eval's tasks on two ranks: the same log-likelihoods, texts and scores as on one."""

from __future__ import annotations

import harness_layouts
import pytest
from harness_layouts import ANSWERS, CHOICES, DOCUMENTS, LAYOUTS, TEXTS
from parallel_runs import layout, results_of
from tiny_rl import MODELS, make_inputs

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.harness.stage import Harness
from megatron_prism.generation.engine_config import EngineConfig


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name of a layout, or "KIND-one" -> its results."""
    folder = tmp_path_factory.mktemp("harness")
    harness_layouts.write_tasks(folder / "tasks")
    for kind in MODELS:
        make_inputs(folder / kind, kind)
    found = results_of(harness_layouts.main, folder, (2,))
    return found | {f"{k}-one": harness_layouts.evaluate(folder, f"{k}-one", layout()) for k in MODELS}


def numbers(run, task):
    """The log-likelihoods of a task, in the order of documents and choices."""
    values = [answer for name, _, responses in run["responses"] if name == task for [answer] in responses]
    return [float(value[0] if isinstance(value, list) else value) for value in values]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_as_one_process(runs, name):
    found, whole = runs[name], runs[f"{name.partition('-')[0]}-one"]
    for task in (CHOICES, TEXTS):
        assert numbers(found, task) == pytest.approx(numbers(whole, task), abs=1e-4)
    texts = [[r for task, *r in run["responses"] if task == ANSWERS] for run in (found, whole)]
    assert [list(each) for each in texts[0]] == [list(each) for each in texts[1]]
    assert (found["problems"], found["shortened"]) == (whole["problems"], whole["shortened"])


@pytest.mark.parametrize("kind", MODELS)
def test_there_is_something_to_compare(runs, kind):
    whole = runs[f"{kind}-one"]
    assert len(set(numbers(whole, CHOICES))) == 4 * (len(DOCUMENTS) - 1)
    texts = [responses[0][0] for task, _, responses in whole["responses"] if task == ANSWERS]
    # The two equal prompts are sampled with numbers of their own.
    assert len(set(texts)) == len(DOCUMENTS)
    assert whole["shortened"] == 2


def test_layouts_that_do_not_help():
    with pytest.raises(ConfigError, match="engine 'hf' samples in one process"):
        Harness(engine=EngineConfig("hf"), parallel=layout(tp=2))
