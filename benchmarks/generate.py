"""Question: how fast does the engine sample, compared with `transformers.generate`, if answers differ in length?

    python benchmarks/generate.py --json result.json

Both sides have the same weights (random, of the quickstart's shapes), prompts, answer lengths and temperature, and
alternate in one process. The answer length of each request is drawn once from a geometric distribution and clipped.
Both sides end there, so they sample the same number of tokens. Our engine decodes `--batch` sequences at a time and
refills free slots. transformers gets the requests in order, `--batch` at a time, left-padded, with a key-value cache
and a stopping criterion per row; a batch ends with its longest answer. Only our engine also returns log-probabilities.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import numpy
import torch
from plain_tokens import PlainTokens

from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.models.build import build_model, local_parameter_count
from megatron_prism.models.families import hf_config
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import session
from megatron_prism.study.small_models import MODELS

PAD = 0


class ForcedLengths(MegatronEngine):
    """The engine, but each answer ends at a given length and nowhere else."""

    lengths: list[int]

    def _requests(self, *arguments: Any) -> Iterator[Any]:
        for request, length in zip(super()._requests(*arguments), self.lengths, strict=True):
            request.max_tokens = length
            yield request

    def _completion(self, request: Any, params: SamplingParams) -> Any:
        assert len(request.token_ids) == request.max_tokens
        return super()._completion(request, params)


class EndAt:
    """A stopping criterion of transformers: each row ends at its own length."""

    def __init__(self, prompt_width: int, lengths: torch.Tensor) -> None:
        self.ends = prompt_width + lengths

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def transformers_side(model: Any, prompts: list[list[int]], lengths: list[int], batch: int) -> None:
    """Sample every request, `batch` at a time."""
    from transformers import StoppingCriteriaList

    for start in range(0, len(prompts), batch):
        chosen, wanted = prompts[start : start + batch], torch.tensor(lengths[start : start + batch])
        width = max(map(len, chosen))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in chosen])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in chosen])
        out = model.generate(
            input_ids=ids.to(device()),
            attention_mask=mask.to(device()),
            do_sample=True,
            top_k=0,
            max_new_tokens=int(wanted.max()),
            eos_token_id=None,
            pad_token_id=PAD,
            stopping_criteria=StoppingCriteriaList([EndAt(width, wanted.to(device()))]),
        )
        assert out.shape[1] == width + int(wanted.max())


def requests(arguments: argparse.Namespace, vocabulary: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of 16 to 64 tokens, and answer lengths."""
    rng = numpy.random.default_rng(arguments.seed)
    prompts = [rng.integers(1, vocabulary, rng.integers(16, 65)).tolist() for _ in range(arguments.requests)]
    if arguments.even:
        return prompts, [arguments.mean] * len(prompts)
    lengths = rng.geometric(1 / arguments.mean, arguments.requests).clip(1, arguments.longest)
    return prompts, lengths.tolist()


def compare(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both sides on one kind of model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = MODELS[kind]
    prompts, lengths = requests(arguments, architecture.vocab_size)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**hf_config(architecture))
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device()).eval()
    with session(seed=1), tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        peer.generation_config.eos_token_id = None
        model = build_model(architecture, backend="torch", initialize=False)
        load_hf_weights([model], architecture, Path(folder))
        assert local_parameter_count(model) == local_parameter_count(peer), (
            "the two models do not have the same shape"
        )
        engine = ForcedLengths(model, PlainTokens(architecture.vocab_size), arguments.batch)  # type: ignore[arg-type]
        engine.lengths = lengths
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        params = SamplingParams(max_new_tokens=arguments.longest)
        timings = measure.alternate(
            {
                "ours": lambda: engine.generate(texts, params),
                "transformers": lambda: transformers_side(peer, prompts, lengths, arguments.batch),
            },
            arguments.rounds,
            1,
            1,
        )
    tokens = sum(lengths)
    return {
        "model": kind,
        "answer_tokens": tokens,
        "longest": max(lengths),
        "tokens_per_second": {name: round(tokens / timing.median) for name, timing in timings.items()},
        "seconds": {name: vars(timing) for name, timing in timings.items()},
        "ratio": timings["transformers"].median / timings["ours"].median,
    }


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="sequences decoded at a time")
    parser.add_argument("--mean", type=int, default=64, help="mean number of tokens of an answer")
    parser.add_argument("--longest", type=int, default=256, help="maximum number of tokens of an answer")
    parser.add_argument("--even", action="store_true", help="give every answer the mean length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = [compare(kind, arguments) for kind in arguments.models]
    title = f"sampling, {arguments.batch} sequences at a time, {arguments.threads} threads"
    measure.print_speeds(title, results, "answer_tokens")
    measure.write(arguments, {"results": results})


if __name__ == "__main__":
    main()
