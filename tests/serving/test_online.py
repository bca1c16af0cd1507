"""Measuring over HTTP, in this process: answers with ids, feedback on them, two models, and nothing where it is off."""

import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import make_markov_log
from served import SMALL, TITLES, ask, point, post, quiet_app, save_plain, with_attributes

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.server_config import ServerConfig
from sasrec.recommender import Recommender
from sasrec.serving.app import Application, create_app
from sasrec.serving.feedback_file import pseudonym
from sasrec.serving.service import Service
from sasrec.serving.telemetry import Metrics

USERS = range(40)
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def other(markov_log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another model of the same catalogue, with the same attributes."""
    folder = tmp_path_factory.mktemp("challenger") / "other"
    save_plain(with_attributes(sasrec.fit(markov_log, titles=TITLES, seed=5, **SMALL)), folder)
    return folder


@pytest.fixture
def alone(recommender: Recommender, tmp_path: Path) -> Iterator[Application]:
    """One model that is measured."""
    made = quiet_app(recommender, feedback=str(tmp_path / "f.db"))
    yield made
    made.close()


@pytest.fixture
def two(recommender: Recommender, other: Path, tmp_path: Path) -> Iterator[Application]:
    """Two models, the second for a share of 0.3."""
    made = quiet_app(recommender, feedback=str(tmp_path / "f.db"), challenger=f"{other}:0.3")
    yield made
    made.close()


def feedback_on(answer: Any, kind: str = "click", place: int = 0) -> Any:
    return {
        "recommendation_id": answer["recommendation_id"],
        "item_id": answer["items"][place]["item_id"],
        "kind": kind,
    }


def exposures(app: Application) -> list[Any]:
    assert app.online is not None
    connection = app.online.store._reader.connection()
    return connection.execute("SELECT user, arm, items FROM exposures JOIN groups ON grp = groups.id").fetchall()


def test_without_a_feedback_file_nothing_is_new(app: Application) -> None:
    answer = post(app, "/v1/recommend", {"history": [1]}).json()
    assert list(answer) == ["items", "unknown_items", "fallback", "model_version"]
    for body in ({"history": [1], "user_id": 3}, {"history": [1], "shown": False}):
        assert "it has a field that is not one of history, k" in post(app, "/v1/recommend", body).json()["error"]
    assert ask(app, "GET", "/v1/users/17/recommendations?shown=true").status_code == 422
    assert post(app, "/v1/feedback", {}).status_code == 404
    assert ask(app, "GET", "/v1/online").status_code == 404
    assert "accepts_feedback" not in ask(app, "GET", "/v1/model").json()
    assert set(ask(app, "GET", "/health/ready").json()) == {"status", "model_version", "reload_error"}
    assert not re.search("exposure|feedback|challenger|hit_rate", ask(app, "GET", "/metrics").text)


def test_every_list_has_an_id_and_is_the_same_as_without(alone: Application, app: Application) -> None:
    body = {"requests": [{"history": [1, "2", "x"], "k": 3, "user_id": "u"}, {"history": []}, {"history": [4]}]}
    results = post(alone, "/v1/recommend", body).json()["results"]
    single = post(alone, "/v1/recommend", {"history": [4]}).json()
    of_user = ask(alone, "GET", "/v1/users/17/recommendations?k=2").json()
    answers = [*results, single, of_user]
    assert len({answer.pop("recommendation_id") for answer in answers}) == 5
    assert {answer.pop("arm") for answer in answers} == {"run"}
    del body["requests"][0]["user_id"]
    assert results == post(app, "/v1/recommend", body).json()["results"]
    assert of_user == ask(app, "GET", "/v1/users/17/recommendations?k=2").json()
    kept = exposures(alone)
    assert len(kept) == 5
    salt = alone.online.store.salt
    items = {user: json.loads(items) for user, _, items in kept}
    assert items.keys() == {pseudonym(salt, "u"), None, pseudonym(salt, 17)}
    assert items[pseudonym(salt, "u")] == [item["item_id"] for item in results[0]["items"]]


def test_a_long_request_has_an_id_for_each_of_its_lists(alone: Application) -> None:
    body = {"requests": [{"history": [i % 30 + 1], "k": 30, "user_id": i} for i in range(100)]}
    results = post(alone, "/v1/recommend", body).json()["results"]
    assert len({answer["recommendation_id"] for answer in results}) == 100
    given = [feedback_on(answer) for answer in results]
    assert post(alone, "/v1/feedback", {"feedback": given}).json() == {"stored": 100, "repeated": 0}


def test_lists_that_nobody_sees_are_not_kept(alone: Application) -> None:
    hidden = [
        post(alone, "/v1/recommend", {"history": [1], "shown": False}).json(),
        ask(alone, "GET", "/v1/users/17/recommendations?shown=false").json(),
    ]
    assert [answer["recommendation_id"] for answer in hidden] == [None, None]
    assert exposures(alone) == []
    shown = post(alone, "/v1/recommend", {"requests": [{"history": [1], "shown": s} for s in (False, True)]}).json()
    assert [answer["recommendation_id"] is None for answer in shown["results"]] == [True, False]
    assert len(exposures(alone)) == 1


def test_feedback_is_stored_once_and_told(alone: Application) -> None:
    answer = post(alone, "/v1/recommend", {"history": [1], "k": 3, "user_id": "u"}).json()
    post(alone, "/v1/recommend", {"history": [2], "k": 3})
    click, buy = feedback_on(answer), feedback_on(answer, "buy", 2)
    assert post(alone, "/v1/feedback", click).json() == {"stored": 1, "repeated": 0}
    again = {**click, "item_id": str(click["item_id"])}
    assert post(alone, "/v1/feedback", {"feedback": [again, buy]}).json() == {"stored": 1, "repeated": 1}
    assert post(alone, "/v1/feedback", {"feedback": []}).json() == {"stored": 0, "repeated": 0}
    [version] = ask(alone, "GET", "/v1/online").json()["versions"]
    assert version["model_version"] == answer["model_version"]
    assert (version["exposures"], version["answers_now"], version["any"]["hit_rate"]) == (2, True, 0.5)
    assert version["kinds"]["buy"] == {"feedback": 1, "hits": 1, "hit_rate": 0.5}
    told = ask(alone, "GET", "/metrics").text
    labels = f'arm="run",kind="click",version="{answer["model_version"]}"'
    assert f"sasrec_hit_rate{{{labels}}} 0.5" in told
    assert "sasrec_feedback_total 2.0" in told


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "Clicked!"}, "kind is no short word"),
        ({"kind": ""}, "kind is no short word"),
        ({"item_id": "z" * 513}, "item_id is longer than 512 characters"),
        ({"item_id": 99}, "item_id is no item of that list"),
        ({"recommendation_id": "0" * 36}, "recommendation_id is not known or has expired"),
        ({"recommendation_id": 3}, "xpected str, got int"),
        ({"item": 3}, "a field that is not one of recommendation_id, item_id, kind"),
    ],
)
def test_feedback_that_does_not_fit_is_422_in_one_sentence(alone: Application, change: Any, sentence: str) -> None:
    good = feedback_on(post(alone, "/v1/recommend", {"history": [1], "k": 3}).json())
    for body in ({**good, **change}, {"feedback": [good, {**good, **change}]}):
        refused = post(alone, "/v1/feedback", body)
        assert refused.status_code == 422
        assert sentence in refused.json()["error"]
        assert "Clicked" not in refused.text
    assert post(alone, "/v1/feedback", {"feedback": [good] * 129}).status_code == 422
    assert post(alone, "/v1/feedback", good).json() == {"stored": 1, "repeated": 0}


def test_keys_and_origins_hold_for_feedback_as_for_events(recommender: Recommender, tmp_path: Path) -> None:
    file = io.BytesIO()
    config = ServerConfig(feedback=str(tmp_path / "f.db"))
    made = create_app(recommender, config, keys=["sesame"], log_file=file)
    key = {"X-API-Key": "sesame"}
    answer = post(made, "/v1/recommend", {"history": [1], "user_id": "somebody"}, headers=key).json()
    given = feedback_on(answer)
    assert post(made, "/v1/feedback", given).status_code == 401
    assert ask(made, "GET", "/v1/online").status_code == 401
    assert post(made, "/v1/feedback", given, headers={**key, "Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert post(made, "/v1/feedback", given, headers=key).json() == {"stored": 1, "repeated": 0}
    made.close()
    for secret in ("somebody", answer["recommendation_id"], "sesame"):
        assert secret.encode() not in file.getvalue()


def test_when_lists_cannot_be_kept_answers_go_on_without_ids(alone: Application, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-away"))
    answer = post(alone, "/v1/recommend", {"history": [1]}).json()
    assert answer["recommendation_id"] is None
    assert len(answer["items"]) == 10
    assert ask(alone, "GET", "/v1/online").json() == {"versions": []}
    assert ask(alone, "GET", "/health/ready").status_code == 200
    assert "sasrec_exposures_lost_total 1.0" in ask(alone, "GET", "/metrics").text
    tmp_path.with_name(f"{tmp_path.name}-away").rename(tmp_path)


def answers_of(app: Application, **more: Any) -> dict[int, Any]:
    requests = [{"history": [1, 2], "k": 5, "user_id": user, **more} for user in USERS]
    return dict(zip(USERS, post(app, "/v1/recommend", {"requests": requests}).json()["results"], strict=True))


def test_a_stable_share_of_the_users_gets_the_challenger(
    two: Application, recommender: Recommender, other: Path, tmp_path: Path
) -> None:
    answers = answers_of(two)
    lists = {
        "run": recommender.recommend([[1, 2]], k=5)["item_id"].to_list(),
        "challenger": sasrec.load(other).recommend([[1, 2]], k=5)["item_id"].to_list(),
    }
    assert lists["run"] != lists["challenger"]
    versions = {"run": recommender.model_version, "challenger": sasrec.load(other).model_version}
    for answer in answers.values():
        assert [item["item_id"] for item in answer["items"]] == lists[answer["arm"]]
        assert answer["model_version"] == versions[answer["arm"]]
    arms = {user: answer["arm"] for user, answer in answers.items()}
    assert 3 < sum(arm == "challenger" for arm in arms.values()) < 22
    for user in USERS:  # alone as in a batch, as text as as a number
        assert post(two, "/v1/recommend", {"history": [3], "user_id": str(user)}).json()["arm"] == arms[user]
    assert post(two, "/v1/recommend", {"history": [1, 2], "k": 5}).json()["arm"] == "run"  # nobody is named
    again = quiet_app(recommender, feedback=str(tmp_path / "f.db"), challenger=f"{other}:0.3")
    assert {user: answer["arm"] for user, answer in answers_of(again).items()} == arms
    again.close()
    assert {arm for _, arm, _ in exposures(two)} == {"run", "challenger"}


def test_a_user_of_the_log_gets_one_arm_by_either_route_and_both_arms_know_the_same_history(
    two: Application, recommender: Recommender, other: Path
) -> None:
    rival = sasrec.load(other)
    for user in range(1, 20):
        answer = ask(two, "GET", f"/v1/users/{user}/recommendations?k=4").json()
        assert answer["arm"] == post(two, "/v1/recommend", {"history": [1], "user_id": user}).json()["arm"]
        model = recommender if answer["arm"] == "run" else rival
        expected = model.recommend_users([user], k=4)["item_id"].to_list()
        assert [item["item_id"] for item in answer["items"]] == expected
    assert two.service.challenger.model.sequences is None
    assert {ask(two, "GET", f"/v1/users/nobody-{i}/recommendations").status_code for i in range(20)} == {404}


def test_expressions_and_large_requests_meet_both_models(two: Application) -> None:
    answers = answers_of(two, where="price < 9")
    assert {answer["arm"] for answer in answers.values()} == {"run", "challenger"}
    for answer in answers.values():
        assert answer["items"]
        assert all(item["item_id"] < 9 for item in answer["items"])
    broken = post(two, "/v1/recommend", {"requests": [{"history": [1], "where": "x <", "user_id": u} for u in USERS]})
    assert broken.status_code == 422


def test_health_model_and_metrics_name_both_models(two: Application) -> None:
    health, facts = ask(two, "GET", "/health/ready").json(), ask(two, "GET", "/v1/model").json()
    assert health["model_version"] == facts["model_version"]
    assert health["challenger_version"] == facts["challenger"]["model_version"] != facts["model_version"]
    assert facts["challenger"]["share"] == 0.3
    told = ask(two, "GET", "/metrics").text
    assert f'sasrec_challenger_model_info{{version="{health["challenger_version"]}"}} 1.0' in told
    assert f'sasrec_model_info{{version="{health["model_version"]}"}} 1.0' in told
    answers_of(two)
    versions = ask(two, "GET", "/v1/online").json()["versions"]
    assert {(v["model_version"], v["arm"], v["answers_now"]) for v in versions} == {
        (health["model_version"], "run", True), (health["challenger_version"], "challenger", True),
    }  # fmt: skip


def test_the_log_names_the_version_that_answered(recommender: Recommender, other: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    config = ServerConfig(feedback=str(tmp_path / "f.db"), challenger=f"{other}:0.5")
    made = create_app(recommender, config, log_file=file)
    answers = [post(made, "/v1/recommend", {"history": [1], "user_id": user}).json() for user in range(10)]
    made.close()
    logged = [json.loads(line)["model_version"] for line in file.getvalue().splitlines()]
    assert logged == [answer["model_version"] for answer in answers]
    assert len(set(logged)) == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("0.1", "is no run folder with a share between 0 and 1"),
        (":0.1", "is no run folder with a share"),
        ("runs/b:1", "is no run folder with a share"),
        ("runs/b:nan", "is no run folder with a share"),
        ("runs/b:tenth", "is no run folder with a share"),
    ],
)
def test_a_challenger_that_cannot_be_read_is_wrong_usage(given: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ServerConfig(feedback="f.db", challenger=given)


def test_a_challenger_needs_the_feedback_file() -> None:
    with pytest.raises(ConfigError, match="challenger needs feedback"):
        ServerConfig(challenger="runs/b:0.1")
    assert ServerConfig(feedback="f.db", challenger="a:b/c:0.1").challenger == "a:b/c:0.1"


def truncated(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-64])
    return "model.safetensors is damaged"


def of_another_catalogue(folder: Path) -> str:
    log = make_markov_log().with_columns(pl.col("item_id") + 25)
    save_plain(sasrec.fit(log, **SMALL), folder)
    return "knows 5 of the 30 items .* another catalogue"


def without_attributes(folder: Path) -> str:
    save_plain(with_attributes(sasrec.load(folder), None), folder)
    return "have no column 'genre'"


def gone(folder: Path) -> str:
    shutil.rmtree(folder)
    return "there is no run folder"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncated, of_another_catalogue, without_attributes, gone])
def test_a_challenger_that_does_not_fit_is_refused_at_start_and_on_reload_the_old_one_goes_on(
    recommender: Recommender, other: Path, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    save_plain(recommender, run)
    shutil.copytree(other, tmp_path / "bad")
    reason = damage(tmp_path / "bad")
    config = ServerConfig(access_log=False, feedback=str(tmp_path / "f.db"), challenger=f"{tmp_path / 'link'}:0.5")
    (tmp_path / "link").symlink_to("bad")
    service = Service(Metrics(), path=run)
    create_app(None, config, service=service)
    with pytest.raises(CheckpointError, match=reason):
        service.load()

    point(tmp_path / "link", other)
    service = Service(Metrics(), path=run)
    made = create_app(None, config, service=service)
    service.load()
    before = answers_of(made)
    point(tmp_path / "link", "bad")
    assert service.has_moved() == (damage is not gone)
    with caplog.at_level(logging.ERROR):
        assert service.reload()  # the first model is fine
    assert "the challenger could not be reloaded, and the one before it answers" in caplog.text
    after = answers_of(made)
    assert [(a["arm"], a["items"]) for a in after.values()] == [(a["arm"], a["items"]) for a in before.values()]
    health = ask(made, "GET", "/health/ready").json()
    assert health["reload_error"] is None
    assert re.search(reason, health["challenger_reload_error"])
    assert "sasrec_challenger_last_reload_ok 0.0" in ask(made, "GET", "/metrics").text
    point(tmp_path / "link", other)
    assert service.reload()
    assert ask(made, "GET", "/health/ready").json()["challenger_reload_error"] is None
    made.close()


def test_until_the_challenger_is_loaded_the_server_is_not_ready(
    recommender: Recommender, other: Path, tmp_path: Path
) -> None:
    service = Service(Metrics())
    config = ServerConfig(access_log=False, feedback=str(tmp_path / "f.db"), challenger=f"{other}:0.5")
    made = create_app(None, config, service=service)
    service.use(recommender)
    assert ask(made, "GET", "/health/ready").json()["status"] == "loading"
    codes = {post(made, "/v1/recommend", {"history": [1], "user_id": u}).status_code for u in range(10)}
    assert codes == {200, 503}
    made.close()
