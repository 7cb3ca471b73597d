"""The published values: what can be computed from the paper's own numbers is, and each contradiction is a real one."""

from __future__ import annotations

import copy

import pytest
import yaml

from megatron_prism.errors import DataError
from megatron_prism.evaluation.statistics.averages import average_of_benchmarks, average_of_domains
from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.report.paper.published import FOLDER, as_number, parse, published, read_published

CODE, MATH = ("livecodebench", "codeforces"), ("aime24", "aime25", "math500")
MC, MCS = "mc", "mcs"


@pytest.fixture(scope="module")
def paper():
    return published()


@pytest.fixture(scope="module")
def files():
    return [
        yaml.load((FOLDER / name).read_text(), Loader=yaml.BaseLoader)
        for name in ("published.yaml", "contradictions.yaml")
    ]


def mean(values):
    return sum(values) / len(values)


def numbers(row, columns):
    return [row.number(column) for column in columns]


def score_rows(paper):
    for table in paper.tables.values():
        for row in table.rows:
            yield table, row


def test_every_average_is_the_mean_of_its_parts_but_for_the_one_that_is_listed(paper):
    """Parts are rounded (or cut off) to two decimals, so a mean may be off by a bit more than half a unit."""
    wrong = set()
    checked = 0
    for table, row in score_rows(paper):
        for average, parts in (("code_avg", CODE), ("math_avg", MATH)):
            if average in table.columns and set(parts) <= set(table.columns):
                checked += 1
                if abs(mean(numbers(row, parts)) - row.number(average)) > 0.0151:
                    wrong.add((table.key, row.model, row.role, average))
    assert checked > 90
    assert wrong == {("table19", "granite-3.3-8b", MC, "math_avg")}
    (listed,) = [each for each in paper.contradictions if each.key == "math-average"]
    assert all(
        listed.concerns(table=table, model=model, role=role, column=column)
        for table, model, role, column in wrong
    )


def test_both_meanings_of_avg_are_those_that_are_said(paper):
    for row in paper.tables["table11"].rows:
        scores = {column: row.number(column) for column in (*CODE, *MATH, "gpqa_diamond")}
        assert average_of_domains(scores) == pytest.approx(row.number("avg"), abs=0.0151)
    for row in paper.tables["page"].rows:
        scores = {column: row.number(column) for column in (*CODE, *MATH, "gpqa_diamond")}
        assert average_of_benchmarks(scores) == pytest.approx(row.number("avg"), abs=0.0151)
    small = paper.tables["table6"].row("mistral-small-24b", MCS)
    scores = {column: small.number(column) for column in (*CODE, *MATH, "gpqa_diamond")}
    assert f"{average_of_domains(scores):.2f}" == "26.37"
    assert paper.tables["page"].row("mistral-small-24b", MCS).values["avg"] == "30.54"


def test_leaderboard_averages_are_means_of_six(paper):
    table = paper.tables["table4"]
    for row in table.rows:
        assert mean(numbers(row, table.columns[:6])) == pytest.approx(
            row.number("leaderboard_v1"), abs=0.0101
        )
        assert mean(numbers(row, table.columns[7:13])) == pytest.approx(
            row.number("leaderboard_v2"), abs=0.0101
        )


@pytest.mark.parametrize(
    ("column", "answers", "most"),
    [("livecodebench", 837, 3), ("codeforces", 1359, 3), ("gpqa_diamond", 594, 3)],
)
def test_scores_are_fractions_of_so_many_answers(paper, column, answers, most):
    """279, 453 and 198 problems with 3 samples; mid-trained and base models of Table 6. A mistyped digit falls off."""
    off = []
    for row in paper.tables["table6"].rows:
        exact = row.number(column) * answers / 100
        # Two decimals, rounded or cut off.
        if min(exact % 1, 1 - exact % 1) > 0.0101 * answers / 100:
            off.append((row.model, row.role))
    assert len(off) <= most
    assert paper.tables["table6"].row("granite-3.3-8b", "base").number("codeforces") == pytest.approx(
        100 * 27 / 1359, abs=0.005
    )


def test_tables_repeat_each_other(paper):
    """Rows of one model and role have the same scores in all tables, but for the row that is listed."""
    differ = set()
    for table, row in score_rows(paper):
        for other, theirs in score_rows(paper):
            if (
                table.key < other.key
                and (row.model, row.role) == (theirs.model, theirs.role)
                and "page"
                not in (
                    table.key,
                    other.key,
                )
            ):
                for column in set(table.columns) & set(other.columns):
                    if row.values[column] != theirs.values[column]:
                        differ.add((table.key, other.key, row.model, row.role))
    assert differ == {
        ("table3", "table6", "granite-4.0-micro", MCS),
        ("table3", "table8", "granite-4.0-micro", MCS),
        ("table19", "table5", "granite-3.3-8b", MC),
        ("table19", "table7", "granite-3.3-8b", MC),
        ("table11", "table19", "granite-3.3-8b", MC),
    }


def attention_and_all(paper, model, column):
    """Changed elements of attention and of all of Granite-3.3, weighted by the elements of its architecture."""
    shape = architecture_from_config(published_config(paper.hubs[model]))
    kv = shape.num_query_groups * shape.head_dim
    width = shape.num_attention_heads * shape.head_dim
    layers, hidden = shape.num_layers, shape.hidden_size
    elements = {
        "attention.q": layers * hidden * width,
        "attention.k": layers * hidden * kv,
        "attention.v": layers * hidden * kv,
        "attention.o": layers * hidden * width,
        "mlp.gate": layers * hidden * shape.ffn_hidden_size,
        "mlp.up": layers * hidden * shape.ffn_hidden_size,
        "mlp.down": layers * hidden * shape.ffn_hidden_size,
        "embedding": shape.vocab_size * hidden,
    }
    rows = {row.role: row.number(column) for row in paper.tables["table23"].of_model(model)}
    known = {part: count for part, count in elements.items() if part in rows}
    heads = [part for part in known if part.startswith("attention")]
    return tuple(
        sum(known[part] * rows[part] for part in parts) / sum(known[part] for part in parts)
        for parts in (heads, list(known))
    )


def test_the_sparsity_of_table_12_is_attentions_and_that_of_rl_on_granite_is_neither(paper):
    table12, table22 = paper.tables["table12"], paper.tables["table22"].row("granite-3.3-8b", "0.01")
    attention, everything = attention_and_all(paper, "granite-3.3-8b", "base_midtrain")
    assert 100 - attention == pytest.approx(9.3, abs=0.05)
    assert table12.row("granite-3.3-8b", "base→mcs").values["sparsity"] == "9.3"
    assert 100 - everything == pytest.approx(table22.number("base_midtrain"), abs=0.05)
    attention, everything = attention_and_all(paper, "granite-3.3-8b", "midtrain_rl")
    assert 100 - attention == pytest.approx(95.0, abs=0.05)
    assert 100 - everything == pytest.approx(table22.number("midtrain_rl"), abs=0.05)
    assert table12.row("granite-3.3-8b", "mcs→mcs>rl").values["sparsity"] == "95.9"
    attention, _ = attention_and_all(paper, "granite-3.3-8b", "base_rl")
    assert 100 - attention == pytest.approx(94.0, abs=0.05)
    for column, role in (
        ("base_midtrain", "base→mcs"),
        ("midtrain_rl", "mcs→mcs>rl"),
        ("base_rl", "base→base>rl"),
    ):
        attention, _ = attention_and_all(paper, "nemotron-h-8b", column)
        assert 100 - attention == pytest.approx(
            table12.row("nemotron-h-8b", role).number("sparsity"), abs=0.05
        )


def test_the_total_of_table_12_is_no_weighted_mean(paper):
    table = paper.tables["table12"]
    granite, nemotron = (table.row(model, "base→mcs") for model in ("granite-3.3-8b", "nemotron-h-8b"))
    assert granite.values["total"] == granite.values["attention"] != granite.values["mlp"]
    assert nemotron.number("total") < min(numbers(nemotron, ("attention", "mlp", "mamba")))
    ratios = {
        model: table.row(model, "base→mcs").number("total") / table.row(model, "mcs→mcs>rl").number("total")
        for model in ("granite-3.3-8b", "nemotron-h-8b")
    }
    assert {model: round(ratio) for model, ratio in ratios.items()} == {
        "granite-3.3-8b": 583,
        "nemotron-h-8b": 373,
    }


def test_gains_that_contradict_the_text_are_those_of_the_tables(paper):
    said = {
        each.key: " ".join(value for _, value in each.values) + each.finding for each in paper.contradictions
    }
    science = {
        model: paper.tables["table6"].row(model, MCS).number("gpqa_diamond")
        - paper.tables["table6"].row(model, "base").number("gpqa_diamond")
        for model in paper.models
    }
    for gain in science.values():
        assert f"{gain:+.2f}".replace("-", "−") in said["science-gain"]
    assert sum(6 <= gain <= 13 for gain in science.values()) == 3
    table11 = paper.tables["table11"]
    shifts = []
    for model, best in (
        ("granite-3.3-8b", "mcs>rl-mc"),
        ("llama-3.1-8b", "mcs>rl-mcs"),
        ("mistral-7b-v0.1", "mcs>rl-mcs"),
    ):
        gain = table11.row(model, best).number("gpqa_diamond") - table11.row(model, "mc>rl-mc").number(
            "gpqa_diamond"
        )
        assert f"{gain:+.2f}" in said["science-in-rl"]
        shifts += [
            table11.row(model, f"mcs>rl-{mix}").number("avg")
            - table11.row(model, f"mc>rl-{mix}").number("avg")
            for mix in (MC, MCS)
        ]
    assert f"{min(shifts):+.2f} to {max(shifts):+.2f}" in said["mixture-shift"]
    llama = {role: table11.row("llama-3.1-8b", role).number("avg") for role in (MC, MCS, "mcs>rl-mcs")}
    assert f"{llama['mcs>rl-mcs'] - llama[MC]:+.2f}" in said["stage-gains"]
    assert f"{llama['mcs>rl-mcs'] - llama[MCS]:+.2f}" in said["stage-gains"]


def test_numbers_keep_their_printed_form(paper):
    assert paper.tables["table4"].row("granite-3.3-8b", "base").values["MATH Lvl 5"] == "10.20"
    assert as_number(paper.tables["table15"].row("granite-3.3-8b", MCS).values["median_length"]) == 2254
    assert paper.tables["table12"].row("granite-3.3-8b", "base→mcs").number("mamba") is None


def test_marks_are_the_numbers_of_the_contradictions_of_a_cell(paper):
    cell = {"table": "table19", "model": "granite-3.3-8b", "role": MC, "column": "math_avg"}
    (number,) = paper.marks(**cell)
    assert paper.contradictions[number - 1].key == "math-average"
    assert paper.marks(**cell | {"role": "base"}) == []
    assert len({each.key for each in paper.contradictions}) == len(paper.contradictions) >= 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, c: v.update(extra={}), "unknown key 'extra'"),
        (lambda v, c: v["tables"]["table5"].pop("title"), r"tables\.table5: 'title' is missing"),
        (lambda v, c: v["tables"]["table5"].update(source="X"), "source=X: must be one of P, W$"),
        (lambda v, c: v["tables"]["table5"]["columns"].append("cods_avg"), "did you mean 'code_avg'"),
        (lambda v, c: v["tables"]["table5"]["rows"][0].update(model="gpt"), "row 1: unknown model 'gpt'"),
        (lambda v, c: v["tables"]["table5"]["rows"][1]["values"].pop(), "row 2: 2 values for 3 columns"),
        (
            lambda v, c: v["tables"]["table5"]["rows"][1].update(values=["1", "2", "3 %"]),
            "'3 %' is not a number",
        ),
        (
            lambda v, c: v["tables"]["table5"]["rows"][1].update(role="base"),
            "two rows have one model and role",
        ),
        (lambda v, c: c[0]["values"].pop(), "entry 1: a contradiction has two values or more"),
        (lambda v, c: c[0]["cells"][0].update(table="table99"), "there is no table 'table99'"),
        (lambda v, c: c[0]["cells"][0].update(column="avg"), "Table 19 has no column 'avg'"),
        (lambda v, c: c[0]["cells"][0].update(role="rl"), "Table 19 has no row granite-3.3-8b rl"),
    ],
)
def test_a_fault_in_the_files_is_named(files, change, message):
    values, contradictions = copy.deepcopy(files)
    change(values, contradictions)
    with pytest.raises(DataError, match=message):
        parse(values, contradictions, "values.yaml", "contradictions.yaml")


def test_a_file_that_is_not_readable_is_named(tmp_path):
    file = tmp_path / "values.yaml"
    for content, message in (
        ("a: [", r"values\.yaml: not readable YAML"),
        ("- 1", r"values\.yaml: must be a dict"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            read_published(file, FOLDER / "contradictions.yaml")
