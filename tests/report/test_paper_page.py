"""The page with the paper's forms: what stands beside what, what is left apart, and a page that needs nothing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from paper_run import RECIPE, RIGHT, granite_run, record, weights_of, with_weights
from synthetic_run import make_run
from table_widths import room, wide_table_widths
from test_page import Page

from megatron_prism.analysis.view import _views
from megatron_prism.cli.analyze import app
from megatron_prism.cli.main import main
from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.statistics.intervals import wilson_interval
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.pipeline.json_text import read_object
from megatron_prism.report.paper import page as page_module
from megatron_prism.report.paper.analyses import VERBS, Found, folder_analyses
from megatron_prism.report.paper.analysis_forms import DRAWINGS, TABLES, VERB_OF
from megatron_prism.report.paper.beside import cka_beside, confidence_beside, direction_beside
from megatron_prism.report.paper.our_scores import averages, our_scores
from megatron_prism.report.paper.page import KEYS, paper_sections, render_paper
from megatron_prism.report.paper.published import published
from megatron_prism.report.paper.roles import published_name, roles, words
from megatron_prism.report.records import read_run
from megatron_prism.report.stage import Report
from megatron_prism.study.model_recipe import ModelRecipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("granite")
    made = granite_run(folder)
    made = with_weights(made, new(folder / "one"), "import", {"midtrain": 0.2, "rl_import": 0.004})
    return with_weights(made, new(folder / "two"), "midtrain", {"rl_midtrain": 0.004})


@pytest.fixture(scope="module")
def rendered(run):
    """The page and its sections, whose figures are drawn once."""
    made = []

    def keep(*given):
        made.extend(paper_sections(*given))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "paper_sections", keep)
        page = render_paper(run, "granite", "runs/g")
    return page, {each.key: each for each in made}


@pytest.fixture(scope="module")
def page(rendered):
    return rendered[0]


@pytest.fixture(scope="module")
def sections(rendered):
    return rendered[1]


def new(folder):
    folder.mkdir()
    return folder


def rows(form):
    return {line.label.text: [cell.text for cell in line.cells] for line in form.lines}


def test_roles_follow_what_was_done(run):
    assert roles(run) == {
        "import": "base",
        "midtrain": "mcs",
        "merge": "mcs>merge",
        "extend": "mcs>merge>extend-all",
        "extend_attention": "mcs>merge>extend-attention",
        "rl_midtrain": "mcs>rl-mc",
        "rl_import": "base>rl-mc",
    }
    assert words("mcs>merge>extend-attention") == (
        "mid-trained on Math+Code+Science, merged with the base (15/85), context extended, attention only"
    )
    assert words("base>rl-mc") == "base model, RL on mc"


@pytest.mark.parametrize(
    ("stage", "config", "role"),
    [
        ("midtrain", {"mixture": "mc"}, "mc"),
        ("midtrain", {"mixture": "web"}, "web"),
        ("midtrain", {"batch": {"sequence_length": 16384}}, "mcs@16384"),
        ("midtrain", {"steps": 10_000}, "mcs#10000"),
        ("merge", {"weights": {"base": 0.5, "midtrain": 0.5}}, "mcs>merge 0.5/0.5"),
        ("merge", {"method": "slerp"}, "mcs>merge 0.15/0.85"),
        ("mix", {"domains": ["math", "code", "science"]}, "mcs>rl-mcs"),
        ("mix", {"mix": "balanced"}, "mcs>rl-mc (balanced)"),
        ("mix", {"domains": ["math"]}, "mcs>rl-math"),
    ],
)
def test_a_run_that_differs_has_another_role_and_no_published_row(tmp_path, stage, config, role):
    changed = roles(granite_run(tmp_path, **{stage: config}))
    assert changed["rl_midtrain" if stage == "mix" else stage] == role
    other = {"mc", "mcs@16384", "mcs>rl-mcs"}
    table6, table11 = (published().tables[key] for key in ("table6", "table11"))
    if role not in other:
        assert table6.row(RECIPE, role) is None
        assert table11.row(RECIPE, role) is None


def test_only_the_recipe_with_the_architecture_is_a_model_of_the_paper(run, tmp_path):
    paper = published()
    assert published_name(run, paper) == RECIPE
    assert published_name(dataclasses.replace(run, recipe="shoebox"), paper) is None
    assert published_name(dataclasses.replace(run, recipe="llama-3.1-8b"), paper) is None
    # The miniature of a recipe has its name only.
    tiny = granite_run(tmp_path, midtrain={"architecture": {"family": "granite", "num_layers": 2}})
    assert published_name(tiny, paper) is None
    form, *more = next(s for s in paper_sections(tiny, paper, "R", []) if s.key == "table6").forms
    assert not more
    assert {line.kind for line in form.lines} == {"ours"}


def test_ours_stands_beside_the_published_value_with_the_difference(sections):
    form, beside = sections["table6"].forms
    assert [(line.kind, line.label.text) for line in form.lines] == [
        ("ours", "import"),
        ("ours", "midtrain"),
        ("paper", "Granite-3.3 (8B)"),
        ("paper", "Granite-3.3 (8B)"),
    ]
    assert [cell.text for cell in beside.columns] == [
        *("benchmark", "import", "paper", "difference", "midtrain", "paper", "difference")
    ]
    assert rows(beside)["LCB"] == ["4.00", "2.15", "+1.85", "40.00", "10.63", "+29.37"]
    assert rows(beside)["Math Avg"] == ["4.00", "8.95", "−4.95", "40.00", "48.75", "−8.75"]
    # 2.15 lies in the interval of 5 of 100, 10.63 does not lie in that of 40 of 100.
    low, high = wilson_interval(4, 100)
    assert 100 * low < 2.15 < 100 * high
    line = next(each for each in beside.lines if each.label.text == "LCB")
    assert [cell.more for cell in line.cells[2::3]] == ["", "outside"]


def test_table_7_has_no_row_of_the_paper_for_another_mixture(sections, tmp_path):
    """The paper restored the model of Math+Code; this run has Math+Code+Science, so only the base is comparable."""
    form, *beside = sections["table7"].forms
    assert [line.label.text for line in form.lines if line.kind == "ours"] == [
        *("import", "midtrain", "merge", "extend", "extend_attention")
    ]
    assert [[cell.text for cell in each.columns] for each in beside] == [
        ["benchmark", "import", "paper", "difference"]
    ]
    same = granite_run(tmp_path, midtrain={"mixture": "mc"})
    table7 = next(each for each in paper_sections(same, published(), "R", []) if each.key == "table7")
    named = [cell.text for each in table7.forms[1:] for cell in each.columns[1::3]]
    assert named == ["import", "midtrain", "merge", "extend", "extend_attention"]
    assert rows(table7.forms[2])["128k"][:3] == [f"{RIGHT['extend'] / 2:.2f}", "42.16", "−24.66"]


def test_weights_stand_beside_the_row_of_their_transition(sections):
    forms = {form.columns[1].text: rows(form) for form in sections["table12"].forms}
    assert set(forms) == {"midtrain", "rl_import", "rl_midtrain"}
    mine = forms["midtrain"]
    assert mine["Attn"] == ["0.2000", "0.175", "+0.0250"]
    assert mine["MLP"] == ["0.2000", "0.329", "−0.1290"]
    # 16 of 18 tensors' parts moved; the total of tensors counts the norms, which did not.
    assert mine["Total (mean of tensors)"][0] == f"{0.2 * 4 / 6:.4f}"
    assert mine["Sparsity (%), attention"] == ["0.0", "9.3", "−9.3"]
    assert mine["Sparsity (%), all"][0] == f"{100 / 8:.1f}"
    rl = next(form for form in sections["table12"].forms if form.columns[1].text == "rl_midtrain")
    assert rows(rl)["Attn"] == ["0.0040", "0.0003", "+0.0037"]
    assert rl.lines[0].cells[2].more == "× 13"
    # Sparsity of MT→RL is one of the cells that the paper contradicts elsewhere.
    sparsity = next(line for line in rl.lines if line.label.text == "Sparsity (%), attention")
    keys = [published().contradictions[number - 1].key for number in sparsity.cells[1].marks]
    assert "granite-rl-sparsity" in keys
    unchanged = {form.columns[1].text: rows(form) for form in sections["table22"].forms}
    assert unchanged["midtrain"]["1 %"] == ["12.5", "3.5", "+9.0"]
    assert unchanged["rl_midtrain"]["0.5 %"] == ["100.0", "87.3", "+12.7"]
    changed = {form.columns[1].text: rows(form) for form in sections["table23"].forms}
    assert changed["midtrain"]["Attn: Q"] == ["100.0", "83.5", "+16.5"]
    assert changed["rl_import"]["Norm"] == ["0.0", "0.1", "−0.1"]
    assert changed["midtrain"]["Embed/LM-head"] == ["–", "97.5", "–"]


def test_views_of_analyses_stand_under_their_table_and_figure(sections, page):
    assert len(sections["figure11"].plots) == 2
    assert any("weights_midtrain" in plot.caption for plot in sections["figure11"].plots)
    (_, sparsity), _ = sections["figure11"].tables
    assert sparsity.columns == ["transition", "attention", "mlp", "norm"]
    assert sparsity.rows == [
        ["import → midtrain", "0.0", "0.0", "100.0"],
        ["import → rl_import", "100.0", "100.0", "100.0"],
    ]
    assert len(sections["table22"].tables) == len(sections["table23"].tables) == 2
    assert "import → midtrain" in Page(page).text
    # The table in the paper's form is open; that of rounding is folded away.
    assert ["total" in table.columns[4] for _, table in sections["table12"].tables] == [True, True]
    assert ["rounding floor" in table.columns for _, table in sections["table12"].more_tables] == [True, True]
    # One mixture of two: beside the paper's, but no table of both.
    assert [form.columns[1].text for form in sections["table13"].forms] == ["midtrain"]
    assert not sections["table13"].tables


def test_the_other_analyses_stand_beside_the_paper_by_model_set_and_suite(tmp_path):
    """CKA in either order and on sets with the paper's names; answers to MATH500; cosines of MC and MCS only."""
    paper = published()
    known = {"a": "mcs>rl-mc", "b": "mcs", "c": "mc"}
    pairs = [
        {"first": "a", "second": "b", "inputs": name, "minimum": {"cka": 0.999}}
        for name in ("GSM8K", "math", "Wikipedia")
    ]
    cka = Found("cka", tmp_path, "cka", {"pairs": pairs}, known)
    (form,) = cka_beside(paper, paper.tables["table14"], RECIPE, cka)
    assert rows(form) == {
        "GSM8K": ["0.9990", "0.9997", "−0.0007"],
        "Wikipedia": ["0.9990", "0.9999", "−0.0009"],
    }
    part = {"elements": 10, "cosine": 0.6}
    pairs = [
        {
            "first": "b",
            "second": other,
            "overall": 0.5,
            "sub_components": {"attention.q": part, "head.head": part},
        }
        for other in ("a", "c")
    ]
    direction = Found("direction", tmp_path, "direction", {"pairs": pairs}, known)
    (form,) = direction_beside(paper, paper.tables["figure12"], RECIPE, direction)
    assert form.columns[1].text == "b, c"
    assert rows(form)["overall"] == ["0.500", "0.521", "−0.021"]
    assert rows(form)["embedding"] == ["0.600", "0.885", "−0.285"]
    assert rows(form)["K"][0] == "–"
    answers = {
        "pass_rate": {"value": 0.75},
        "tokens": {"median": 2000},
        "nlp": {
            "all": {"of_responses": {"value": 0.14}},
            "correct": {"of_responses": {"value": 0.12}},
            "incorrect": {"of_responses": None},
        },
    }
    models = [{"model": "b", "suites": {"math500": answers}}, {"model": "c", "suites": {"math500": answers}}]
    confidence = Found("confidence", tmp_path, "confidence", {"models": models}, known)
    (form,) = confidence_beside(paper, paper.tables["table15"], RECIPE, confidence)
    models[0]["model"] = "a"
    (after_rl,) = confidence_beside(paper, paper.tables["table15"], RECIPE, confidence)
    assert rows(after_rl)["Pass (%)"] == ["75.0", "79.5", "−4.5"]
    assert rows(form) == {
        "Pass (%)": ["75.0", "75.5", "−0.5"],
        "Med. len.": ["2,000", "2,254", "−254"],
        "Neg-LP": ["0.140", "0.138", "+0.002"],
        "Corr.": ["0.120", "0.128", "−0.008"],
        "Incorr.": ["–", "0.153", "–"],
    }


def test_averages_are_the_papers_and_need_all_parts(run):
    scores = our_scores(run.artifacts)["midtrain"]
    assert scores["avg"].value == pytest.approx(0.4)
    assert scores["math_avg"].low > scores["aime24"].low
    parts = {key: scores[key] for key in ("aime24", "aime25", "math500", "livecodebench")}
    assert set(averages(parts)) == {"math_avg"}
    own = {"math": scores["aime24"], "code": scores["codeforces"], "science": scores["gpqa_diamond"]}
    assert set(averages(own)) == {"math_avg", "code_avg", "avg"}
    # Three suites of a user and benchmarks of the paper are not averaged together.
    assert "avg" not in averages({**parts, "code": own["code"], "science": own["science"]})


def test_missing_sections_name_commands_that_exist(sections):
    """Verbs of `prism analyze`, parameters of the recipe, and stages of this run."""
    verbs = {command.name for command in app.registered_commands}
    parameters = set(inspect.signature(ModelRecipe.__call__).parameters)
    commands = [command for section in sections.values() for command in section.missing]
    assert {section.key for section in sections.values() if section.missing} >= {
        "table4",
        "figure10",
        "figure14",
    }
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "prism"
        if words[1] == "analyze":
            assert words[2] in verbs
            stages = [word.removeprefix("runs/g/") for word in words[3 : words.index("--out")] if "/" in word]
            assert set(stages) <= {*RIGHT, *(f"evaluate_{model}" for model in RIGHT)}
        elif words[1] == "run":
            assert words[2] == RECIPE
            assert {word.partition("=")[0] for word in words[3:]} <= parameters
        else:
            assert words[:3] == ["prism", "report", "runs/g"]


def test_the_page_parses_needs_nothing_and_every_mark_leads_somewhere(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "img", "object"} & set(parsed.tags)
    inner = [address for address in parsed.addresses if address.startswith("#")]
    assert set(parsed.addresses) - set(inner) == {"report.html"}
    assert {address[1:] for address in inner} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http://" not in without_namespaces
    assert "https://" not in without_namespaces
    paper = published()
    for table in paper.tables.values():
        assert f'href="#{table.key}"' in page or table.key in ("table19", "table20", "page")
    for number, each in enumerate(paper.contradictions, start=1):
        assert f"contradiction-{number}" in parsed.ids
        assert each.title in parsed.text
    # The wrong average of Table 19 carries the mark of the first contradiction.
    assert re.search(r'44\.33<sup><a class="mark" href="#contradiction-1">1</a></sup>', page)


def test_all_tables_fit_the_page(page):
    for paper in (False, True):
        assert max(wide_table_widths(page, paper)) <= room(page, paper)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of no model of the paper."""
    folder = tmp_path_factory.mktemp("small") / "run"
    make_run(folder)
    return folder


def test_a_run_of_another_model_shows_its_own_suites_and_folds_the_papers_away(small, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(small), "--json", "-"])
    assert ended.value.code == 0
    printed = capsys.readouterr()
    report, paper = (Path(path) for path in json.loads(printed.out).values())
    assert (report, paper) == (small / "report.html", small / "paper.html")
    assert str(paper) in printed.err.replace("\n", "")
    text = paper.read_text()
    said = Page(text).text
    assert "none of the paper’s seven models" in said
    assert "The run's own code, science, math stand in for the paper's" in said
    assert "difference</th>" not in text
    assert text.count("<details>") > 10
    assert "shoebox" in said
    assert "abc1234" in said
    assert 'href="paper.html"' in report.read_text()
    assert "<script" not in text
    assert "analysis/weights_rl" in said
    assert "base → midtrained" not in said


def test_analyses_in_the_runs_folder_are_shown(small):
    for name in ("first", "landscape/artifacts/x", "landscape/stage"):
        folder = small / "analysis" / name
        folder.mkdir(parents=True)
        if "artifacts" not in name:
            write_json(folder / "weights.json", weights_of("base", {"midtrained": 0.2}).document)
    run = read_run(small)
    analyses = folder_analyses(run, small)
    assert [(each.name, each.verb) for each in analyses] == [
        ("first", "weights"),
        ("landscape/stage", "weights"),
    ]
    assert analyses[0].roles["midtrained"] == analyses[0].roles["eval-midtrained"] == "other"
    after = render_paper(run, "small", str(small), analyses[:1])
    assert "base → midtrained" in Page(after).text
    assert "first (weights)" in Page(after).text


def test_a_document_of_another_version_is_one_clear_error(small):
    folder = small / "analysis" / "first"
    whole = read_object(folder / "weights.json", ArtifactError)
    run = read_run(small)
    try:
        write_json(
            folder / "weights.json", {key: value for key, value in whole.items() if key != "thresholds"}
        )
        with pytest.raises(
            ArtifactError, match=r"first: weights\.json is not a document.*thresholds.*analyse again"
        ):
            render_paper(run, "small", str(small), folder_analyses(run, small)[:1])
        write_json(folder / "weights.json", whole | {"schema": "megatron_prism.analysis.weights/0"})
        with pytest.raises(ArtifactError, match="weights/0"):
            folder_analyses(run, small)
    finally:
        write_json(folder / "weights.json", whole)


def test_every_verb_has_its_place():
    assert set(TABLES) == set(DRAWINGS) == set(VERBS) == set(_views())
    keys = {key for places in TABLES.values() for key in places}
    keys |= {key for places in DRAWINGS.values() for key in places.values()}
    assert keys <= set(KEYS)
    assert set(VERB_OF) <= set(KEYS)
    assert set(VERB_OF.values()) == set(VERBS) - {"spectrum"}
    commands = {command.name for command in app.registered_commands}
    assert commands == set(VERBS)


def test_leaderboards_are_the_averages_of_a_harness_stage(tmp_path):
    half = {"score": 0.5, "low": 0.4, "high": 0.6}
    metrics = {
        "averages": {"leaderboard-v1": half | {"benchmarks": {"ARC": half, "GSM8K": half}}},
        "suites": {},
    }
    run = granite_run(tmp_path)
    stage = record(tmp_path, "harness_midtrain", "harness", {"model": "midtrain"}, {}, metrics)
    run = dataclasses.replace(run, stages=[*run.stages, stage])
    table4 = next(each for each in paper_sections(run, published(), "R", []) if each.key == "table4")
    assert not table4.missing
    assert rows(table4.forms[1]) == {
        "ARC": ["50.00", "61.69", "−11.69"],
        "GSM8K": ["50.00", "74.22", "−24.22"],
        "LB-V1": ["50.00", "66.48", "−16.48"],
    }
    assert [cell.more for cell in table4.forms[1].lines[0].cells] == ["40.0–60.0", "", "outside"]


def test_the_stage_writes_both_pages(small, tmp_path):
    Report(title="A <title>").run(read_run(small).artifacts, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "paper.html"}
    assert "A <title>, in the forms of the paper" in Page((tmp_path / "paper.html").read_text()).text
