"""What Transformer Engine refuses at run time, as data: facts about one rank, and the checks that they must pass.

Only what this project can ask for is listed. The sources are Transformer Engine's (main of August 2026): in
transformer_engine/pytorch, attention/dot_product_attention/{context_parallel,utils}.py, utils.py, quantization.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Attention:
    """What TE's attention sees on one rank.

    Attributes:
        heads: query heads of this tensor-parallel rank; `groups`: its key and value heads.
        tokens: of the whole sequence, before context parallelism splits it.
        window: tokens that a query sees to its left; None: all.
    """

    heads: int
    groups: int
    tokens: int
    cp_size: int
    cp_comm_type: str
    window: int | None
    layout: str = "sbhd"


@dataclass(frozen=True)
class Product:
    """A matrix product of a TE layer: rows are the tokens of one rank and micro-batch, columns the input's channels."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Machine:
    capability: tuple[int, int]
    cuda: tuple[int, int]


@dataclass(frozen=True)
class Check:
    """One check: TE's rule, where it stands, and when it refuses."""

    rule: str
    source: str
    refuses: Callable[..., Any]


ATTENTION = (
    Check(
        "sliding windows with context parallelism need a2a or all_gather",
        "context_parallel.py, attn_forward_func_with_cp",
        lambda a: a.cp_size > 1 and a.window is not None and a.cp_comm_type not in ("a2a", "all_gather"),
    ),
    Check(
        "the communication type is known",
        "context_parallel.py, attn_forward_func_with_cp",
        lambda a: a.cp_size > 1 and a.cp_comm_type not in ("p2p", "a2a", "all_gather"),
    ),
    Check(
        "a2a divides all heads among the ranks",
        "context_parallel.py, AttnFuncWithCPAndQKVOA2A",
        lambda a: a.cp_size > 1 and a.cp_comm_type == "a2a" and (a.heads % a.cp_size or a.groups % a.cp_size),
    ),
    Check(
        "the sequence divides into two chunks per rank",
        "utils.py, get_attention_backend",
        lambda a: a.cp_size > 1 and a.tokens % (2 * a.cp_size),
    ),
    Check(
        "query heads are a multiple of key and value heads",
        "dot_product_attention.py",
        lambda a: a.heads % a.groups,
    ),
)

FP8_PRODUCT = Check(
    "FP8 needs a multiple of 8 rows and of 16 columns",
    "utils.py, assert_dim_for_fp8_exec",
    lambda product: product.rows % 8 or product.columns % 16,
)

# Of each recipe: what TE's check_recipe_support refuses (quantization.py).
RECIPES = {
    "delayed": Check("compute capability 8.9", "_compute_fp8_support", lambda m: m.capability < (8, 9)),
    "tensorwise": Check("compute capability 8.9", "_compute_fp8_support", lambda m: m.capability < (8, 9)),
    "blockwise": Check(
        "compute capability 9.0 and CUDA 12.9",
        "_compute_fp8_block_scaling_support",
        lambda m: m.capability < (9, 0) or m.cuda < (12, 9),
    ),
    "mxfp8": Check(
        "compute capability 10.x", "_compute_mxfp8_support", lambda m: not (10, 0) <= m.capability < (12, 0)
    ),
}


def refusals(attention: Attention) -> list[str]:
    """The rules that TE's attention would break on."""
    return [check.rule for check in ATTENTION if check.refuses(attention)]
