"""A model that the user names, as stages of a graph: a folder of either kind, an artifact of a run, or a server.

`add_model` finds out what was named, adds the model and its tokenizer to a graph, and chooses the engine. The model's
artifact only links to the folder; its fingerprint follows the folder's contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.data.tokenizer_files import (
    copy_tokenizer,
    tokenizer_file_names,
    tokenizer_of_model,
    vocabulary_file,
)
from megatron_prism.errors import ArtifactError, CheckpointError, ConfigError
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.generation.served_models import only_model
from megatron_prism.models.families import architecture_from_config
from megatron_prism.models.model_folder import (
    ARCHITECTURE,
    CHECKPOINT,
    CONFIG,
    EXPORTED_MODEL,
    HF_FILES,
    INDEX,
    SINGLE,
    find_model,
    is_megatron,
    read_json,
)
from megatron_prism.pipeline.artifact import RECEIPT, Artifact, folder_stamp
from megatron_prism.pipeline.config import one_of
from megatron_prism.pipeline.file_hash import hash_file
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.pipeline.placeholder import resolved
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

# The engines that load a model from a folder, and the one that asks a server.
FOLDER_ENGINES, SERVER_ENGINE = ("megatron", "hf", "vllm"), "openai"
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

log = get_logger(__name__)


@dataclass
class GivenModel(Stage):
    """No inputs. Output: links to the model's files, so that other stages can take it as their `model`.

    Attributes:
        source: a Megatron or Hugging Face folder, or an artifact that is or contains one.
    """

    kind: ClassVar[str] = "model"

    source: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("source: name the folder of a model")
        self.source = resolved(self.source)

    def identity(self) -> dict[str, Any]:
        """Includes what is in the folder, because a changed folder is another model.

        An artifact has hashes of its files. Of other folders, sizes and times are compared.
        """
        source = Path(self.source)
        if (artifact := artifact_of(source)) is not None:
            hashes = [[each.path, each.sha256] for each in artifact.receipt.outputs]
            contents = [artifact.fingerprint, hashlib.sha256(json.dumps(hashes).encode()).hexdigest()]
            return super().identity() | {"artifact": contents}
        folder = find_model(source)
        names = (CHECKPOINT, HF_FILES) if is_megatron(folder) else ()
        stamps = [folder_stamp(folder), *(folder_stamp(folder / name) for name in names)]
        return super().identity() | {"files": stamps}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        folder = find_model(Path(self.source))
        if is_megatron(folder):
            shutil.copyfile(folder / ARCHITECTURE, out / ARCHITECTURE)
            for name in (CHECKPOINT, HF_FILES):
                if (folder / name).is_dir():
                    os.symlink(folder.resolve() / name, out / name)
        else:
            os.symlink(folder.resolve(), out / EXPORTED_MODEL)
        text = trained_text(Path(self.source))
        return {"source": self.source, "format": "megatron" if is_megatron(folder) else "hf"} | (
            {} if text is None else {"text": text}
        )


@dataclass
class GivenTokenizer(Stage):
    """No inputs. Output: a copy of a tokenizer's files.

    Attributes:
        source: a folder with a tokenizer.
    """

    kind: ClassVar[str] = "tokenizer"

    source: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("source: name the folder of a tokenizer")
        self.source = resolved(self.source)

    def identity(self) -> dict[str, Any]:
        """The contents of the files; where they are does not matter."""
        folder = Path(self.source)
        return {name: hash_file(folder / name) for name in tokenizer_file_names(folder)}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        copy_tokenizer(Path(self.source), out)
        tokenizer = Tokenizer.load(out)
        return {"vocab_size": tokenizer.vocab_size, "text": tokenizer.record()}


def add_model(
    graph: Graph,
    model: str,
    engine: str | None = None,
    tokenizer: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    text: TextSettings | None = None,
    name: str = "model",
) -> tuple[Node | None, Node, EngineConfig]:
    """Add the nodes `model` and `tokenizer`, and choose how to sample from the model.

    Args:
        model: a Megatron or Hugging Face folder, an artifact that is or contains one (also by its link in a run
            folder), or the address of a server, up to and including `/v1`.
        engine: None: 'openai' for an address; for a folder 'megatron', or 'hf' if Megatron does not know the model.
        tokenizer: a folder; None: the model's own.
        options: of the engine.
        text: how prompts begin; None: as the tokenizer's files say.
        name: of the model's node.

    Returns:
        The model's node (None for a server), the tokenizer's node, and the engine.

    Raises:
        PrismError: one line that says what is missing, or why the engine cannot sample from the model.
    """
    if engine is not None:
        one_of(engine, (*FOLDER_ENGINES, SERVER_ENGINE), "engine")
    text = text or TextSettings()
    if ADDRESS.match(model):
        config = _server_engine(model, engine, dict(options or {}), text)
        if tokenizer is None:
            raise ConfigError(f"{model}: name the tokenizer of the server's model with --tokenizer DIR")
        return None, graph.add("tokenizer", GivenTokenizer(str(named_tokenizer(tokenizer)))), config
    if engine == SERVER_ENGINE:
        raise ConfigError(
            f"{model}: engine 'openai' needs the address of a server, as http://localhost:8000/v1"
        )
    folder = find_given_model(model, served=True)
    config = EngineConfig(folder_engine(folder, engine), dict(options or {}), text)
    found = own_tokenizer(Path(model), folder) if tokenizer is None else named_tokenizer(tokenizer)
    node = graph.add(name, GivenModel(model))
    return node, graph.add("tokenizer", GivenTokenizer(str(found))), config


def _server_engine(
    address: str, engine: str | None, options: dict[str, Any], text: TextSettings
) -> EngineConfig:
    if engine not in (None, SERVER_ENGINE):
        raise ConfigError(
            f"{address}: engine '{engine}' loads a model from a folder; use engine 'openai' for a server"
        )
    if "base_url" in options:
        raise ConfigError("option base_url: the model's address is the server's; remove the option")
    if "model" not in options:
        options["model"] = only_model(address, options.get("api_key_variable"))
    return EngineConfig(SERVER_ENGINE, {"base_url": address} | options, text)


def find_given_model(model: str, served: bool = False) -> Path:
    """The Megatron or Hugging Face folder of a model.

    Args:
        served: whether the caller accepts a server's address, too, which the message then says.

    Raises:
        CheckpointError: if there is no such folder, or it has no model in it.
        ArtifactError: if it is an artifact whose files have changed.
    """
    path = Path(model)
    # Unlike os.path.isdir, Path.is_dir raises for a name that is too long.
    if not os.path.isdir(path):
        what = "this is not a folder" if os.path.exists(path) else "no such folder"
        hub = f"; a model of the hub must be downloaded first: hf download {model} --local-dir DIR"
        raise CheckpointError(
            f"{model}: {what}; give the folder of a model{', an' if served else ' or an'} artifact of a run"
            + (", or a server's address" if served else "")
            + (hub if HUB_ID.fullmatch(model) else "")
        )
    artifact_of(path)
    folder = find_model(path)
    if is_megatron(folder):
        if not (folder / CHECKPOINT).is_dir():
            raise CheckpointError(
                f"{folder / CHECKPOINT}: no such folder; this Megatron folder has no weights"
            )
    elif not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise CheckpointError(
            f"{folder}: the folder has neither {SINGLE} nor {INDEX}; give a Hugging Face folder with safetensors"
        )
    return folder


def folder_engine(folder: Path, engine: str | None) -> str:
    """The engine for a folder; checks that 'megatron' knows the family."""
    if is_megatron(folder) or engine in ("hf", "vllm"):
        return engine or "megatron"
    try:
        architecture_from_config(read_json(folder / CONFIG))
    except ConfigError as problem:
        if engine is not None:
            raise ConfigError(f"{folder}/{problem}; or use engine 'hf'") from None
        log.info("engine 'hf', because Megatron cannot build this model: %s", problem)
        return "hf"
    return "megatron"


def artifact_of(folder: Path) -> Artifact | None:
    """The artifact in a folder, or around the `model/` in an artifact; None if there is no receipt.

    Raises:
        ArtifactError: if its files have changed.
    """
    folder = folder.resolve()
    places = (folder, folder.parent) if folder.name == EXPORTED_MODEL else (folder,)
    return next((Artifact.open(place) for place in places if (place / RECEIPT).is_file()), None)


def ancestors(artifact: Artifact) -> Iterator[Artifact]:
    """An artifact, its inputs, their inputs and so on, as far as they are complete and in the same folder."""
    queue, seen = deque([artifact]), {artifact.path}
    while queue:
        current = queue.popleft()
        yield current
        for fingerprint in current.receipt.inputs.values():
            for folder in current.path.parent.glob(f"*-{fingerprint[:12]}"):
                if folder not in seen:
                    seen.add(folder)
                    try:
                        queue.append(Artifact.open(folder))
                    except ArtifactError:
                        continue


def trained_text(folder: Path) -> dict[str, Any] | None:
    """How the texts were encoded that a model was trained on, according to its receipt or those of its inputs."""
    artifact = artifact_of(folder)
    for each in () if artifact is None else ancestors(artifact):
        text = each.metrics.get("text")
        if each.kind != GivenTokenizer.kind and isinstance(text, dict) and "tokenizer" in text:
            return dict(text)
    return None


def own_tokenizer(given: Path, folder: Path) -> Path:
    """The tokenizer of a model: the one it was trained with, or the one that came with its weights.

    Args:
        given: the model as the user named it, perhaps a link in a run folder.
        folder: what `find_given_model` finds there.

    Raises:
        ConfigError: if there is none.
    """
    artifact = artifact_of(given)
    for each in () if artifact is None else ancestors(artifact):
        if each.kind == GivenTokenizer.kind and vocabulary_file(each.path) is not None:
            return each.path
    if (own := tokenizer_of_model(folder)) is None:
        raise ConfigError(f"{given}: this model has no tokenizer; name one with --tokenizer DIR")
    return own


def named_tokenizer(name: str) -> Path:
    """The folder with the tokenizer that `--tokenizer` names; a ConfigError if there is none."""
    for folder in (Path(name), Path(name) / EXPORTED_MODEL):
        if (found := tokenizer_of_model(folder)) is not None:
            return found
    missing = "no tokenizer.json and no tokenizer.model there" if os.path.isdir(name) else "no such folder"
    raise ConfigError(f"--tokenizer {name}: {missing}; name a folder with a tokenizer")
