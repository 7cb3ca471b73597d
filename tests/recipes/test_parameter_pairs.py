"""Every pair of values of the recipes' parameters makes the graph that it should, or is refused in one clear line.

A few rows, each with a value for every parameter, contain all pairs that are allowed. In the fast suite every row goes
to one recipe in turn; the slow test gives every row to every recipe.
"""

from __future__ import annotations

import dataclasses
import random
from functools import partial
from itertools import combinations, product

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.node import locate
from megatron_prism.study.model_recipe import FULL_SIZE_ONLY, PHASE_OF
from megatron_prism.study.registry import list_recipes, load_recipe

MODELS = [name for name in list_recipes() if name != "shoebox"]
VALUES = {
    "mixture": ("mcs", "mc", "math"),
    "seed": (1, 0, 2**32 - 1),
    "tiny": (False, True),
    "gpus": (8, 128),
    "long_context": (True, False),
    "extension": ("all", "full", "attention"),
    "extension_gpus": (0, 128, 144),
    "rl": (True, False),
    "rl_mix": ("mcs", "mc"),
    "rl_balance": ("unbalanced", "balanced"),
    "rl_start": ("both", "midtrain", "extend", "base"),
    "method": ("paper", "dapo", "gspo"),
    "evaluate": (True, False),
    "sandbox": ("strong", "weak"),
}


def allowed(values):
    """Whether a parameter that is set also has an effect; a missing parameter may still get any value."""
    for key, (phase, neutral) in PHASE_OF.items():
        if values.get(key, neutral) != neutral and values.get(phase) is False:
            return False
    if values.get("tiny") and any(
        values.get(key, FULL_SIZE_ONLY[key]) != FULL_SIZE_ONLY[key] for key in FULL_SIZE_ONLY
    ):
        return False
    return not (values.get("rl_start") == "extend" and values.get("long_context") is False)


def pairs_of(values):
    return set(combinations(sorted(values.items(), key=str), 2))


def completed(values, choose):
    """A row with these values that is allowed, or None; `choose` orders the values of the other parameters."""
    left = [key for key in VALUES if key not in values]
    if not left:
        return values
    for value in choose(left[0], values):
        row = {**values, left[0]: value}
        if allowed(row) and (found := completed(row, choose)) is not None:
            return found
    return None


def covering_rows():
    """Rows that contain every pair of values for which any row is allowed."""
    every = {
        pair
        for one, other in combinations(VALUES, 2)
        for a, b in product(VALUES[one], VALUES[other])
        for pair in pairs_of({one: a, other: b})
    }
    rng, rows = random.Random(16), []
    missing = {pair for pair in every if _possible(dict(pair))}
    while missing:
        first = [pair for pair in sorted(every, key=str) if pair in missing][:8]
        candidates = [completed(dict(pair), partial(_gainful_first, missing, rng)) for pair in first]
        rows.append(max(candidates, key=lambda row: len(pairs_of(row) & missing)))
        missing -= pairs_of(rows[-1])
    return rows


def _gainful_first(missing, rng, key, values):
    """The values of a parameter, those first that bring more of the missing pairs into the row."""
    tried = rng.sample(VALUES[key], len(VALUES[key]))
    return sorted(tried, key=lambda value: -len(pairs_of({**values, key: value}) & missing))


def _possible(values):
    """Whether any row with these values is allowed."""
    return allowed(values) and completed(values, lambda key, _: VALUES[key]) is not None


ROWS = covering_rows()


def stages_expected(values):
    """The names of all stages, from the parameters alone."""
    tiny = values["tiny"]
    names = {"import", "corpus", "tokenizer", "tokens", "midtrain", "export", "report"}
    names |= {"vocabulary", "checkpoint"} if tiny else set()
    models, last = ["base", "midtrain"], "midtrain"
    if values["long_context"]:
        extended = {
            "full": ["extend"],
            "attention": ["extend_attention"],
            "all": ["midtrain_extend_attention", "midtrain_extend", "extend_attention", "extend"],
        }[values["extension"]]
        last = extended[-1]
        names |= {"merge", "packed", *extended}
        names |= {f"ruler_{name}" for name in ("base", "midtrain", "merge")}
        names |= {
            f"ruler_{'extend' if len(extended) == 1 and name == 'extend' else name}" for name in extended
        }
        models.append(last)
    if values["rl"]:
        starts = {"both": [last, "import"], "midtrain": ["midtrain"], "extend": [last], "base": ["import"]}
        runs = [f"rl_{start}" for start in starts[values["rl_start"]]]
        names |= {"prompts", "difficulty", "mix", "followed", *runs}
        names |= set() if values["rl_start"] == "base" else {"frontier"}
        models += runs
    if values["evaluate"]:
        names |= {f"evaluate_{model}" for model in models}
        names |= set() if tiny else {"benchmarks"}
    return names


def check(name, values, folder):
    graph = load_recipe(name).graph(values, planned=True)
    nodes = graph.nodes
    assert set(nodes) == stages_expected(values), values
    for node in nodes.values():
        # Made once more, so that its own checks run, also on what was derived.
        assert dataclasses.replace(node.stage) == node.stage
        node.check_derived()
    assert set(locate(nodes.values(), folder)) == set(nodes)
    if not values["tiny"]:
        assert nodes["midtrain"].stage.parallel.world_size == values["gpus"]
        assert nodes["midtrain"].stage.mixture == values["mixture"]
    seeds = {node.stage.seed for node in nodes.values() if node.stage.kind in ("train", "rl", "ruler")}
    assert seeds == {values["seed"]}
    if values["rl"]:
        assert nodes["mix"].stage.mix == values["rl_balance"]
        assert (
            nodes["mix"].stage.domains == ["math", "code", "science"][: 3 if values["rl_mix"] == "mcs" else 2]
        )
        run = next(node.stage for node in nodes.values() if node.stage.kind == "rl")
        assert run.grading.sandbox == values["sandbox"]
        assert run.loop.dynamic_sampling == (values["method"] == "dapo")
        assert run.objective.ratio == ("sequence" if values["method"] == "gspo" else "token")


def test_the_rows_contain_every_pair_that_is_allowed():
    covered = set().union(*map(pairs_of, ROWS))
    for one, other in combinations(VALUES, 2):
        for a, b in product(VALUES[one], VALUES[other]):
            assert pairs_of({one: a, other: b}) <= covered or not _possible({one: a, other: b}), (
                one,
                a,
                other,
                b,
            )
    assert all(map(allowed, ROWS))
    assert len(ROWS) < 40


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_makes_its_stages(number, tmp_path):
    check(MODELS[number % len(MODELS)], ROWS[number], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_row_makes_its_stages_with_every_recipe(name, tmp_path):
    for values in ROWS:
        check(name, values, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_pairs_that_are_not_allowed_are_refused_in_one_line(name):
    recipe, refused = load_recipe(name), 0
    for one, other in combinations(VALUES, 2):
        for a, b in product(VALUES[one], VALUES[other]):
            values = {one: a, other: b}
            if allowed({**{"long_context": False, "rl": False, "evaluate": False}, **values}):
                continue
            with pytest.raises(ConfigError, match=r"has no effect|there is no extended model") as problem:
                recipe.build(values, planned=True)
            assert any(f"{key}={value}" in str(problem.value) for key, value in values.items())
            assert "\n" not in str(problem.value)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus": 12}, "no layout of kind 'train' for 12 GPUs and rows of 8192 tokens; nearest: 8 GPUs"),
        ({"gpus": 0}, "no layout of kind 'train' for 0 GPUs"),
        ({"gpus": -8}, "no layout of kind 'train' for -8 GPUs"),
        ({"long_context": True, "extension_gpus": 7}, "for 7 GPUs and rows of 131072 tokens"),
        ({"long_context": True, "extension_gpus": -1}, "for -1 GPUs and rows of 131072 tokens"),
        ({"seed": -1}, "seed=-1: must be 0 or more"),
        ({"seed": 2**32}, "seed=4294967296: must be a whole number from 0 to 4294967295"),
        ({"long_context": True, "extension": "ful"}, "extension='ful' is not possible; did you mean 'full'"),
        ({"rl": True, "rl_mix": "math"}, "rl_mix='math' is not possible; known: mc, mcs"),
        ({"rl": True, "rl_balance": "equal"}, "rl_balance='equal' is not possible"),
        ({"rl": True, "rl_start": "merge"}, "rl_start='merge' is not possible"),
        ({"rl": True, "method": "ppo"}, "variant='ppo' is not possible"),
        ({"sandbox": "none", "rl": True}, "sandbox=none"),
        ({"mixture": ""}, "mixture '' is not packaged"),
        ({"tiny": True, "mixture": "long-context"}, "tiny=true has no source"),
    ],
)
def test_a_value_that_is_not_possible_is_one_line(values, message):
    with pytest.raises(ConfigError) as refused:
        load_recipe("granite-3.3-8b").graph(values, planned=True)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
