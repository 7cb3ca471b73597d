"""Whether neighbours in a pipeline agree: what one sends must be what the other receives, in shape, dtype and order."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.dry_step import RankReport, alike_stages

# Keys that decide what a stage sends.
KEYS = "parallel, batch, dtype, megatron.transformer"


def disagreements(
    reports: Sequence[RankReport], architecture: Architecture, parallel: ParallelConfig
) -> list[str]:
    """One line for each pair of neighbours that would exchange different tensors; NCCL would hang, or mix up bytes.

    A stage that was not built is taken for the stage that it equals; pairs without a report are left out.

    Args:
        reports: of ranks of one layout, at most one per pipeline stage counts.
    """
    built: dict[int, RankReport] = {}
    for report in reports:
        built.setdefault(report.pipeline_stage, report)
    alike = alike_stages(architecture, parallel)
    of_stage = [built.get(stage, built.get(first)) for stage, first in enumerate(alike)]
    lines = []
    for stage, here in enumerate(of_stage):
        # Interleaved stages form a ring; otherwise nothing passes from the last stage to the first.
        there = of_stage[(stage + 1) % len(of_stage)]
        if here is None or there is None or len(of_stage) == 1:
            continue
        pair = (
            ("activations", stage, here.exchanges.to_next, there.exchanges.from_previous),
            ("gradients", stage, there.exchanges.to_previous, here.exchanges.from_next),
        )
        for what, first, sent, received in pair:
            if sent != received:
                second = (first + 1) % len(of_stage)
                source, target = (first, second) if what == "activations" else (second, first)
                lines.append(
                    f"{what} from pipeline stage {source} to {target}: {source} sends {_listed(sent)}, but {target} "
                    f"expects {_listed(received)}; look at {KEYS}"
                )
    return lines


def _listed(tensors: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} of {tensor}" for tensor, count in tensors) or "nothing"
