"""lm-eval with our engine as its model gives what its own `hf` model gives on the exported folder."""

from __future__ import annotations

import math

import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from local_tasks import ANSWERS, LETTERS, OPTIONS, POSITIONS, TASKS, TEXTS
from transformers import AutoTokenizer

from megatron_prism.conversion.logits import load_in_transformers
from megatron_prism.data.text_policy import PARSE, TextSettings
from megatron_prism.evaluation.harness.language_model import EngineLM
from megatron_prism.evaluation.harness.package import quiet
from megatron_prism.evaluation.harness.tasks import check_requests, load_tasks
from megatron_prism.generation.likelihood_plan import rolling_windows
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.models.families import family

AS_LM_EVAL = TextSettings(special_tokens=PARSE)


class Recording(HFLM):
    """lm-eval's model, which also notes the token ids that it scores."""

    def _loglikelihood_tokens(self, requests, **options):
        self.scored = [*getattr(self, "scored", []), *[(tuple(c), tuple(e)) for _, c, e in requests]]
        return super()._loglikelihood_tokens(requests, disable_tqdm=True)


class RecordingEngine:
    """An engine, which also notes the token ids that it scores."""

    def __init__(self, engine):
        self.engine, self.context_length, self.scored = engine, engine.context_length, []
        self.generate = engine.generate

    def log_likelihoods(self, pairs, **options):
        self.scored += [(tuple(context), tuple(ending)) for context, ending in pairs]
        return self.engine.log_likelihoods(pairs, **options)


def evaluated(lm, tasks):
    """Task -> lm-eval's results and samples."""
    found = {}
    for name, loaded in load_tasks(list(TASKS), tasks).items():
        check_requests(loaded[name], None)
        loaded[name].set_fewshot_seed(seed=1234)
        with quiet():
            result = evaluate(lm, {"tasks": loaded, "groups": {}}, bootstrap_iters=0)
        found[name] = result["results"][name], result["samples"][name]
    return found


def responses(found, task):
    """What the model answered, in the order of documents and choices."""
    return [answer for sample in found[task][1] for [answer] in sample["resps"]]


@pytest.fixture(scope="module")
def peer(model, tasks):
    """lm-eval's own model, and its results."""
    kind = open_family(model)
    loaded = load_in_transformers(model.exported, torch.float32, kind.for_comparison)
    tokenizer = AutoTokenizer.from_pretrained(model.exported)
    lm = Recording(pretrained=loaded, tokenizer=tokenizer, batch_size=4)
    return lm, evaluated(lm, tasks)


def open_family(model):
    from megatron_prism.conversion.weights import HFWeights

    return family(HFWeights(model.exported).architecture.family)


@pytest.fixture(scope="module")
def engine(model):
    with MegatronEngine.load(
        model.artifact.path, model.artifact.path / "hf", batch_size=4, text=AS_LM_EVAL
    ) as opened:
        yield opened


def ours(engine, tokenizer=None, batch_tokens=1000):
    return EngineLM(engine, tokenizer or engine.tokenizer, name="megatron", batch_tokens=batch_tokens)


def largest_difference(first, second):
    numbers = [(a[0], b[0]) if isinstance(a, tuple) else (a, b) for a, b in zip(first, second, strict=True)]
    return max(abs(a - b) for a, b in numbers)


def test_log_likelihoods_texts_and_scores_are_those_of_lm_evals_own_model(peer, engine, tasks):
    lm, expected = peer
    recording = RecordingEngine(engine)
    mine = ours(recording, engine.tokenizer)
    found = evaluated(mine, tasks)
    for task in (OPTIONS, LETTERS):
        assert largest_difference(responses(found, task), responses(expected, task)) <= 1e-4
    # lm-eval adds up the hundreds of tokens of a text in fp32, which has seven digits.
    assert responses(found, TEXTS) == pytest.approx(responses(expected, TEXTS), abs=1e-4, rel=2e-7)
    for task in (OPTIONS, LETTERS):
        greedy = [[g for _, g in responses(each, task)] for each in (found, expected)]
        assert greedy[0] == greedy[1]
    assert responses(found, ANSWERS) == responses(expected, ANSWERS)
    assert len(set(responses(found, ANSWERS))) > 4
    for task, (results, _) in expected.items():
        for key, value in results.items():
            if isinstance(value, float):
                assert found[task][0][key] == pytest.approx(value, rel=1e-4), (task, key)
    # lm-eval sorts its requests, and sends those of a text one by one.
    assert sorted(recording.scored) == sorted(lm.scored)
    # Contexts that are too long, choices of several tokens, and a score that is neither 0 nor 1 are among them.
    lengths = [len(context) + len(ending) for context, ending in recording.scored]
    assert max(lengths) > POSITIONS + 1
    assert {len(ending) for _, ending in recording.scored} >= {1, 2, 3}
    assert any(
        0 < found[task][0][f"{metric},none"] < 1 for task, metric in ((OPTIONS, "acc"), (LETTERS, "acc"))
    )


def test_one_changed_weight_is_noticed(peer, engine, tasks):
    expected = peer[1]
    named = engine.models[0].named_parameters()
    weight = next(parameter for name, parameter in named if "linear_fc2.weight" in name)
    before = weight.detach().clone()
    with torch.no_grad():
        weight[3, 5] += 0.5
    try:
        found = evaluated(ours(engine), tasks)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert largest_difference(responses(found, OPTIONS), responses(expected, OPTIONS)) > 1e-3


def test_a_missing_start_token_is_noticed(model, peer, engine, tasks):
    from megatron_prism.data.tokenizer import Tokenizer

    folder = model.artifact.path / "hf"
    bare = Tokenizer.load(folder, TextSettings(begin="none", special_tokens=PARSE))
    if not engine.tokenizer.policy.begin:
        # A start token where lm-eval sends none is as wrong.
        bare = Tokenizer.load(folder, TextSettings(begin="<|endoftext|>", special_tokens=PARSE))
    found = evaluated(ours(engine, bare), tasks)
    assert largest_difference(responses(found, LETTERS), responses(peer[1], LETTERS)) > 1e-2


def test_windows_of_a_long_text_are_lm_evals():
    for length in range(1, 30):
        for limit in (1, 2, 7, 29, 40):
            ids = list(range(100, 100 + length))
            windows = get_rolling_token_windows(ids, prefix_token=1, max_seq_len=limit, context_len=1)
            assert rolling_windows(ids, 1, limit) == [make_disjoint_window(each) for each in windows]


def test_a_text_without_a_context_follows_the_start_token(engine, peer):
    requests = [("", "At 5 degrees"), ("", "<|endoftext|>At"), (" ", "ice"), ("So\n ", "ice")]
    from lm_eval.api.instance import Instance

    made = [
        Instance("loglikelihood", {}, pair, number, metadata=("t", 0, 1))
        for number, pair in enumerate(requests)
        # lm-eval's model fails on a context of spaces if its tokenizer adds no start token.
        if pair[0] != " " or engine.tokenizer.policy.begin
    ]
    expected = peer[0].loglikelihood(made, disable_tqdm=True)
    found = ours(engine).loglikelihood(made)
    assert largest_difference(found, expected) <= 1e-4
    assert all(math.isfinite(value) for value, _ in found)
