"""Files of the hub, from a small HTTP server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from megatron_prism.errors import DataError
from megatron_prism.evaluation.suites.stage import BenchmarkFiles

COMMIT = "12345abcde" * 4
DATA = b'{"id": "p1", "problem": "1 + 1?", "answer": "2"}\n'
# Path after /datasets/ -> status and the hub's code of the error.
REFUSALS = {
    "me/absent": (404, "RepoNotFound"),
    "me/gated": (403, "GatedRepo"),
    "me/data/resolve/old": (404, "RevisionNotFound"),
    "me/data/resolve/main/no.jsonl": (404, "EntryNotFound"),
}


class Hub(BaseHTTPRequestHandler):
    def _answer(self, body: bytes) -> None:
        path = self.path.removeprefix("/datasets/")
        self.server.asked.append((self.command, path))
        refused = next((code for start, code in REFUSALS.items() if path.startswith(start)), None)
        self.send_response(200 if refused is None else refused[0])
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(DATA).hexdigest()}"')
        self.send_header("Content-Length", "0" if refused else str(len(DATA)))
        if refused:
            self.send_header("X-Error-Code", refused[1])
        self.end_headers()
        if not refused:
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(DATA)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    # What HF_ENDPOINT and HF_HOME set before huggingface_hub is imported.
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield server
    server.shutdown()
    server.server_close()


def suite(folder: Path, hub_id: str = "me/data", revision: str = "main", file: str = "test.jsonl") -> Path:
    path = folder / "small.yaml"
    path.write_text(
        f"benchmarks:\n  - {{name: sums, hub: {hub_id}, revision: {revision}, files: {file}, kind: math, "
        "licence: CC0, prompt: 'Q: {problem} A:'}\n"
    )
    return path


def made(stage: BenchmarkFiles, out: Path) -> dict:
    out.mkdir()
    stage.run({}, out)
    return json.loads((out / "suites.json").read_text())["sums"]


def test_a_data_set_is_downloaded_once_and_its_commit_recorded(hub, tmp_path):
    record = made(BenchmarkFiles([str(suite(tmp_path))]), tmp_path / "one")
    assert record["source"] == {
        "hub": "me/data",
        "revision": COMMIT,
        "file": "test.jsonl",
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "licence": "CC0",
    }
    (line,) = (tmp_path / "one/problems/sums.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "Q: 1 + 1? A:"
    assert [command for command, _ in hub.asked] == ["HEAD", "GET"]
    # A commit is read from the cache without a word to the hub; a branch may have moved.
    made(BenchmarkFiles([str(suite(tmp_path, revision=COMMIT))]), tmp_path / "two")
    assert len(hub.asked) == 2
    made(BenchmarkFiles([str(suite(tmp_path))]), tmp_path / "three")
    assert [command for command, _ in hub.asked] == ["HEAD", "GET", "HEAD"]
    hub.shutdown()
    hub.server_close()
    made(BenchmarkFiles([str(suite(tmp_path))]), tmp_path / "four")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"hub_id": "me/absent"}, "the hub has no such data set, or it is private and HF_TOKEN is not set"),
        ({"hub_id": "me/gated"}, "it is gated; accept its terms on its page and set HF_TOKEN"),
        ({"revision": "old"}, "it has no revision 'old'"),
        ({"file": "no.jsonl"}, "it has no such file"),
        ({"hub_id": "'a b'"}, "must use alphanumeric chars"),
    ],
)
def test_a_refusal_says_what_to_give_instead(hub, given, reason, tmp_path):
    with pytest.raises(DataError) as caught:
        made(BenchmarkFiles([str(suite(tmp_path, **given))]), tmp_path / "out")
    message = str(caught.value)
    assert reason in message
    assert "download that file elsewhere and give it with --data sums=FILE (prism eval)" in message
    assert "\n" not in message


def test_without_a_network_it_does_not_wait(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(DataError, match="the hub cannot be reached, and the file is not in the cache"):
        made(BenchmarkFiles([str(suite(tmp_path))]), tmp_path / "out")
    # All of them are named at once, and those that are in no need of the hub are not.
    with pytest.raises(DataError) as caught:
        made(BenchmarkFiles(["reasoning", "shoebox"], {"math500": __file__}), tmp_path / "all")
    assert str(caught.value).startswith("benchmark 'aime24': data/train-00000-of-00001.parquet of data set ")
    assert str(caught.value).endswith(
        "; the same goes for aime25, aime26, livecodebench, codeforces, gpqa_diamond"
    )
    # The advice is right.
    (tmp_path / "mine.jsonl").write_bytes(DATA)
    stage = BenchmarkFiles([str(suite(tmp_path))], {"sums": str(tmp_path / "mine.jsonl")})
    record = made(stage, tmp_path / "mine")
    assert (record["problems"], record["source"]["hub"]) == (1, "")
