"""What a run writes to disk while it trains, how long it keeps it, and how it writes it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.models.checkpoint_io import DP_RESHARDABLE, FULLY_RESHARDABLE
from megatron_prism.pipeline.config import not_negative, one_of, positive
from megatron_prism.pipeline.stage import tuning


@dataclass
class CheckpointSettings:
    """Checkpoints of a run; none of these changes a number of the training.

    Attributes:
        keep_last: how many checkpoints to resume from are kept while the run lasts. The second one is used if the first
            is damaged. All are removed when the artifact is complete.
        keep_every: checkpoints whose step is a multiple of this stay in the artifact, in `checkpoints/`; 0 for none.
        weights_every: steps between copies of the weights alone, in `weights/step_N`. Each is a model folder like the
            finished artifact, which export, merging and evaluation read; 0 for none.
        keep_optimizer: keep the optimizer's state in the finished artifact (12 bytes a parameter), so that a run with
            more `steps` can go on from it.
        optimizer_format: 'dp_reshardable': every rank writes its own part, and no further memory is needed.
            'fully_reshardable': the state is gathered and stored by parameter, which takes 12 bytes for each parameter
            of a pipeline and tensor rank in the memory of every rank. A run loads both with any layout.
        in_background: training goes on while a copy of the state in the host's memory is written.
    """

    keep_last: int = tuning(2)
    keep_every: int = tuning(0)
    weights_every: int = tuning(0)
    keep_optimizer: bool = tuning(False)
    optimizer_format: str = tuning(DP_RESHARDABLE)
    in_background: bool = tuning(False)

    def __post_init__(self) -> None:
        positive(self, "keep_last", group="checkpoints")
        not_negative(self, "keep_every", "weights_every", group="checkpoints")
        one_of(self.optimizer_format, (DP_RESHARDABLE, FULLY_RESHARDABLE), "checkpoints.optimizer_format")
