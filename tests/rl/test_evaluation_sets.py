"""Which prompts a run of reinforcement learning is evaluated on."""

from __future__ import annotations

import json

import pytest
from tiny_rl import PROMPTS, artifact, make_inputs, tiny_run

from megatron_prism.errors import ConfigError
from megatron_prism.rl.evaluation_sets import evaluation_sets


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("dense"), "dense")


def corpus(folder, problems):
    """A corpus as the stages make it: the shoebox's has problems, one of the user's files has only texts."""
    (folder / "train").mkdir(parents=True)
    if problems:
        (folder / "problems").mkdir()
        record = {"id": "h1", "domain": "math", "prompt": "A", "kind": "choice", "answer": "A", "tests": []}
        (folder / "problems" / "math.jsonl").write_text(json.dumps(record) + "\n")
    return artifact(folder)


@pytest.mark.parametrize(("problems", "names"), [(False, ["tracked"]), (True, ["held_out", "tracked"])])
def test_a_corpus_may_have_no_problems(problems, names, inputs, tmp_path):
    given = inputs | {"tracked": inputs["prompts"], "corpus": corpus(tmp_path / "corpus", problems)}
    sets = evaluation_sets(tiny_run(evaluate_every=1), given)
    assert [each.name for each in sets] == names
    assert len(sets[-1].problems) == len(PROMPTS)
    assert evaluation_sets(tiny_run(evaluate_every=0), given) == []


def test_suites_by_name_need_problems(inputs, tmp_path):
    given = inputs | {"corpus": corpus(tmp_path / "corpus", False)}
    with pytest.raises(
        ConfigError, match=r"evaluation_suites=\['math'\]: the stage's corpus has no problems/"
    ):
        evaluation_sets(tiny_run(evaluate_every=1, evaluation_suites=["math"]), given)
