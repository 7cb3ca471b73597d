"""One tiny model for all tests that sample over HTTP, and the process that has it loaded and forks servers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from served_model import Server
from tiny_models import make_checkpoint
from tokenizers import Tokenizer as Tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LETTERS = 94
SERVER = Path(__file__).with_name("completions_server.py")


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory):
    """A Llama whose tokens are the printable characters, with its own generation config."""
    folder = make_checkpoint("llama", tmp_path_factory.mktemp("model"), vocab_size=LETTERS + 2)
    known = {"<|endoftext|>": 0, "<|pad|>": 1} | {chr(33 + index): 2 + index for index in range(LETTERS)}
    raw = Tokenizers(models.WordLevel(known, unk_token="<|pad|>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|pad|>"
    ).save_pretrained(folder)
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_sample": True}))
    return folder


@pytest.fixture(scope="session")
def supervisor(served_folder):
    """The process that has loaded the model and forks servers."""
    command = [sys.executable, str(SERVER), str(served_folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def server(supervisor, tmp_path):
    made = Server(supervisor, tmp_path)
    yield made
    made.kill()
