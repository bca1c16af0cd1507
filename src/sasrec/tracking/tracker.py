"""A callback that keeps a training in a tracker of experiments."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sasrec.core.errors import ConfigError, SASRecError, first_line
from sasrec.core.suggestions import suggestion
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import EpochLine
from sasrec.tracking.backends import BACKENDS, Backend, Status
from sasrec.tracking.figures import figures_of_epoch, figures_of_result, settings_of, texts_of_result

logger = logging.getLogger(__name__)

PROJECT = "sasrec"


def trackers(kinds: str | None, project: str | None) -> list[Tracker]:
    """A tracker for each of the names in a text, separated by commas."""
    return [Tracker(kind.strip(), project=project or PROJECT) for kind in (kinds or "").split(",") if kind.strip()]


class Tracker:
    """Keeps a training's settings, curves, metrics with their protocol, report and model card; no ids of users.

    It is a callback of `fit`. Each package is configured as it is by itself: MLFLOW_TRACKING_URI, WANDB_MODE,
    TRACKIO_DIR; event files of TensorBoard go to tensorboard/ or TENSORBOARD_DIR. Where the tracker fails while a model
    is trained, that is said once, and the training goes on without it.

    Args:
        kind: mlflow, wandb, trackio or tensorboard.
        project: the experiment or project that the run belongs to.
        name: of the run; None = LOG-PRESET-seed-SEED.

    Raises:
        ConfigError: no such tracker; when training begins: its package is missing, or it cannot begin a run.
    """

    def __init__(self, kind: str, *, project: str = PROJECT, name: str | None = None) -> None:
        if kind not in BACKENDS:
            raise ConfigError(
                f"tracker {kind!r} is not known{suggestion(kind, BACKENDS)}; there are: {', '.join(BACKENDS)}"
            )
        self.kind, self.project, self.name = kind, project, name
        self.run: Backend | None = None

    def on_start(self, config: RunConfig) -> None:
        """Begin a run of the tracker."""
        name = self.name or f"{config.data_name}-{config.preset}-seed-{config.train.seed}"
        with contextlib.redirect_stdout(sys.stderr):  # what the packages print is no result of ours
            try:
                self.run = BACKENDS[self.kind](self.project, name, settings_of(config))
            except SASRecError:
                raise
            except Exception as error:  # of any of their classes
                raise ConfigError(f"{self.kind} cannot begin a run: {first_line(error)}") from error

    def on_epoch(self, line: EpochLine) -> None:
        """Add a point to the curves."""
        self._tell(lambda run: run.curve(line.epoch, figures_of_epoch(line)))

    def on_end(self, result: Recommender) -> None:
        """Add the metrics, the report and the model card, and close the run."""
        training = result.train_result
        assert training is not None
        if training.is_whole:
            figures = figures_of_result(training, result.results)
            texts = texts_of_result(training, result.results, result.model_version)
            with tempfile.TemporaryDirectory(prefix="sasrec-report-") as folder:
                result.write_report(Path(folder), with_users=False)
                self._tell(lambda run: run.result(figures, texts, Path(folder)))
        self._close("finished" if training.is_whole else "interrupted")

    def on_error(self, error: BaseException) -> None:
        """Close the run as one that failed."""
        self._close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")

    def _close(self, status: Status) -> None:
        self._tell(lambda run: run.close(status))
        self.run = None

    def _tell(self, what: Callable[[Backend], None]) -> None:
        """Tell the tracker; one that fails is not told again."""
        if self.run is None:
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):
                what(self.run)
        except Exception as error:  # of any of their classes
            self.run = None
            logger.warning("%s failed, and is told no more of this training: %s", self.kind, error)
