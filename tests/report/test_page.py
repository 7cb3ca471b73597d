from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from synthetic_run import PASSED, PROBLEMS, STAGES, folder_of, make_run, write_graph

from megatron_prism.errors import ArtifactError, ConfigError
from megatron_prism.evaluation.statistics.intervals import wilson_interval
from megatron_prism.pipeline.graph import Graph
from megatron_prism.report.stage import Report, build_report

VOID = {"meta", "link", "br", "img", "hr", "input", "col", "base", "wbr"}


class Page(HTMLParser):
    """Checks that tags are closed in order; records the text, the tags and every URL."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action") and v
        ]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def page(run_dir):
    target, paper = build_report(run_dir)
    assert (target, paper) == (run_dir / "report.html", run_dir / "paper.html")
    return target.read_text()


def test_the_page_parses_and_needs_nothing_from_outside(page):
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    inner = [address for address in parsed.addresses if address.startswith("#")]
    assert set(parsed.addresses) - set(inner) == {"paper.html"}
    assert {address[1:] for address in inner} <= set(parsed.ids)
    assert not {"script", "link", "iframe", "img", "object"} & set(parsed.tags)
    assert "@import" not in page
    assert not re.search(r"url\((?!['\"]?#)", page)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http://" not in without_namespaces
    assert "https://" not in without_namespaces
    assert parsed.tags.count("svg") == 4


def test_the_pages_numbers_are_those_of_the_samples(page):
    text = Page(page).text
    for evaluation, suites in PASSED.items():
        for passed in suites.values():
            low, high = (100 * end for end in wilson_interval(passed, PROBLEMS))
            assert f"{100 * passed / PROBLEMS:.1f} {low:.1f}–{high:.1f}" in text, evaluation
    assert "from 2.0 % (base) to 54.7 % (midtrained): +52.7 points" in text
    assert "8 of 8 stages of the recipe shoebox are done, in 10 min 16 s of work." in text
    assert "What became of the answers: 900 graded, 150 truncated" in text
    assert "base math 150 150 0 0 0 50 0 0" in text
    for fact in ("2.13.0+cpu", "Example CPU", "abc1234", "prism run shoebox", "samples_per_problem"):
        assert fact in text


def test_hostile_text_is_shown_not_run(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp;" in page


def test_both_correct_and_wrong_answers_are_shown(page):
    text = Page(page).text
    parsed = Page(page)
    assert {"#answers-eval-base-math", "#answers-eval-midtrained-code"} <= set(parsed.addresses)
    assert "base ( math , science , code ); midtrained (" in text
    assert text.count("correct · math · math-") == 4
    assert text.count("wrong · math · math-") == 4
    assert "cut off" in text


def test_the_same_run_gives_the_same_pages(run_dir, page):
    before = (run_dir / "paper.html").read_text()
    assert [made.read_text() for made in build_report(run_dir)] == [page, before]
    assert not list(run_dir.glob("*.partial"))


@pytest.mark.parametrize("names", [[], ["corpus"], ["corpus", "tokenizer", "tokens", "base"], ["eval-base"]])
def test_a_run_that_is_not_finished_still_has_a_page(tmp_path, names):
    make_run(tmp_path / "run", names)
    text = Page(build_report(tmp_path / "run")[0].read_text()).text
    assert f"{len(names)} of 8 stages" in text
    for name in STAGES:
        assert name in text
    assert ("Nothing has been evaluated yet" in text) is ("eval-base" not in names)
    assert text.count("not made") >= 8 - len(names)


def test_damaged_and_unfinished_stages_are_marked(tmp_path):
    make_run(tmp_path / "run", ["corpus", "tokenizer"])
    (tmp_path / "run" / folder_of("tokenizer") / "data.bin").unlink()
    (tmp_path / "run" / (folder_of("tokens") + ".partial")).mkdir()
    text = Page(build_report(tmp_path / "run")[0].read_text()).text
    assert re.search(
        r"tokenizer \(tokenizer\): damaged: .*data\.bin: the file is listed in receipt\.json but does not exist",
        text,
    )
    assert "tokens (tokens): unfinished" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no such run folder"):
        build_report(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"no graph\.json"):
        build_report(tmp_path)
    for content in ("{", "[]", '{"recipe": "x", "stages": [{"name": "a"}]}', '{"recipe": "x", "stages": 3}'):
        (tmp_path / "graph.json").write_text(content)
        with pytest.raises(ArtifactError, match=r"graph\.json: .*run the recipe again"):
            build_report(tmp_path)
    write_graph(tmp_path)
    graph = json.loads((tmp_path / "graph.json").read_text())
    graph["stages"][1]["inputs"] = {"corpus": "nobody"}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(ArtifactError, match="has the input 'nobody'"):
        build_report(tmp_path)


def test_a_page_that_cannot_be_written_is_one_clear_error(tmp_path):
    make_run(tmp_path / "run", ["corpus"])
    (tmp_path / "run" / "report.html").mkdir()
    with pytest.raises(ConfigError, match="cannot write this file"):
        build_report(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.partial"))


def test_the_stage_reports_on_the_artifacts_it_is_given(tmp_path):
    artifacts = make_run(tmp_path / "made")
    out = tmp_path / "out"
    out.mkdir()
    metrics = Report(title="A <title>").run(artifacts, out)
    text = Page((out / "report.html").read_text()).text
    assert metrics["stages"] == 8
    assert metrics["bytes"] == (out / "report.html").stat().st_size
    assert "A <title>" in text
    assert "from 2.0 % (base) to 54.7 % (midtrained)" in text
    assert "corpus, tokens = " not in text
    assert "model = base, tokenizer, corpus" in text
    assert "prism run" not in text


def test_the_stage_runs_in_a_graph(tmp_path):
    graph = Graph("tiny")
    nothing = graph.add("report", Report(title="Empty"))
    made = graph.run(tmp_path / "run")["report"]
    assert made.kind == nothing.stage.kind == "report"
    assert "Nothing has been evaluated yet" in made.file("report.html").read_text()
