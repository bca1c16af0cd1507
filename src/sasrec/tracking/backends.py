"""The trackers: how each of them keeps a run. Each package is imported where it is used.

Where a run of MLflow or Weights & Biases is active already, it is used, and left open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from sasrec.core.extras import require
from sasrec.tracking.figures import Setting

Status = Literal["finished", "interrupted", "failed"]
MLFLOW_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
MLFLOW_BATCH = 100  # the most parameters of a call


class Backend(Protocol):
    """A run of a tracker."""

    def curve(self, epoch: int, figures: Mapping[str, float]) -> None:
        """A point of each curve."""

    def result(self, figures: Mapping[str, float], texts: Mapping[str, str], files: Path) -> None:
        """How it ended, and a folder of files to keep."""

    def close(self, status: Status) -> None:
        """No more will come."""


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI or where it keeps runs by itself."""

    def __init__(self, project: str, name: str, settings: Mapping[str, Setting]) -> None:
        require("mlflow", "--track mlflow", extra="mlflow")
        mlflow = import_module("mlflow")
        self.entities, self.client = mlflow.entities, mlflow.MlflowClient()
        active = mlflow.active_run()
        self.is_own = active is None
        self.run = active.info.run_id if active is not None else self._create(project, name)
        params = [self.entities.Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(params), MLFLOW_BATCH):
            self.client.log_batch(self.run, params=params[first : first + MLFLOW_BATCH])

    def _create(self, project: str, name: str) -> str:
        found = self.client.get_experiment_by_name(project)
        experiment = self.client.create_experiment(project) if found is None else found.experiment_id
        return str(self.client.create_run(experiment, run_name=name).info.run_id)

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run, _without_at(name), value, step=step)

    def curve(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._log(figures, epoch)

    def result(self, figures: Mapping[str, float], texts: Mapping[str, str], files: Path) -> None:
        self._log(figures, 0)
        for name, text in texts.items():
            self.client.set_tag(self.run, name, text)
        self.client.log_artifacts(self.run, str(files))

    def close(self, status: Status) -> None:
        if self.is_own:
            self.client.set_terminated(self.run, MLFLOW_STATUS[status])


class WandB:
    """Weights & Biases, as WANDB_MODE, WANDB_API_KEY and WANDB_DIR say."""

    def __init__(self, project: str, name: str, settings: Mapping[str, Setting]) -> None:
        require("wandb", "--track wandb", extra="wandb")
        self.wandb: Any = import_module("wandb")
        active = self.wandb.run
        self.is_own, self.run = active is None, active or self.wandb.init(project=project, name=name)
        self.run.config.update(dict(settings), allow_val_change=True)

    def curve(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.run.log({"epoch": epoch, **figures})

    def result(self, figures: Mapping[str, float], texts: Mapping[str, str], files: Path) -> None:
        self.run.summary.update({**figures, **texts})
        report = self.wandb.Artifact(f"report-{self.run.id}", type="report")
        report.add_dir(str(files))
        self.run.log_artifact(report)

    def close(self, status: Status) -> None:
        if self.is_own:
            self.run.finish(exit_code=int(status != "finished"))


class Trackio:
    """Trackio, in its local database (TRACKIO_DIR)."""

    def __init__(self, project: str, name: str, settings: Mapping[str, Setting]) -> None:
        require("trackio", "--track trackio", extra="trackio")
        self.trackio, told = import_module("trackio"), dict(settings)
        self.run = self.trackio.init(
            project, name=name, config=told, embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def curve(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=epoch)

    def result(self, figures: Mapping[str, float], texts: Mapping[str, str], files: Path) -> None:
        card = self.trackio.Markdown((files / "README.md").read_text(encoding="utf-8"))
        self.run.log({**figures, **texts, "model_card": card})
        self.run.log_artifact(str(files), name=f"report-{self.run.name}", type="report")

    def close(self, status: Status) -> None:
        self.trackio.finish()  # not the run's own, after which it would be finished again at exit


class TensorBoard:
    """Event files of TensorBoard, in tensorboard/PROJECT/NAME of the current folder, or below TENSORBOARD_DIR."""

    def __init__(self, project: str, name: str, settings: Mapping[str, Setting]) -> None:
        require("tensorboardX", "--track tensorboard", extra="tensorboard")
        self.folder = _free(Path(os.environ.get("TENSORBOARD_DIR", "tensorboard")) / project / name)
        self.writer = import_module("tensorboardX").SummaryWriter(str(self.folder))
        rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
        self.writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def curve(self, epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(_without_at(name), value, epoch)

    def result(self, figures: Mapping[str, float], texts: Mapping[str, str], files: Path) -> None:
        self.curve(0, figures)
        for name, text in texts.items():
            self.writer.add_text(name, text)
        self.writer.add_text("model_card", (files / "README.md").read_text(encoding="utf-8"))
        shutil.copytree(files, self.folder / "report")

    def close(self, status: Status) -> None:
        self.writer.close()


def _without_at(name: str) -> str:
    """The name of a figure where an @ is refused: ndcg_at_10."""
    return name.replace("@", "_at_")


def _free(folder: Path) -> Path:
    """The folder, or the first one with a number behind its name that is not there: a run never joins another's."""
    free, number = folder, 1
    while True:
        with contextlib.suppress(FileExistsError):
            free.mkdir(parents=True)
            return free
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")


BACKENDS: dict[str, Callable[[str, str, Mapping[str, Setting]], Backend]] = {
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
}
