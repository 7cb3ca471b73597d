"""What a run logs besides metrics.jsonl, TensorBoard and its console line."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import LARGEST_COUNT, not_negative


@dataclass
class LogSettings:
    """The fields of `logging`. None of them changes the run.

    Attributes:
        wandb: name of a project of Weights & Biases that gets every scalar; empty for none.
        mlflow: name of an MLflow experiment that gets every scalar; empty for none.
        component_norms_every: steps between gradient norms of each component (attention, mlp, ...); 0 for none.
        profile_steps: steps of which rank 0 writes a trace to `profile/`, and on CUDA a memory snapshot.
    """

    wandb: str = ""
    mlflow: str = ""
    component_norms_every: int = 0
    profile_steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        not_negative(self, "component_norms_every", group="logging")
        if any(not 1 <= step <= LARGEST_COUNT for step in self.profile_steps):
            raise ConfigError(
                f"logging.profile_steps={self.profile_steps}: steps are counted from 1, and below 2^31"
            )

    def check_installed(self) -> None:
        """Raise a ConfigError if a tracker is named whose package this machine does not have."""
        for package in ("wandb", "mlflow"):
            if getattr(self, package) and find_spec(package) is None:
                raise ConfigError(
                    f"logging.{package}={getattr(self, package)}: {package} is not installed; "
                    f"pip install 'megatron-prism[{package}]', or set logging.{package} to nothing"
                )
