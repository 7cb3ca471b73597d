"""Runs a model on texts, one at a time and so without padding, and keeps the mean hidden state of each at every point.

The points of a model with L layers are the embedding, each layer, and the final norm: L + 2. The paper's indices 0..L
(figures of section 10.2) are those of transformers' `hidden_states`, L + 1 tensors: the embedding, the layers but the
last, and the final norm's output. The last layer's own output, before the norm, is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_prism.conversion.hidden_states import (
    Points,
    megatron_points,
    recorded,
    transformers_points,
)
from megatron_prism.conversion.loaded_model import architecture_of, load_model
from megatron_prism.conversion.logits import load_in_transformers
from megatron_prism.errors import ConfigError
from megatron_prism.models.families import family, supported_families
from megatron_prism.models.model_folder import CONFIG, read_json
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import session

EMBEDDING, FINAL_NORM = "embedding", "final norm"
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Point:
    """A place in a model where its hidden states are read.

    Attributes:
        name: "embedding", "layer 0", ..., "final norm".
        index: the paper's index, that of transformers' `hidden_states`; None for the last layer before the final norm.
    """

    name: str
    index: int | None


def points_of(layers: int) -> list[Point]:
    """The points of a model with so many layers, in the order of its computation."""
    inner = [Point(f"layer {number}", number + 1) for number in range(layers - 1)]
    last = Point(f"layer {layers - 1}", None)
    return [Point(EMBEDDING, 0), *inner, last, Point(FINAL_NORM, layers)]


@dataclass(frozen=True)
class RunningModel:
    """A loaded model: how to run it on a row of token ids `[1, seq]`, and how to read its states.

    Attributes:
        token_axis: the axis of the tokens in its hidden states.
    """

    run: Callable[[Tensor], Any]
    points: Points
    token_axis: int

    @property
    def layers(self) -> int:
        return len(self.points.layers)

    @torch.no_grad()
    def pooled(self, rows: Sequence[Sequence[int]], progress: Progress = lambda rows: None) -> Tensor:
        """`[rows, points, hidden]`, fp32: each row's hidden states, averaged over its tokens in fp32.

        Args:
            rows: the token ids of each text, at least one.
            progress: called with 1 after each row.
        """

        def mean(hidden: Tensor) -> Tensor:
            return hidden.float().mean(dim=self.token_axis)[0]

        found = []
        with recorded(self.points, mean) as states:
            for row in rows:
                self.run(torch.tensor([row], device=device()))
                found.append(torch.stack(states).cpu())
                states.clear()
                progress(1)
        return torch.stack(found)


@contextmanager
def open_model(folder: Path, engine: str, dtype: torch.dtype) -> Iterator[RunningModel]:
    """A model of a folder, without its output layer's logits, loaded for the duration of the block.

    Args:
        folder: a Megatron folder, or a Hugging Face folder.
        engine: 'megatron', or 'hf' for a Hugging Face folder of a family that only transformers knows.

    Raises:
        PrismError: one line, if it cannot be loaded.
    """
    if engine == "hf":
        yield _in_transformers(folder, dtype)
        return
    architecture = architecture_of(folder)
    with session():
        model = load_model(folder, architecture, dtype).eval()
        # Logits of long texts would need more memory than all hidden states.
        model.post_process = False

        def run(tokens: Tensor) -> None:
            model(tokens, torch.arange(tokens.shape[1], device=tokens.device)[None], None)

        yield RunningModel(run, megatron_points(model, architecture), token_axis=0)


def _in_transformers(folder: Path, dtype: torch.dtype) -> RunningModel:
    name = read_json(folder / CONFIG).get("model_type")
    # So that a model of a family that Megatron knows is the same model in both.
    changes: Mapping[str, Any] = family(name).for_comparison if name in supported_families() else {}
    model = load_in_transformers(folder, dtype, changes).to(device()).eval()
    try:
        points = transformers_points(model)
    except ConfigError as problem:
        raise ConfigError(f"{folder}: {problem}") from None
    return RunningModel(lambda tokens: model.base_model(tokens, use_cache=False), points, token_axis=1)
