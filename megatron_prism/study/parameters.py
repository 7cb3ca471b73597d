"""What the parameters of the model recipes do and which values they take, for `prism recipes NAME`.

The allowed values are read from the places that check them, so the list cannot differ from what is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron_prism.data.mixture import packaged_mixtures
from megatron_prism.evaluation.harness.stage import GENERAL
from megatron_prism.evaluation.suites.yaml_definition import packaged_suites
from megatron_prism.rl.mix import BALANCED, UNBALANCED
from megatron_prism.rl.variants import VARIANTS
from megatron_prism.study.layouts import TRAIN, LayoutTable
from megatron_prism.study.long_context import EXTENSIONS
from megatron_prism.study.midtraining import SEQUENCE_LENGTH
from megatron_prism.study.reinforcement import MIXES, STARTS
from megatron_prism.verification.sandbox.isolation import MODES


def parameter_notes(model: str) -> dict[str, str]:
    """Parameter -> what it does, with its allowed values.

    Args:
        model: the recipe whose layouts say for which numbers of GPUs there are some.
    """
    mixtures = [name for name in packaged_mixtures() if not name.startswith("shoebox")]
    gpus = LayoutTable.load(model).gpus(TRAIN, SEQUENCE_LENGTH)
    return {
        "checkpoint": "the model's Hugging Face folder",
        "data": "a folder with one folder or file per source of the mixture",
        "mixture": f"of mid-training: {_listed(mixtures)}, or the path of a YAML file",
        "seed": "of data order, initial weights and sampling; 0 or more",
        "tiny": "a random miniature and a small corpus on two processes instead of checkpoint and data",
        "gpus": f"of mid-training and RL; there are layouts for {_listed(gpus)}",
        "long_context": "add merge, extension to 128k tokens and RULER",
        "extension": f"needs long_context: {_listed(EXTENSIONS)}; 'all' makes every row of Table 7",
        "extension_gpus": "needs long_context: GPUs of the extension; 0: those of gpus, or more if it needs them",
        "rl": "add the difficulty filter and reinforcement learning",
        "prompts": "needs rl: a file of JSON lines, or a folder of such files",
        "rl_mix": f"needs rl: the domains of the prompts, {_listed(MIXES)}",
        "rl_balance": f"needs rl: {_listed((UNBALANCED, BALANCED))}",
        "rl_start": f"needs rl: {_listed(STARTS)}; 'both' are the last trained model and the base",
        "method": f"needs rl: {_listed(VARIANTS)}",
        "evaluate": "evaluate the base, the trained and the RL models on problem suites",
        "suites": f"needs evaluate: {_listed([*packaged_suites(), *GENERAL])}, files or folders; joined by commas",
        "analyze": "compare the weights, representations and answers of the models; keep weights of RL by step",
        "sandbox": f"how programs that a model wrote are isolated: {_listed(MODES)}",
    }


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
