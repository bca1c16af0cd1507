"""The feedback file: what is answered is there, each once, within bounds, and nobody is named in it."""

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from sasrec.core.errors import CheckpointError, ConfigError, RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.recommender import Recommender
from sasrec.serving import feedback_file
from sasrec.serving.events import EventStore
from sasrec.serving.exposures import Exposure, Shown, new_id, read_id, shown_id
from sasrec.serving.feedback import FeedbackStore
from sasrec.serving.feedback_file import MAX_KINDS, pseudonym, share_place, used_bytes
from sasrec.serving.online_schemas import Feedback, Kept
from sasrec.serving.schemas import Answer, Query, Recommendation
from sasrec.serving.served_model import Row
from sasrec.serving.service import RecommendJob, Service
from sasrec.serving.telemetry import Metrics


def store(path: Path, **settings: Any) -> FeedbackStore:
    return FeedbackStore.open(ServerConfig(feedback=str(path), **settings), Metrics())


def exposure(*items: int | str, user: Any = None, version: str = "v1", arm: Any = "run") -> Exposure:
    return Exposure(new_id(), user, version, arm, 10, time.time(), items)


def click(one: Exposure, item: int | str, kind: str = "click") -> Feedback:
    return Feedback(shown_id(one.id), item, kind)


def keep(kept: FeedbackStore, *exposures: Exposure) -> bool:
    return asyncio.run(kept.keep(exposures))


def give(kept: FeedbackStore, *feedback: Feedback) -> Kept:
    return asyncio.run(kept.add(feedback))


def rows(path: Path, query: str) -> list[Any]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def counted(path: Path) -> None:
    """What the counts of a file say is what its rows say."""
    assert rows(path, "SELECT id, n_exposures FROM groups ORDER BY id") == rows(
        path, "SELECT grp, count(*) FROM exposures GROUP BY grp ORDER BY grp"
    )
    for kind, name in (("kind", "kind != ''"), ("''", "kind = ''")):
        assert rows(path, f"SELECT grp, kind, n_hits, n_feedback FROM hits WHERE {name} ORDER BY 1, 2") == rows(
            path,
            f"SELECT grp, {kind} AS k, count(DISTINCT id), count(*) FROM feedback JOIN exposures USING (id) "
            "GROUP BY grp, k ORDER BY 1, 2",
        )


def test_ids_are_uuids_of_version_7_that_sort_by_time_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for milliseconds in (5, 6, 2**40):
        monkeypatch.setattr("sasrec.serving.exposures.time.time_ns", lambda now=milliseconds: now * 1_000_000)
        ids.append(new_id())
    assert ids == sorted(ids)
    for raw in ids:
        text = shown_id(raw)
        assert text[14] == "7"
        assert text[19] in "89ab"
        assert read_id(text) == read_id(text.upper()) == raw
    assert read_id("{" + shown_id(ids[0]) + "}") is read_id("") is read_id("x" * 36) is None
    assert len({new_id() for _ in range(1000)}) == 1000


def test_feedback_counts_once_and_by_kind(tmp_path: Path) -> None:
    kept = store(tmp_path / "f.db")
    one, other = exposure(3, "b"), exposure(3)
    assert keep(kept, one, other)
    assert give(kept) == Kept(0, 0)
    assert give(kept, click(one, 3), click(one, "3"), click(one, "b", "buy")) == Kept(2, 1)
    assert give(kept, click(one, "b"), click(one, 3)) == Kept(1, 1)
    [figures] = kept.figures()
    assert (figures.version, figures.arm, figures.n_exposures, figures.coverage) == ("v1", "run", 2, 0.2)
    assert figures.hits == {"": (1, 3), "buy": (1, 1), "click": (1, 2)}
    kept.close()
    assert store(tmp_path / "f.db").figures() == [figures]
    counted(tmp_path / "f.db")


def test_feedback_on_what_was_not_shown_is_refused_with_its_place_and_nothing_is_stored(tmp_path: Path) -> None:
    kept = store(tmp_path / "f.db")
    one = exposure(3, 4)
    keep(kept, one)
    for wrong, sentence in [
        (click(one, 5), r"feedback\[1\].item_id is no item of that list; nothing was stored"),
        (click(exposure(3), 3), r"feedback\[1\].recommendation_id is not known or has expired; nothing was stored"),
        (Feedback("nonsense", 3, "click"), r"feedback\[1\].recommendation_id is not known"),
    ]:
        with pytest.raises(RequestError, match=sentence) as refused:
            give(kept, click(one, 3), wrong)
        assert refused.value.status == 422
    with pytest.raises(RequestError, match=r"^item_id is no item"):
        give(kept, click(one, 5))
    assert kept.figures()[0].hits == {}


def test_one_job_that_does_not_fit_leaves_others_of_its_transaction_alone(tmp_path: Path) -> None:
    kept = store(tmp_path / "f.db")
    one = exposure(3)
    found = kept._write([[click(one, 9)], [one], [click(one, 3)], [click(one, 3), click(one, 9)]])
    assert [type(result) for result in found] == [RequestError, type(None), Kept, RequestError]
    assert kept.figures()[0].hits[""] == (1, 1)


def test_kinds_are_few(tmp_path: Path) -> None:
    kept = store(tmp_path / "f.db")
    one = exposure(3)
    keep(kept, one)
    give(kept, *(click(one, 3, f"k{i}") for i in range(MAX_KINDS)))
    with pytest.raises(RequestError, match=f"more than {MAX_KINDS} kinds"):
        give(kept, click(one, 3, "another"))
    assert give(kept, click(one, 3, "k0")) == Kept(0, 1)


def test_the_oldest_lists_go_first_with_their_feedback_and_counts_stay_right(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    kept = store(path, max_exposures=5)
    old = [exposure(i, version=f"v{i % 2}") for i in range(4)]
    keep(kept, *old)
    give(kept, *(click(one, i) for i, one in enumerate(old)))
    new = []
    for i in range(4):  # each later than those before
        time.sleep(0.002)
        new.append(exposure(i, version="v1"))
        keep(kept, new[-1])
    left = [id_ for (id_,) in rows(path, "SELECT id FROM exposures ORDER BY id")]
    assert len(left) == 5
    assert set(left) > {one.id for one in new}
    counted(path)
    gone = [one for one in old if one.id not in left]
    with pytest.raises(RequestError, match="has expired"):
        give(kept, click(gone[0], old.index(gone[0])))
    assert kept.metrics.expired._value.get() == 3


def test_the_file_is_bounded_in_bytes(tmp_path: Path) -> None:
    path, most = tmp_path / "f.db", 2**18
    kept = store(path, max_feedback_bytes=most)
    for _ in range(60):
        lists = [exposure(*(f"a long id of an item, number {i}" for i in range(100))) for _ in range(20)]
        keep(kept, *lists)
        give(kept, *(click(one, "a long id of an item, number 7") for one in lists))
    kept.close()
    with sqlite3.connect(path) as connection:
        assert used_bytes(connection) <= most
    connection.close()
    assert path.stat().st_size < 2 * most
    assert rows(path, "SELECT count(*) FROM exposures")[0][0] > 20
    counted(path)


def test_a_version_without_lists_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    kept = store(path, max_exposures=3)
    keep(kept, exposure(1, 2, version="old"))
    for _ in range(2):
        time.sleep(0.002)
        keep(kept, exposure(3), exposure(4))
    assert [figures.version for figures in kept.figures()] == ["v1"]
    assert rows(path, "SELECT DISTINCT item FROM shown ORDER BY item") == [("3",), ("4",)]


def test_the_file_has_no_user_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    kept = store(path)
    salt = kept.salt
    one = exposure(1, user=pseudonym(salt, "somebody@example.org"))
    keep(kept, one)
    give(kept, click(one, 1))
    kept.close()
    assert b"somebody" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert path.stat().st_mode & 0o077 == 0
    again, other = store(path), store(tmp_path / "g.db")
    assert again.salt == salt
    assert len(salt) == 32
    assert pseudonym(other.salt, "somebody@example.org") != one.user
    assert pseudonym(salt, 7) == pseudonym(salt, "7") != pseudonym(salt, 8)


def test_a_share_is_a_stable_part_of_the_users_and_grows_by_those_who_are_new() -> None:
    salt, users = b"s" * 32, range(20_000)
    tenth = {user for user in users if share_place(salt, user) < 0.1}
    assert 0.09 < len(tenth) / 20_000 < 0.11
    assert tenth == {user for user in users if share_place(salt, str(user)) < 0.1}
    assert tenth < {user for user in users if share_place(salt, user) < 0.2}
    other = {user for user in users if share_place(b"t" * 32, user) < 0.1}
    assert 0.005 < len(tenth & other) / 20_000 < 0.015  # of another file, others


def test_several_processes_share_a_file_and_its_salt(tmp_path: Path) -> None:
    first, second = store(tmp_path / "f.db"), store(tmp_path / "f.db")
    assert first.salt == second.salt
    one = exposure(3)
    keep(first, one)
    assert give(second, click(one, 3)) == Kept(1, 0)
    assert give(first, click(one, 3)) == Kept(0, 1)
    assert first.figures() == second.figures()


def test_a_file_that_goes_is_made_again_and_answers_have_no_ids_while_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    kept = store(folder / "f.db")
    before, one = kept.salt, exposure(3)
    assert keep(kept, one)
    folder.rename(tmp_path / "away")
    assert not keep(kept, exposure(4))
    with pytest.raises(RequestError, match="could not be stored") as refused:
        give(kept, click(one, 3))
    assert refused.value.status == 503
    assert kept.figures() == []
    folder.mkdir()
    assert not keep(kept, exposure(4))  # soon after a failure nobody waits for another
    monkeypatch.setattr("sasrec.serving.feedback.time.monotonic", lambda: 1e12)
    assert keep(kept, one)
    assert kept.salt != before
    assert kept.metrics.lost._value.get() == 2
    assert kept.metrics.failures._value.get() == 3


def test_while_another_holds_the_file_an_answer_waits_a_second_and_the_next_ones_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sasrec.serving.feedback.KEEP_SECONDS", 0.1)
    kept = store(tmp_path / "f.db")
    other = sqlite3.connect(tmp_path / "f.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not keep(kept, exposure(3))
    began = time.monotonic()
    assert not keep(kept, exposure(3))
    assert time.monotonic() - began < 0.05
    other.execute("ROLLBACK")
    other.close()
    kept.close()


def test_answers_whose_lists_could_not_be_kept_lose_their_ids_and_nothing_else() -> None:
    shown, row = Shown(), Row(Query([]))
    answer = Answer([Recommendation(3, 0.5, 1)], [], False, "v1")
    pieces = [shown.encoded(rows, [answer] * len(rows), {"run": 10}) for rows in ([row, row], [row])]
    bare = b'{"items":[{"item_id":3,"score":0.5,"rank":1}],"unknown_items":[],"fallback":false,"model_version":"v1"'
    bare += b',"arm":"run","recommendation_id":null}'
    assert pieces[1].count(b"null") == 0
    assert len(shown.exposures) == 3
    assert shown.without_ids(pieces) == [bare + b"," + bare, bare]


def test_a_request_that_is_computed_again_as_others_failed_is_kept_once(recommender: Recommender) -> None:
    service = Service(Metrics())
    service.use(recommender)
    job = RecommendJob([Row(Query([1])), Row(Query([2]), is_shown=False)], shown=Shown())
    for _ in range(2):
        [encoded] = service.answer([job])
    assert job.shown is not None
    [kept] = job.shown.exposures
    assert isinstance(encoded, bytes)
    assert [one["recommendation_id"] for one in json.loads(b"[" + encoded + b"]")] == [shown_id(kept.id), None]
    assert kept.n_items == 30


def test_files_of_something_else_or_of_a_newer_version_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be seen as none" * 20)
    EventStore.open(ServerConfig(events=str(tmp_path / "events")), Metrics()).close()
    store(tmp_path / "newer").close()
    with sqlite3.connect(tmp_path / "newer") as connection:
        connection.execute("UPDATE facts SET value = 2 WHERE name = 'format'")
    connection.close()
    before = rows(tmp_path / "events", "SELECT * FROM sqlite_master")
    for name, reason in [
        ("text", "file is not a database"),
        ("events", "it is an SQLite file of something else than feedback"),
        ("newer", "it has format 2, of a newer version of sasrec"),
        ("nowhere/f.db", "No such file"),
    ]:
        with pytest.raises(CheckpointError, match=f"the feedback file .* cannot be used: .*{reason}"):
            store(tmp_path / name)
    assert rows(tmp_path / "events", "SELECT * FROM sqlite_master") == before
    with pytest.raises(ConfigError, match="events and feedback are both x"):
        ServerConfig(events="x", feedback="x")


def test_a_file_far_beyond_its_bounds_is_trimmed_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.db"
    store(path).close()
    kept = store(path, max_exposures=1000)
    keep(kept, *(exposure(1) for _ in range(500)))
    kept.close()
    monkeypatch.setattr(feedback_file, "TRIMMED_AT_ONCE", 50)
    kept = store(path, max_exposures=10)
    n_left = []
    for _ in range(4):
        keep(kept, exposure(1))
        n_left += rows(path, "SELECT count(*) FROM exposures")[0]
    assert n_left == [301, 102, 10, 10]
    counted(path)
