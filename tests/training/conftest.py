"""What the tests of the train stage share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def inputs(tokens, tokenizer_artifact):
    return {"tokens": tokens, "tokenizer": tokenizer_artifact}
