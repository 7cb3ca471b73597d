"""Question: what does `intra_document=true` cost in a training step, for rows of long and of short documents?

    python benchmarks/intra_document.py --length 4096 --json result.json

Forward and backward of small models on one row, alternately without documents and with documents of log-normal lengths
(sigma 1, three medians). `padded` is how many tokens the padded batches hold per token of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import numpy
import torch
from rich.console import Console
from rich.table import Table

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.layers.row_documents import RowDocuments
from megatron_prism.platform.process_groups import session

VOCABULARY, MEDIANS, SIGMA = 2048, (2000, 500, 50), 1.0


def models(length: int) -> dict[str, Architecture]:
    return {
        "dense": Architecture("granite", VOCABULARY, 256, 4, 768, 8, 4, 32, max_position_embeddings=length),
        "hybrid": Architecture(
            "nemotron_h", VOCABULARY, 256, 6, 768, 8, 4, 32, activation="squared_relu", position_embedding="none",
            hybrid_pattern="M-M-*-", mamba_num_heads=8, mamba_head_dim=64, mamba_state_dim=32,
            max_position_embeddings=length, tie_word_embeddings=False,
        ),
    }  # fmt: skip


def documents(median: int, length: int) -> RowDocuments:
    """Documents that fill a row; the last one is cut by its end."""
    random, lengths = numpy.random.default_rng(median), []
    while sum(lengths) < length:
        drawn = int(random.lognormal(numpy.log(median), SIGMA))
        lengths.append(min(max(drawn, 2), length - sum(lengths)))
    return RowDocuments([lengths], length)


def step(model: Any, tokens: torch.Tensor, separate: RowDocuments | None) -> None:
    positions = torch.arange(tokens.shape[1])[None]
    model(tokens, positions, None, labels=tokens, packed_seq_params=separate).mean().backward()
    model.zero_grad()


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--length", type=int, default=4096, help="tokens of the row")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = {median: documents(median, arguments.length) for median in MEDIANS}
    results: dict[str, Any] = {}
    table = Table(title=f"seconds of forward and backward, one row of {arguments.length:,} tokens")
    for column in ("", "off", *(f"median {median}" for median in MEDIANS)):
        table.add_column(column, justify="right" if column else "left")
    with session(seed=1):
        tokens = torch.randint(0, VOCABULARY, (1, arguments.length))
        for name, architecture in models(arguments.length).items():
            model = build_model(architecture, backend="torch").train()
            sides: dict[str, Callable[[], Any]] = {"off": partial(step, model, tokens, None)}
            sides |= {str(median): partial(step, model, tokens, row) for median, row in rows.items()}
            timings = measure.alternate(sides, arguments.rounds, 1, 1)
            off = timings["off"].fastest
            results[name] = {
                side: {"seconds": timing.fastest, "ratio": timing.fastest / off}
                for side, timing in timings.items()
            }
            table.add_row(name, *(f"{t.fastest:.2f} ({t.fastest / off:.2f})" for t in timings.values()))
    shapes = {
        str(median): {"documents": len(row.lengths[0]), "padded": row.padded_tokens / arguments.length}
        for median, row in rows.items()
    }
    Console().print(table)
    measure.write(arguments, {"results": results, "rows": shapes})


if __name__ == "__main__":
    main()
