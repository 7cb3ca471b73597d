"""Shared fixtures: a small corpus with tokenizer and tokens, made once; and a machine without bubblewrap."""

import gc
import logging
import os
from pathlib import Path

import pytest
from data_artifacts import make_artifact, small_corpus
from leftover_processes import describe, leftovers, mark_this_run

from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.verification.sandbox.isolation import sandbox_problem

# Two test workers take one file after the other. The longest files come first, so that none of them runs last.
LONGEST = (
    "recipes/test_models.py", "training/test_train_stage.py", "conversion/quantization/test_quantize.py",
    "parallel/test_rl_layouts.py", "rl/test_reinforce.py", "parallel/test_hf_layouts.py",
    "generation/test_hf_parity.py", "training/test_extension_training.py", "rl/test_vllm_sampling.py",
    "parallel/test_parity.py", "verification/sandbox/test_bubblewrap.py", "parallel/test_long_context.py",
    "generation/test_transformers_serve.py", "generation/test_engine_config.py", "examples/test_examples.py",
    "pipeline/test_launch.py", "data/test_shoebox_corpus.py", "conversion/test_import_export.py",
)  # fmt: skip


def pytest_configure():
    mark_this_run()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """The run fails if a process outlives it. Under pytest-xdist the controller looks, after its workers have ended."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    found = leftovers()
    for process in found:
        print(f"\nthe tests left a process behind: {describe(process)}")
        process.kill()
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / file: index for index, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish():
    """Megatron collects garbage at every checkpoint: half a second, if that visits all imported objects."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """After a file, collect its models, each of which holds process groups with a gloo thread; then freeze the rest.

    What stays is mostly modules that the tests imported: without the freeze every later collection would visit them.
    """
    result = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return result


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(autouse=True)
def logging_as_imported():
    """Undo what commands and launches in this process did to the package's logger, or caplog would get no lines."""
    logger = logging.getLogger("megatron_prism")
    logger.handlers.clear()
    logger.propagate = True
    # Not inherited: launching through nemo-run leaves the root logger of the process at ERROR.
    logger.setLevel(logging.WARNING)


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
    """An empty PATH for one test. Whether isolation works is cached, so the cache is cleared before and after."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    sandbox_problem.cache_clear()
    yield
    sandbox_problem.cache_clear()
