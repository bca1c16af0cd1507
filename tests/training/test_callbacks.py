"""What callbacks hear of a training, when they end it, and what they cannot change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_markov_log
from made import SETTINGS, make_epoch

import sasrec
from sasrec.core.errors import ConfigError, TrainingError
from sasrec.training.callbacks import Callbacks

FRAME = make_markov_log(120, 30)
FIVE = SETTINGS | {"max_epochs": 5, "learning_rate": 0.01, "save_every_minutes": 0}


class Heard:
    """Keeps what it is told, and ends the training after an epoch."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.told: list[tuple[str, Any]] = []

    def on_start(self, config: Any) -> None:
        self.told.append(("start", config))

    def on_epoch(self, line: Any) -> bool:
        self.told.append(("epoch", line))
        return bool(line.epoch == self.last)

    def on_end(self, result: Any) -> None:
        self.told.append(("end", result))

    def on_error(self, error: BaseException) -> None:
        self.told.append(("error", error))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.told]


def test_callbacks_hear_settings_then_each_epoch_then_the_result() -> None:
    heard = Heard()
    recommender = sasrec.fit(FRAME, callbacks=[heard], **FIVE)
    assert heard.names == ["start", *["epoch"] * 5, "end"]
    assert heard.told[0][1] == recommender.config
    result = heard.told[-1][1]
    assert result is recommender
    assert recommender.train_result is not None
    assert [line for name, line in heard.told if name == "epoch"] == recommender.train_result.history
    assert result.results, "measured before on_end"


def test_the_run_folder_is_whole_when_on_end_is_told(tmp_path: Path) -> None:
    class Looks:
        def on_end(self, result: Any) -> None:
            self.found = sasrec.load(tmp_path / "run").model_version, (tmp_path / "run" / "report.html").exists()

    looks = Looks()
    recommender = sasrec.fit(FRAME, output=tmp_path / "run", callbacks=[looks], **FIVE)
    assert looks.found == (recommender.model_version, True)


def test_a_callback_that_only_listens_changes_no_bit() -> None:
    silent, watched = sasrec.fit(FRAME, **FIVE), sasrec.fit(FRAME, callbacks=[Heard()], **FIVE)
    for name, value in silent.engine.weights().items():
        np.testing.assert_array_equal(watched.engine.weights()[name], value, err_msg=name)


def test_true_ends_the_training_and_the_best_epoch_is_kept_and_measured() -> None:
    recommender = sasrec.fit(FRAME, callbacks=[Heard(last=2)], **FIVE)
    result = recommender.train_result
    assert result is not None
    assert (result.stopped, result.epochs) == ("callback", 2)
    assert result.best_epoch in (1, 2)
    assert recommender.results


def test_all_callbacks_are_told_of_an_epoch_that_one_of_them_ends() -> None:
    first, second = Heard(last=1), Heard()
    sasrec.fit(FRAME, callbacks=[first, second], **FIVE)
    assert first.names == second.names == ["start", "epoch", "end"]


@pytest.mark.parametrize("answer", [None, False, 1, "yes"])
def test_only_true_itself_ends_a_training(answer: Any) -> None:
    class Answers:
        def on_epoch(self, line: Any) -> Any:
            return answer

    assert Callbacks([Answers()]).epoch(make_epoch(1)) is False


def test_a_training_that_a_callback_ended_can_be_gone_on_with(tmp_path: Path) -> None:
    whole = sasrec.fit(FRAME, **FIVE)
    sasrec.fit(FRAME, output=tmp_path / "run", callbacks=[Heard(last=2)], **FIVE)
    heard = Heard()
    resumed = sasrec.fit(FRAME, output=tmp_path / "run", resume=True, callbacks=[heard], **FIVE)
    assert heard.names == ["start", *["epoch"] * 5, "end"]
    assert [line.epoch for name, line in heard.told if name == "epoch"] == [1, 2, 3, 4, 5]
    for name, value in whole.engine.weights().items():
        np.testing.assert_array_equal(resumed.engine.weights()[name], value, err_msg=name)


def test_a_second_training_on_all_events_tells_no_epoch() -> None:
    heard = Heard()
    recommender = sasrec.fit(FRAME, refit=True, callbacks=[heard], **FIVE)
    assert recommender.config.refit_epochs
    assert heard.names == ["start", *["epoch"] * 5, "end"]


def test_an_error_of_training_is_told_and_goes_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sasrec.training.trainer.is_all_finite", lambda array: False)
    heard = Heard()
    with pytest.raises(TrainingError, match="a weight became infinite") as raised:
        sasrec.fit(FRAME, callbacks=[heard], **FIVE)
    assert heard.names == ["start", "error"]
    assert heard.told[-1][1] is raised.value


def test_an_error_of_a_callback_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    class Fails:
        def on_epoch(self, line: Any) -> None:
            raise OSError("the dashboard is gone")

    with pytest.raises(OSError, match="the dashboard is gone"):
        sasrec.fit(FRAME, output=tmp_path / "run", callbacks=[Fails()], **FIVE)
    resumed = sasrec.fit(FRAME, output=tmp_path / "run", resume=True, **FIVE)
    assert resumed.train_result is not None
    assert resumed.train_result.epochs == 5


@pytest.mark.parametrize("given", [object(), print, Heard, "mlflow"])
def test_what_has_no_method_of_a_callback_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="is no callback: it is an object with some of on_start, on_epoch"):
        sasrec.fit(FRAME, callbacks=[given], **FIVE)
