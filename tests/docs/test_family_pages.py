"""The pages in docs/families say what the code does: mapping tables, sizes, parameter counts, parallel layouts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_models import CONFIGS

from megatron_prism.conversion.torch_dist.layout import tensor_slices
from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import (
    FAMILIES,
    architecture_from_config,
    parameter_count,
    parameter_map,
    published_config,
)
from megatron_prism.models.mappings import Shape
from megatron_prism.platform.process_groups import ParallelConfig

FOLDER = Path(__file__).parents[2] / "docs/families"
# The part of a page that maps a kind of model, and the tiny models of that kind.
SECTIONS = {
    ("llama.md", "Mapping"): ("llama", "llama-scaled-tied", "llama-one-group", "llama-yarn"),
    ("mistral.md", "Mapping"): ("mistral-window", "mistral-wide-heads", "mistral-yarn"),
    ("granite.md", "Mapping"): ("granite", "granite-untied"),
    ("granite-4.md", "Mapping: dense"): ("granite4", "granite4-nope"),
    ("granite-4.md", "Mapping: hybrid"): ("granite-h", "granite-h-rope-groups"),
    ("nemotron-h.md", "Mapping"): ("nemotron-h", "nemotron-h-one-group"),
}
PAGE_OF = {
    "llama": "llama.md",
    "mistral": "mistral.md",
    "granite": "granite.md",
    "granitemoehybrid": "granite-4.md",
    "nemotron_h": "nemotron-h.md",
}
PUBLISHED = [(family, name) for family, each in FAMILIES.items() for name in each.published]
WORDS = ("same", "gate, then up", "by group")
SIZES = range(1, 129)
TENSOR, PIPELINE, CONTEXT = (
    f"{each}_parallel_size" for each in ("tensor_model", "pipeline_model", "context")
)

# Runs as tuples: number of the Hugging Face tensor, its first row, Megatron's first row, how many.
Runs = list[tuple[int, int, int, int]]


@dataclass(frozen=True)
class Parameter:
    """A Megatron parameter: its Hugging Face tensors, its stored tensors with their layer axis, and its runs."""

    megatron: str
    hf: tuple[str, ...]
    keys: tuple[tuple[str, int | None], ...]
    runs: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Table:
    """A mapping table: the layer kind it is for ('' for any), its head and its rows, cell by cell."""

    kind: str
    head: list[str]
    rows: list[list[str]]


def page(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section '{title}'"
    return found.group(1)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[Table]:
    """Every table of a section; a line before it that names a layer kind, as (`M`), says which layers it is for."""
    found: list[Table] = []
    kind, head = "", None
    for line in text.splitlines():
        if not line.startswith("|"):
            kind = (re.findall(r"^.* layers \(`(.)`\):$", line) or [kind if not line else ""])[0]
            head = None
        elif head is None:
            head = cells(line)
            found.append(Table(kind, head, []))
        elif not set(line) <= set("|-: "):
            found[-1].rows.append(cells(line))
    return found


def code(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    return re.findall(r"`([^`]*)`", cell)


def expand(name: str) -> list[str]:
    """`{a,b}` as one name each."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", name)
    if not found:
        return [name]
    return [name[: found.start()] + item + name[found.end() :] for item in found.group(1).split(",")]


def numbered(text: str, layer: int) -> str:
    """With the number of a Hugging Face layer in place of `{i}`."""
    return (
        text.replace("{2i+1}", str(2 * layer + 1)).replace("{2i}", str(2 * layer)).replace("{i}", str(layer))
    )


def runs_of(word: str, shapes: list[Shape], architecture: Architecture) -> Runs:
    """How rows move, worked out from the word of a table and not from the code's layouts."""
    heads = {"same": 1, "gate, then up": 2, "by group": 3}
    if word not in heads or heads[word] != len(shapes):
        return []
    if word != "by group":
        return [(part, 0, sum(s[0] for s in shapes[:part]), shape[0]) for part, shape in enumerate(shapes)]
    a, found, row = architecture, [], 0
    sizes = [a.num_attention_heads // a.num_query_groups * a.head_dim, a.head_dim, a.head_dim]
    for group in range(a.num_query_groups):
        for part, rows in enumerate(sizes):
            found.append((part, group * rows, row, rows))
            row += rows
    return found


def from_page(text: str, architecture: Architecture) -> list[Parameter]:
    """What the tables of a section say of every parameter of a model."""
    shapes = {rule.hf: rule.layout.hf_shapes(architecture) for rule in parameter_map(architecture)}
    found = []
    for table in tables(text):
        assert [cell.split(":")[0] for cell in table.head] == [
            "Hugging Face",
            "Megatron",
            "checkpoint key",
            "rows",
        ]
        prefixes = [code(cell) for cell in table.head[:3]]
        in_layers = any(prefixes)
        for layer in range(architecture.num_layers if in_layers else 1):
            hf, megatron, key = ([numbered(each, layer) for each in prefix] for prefix in prefixes)
            if in_layers:
                number = int(re.search(r"(\d+)", megatron[0]).group(1))
                if number >= architecture.num_layers:
                    continue
                if table.kind and architecture.hybrid_pattern[number] != table.kind:
                    continue
            axis = int(key[1]) if len(key) > 1 else None
            start = [prefix[0] if prefix else "" for prefix in (hf, megatron, key)]
            for row in table.rows:
                word, _, condition = row[3].partition("; ")
                if condition == "untied only" and architecture.tie_word_embeddings:
                    continue
                names = tuple(start[0] + name for name in expand(*code(row[0])))
                found.append(
                    Parameter(
                        start[1] + "".join(code(row[1])),
                        names,
                        tuple((start[2] + name, axis) for name in expand(*code(row[2]))),
                        tuple(runs_of(word, shapes.get(names, []), architecture)),
                    )
                )
    return sorted(found, key=repr)


def models(where: tuple[str, str]) -> list[Architecture]:
    """The tiny models of a section, each with its head tied and untied."""
    return [
        dataclasses.replace(architecture_from_config(CONFIGS[name]), tie_word_embeddings=tied)
        for name in SECTIONS[where]
        for tied in (False, True)
    ]


def from_code(architecture: Architecture) -> list[Parameter]:
    found = []
    for rule in parameter_map(architecture):
        where = tensor_slices(rule, architecture)
        # Pieces of a cut parameter are its rows in order, which is what the list of keys in a table means.
        assert [each.row for each in where] == [sum(p.rows for p in where[:i]) for i in range(len(where))]
        found.append(
            Parameter(
                rule.megatron,
                rule.hf,
                tuple((each.key, each.layer) for each in where),
                tuple(
                    (block.part, block.hf_row, block.megatron_row, block.rows)
                    for block in rule.layout.row_blocks(architecture)
                ),
            )
        )
    return sorted(found, key=repr)


@pytest.mark.parametrize("where", SECTIONS, ids=lambda where: f"{where[0]}, {where[1]}")
def test_the_mapping_tables_are_the_codes(where):
    text = section(page(where[0]), where[1])
    for architecture in models(where):
        assert from_page(text, architecture) == from_code(architecture)


def edits(text: str) -> Iterator[tuple[str, str]]:
    """Changed copies of a section, one change each, with what was changed."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if not line.startswith("|") or line.startswith("|---"):
            continue

        def copy(*instead: str, at: int = index) -> str:
            return "\n".join([*lines[:at], *instead, *lines[at + 1 :]])

        row = cells(line)
        is_head = row[3] == "rows"
        if not is_head:
            yield copy(), f"without {line}"
            yield copy(line, line), f"twice {line}"
            other = WORDS[(WORDS.index(row[3].partition("; ")[0]) + 1) % len(WORDS)]
            yield copy("| " + " | ".join([*row[:3], other]) + " |"), f"other rows in {line}"
            if "; " in row[3]:
                yield copy("| " + " | ".join([*row[:3], row[3].partition("; ")[0]]) + " |"), f"always {line}"
        for position in range(3):
            for name in code(row[position]):
                for wrong in (f"x{name}", re.sub(r"(\w+),(\w+)", r"\2,\1", name, count=1)):
                    if wrong != name and not (is_head and name == "{i}"):
                        changed = [*row]
                        changed[position] = row[position].replace(f"`{name}`", f"`{wrong}`")
                        yield copy("| " + " | ".join(changed) + " |"), f"{wrong} in {line}"


@pytest.mark.parametrize("where", SECTIONS, ids=lambda where: f"{where[0]}, {where[1]}")
def test_any_edit_of_a_table_is_seen(where):
    text = section(page(where[0]), where[1])
    known = models(where)
    expected = [from_code(architecture) for architecture in known]
    changes = list(edits(text))
    assert len(changes) > 40
    for changed, what in changes:
        said = [from_page(changed, architecture) for architecture in known]
        assert said != expected, f"{where[0]}: nobody notices {what}"


def test_every_tiny_model_and_family_has_a_section():
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(CONFIGS)
    assert PAGE_OF.keys() == FAMILIES.keys()
    for (file, _), names in SECTIONS.items():
        assert {PAGE_OF[CONFIGS[name]["model_type"]] for name in names} == {file}
    assert {path.name for path in FOLDER.glob("*.md")} == {"README.md", *PAGE_OF.values()}


@pytest.mark.parametrize("file", ["README.md", *PAGE_OF.values()])
def test_every_page_names_every_family(file):
    for family in FAMILIES:
        assert f"`{family}`" in page(file)


def size_row(name: str) -> list[str]:
    config = published_config(name)
    a = architecture_from_config(config)
    return [
        f"`{name}`",
        str(config["num_hidden_layers"]),
        str(a.hidden_size),
        f"{a.num_attention_heads} / {a.num_query_groups} / {a.head_dim}",
        str(a.ffn_hidden_size),
        str(a.vocab_size),
        "yes" if a.tie_word_embeddings else "no",
        f"{parameter_count(a):,}",
    ]


def layout_row(name: str) -> list[str]:
    """The sizes that `check_parallel` accepts, each alone."""
    architecture = architecture_from_config(published_config(name))

    def accepted(field: str) -> str:
        found = []
        for size in SIZES:
            try:
                architecture.check_parallel(ParallelConfig(**{field: size}))
            except ParallelError:
                continue
            found.append(size)
        return "any" if found == list(SIZES) else ", ".join(map(str, found))

    return [f"`{name}`", *(accepted(field) for field in (TENSOR, PIPELINE, CONTEXT))]


def index_row(family: str, name: str) -> list[str]:
    count = parameter_count(architecture_from_config(published_config(name)))
    return [f"`{name}`", f"[{PAGE_OF[family]}]({PAGE_OF[family]})", f"`{family}`", f"{count:,}"]


def rows_in(text: str, title: str) -> list[list[str]]:
    return tables(section(text, title))[0].rows


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_layouts_of_the_released_models(family):
    text, names = page(PAGE_OF[family]), list(FAMILIES[family].published)
    assert rows_in(text, "Released models") == [size_row(name) for name in names]
    assert rows_in(text, "Parallel layouts") == [layout_row(name) for name in names]


def test_the_index_lists_every_released_model():
    assert tables(page("README.md"))[0].rows == [index_row(family, name) for family, name in PUBLISHED]


@pytest.mark.parametrize(("family", "name"), PUBLISHED)
def test_a_wrong_count_would_be_seen(family, name):
    count = f"{parameter_count(architecture_from_config(published_config(name))):,}"
    wrong = page(PAGE_OF[family]).replace(count, count[:-1] + str((int(count[-1]) + 1) % 10))
    assert size_row(name) not in rows_in(wrong, "Released models")


def test_a_refusal_stands_on_the_page_as_it_is_said():
    architecture = architecture_from_config(published_config("ibm-granite/granite-4.0-h-micro-base"))
    with pytest.raises(ParallelError) as said:
        architecture.check_parallel(ParallelConfig(tensor_model_parallel_size=2))
    assert " ".join(str(said.value).split()) in " ".join(page("granite-4.md").split())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere_and_lines_are_short(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]*)[^)]*\)", text):
        assert (path.parent / target).exists(), target
    assert [line for line in text.splitlines() if len(line) > 125] == []
