"""Question: how fast is lm-eval with our engine as its model, compared with its own `hf` model on the exported folder?

    python benchmarks/harness.py --json result.json

Both sides get the same requests, made of the shoebox's problems with examples in the prompt, and alternate in one
process: choices of several tokens, choices of one token, one continuation per context, whole texts, and completions.
The models have random weights and the quickstart's shapes. lm-eval's model scores `--batch` texts at a time; ours reads
at most as many tokens as the largest of its batches. Before the timing, both must give the same log-likelihoods within
1e-4 (texts: two in ten million), and the same completions but for those that rounding parts.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table

from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.data.shoebox.problem import HELD_OUT, TRAIN, different_problems
from megatron_prism.data.shoebox.problems_science import FAMILIES
from megatron_prism.data.text_policy import PARSE, TextSettings
from megatron_prism.data.tokenizer import Tokenizer, train_tokenizer
from megatron_prism.evaluation.harness.language_model import EngineLM
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.models.build import build_model
from megatron_prism.models.families import family, hf_config
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import session
from megatron_prism.study.small_models import MODELS, VOCABULARY

CHOICES, LETTERS, SHARED, SINGLE, TEXTS, ANSWERS = (
    "choices of several tokens",
    "choices of one token",
    "choices of one token, the same examples",
    "one continuation per context",
    "whole texts",
    "completions",
)
ANSWER_TOKENS = 32
DOCS = Path(__file__).parents[1] / "docs"


def requests(count: int, examples: int) -> dict[str, tuple[str, list[Any]]]:
    """Name -> method of lm-eval's model, and its requests for `count` problems."""
    draw = random.Random(1)
    asked = different_problems(FAMILIES, HELD_OUT, count, draw, suite="science")
    shown = different_problems(FAMILIES, TRAIN, 200, draw, suite="science")
    made: dict[str, list[tuple[Any, ...]]] = {
        name: [] for name in (CHOICES, LETTERS, SHARED, SINGLE, TEXTS, ANSWERS)
    }
    same = "\n\n".join(each.document for each in shown[:examples])
    for problem in asked:
        prompt = "\n\n".join(each.document for each in draw.sample(shown, examples))
        context = f"{prompt}\n\n{problem.prompt}\nThe answer is"
        # Endings of eight to twenty tokens, as HellaSwag has them.
        endings = [
            f" {option}, because {problem.question[:60]}"
            for option in re.findall(r"\([A-D]\) (\S+)", problem.question)
        ]
        made[CHOICES] += [(context, ending) for ending in endings]
        made[LETTERS] += [(context, f" {letter}") for letter in "ABCD"]
        # As in MMLU, whose prompts have the same examples for a subject.
        made[SHARED] += [(f"{same}\n\n{problem.prompt}\nThe answer is", f" {letter}") for letter in "ABCD"]
        made[SINGLE].append((context, endings[0]))
        made[TEXTS].append((f"{prompt}\n\n{problem.document}",))
        made[ANSWERS].append((context, {"until": ["\n"], "max_gen_toks": ANSWER_TOKENS, "do_sample": False}))
    methods = dict.fromkeys(made, "loglikelihood") | {
        TEXTS: "loglikelihood_rolling",
        ANSWERS: "generate_until",
    }
    return {
        name: (
            method,
            [
                Instance(method, {}, arguments, 0, metadata=("t", number, 1))
                for number, arguments in enumerate(made[name])
            ],
        )
        for name, method in methods.items()
    }


def compare(kind: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time both sides on one kind of model, for each kind of request."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    architecture = MODELS[kind]
    torch.manual_seed(0)
    with session(seed=1), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = requests(arguments.problems, arguments.examples)
        # The problems alone do not have so many different words.
        pages = [path.read_text() for path in sorted(DOCS.rglob("*.md"))]
        texts = [instance.args[0] for instance in sets[TEXTS][1]]
        train_tokenizer(texts + pages, VOCABULARY, folder)
        config = AutoConfig.for_model(**hf_config(architecture))
        for key, value in family(architecture.family).for_comparison.items():
            setattr(config, key, value)
        peer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device()).eval()
        peer.save_pretrained(folder)
        tokenizer = Tokenizer.load(folder, TextSettings(special_tokens=PARSE))
        model = build_model(architecture, backend="torch", initialize=False)
        load_hf_weights([model], architecture, folder)
        theirs = HFLM(
            pretrained=peer, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=arguments.batch
        )
        engine = MegatronEngine(model, tokenizer, arguments.batch)
        results = []
        for title, (method, instances) in sets.items():
            lengths = [
                len(ids)
                for ids in tokenizer.encode_batch(
                    ["".join(i.args[:2]) if method == "loglikelihood" else i.args[0] for i in instances]
                )
            ]
            longest = min(max(lengths), architecture.max_position_embeddings)
            ours = EngineLM(
                engine,
                tokenizer,
                name="megatron",
                batch_tokens=arguments.batch * longest,
                batch_size=arguments.batch,
            )
            # lm-eval's own model shows a bar of its own.
            sides: dict[str, Callable[[], Any]] = {
                "ours": lambda method=method, instances=instances, ours=ours: getattr(ours, method)(
                    instances
                ),
                "hf": lambda method=method, instances=instances: getattr(theirs, method)(
                    instances, disable_tqdm=True
                ),
            }
            check(title, sides["ours"](), sides["hf"]())
            timings = measure.alternate(sides, arguments.rounds, 1, 0)
            results.append(
                {
                    "model": kind,
                    "requests": title,
                    "count": len(instances),
                    "mean_tokens": round(sum(lengths) / len(lengths)),
                    "seconds": {side: vars(timing) for side, timing in timings.items()},
                    "ratio": timings["hf"].median / timings["ours"].median,
                }
            )
        return results


def check(title: str, ours: list[Any], theirs: list[Any]) -> None:
    """Both sides do the same work."""
    if title == ANSWERS:
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        assert same >= 0.95 * len(ours), f"{same} of {len(ours)} completions are the same"
        return
    pairs = [(a, b) if title == TEXTS else (a[0], b[0]) for a, b in zip(ours, theirs, strict=True)]
    assert all(abs(a - b) <= max(1e-4, 2e-7 * abs(b)) for a, b in pairs), max(abs(a - b) for a, b in pairs)


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--examples", type=int, default=5, help="examples in each prompt")
    parser.add_argument("--batch", type=int, default=32, help="texts that lm-eval's model reads at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    results = [row for kind in arguments.models for row in compare(kind, arguments)]
    table = Table(title=f"lm-eval, {arguments.problems} problems, {arguments.threads} thread(s)")
    for column in ("model", "requests", "tokens", "ours s", "hf s", "ratio"):
        table.add_column(column, justify="right")
    for row in results:
        seconds = row["seconds"]
        table.add_row(
            row["model"],
            f"{row['count']} {row['requests']}",
            str(row["mean_tokens"]),
            f"{seconds['ours']['median']:.2f}",
            f"{seconds['hf']['median']:.2f}",
            f"{row['ratio']:.2f}",
        )
    Console().print(table)
    measure.write(arguments, {"results": results})


if __name__ == "__main__":
    main()
