"""A YAML file of a user: what is wrong is one line with the file and the line at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.yaml_file import load_yaml


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mixture.yaml"


def test_a_mapping_is_read(path: Path) -> None:
    path.write_text("web: 0.5\n")
    assert load_yaml(path) == {"web": 0.5}


def test_anchors_are_expanded_and_own_keys_replace_merged_ones(path: Path) -> None:
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")
    assert load_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", ": expected KEY: VALUE lines"),
        ("", ": the file is empty"),
        ("# only a comment\n", ": the file is empty"),
        ("a: 1\nb: [1\n", "line 3: not readable YAML"),
        ("a: 1\n\tb: 2\n", "line 2: not readable YAML (a tab; YAML is indented with spaces)"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4: not readable YAML (the key 'b' stands twice)"),
        ("a: 1\na: 1\n", "line 2: not readable YAML (the key 'a' stands twice)"),
        ("a: *nowhere\n", "line 1: not readable YAML (found undefined alias 'nowhere')"),
        ("a: 1\nb: !!python/object:os.system {}\n", "line 2: not readable YAML (could not determine"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: &a {b: *a}\n", "nested too deeply"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: 2026-13-45\n", "not readable YAML (month must be in 1..12)"),
        ("a: \0\n", "not readable YAML"),
        ("? [1, 2]\n: 3\n", "line 1: not readable YAML (found unhashable key)"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, message: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_yaml(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_yaml(path)
    path.write_bytes(b"\xff\xfe\x00\x01\x02")
    with pytest.raises(ConfigError, match=str(path)):
        load_yaml(path)
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_yaml(path.parent)
