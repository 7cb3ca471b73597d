"""Two tiny models, imported from Hugging Face and exported again, and the folder of local tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_tasks import POSITIONS, documents, write_tasks
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint
from tokenizer_folders import template
from tokenizers import Tokenizer as Tokenizers

from megatron_prism.conversion.export_hf import export_checkpoint
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.conversion.weights import open_weights
from megatron_prism.data.tokenizer import train_tokenizer
from megatron_prism.pipeline.artifact import Artifact, Receipt, partial_path, seal

TOKENS, BEGIN = 420, "<s>"
# A start token, and two rows that are no token, which have a probability but never the largest.
ROWS = TOKENS + 3
KINDS = {"dense": "llama", "hybrid": "nemotron-h"}


@dataclass
class Model:
    """A model as an artifact, and the Hugging Face folder that was exported from it."""

    artifact: Artifact
    exported: Path


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session", params=KINDS)
def model(request, tmp_path_factory):
    """The dense model's tokenizer adds a start token, the hybrid's has none."""
    root = tmp_path_factory.mktemp(request.param)
    hf = make_checkpoint(
        KINDS[request.param], root / "hf", vocab_size=ROWS, max_position_embeddings=POSITIONS
    )
    tensors = load_file(hf / "model.safetensors")
    tensors["lm_head.weight"][TOKENS + 1 :] = 0
    save_file(tensors, hf / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (hf / name).unlink(missing_ok=True)
    train_tokenizer([json.dumps(each) for found in documents().values() for each in found], TOKENS, hf)
    if request.param == "dense":
        tokenizer = Tokenizers.from_file(str(hf / "tokenizer.json"))
        tokenizer.add_special_tokens([BEGIN])
        tokenizer.post_processor = template(tokenizer, f"{BEGIN} $A", BEGIN)
        tokenizer.save(str(hf / "tokenizer.json"))
        config = hf / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token": BEGIN}))
    partial = partial_path(root / "artifact")
    partial.mkdir()
    import_checkpoint(hf, partial, None)
    artifact = seal(partial, root / "artifact", Receipt("import", "f" * 64, "import", {}, {}))
    exported = root / "exported"
    exported.mkdir()
    export_checkpoint(open_weights(artifact.path), exported)
    return Model(artifact, exported)
