"""The report of two arms: a made difference is found, none is where there is none; who counts; and how it forgets."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sasrec.cli.main import app as program
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.exposures import Exposure, new_id, shown_id
from sasrec.serving.feedback import FeedbackStore
from sasrec.serving.feedback_file import pseudonym, share_place
from sasrec.serving.online_report import forget, report
from sasrec.serving.online_schemas import Feedback
from sasrec.serving.telemetry import Metrics

ITEMS = (1, 2, 3)


def store(path: Path) -> FeedbackStore:
    return FeedbackStore.open(ServerConfig(feedback=str(path)), Metrics())


def shown(kept: FeedbackStore, user: Any, arm: Any = "run", at: float = 1000.0, version: str = "v1") -> Exposure:
    hashed = None if user is None else pseudonym(kept.salt, user)
    return Exposure(new_id(), hashed, version, arm, 10, at, ITEMS)


def fill(kept: FeedbackStore, lists: Iterable[tuple[Exposure, Iterable[str]]]) -> None:
    """Lists, each with the kinds of feedback on it."""
    pairs = list(lists)
    feedback = [Feedback(shown_id(one.id), 1, kind) for one, kinds in pairs for kind in kinds]

    async def main() -> None:
        for start in range(0, len(pairs), 500):
            assert await kept.keep([one for one, _ in pairs[start : start + 500]])
        for start in range(0, len(feedback), 500):
            await kept.add(feedback[start : start + 500])

    asyncio.run(main())
    kept.close()


def simulated(path: Path, challenger: float, seed: int, share: float = 0.1) -> None:
    """4,000 users, each with a taste for clicking: 0.3 on average where run answers."""
    kept, rng = store(path), np.random.default_rng(seed)
    lists: list[tuple[Exposure, list[str]]] = []
    for user in range(4000):
        arm = "challenger" if share_place(kept.salt, user) < share else "run"
        chance = challenger if arm == "challenger" else 0.3
        taste = rng.beta(6 * chance, 6 * (1 - chance))
        clicked = rng.random(1 + rng.poisson(3)) < taste
        lists += [(shown(kept, user, arm), ["click"] if hit else []) for hit in clicked]
    fill(kept, lists)


@pytest.mark.slow
def test_a_made_difference_of_a_fifth_is_found_and_none_between_two_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sasrec.serving.feedback_file.secrets.token_bytes", lambda n: b"s" * n)  # the same users
    simulated(tmp_path / "f.db", 0.36, seed=1)
    found = report(tmp_path / "f.db")
    difference = found.kinds["click"]
    assert difference["p_value"] is not None
    assert difference["p_value"] < 0.01
    assert difference["difference"] == pytest.approx(0.06, abs=3 * (difference["stderr"] or 0))
    assert difference["relative"] == pytest.approx(0.2, abs=0.15)
    assert "click: the challenger has more hits than run" in found.to_text()
    assert found.warnings == ()
    simulated(tmp_path / "g.db", 0.30, seed=2)
    alike = report(tmp_path / "g.db").kinds["click"]
    assert alike["p_value"] > 0.05
    assert (
        "click: no difference found; so many users would probably show one of 0.0"
        in report(tmp_path / "g.db").to_text()
    )


def few(path: Path, make: Callable[[FeedbackStore], Iterable[tuple[Exposure, Iterable[str]]]]) -> Path:
    kept = store(path)
    fill(kept, make(kept))
    return path


def test_rates_are_those_counted_by_hand(tmp_path: Path) -> None:
    def make(kept: FeedbackStore) -> Iterable[tuple[Exposure, list[str]]]:
        yield shown(kept, "a"), ["click", "buy"]
        yield shown(kept, "a"), []
        yield shown(kept, "b"), ["click"]
        yield shown(kept, "b"), []
        yield shown(kept, "c", "challenger"), ["buy"]
        yield shown(kept, "c", "challenger"), ["buy"]
        yield shown(kept, "d", "challenger"), []

    found = report(few(tmp_path / "f.db", make))
    rates = {kind: (d["a"]["value"], d["b"]["value"]) for kind, d in found.kinds.items()}
    assert rates == {"any": (0.5, 2 / 3), "buy": (0.25, 2 / 3), "click": (0.5, 0.0)}
    assert found.p_holm is not None
    assert found.p_holm.keys() == rates.keys()
    assert [(arm.n_users, arm.n_lists) for arm in found.arms.values()] == [(2, 4), (2, 3)]
    assert "run has only 2 users: intervals and p-values assume 30 or more" in found.warnings
    only = report(tmp_path / "f.db", "buy")
    assert list(only.kinds) == ["buy"]
    assert only.p_holm is None
    assert json.loads(json.dumps(found.to_dict()))["kinds"]["buy"]["a"]["value"] == 0.25
    with pytest.raises(ConfigError, match=r"there is no feedback of kind 'view' .* kinds: buy, click"):
        report(tmp_path / "f.db", "view")


def test_only_the_time_of_the_challenger_counts_and_nobody_who_met_both(tmp_path: Path) -> None:
    def make(kept: FeedbackStore) -> Iterable[tuple[Exposure, list[str]]]:
        for i, at in enumerate([100.0, 500.0, 600.0, 900.0]):  # before, within, within, after
            yield shown(kept, f"r{i}", at=at), ["click"] if at in (100.0, 900.0) else []
        for i, at in enumerate([500.0, 550.0, 600.0]):
            yield shown(kept, f"c{i}", "challenger", at, f"v{i}"), []
        for arm in ("run", "challenger"):
            yield shown(kept, "both", arm, 550.0), ["click"]
        yield shown(kept, None, at=550.0), ["click"]

    path = few(tmp_path / "f.db", make)
    found = report(path)
    assert (found.start, found.end) == (500.0, 600.0)
    assert [(arm.n_users, arm.n_lists, arm.n_unnamed) for arm in found.arms.values()] == [(2, 2, 1), (3, 3, 0)]
    assert found.n_in_both == 1
    assert found.kinds["click"]["a"]["value"] == 0
    told = " ".join(found.warnings)
    assert "1 users met both arms and are left out" in told
    assert "1 lists of run named no user and are left out" in told
    assert "challenger had 3 versions in this time, which count as one" in told
    one = report(path, version="v1")
    assert (one.start, one.end) == (550.0, 550.0)
    assert one.arms["challenger"].versions.keys() == {"v1"}
    with pytest.raises(ConfigError, match="no list of the challenger's version v9"):
        report(path, version="v9")


def test_too_little_is_said_and_not_tested(tmp_path: Path) -> None:
    alone = report(few(tmp_path / "f.db", lambda kept: [(shown(kept, i), ["click"]) for i in range(40)]))
    assert alone.kinds == {}
    assert alone.rates["click"]["value"] == 1
    assert "no list is of a challenger" in alone.warnings[0]
    assert "click  1.0000 (1.0000 .. 1.0000)" in alone.to_text()

    def make(kept: FeedbackStore) -> Iterable[tuple[Exposure, list[str]]]:
        yield from ((shown(kept, i), ["click"] * (i < 3)) for i in range(40))
        yield from ((shown(kept, 0), []) for _ in range(10))
        yield shown(kept, "x", "challenger"), []

    tiny = report(few(tmp_path / "g.db", make))
    assert tiny.kinds["click"]["p_value"] is None
    assert "click: too little to compare" in tiny.to_text()
    told = " ".join(tiny.warnings)
    assert "challenger has 1 users whose lists can be compared, which is too few for an interval" in told
    assert "run has only 3 users with a hit (click): below 10" in told
    assert "one user has 22 % of the lists of run; is it a program?" in told


def test_a_user_is_forgotten_in_the_file_and_in_all_counts(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    few(path, lambda kept: [(shown(kept, user), ["click", "buy"] * (user == 7)) for user in (7, 7, 8)])
    kept = store(path)
    hashed = pseudonym(kept.salt, 7)
    assert forget(path, "7") == (2, 4)
    assert forget(path, "7") == (0, 0)
    assert [(f.n_exposures, f.hits) for f in kept.figures()] == [(1, {})]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
    connection.close()
    kept.close()
    assert not any(hashed in file.read_bytes() for file in tmp_path.iterdir())


def run(*arguments: object) -> tuple[int, str, Any]:
    done = CliRunner().invoke(program, ["online-report", *map(str, arguments)])
    return done.exit_code, done.stdout, done.exception


def test_the_command_prints_forgets_and_refuses(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    few(
        path, lambda kept: [(shown(kept, i, ("run", "challenger")[i % 2]), ["click"] * (i % 3 == 0)) for i in range(90)]
    )
    code, text, _ = run(path)
    assert code == 0
    assert re.search(r"click +0\.3333 \(0\.\d+ \.\. 0\.\d+\) +0\.3333", text)
    told = json.loads(run(path, "--json", "--kind", "click")[1])
    assert told["arms"]["challenger"]["n_users"] == 45
    assert run(path, "--forget", "3")[1] == f"removed 1 lists and 1 pieces of feedback of this user from {path}\n"
    assert json.loads(run(path, "--forget", "5", "--json")[1]) == {"removed_lists": 1, "removed_feedback": 0}
    assert isinstance(run(path, "--forget", "5", "--kind", "click")[2], ConfigError)
    assert isinstance(run(path, "--kind", "view")[2], ConfigError)


def test_what_is_no_feedback_file_is_refused_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no feedback file"):
        report(tmp_path / "nothing")
    with pytest.raises(DataError, match="there is no feedback file"):
        forget(tmp_path / "nothing", 3)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("user_id,item_id\n1,2\n" * 100)
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)").connection.close()
    for name, reason in [("empty", "it is empty"), ("text", "not a database"), ("other", "of something else")]:
        for use in (report, lambda path: forget(path, 3)):
            with pytest.raises(DataError, match=reason):
                use(tmp_path / name)
    store(tmp_path / "new").close()
    with pytest.raises(DataError, match="has no lists yet"):
        report(tmp_path / "new")
    assert not (tmp_path / "nothing").exists()
