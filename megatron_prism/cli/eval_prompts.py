"""`prism eval MODEL --show-prompt N`: prompts exactly as they are sent, with their ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.cli.output import show_line, write_result
from megatron_prism.errors import ConfigError

if TYPE_CHECKING:
    from megatron_prism.pipeline.graph import Graph


def show_prompts(graph: Graph, folder: Path, count: int, json_file: str | None) -> None:
    """Make the problems and the tokenizer, which need no model, and print `count` prompts of each benchmark.

    Raises:
        ConfigError: if no suite with benchmarks is evaluated.
    """
    from dataclasses import asdict

    from megatron_prism.evaluation.plan import chosen_suites, read_plan
    from megatron_prism.evaluation.stage import Evaluate

    if "evaluate" not in graph.nodes:
        raise ConfigError("--show-prompt: shows the prompts of suites of problems; name one with --suite")
    stage = graph.node("evaluate").stage
    assert isinstance(stage, Evaluate)
    corpus = graph.run(folder, target="problems")["problems"].path
    tokenizer = stage.engine.tokenizer(graph.run(folder, target="tokenizer")["tokenizer"].path)
    found: list[dict[str, Any]] = []
    for suite in chosen_suites(corpus, stage.suites):
        plan = read_plan(corpus, suite, stage.sampling, samples=stage.samples_per_problem, limit=stage.limit)
        for problem in plan.problems[:count]:
            ids = tokenizer.encode(problem.prompt)
            begin = [tokenizer.decode([number]) for number in tokenizer.policy.begin]
            found.append(
                {
                    "suite": suite,
                    "id": problem.id,
                    "prompt": problem.prompt,
                    "prompt_ids": ids,
                    "begins_with": begin,
                    "end_token": tokenizer.decode([tokenizer.eos_id]),
                    "samples": plan.samples,
                    **asdict(plan.params),
                }
            )
            _show(found[-1], json_file)
    write_result(json_file, found)


def _show(prompt: dict[str, Any], json_file: str | None) -> None:
    show_line(json_file, f"──── {prompt['suite']} · {prompt['id']}")
    show_line(json_file, f"{prompt['prompt']}\n")
    ids = prompt["prompt_ids"]
    begin = " ".join(prompt["begins_with"]) or "no start token"
    show_line(json_file, f"{len(ids)} tokens, begins with {begin}: {' '.join(map(str, ids))}")
    keys = ("samples", "temperature", "top_p", "max_new_tokens", "stop", "seed", "end_token")
    show_line(json_file, " · ".join(f"{key}: {prompt[key]!r}" for key in keys) + "\n")
