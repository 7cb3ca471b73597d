from __future__ import annotations

import pytest
from toy_stages import Write

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import (
    apply_overrides,
    from_mapping,
    one_of,
    parse_override,
    positive,
    to_mapping,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=7", ("seed", 7)),
        ("train.lr=3e-5", ("train.lr", 3e-5)),
        ("names=[a, b]", ("names", ["a", "b"])),
        ("flag=true", ("flag", True)),
        ("path=a=b", ("path", "a=b")),
    ],
)
def test_parse_override(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["seed", "=7", "names=[a"])
def test_parse_override_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        parse_override(text)


def test_overrides_change_a_copy() -> None:
    before = Write()
    after = apply_overrides(before, {"text": "b", "inner.lr": 1, "inner.names": ["x", "y"]})
    assert (after.text, after.inner.lr, after.inner.names) == ("b", 1.0, ["x", "y"])
    assert before == Write()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("txt", "b", "unknown key 'txt'; did you mean 'text'"),
        ("inner.lrr", 1, "unknown key 'inner.lrr'; did you mean 'lr'"),
        ("text.more", 1, "unknown key 'text.more': 'text' is a value"),
        ("repeats", "many", "repeats='many'"),
        ("repeats", 0, "repeats=0: must be 1 or more"),
        ("repeats", 10**26, "repeats=1000.*: must be below 9223372036854775808"),
        ("inner.names", ["x", 1], "inner.names=.*: must be a list of texts"),
        ("inner", {"names": [1]}, "must be a list of texts"),
    ],
)
def test_bad_overrides_name_the_key_and_place(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides(Write(), {key: value}, where="stage 'w'")
    assert str(caught.value).startswith("stage 'w': ")
    assert "\n" not in str(caught.value)


def test_plain_and_from_mapping_are_inverse() -> None:
    stage = Write(text="c", repeats=3)
    assert from_mapping(Write, to_mapping(stage)) == stage
    with pytest.raises(ConfigError, match="did you mean 'repeats'"):
        from_mapping(Write, {"repeat": 3})


def test_validation_helpers() -> None:
    one_of("dense", ["dense", "hybrid"], "model")
    with pytest.raises(ConfigError, match="model='dens' is not possible; did you mean 'dense'"):
        one_of("dens", ["dense", "hybrid"], "model")
    positive(Write(), "repeats")
    with pytest.raises(ConfigError, match="log_every=0"):
        positive(Write(log_every=0), "log_every")


def test_a_number_is_not_taken_for_a_truth_value() -> None:
    from megatron_prism.study.small_models import DENSE

    assert apply_overrides(DENSE, {"tie_word_embeddings": False}).tie_word_embeddings is False
    with pytest.raises(ConfigError, match="tie_word_embeddings=3: must be true or false"):
        apply_overrides(DENSE, {"tie_word_embeddings": 3})
