"""One small shoebox, made once: corpus, tokenizer and tokens as artifacts."""

import pytest
from data_artifacts import make_artifact, small_corpus

from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer


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
