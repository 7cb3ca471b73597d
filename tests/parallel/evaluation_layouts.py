"""Worker of test_evaluation_layouts.py: one evaluation under each layout of this world size."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

from kept_answers import InThisProcess
from parallel_runs import layout, write_results
from tiny_rl import MODELS, artifact

from megatron_prism.evaluation import generations
from megatron_prism.evaluation.answers import read_answers
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.verification.settings import GradingSettings

LAYOUTS = {
    1: {"dense-one": layout(), "hybrid-one": layout()},
    2: {
        "dense-tp2sp": layout(tp=2, sp=True),
        "dense-pp2": layout(pp=2, first=1),
        "dense-dp2": layout(dp=2),
        "hybrid-tp2": layout(tp=2),
    },
    4: {"dense-tp2dp2": layout(tp=2, dp=2), "hybrid-pp2dp2": layout(pp=2, dp=2)},
}
SAMPLES = 3
COLUMNS = ["id", "sample", "token_ids", "logprobs", "completion", "finish_reason", "prompt_ids", "correct"]


def evaluate(folder: Path, name: str, parallel) -> dict:
    """The metrics and the answers of an evaluation in `folder/evaluation-NAME`."""
    kind = name.partition("-")[0]
    assert kind in MODELS
    GradingSettings.open_pool = lambda self: nullcontext(InThisProcess())
    stage = Evaluate(
        samples_per_problem=SAMPLES,
        sampling=SuiteSampling(max_new_tokens=8, temperature=1.2, top_p=0.95, seed=1),
        batch_size=5,
        parallel=parallel,
    )
    inputs = {each: artifact(folder / kind / each) for each in ("model", "tokenizer", "corpus")}
    # Layouts must not take over each other's answers: every evaluation is alone in its folder.
    out = folder / name / "evaluation-0"
    out.mkdir(parents=True, exist_ok=True)
    scores = stage.run(inputs, out)
    if int(os.environ["RANK"]):
        assert scores == {}
        return {}
    return {"scores": scores["suites"], "answers": list(read_answers(out, columns=COLUMNS))}


def main(folder: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    write_results(folder, {name: evaluate(folder, name, each) for name, each in LAYOUTS[world].items()})


def die(folder: Path) -> None:
    """Rank 1 dies after it has kept some completions; rank 0 would go on."""
    generations.PART_COMPLETIONS = 1
    honest = generations.PartWriter.add

    def add(self, problem, number, prompt_ids, completion):
        honest(self, problem, number, prompt_ids, completion)
        if self.replica == 1 and len(self.written) == 3:
            os._exit(9)

    generations.PartWriter.add = add
    evaluate(folder, "dense-died", layout(dp=2))


def go_on(folder: Path) -> None:
    """One process finishes what two began."""
    kept = len(list((folder / "dense-died").rglob("*.parquet")))
    asked = []
    honest = generations.PartWriter.add

    def add(self, *arguments):
        asked.append(1)
        honest(self, *arguments)

    generations.PartWriter.add = add
    found = evaluate(folder, "dense-died", layout())
    (folder / "died.json").write_text(json.dumps(found | {"kept": kept, "asked": len(asked)}))
