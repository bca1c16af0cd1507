"""The model that answers now: jobs of a batch, and models that are put in place of others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from served import SMALL, point, save_plain

import sasrec
from sasrec.core.errors import CheckpointError, RequestError
from sasrec.recommender import Recommender
from sasrec.serving.schemas import Query
from sasrec.serving.served_model import Row
from sasrec.serving.service import RecommendJob, Service, parted, weight
from sasrec.serving.telemetry import Metrics


def test_a_model_that_is_not_finite_does_not_pass_its_warm_up(runs: Path) -> None:
    broken = sasrec.load(runs / "a")
    weights = broken.engine.weights()
    broken.engine.load_weights({name: np.full_like(array, np.nan) for name, array in weights.items()})
    with pytest.raises(sasrec.SASRecError, match="finite"):
        Service(Metrics()).use(Recommender(broken.engine, broken.vocabulary, broken.config, None))


@pytest.fixture
def service(run: Path) -> Service:
    """A service of a run folder behind a link."""
    made = Service(Metrics(), path=run)
    made.load()
    return made


def value(service: Service, name: str, **labels: str) -> float | None:
    return service.metrics.registry.get_sample_value(name, labels)


def test_a_moved_link_is_noticed_and_the_new_model_answers(service: Service, run: Path, runs: Path) -> None:
    assert service.model is not None
    before = service.model.version
    assert not service.has_moved()
    point(run, runs / "b")
    assert service.has_moved()
    assert service.reload()
    assert not service.has_moved()
    assert service.model.version != before
    assert value(service, "sasrec_model_info", version=service.model.version) == 1
    told = [line for line in service.metrics.exposition().splitlines() if line.startswith(b"sasrec_model_info{")]
    assert told == [f'sasrec_model_info{{version="{service.model.version}"}} 1.0'.encode()]
    assert value(service, "sasrec_reloads_total", outcome="done") == 1


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"name": "of something else"}')


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_items(folder: Path) -> None:
    (folder / "items.parquet").unlink()


def of_another_catalogue(folder: Path) -> None:
    log = make_markov_log().with_columns(pl.col("item_id") + 25)
    save_plain(sasrec.fit(log, **SMALL), folder)


def gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [foreign, truncated, without_items, of_another_catalogue, gone])
def test_a_model_that_cannot_be_served_leaves_the_old_one_answering_and_is_told(
    service: Service, run: Path, runs: Path, damage: Any
) -> None:
    assert service.model is not None
    before, version = service.model, service.model.version
    shutil.copytree(runs / "b", run.parent / "b")
    point(run, "b")
    damage(run.parent / "b")
    assert not service.reload()
    assert service.model is before
    [encoded] = service.answer([RecommendJob([Row(Query([1, 2]))])])
    assert isinstance(encoded, bytes)
    assert service.reload_error is not None
    assert str(run.parent) in service.reload_error
    assert value(service, "sasrec_last_reload_ok") == 0
    assert value(service, "sasrec_reloads_total", outcome="failed") == 1
    assert value(service, "sasrec_model_info", version=version) == 1
    point(run, "a")
    assert service.reload()
    assert service.reload_error is None
    assert value(service, "sasrec_last_reload_ok") == 1


def test_a_service_without_a_folder_has_nothing_to_reload(recommender: Recommender) -> None:
    service = Service(Metrics())
    service.use(recommender)
    assert not service.reload()
    assert not service.has_moved()


def test_the_first_load_fails_with_the_librarys_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run folder"):
        Service(Metrics(), path=tmp_path / "nothing").load()


def ids_in(encoded: Any) -> list[list[Any]]:
    """The items of each answer."""
    return [[item["item_id"] for item in answer["items"]] for answer in json.loads(b"[" + encoded + b"]")]


def test_a_job_that_fails_fails_alone(recommender: Recommender) -> None:
    service = Service(Metrics())
    service.use(recommender)
    good = RecommendJob([Row(Query([1, 2])), Row(Query([], allow=["a"]))])
    first, failed, missing, last = service.answer(
        [good, RecommendJob([Row(Query([]), "nobody")]), lambda model: model.similar("nothing", 3), good]
    )
    [alone] = service.answer([good])
    assert ids_in(first) == ids_in(last) == ids_in(alone)
    assert list(map(len, ids_in(alone))) == [10, 0]
    for error in (failed, missing):
        assert isinstance(error, RequestError)
        assert error.status == 404


def test_without_a_model_every_job_is_told_to_come_again() -> None:
    [answer] = Service(Metrics()).answer([RecommendJob([Row(Query([1]))])])
    assert isinstance(answer, RequestError)
    assert answer.status == 503


def test_unknown_items_of_histories_and_fallbacks_are_counted(recommender: Recommender) -> None:
    service = Service(Metrics())
    service.use(recommender)
    filtered = Query([2, "x"], allow=[1, 3, "x", "a"], deny=["d", "d"])  # what filters name does not count
    service.answer([RecommendJob([Row(Query([1, "x"])), Row(Query(["y"]))]), RecommendJob([Row(filtered)])])
    counts = {name: value(service, f"sasrec_{name}_total") for name in ("answers", "history_items", "unknown_items")}
    assert counts == {"answers": 3, "history_items": 5, "unknown_items": 3}
    assert value(service, "sasrec_fallback_answers_total") == 1


def test_parts_of_a_request_are_answered_by_the_model_they_name(service: Service, run: Path, runs: Path) -> None:
    first = service.model
    part = RecommendJob([Row(Query([1, 2]))], first)
    before = service.answer([part])
    point(run, runs / "b")
    assert service.reload()
    assert service.answer([part]) == before
    assert service.answer([RecommendJob([Row(Query([1, 2]))])]) != before


def test_rows_are_parted_by_what_they_cost() -> None:
    usual, long, wide = Query([1] * 10), Query([1] * 5000), Query([1], k=1000)
    assert [weight(Row(query)) for query in (usual, long, wide, Query([], allow=[1]))] == [1, 6, 11, 2]
    told = [
        Query([], where="a < 1"),
        Query([], diversity=0.5),
        Query([], k=100, diversity=0.5),
        Query([], 1000, diversity=1),
    ]
    assert [weight(Row(query)) for query in told] == [2, 1, 4, 211]
    assert weight(Row(usual, user=3, n_events=5000)) == 6  # the history is the user's own
    rows = [Row(query) for query in [usual] * 40 + [wide] * 5 + [Query([], k=10**6)] + [usual]]
    parts = list(parted(rows))
    assert [row for part in parts for row in part] == rows
    assert list(map(len, parts)) == [16, 16, 8, 1, 1, 1, 1, 1, 1, 1]
    assert list(parted([])) == []


class Panic(BaseException):
    """What compiled code raises when it panics."""


@pytest.mark.parametrize("error", [Panic("index out of bounds\nbacktrace"), ZeroDivisionError("x" * 10**7)])
def test_a_panic_while_loading_is_one_sentence_and_the_old_model_stays(
    service: Service, run: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def panics(*_: Any, **__: Any) -> None:
        raise error

    before = service.model
    with monkeypatch.context() as patch:
        patch.setattr("sasrec.serving.service.load", panics)
        assert not service.reload()
        with pytest.raises(CheckpointError, match=f"{type(error).__name__}: ") as failed:
            service.load()
    assert str(failed.value).startswith(service.reload_error.removesuffix(" ..."))
    assert f"the model in {run} cannot be loaded, so a file of it is damaged" in service.reload_error
    assert len(service.reload_error) < 1000
    assert "\n" not in service.reload_error
    assert value(service, "sasrec_last_reload_ok") == 0
    monkeypatch.setattr("sasrec.serving.service.ServedModel", panics)  # it loads, and cannot answer
    assert not service.reload()
    assert f"the model in {run} cannot be loaded" in str(service.reload_error)
    assert service.model is before


def test_links_in_a_circle_are_no_other_folder(service: Service, run: Path) -> None:
    (run.parent / "x").symlink_to("y")
    (run.parent / "y").symlink_to("x")
    point(run, "x")
    assert not service.has_moved()
    assert not service.reload()
