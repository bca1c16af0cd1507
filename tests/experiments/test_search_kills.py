"""A search that is killed at any write of its database: what is resumed ends as one without a break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from conftest import make_markov_log
from made import SETTINGS

from sasrec.data.logs import load_log
from sasrec.experiments.search_trials import Search, SearchPlan
from sasrec.experiments.trial_workers import Conductor, TrialEnd

LOG = load_log(make_markov_log(30, 10))
FIXED = {name: value for name, value in SETTINGS.items() if name != "embedding_dim"} | {"max_epochs": 6}
SPACE = {"embedding_dim": [4, 8, 16], "learning_rate": "1e-4..1e-1 log"}
N_TRIALS = 11


class KilledError(BaseException):
    """Stands for the end of the process: nothing is written any more."""


class Made:
    """Trainers that train nothing: how a trial goes follows from its settings, by chance as it were."""

    size = 1

    def train(self, conductor: Conductor, metric: str) -> None:
        while (job := conductor.next_job()) is not None:
            score = job.settings.get("learning_rate", 1e-3) * 1e5 % 1
            values = [epoch * score for epoch in range(1, 7)]
            if 0.7 < score < 0.9:
                conductor.on_end(TrialEnd(job.number, error="the loss became nan"))
                continue
            epochs = next((e for e, value in enumerate(values, 1) if conductor.on_epoch(job.number, e, value)), 6)
            stopped = "callback" if epochs < 6 else "max_epochs"
            conductor.on_end(TrialEnd(job.number, values[epochs - 1], epochs, stopped=stopped))


def searched(folder: Path, space: dict[str, Any]) -> list[tuple[dict[str, Any], str, float | None, int]]:
    folder.mkdir(exist_ok=True)
    found = Search(LOG, SearchPlan("fast", N_TRIALS, space), FIXED, folder, None, 0.0)
    assert found.run(Made())
    return [(trial.settings, trial.state, trial.value, trial.epochs) for trial in found.trials]


@contextmanager
def killed_after(n: int | None) -> Iterator[list[str]]:
    """No write after the n-th is kept; None = all are. Yields what was written."""
    written, kept = list[str](), list[str]()

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            written.append(statement)

    def commit(connection: Any) -> None:
        if written and n is not None and len(kept) >= n:
            connection.connection.rollback()  # and frees the file, as the end of a process does
            raise KilledError
        kept.extend(written[:1])
        written.clear()

    engine = sqlalchemy.engine.Engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", note)
    sqlalchemy.event.listen(engine, "commit", commit)
    try:
        yield kept
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", note)
        sqlalchemy.event.remove(engine, "commit", commit)


def kinds(kept: list[str]) -> list[int]:
    """Where to kill: two places at most of each kind, by what was written last and what would be next."""
    found: dict[tuple[str, str], list[int]] = {}
    for n in range(3, len(kept)):  # the first make the study itself
        found.setdefault((kept[n - 1], kept[n]), []).append(n)
    return sorted({place for places in found.values() for place in (places[0], places[-1])})


@pytest.mark.slow
@pytest.mark.parametrize("holds_preset", [False, True])
def test_a_search_killed_at_any_write_ends_as_one_without_a_break(tmp_path: Path, holds_preset: bool) -> None:
    space = SPACE | ({"embedding_dim": [4, 8, 16, 128]} if holds_preset else {})
    with killed_after(None) as kept:
        expected = searched(tmp_path / "whole", space)
    assert {state for _, state, _, _ in expected} == {"complete", "pruned", "failed"}
    places = kinds(kept)
    assert len(places) > 10
    for n in places:
        folder = tmp_path / str(n)
        with killed_after(n), pytest.raises(KilledError):
            searched(folder, space)
        assert searched(folder, space) == expected, f"killed after {n} writes, before {kept[n]}"


@pytest.mark.slow
def test_a_search_killed_again_while_it_resumes_ends_as_one_without_a_break(tmp_path: Path) -> None:
    with killed_after(None) as kept:
        expected = searched(tmp_path / "whole", SPACE)
    reports = [n for n, statement in enumerate(kept) if "INTO trial_intermediate_values" in statement]
    for again in range(10):
        folder = tmp_path / str(again)
        for n in (reports[len(reports) // 2], again):
            with killed_after(n), pytest.raises(KilledError):
                searched(folder, SPACE)
        assert searched(folder, SPACE) == expected, f"killed again after {again} writes"
