"""One small shoebox, made once: corpus, tokenizer and tokens as artifacts; a machine without bubblewrap."""

import gc

import pytest
from data_artifacts import make_artifact, small_corpus

from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.verification.code import sandbox_problem


def pytest_collection_finish():
    """Megatron collects garbage at every checkpoint: half a second, if it looks through all that is imported."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_artifact(small_corpus(), tmp_path_factory.mktemp("shoebox") / "corpus")


@pytest.fixture(scope="session")
def tokenizer_artifact(corpus):
    return make_artifact(TrainTokenizer(vocab_size=700), corpus.path.parent / "tokenizer", corpus=corpus)


@pytest.fixture(scope="session")
def tokens(corpus, tokenizer_artifact):
    folder = corpus.path.parent / "tokens"
    return make_artifact(TokenizeCorpus(), folder, corpus=corpus, tokenizer=tokenizer_artifact)


@pytest.fixture
def no_bubblewrap(monkeypatch, tmp_path_factory):
    """For one test no program is on the PATH. Whether isolation works is found out once: forgotten before and after."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    sandbox_problem.cache_clear()
    yield
    sandbox_problem.cache_clear()
