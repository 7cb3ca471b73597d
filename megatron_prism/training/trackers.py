"""Weights & Biases and MLflow: they get the scalars that TensorBoard gets. Only rank 0 opens them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_prism.training.log_settings import LogSettings


class Tracker(Protocol):
    """A service that keeps the numbers of runs."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Store the values of a step."""

    def close(self) -> None:
        """Send what is left and end the run."""


class WandbTracker:
    """A run of Weights & Biases. A resumed run goes on under the same id; its files are in `OUT/wandb`."""

    def __init__(self, project: str, name: str, out: Path) -> None:
        import wandb

        self._run: Any = wandb.init(project=project, name=name, id=name, resume="allow", dir=str(out))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """A run of MLflow; MLFLOW_TRACKING_URI says where. A resumed run goes on, because its id is kept in `OUT`."""

    def __init__(self, experiment: str, name: str, out: Path) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(experiment)
        file = out / "mlflow_run"
        if file.is_file():
            mlflow.start_run(run_id=file.read_text())
        else:
            file.write_text(mlflow.start_run(run_name=name).info.run_id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        # MLflow allows no other characters than these.
        named = {"".join(c if c.isalnum() or c in "_-. /" else "_" for c in k): v for k, v in values.items()}
        self._mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def open_trackers(settings: LogSettings, out: Path) -> list[Tracker]:
    """The trackers that the settings name. Both give the run the name of its folder."""
    name = out.name.removesuffix(".partial")
    trackers: list[Tracker] = []
    if settings.wandb:
        trackers.append(WandbTracker(settings.wandb, name, out))
    if settings.mlflow:
        trackers.append(MlflowTracker(settings.mlflow, name, out))
    return trackers
