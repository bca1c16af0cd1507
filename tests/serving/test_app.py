"""The HTTP contract, in this process: what each route answers."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from served import SMALL, ask, post, quiet_app, with_attributes

import sasrec
from sasrec.core.server_config import ServerConfig
from sasrec.recommender import Recommender
from sasrec.serving.app import SCAN_ROWS, Application, create_app
from sasrec.serving.service import Service
from sasrec.serving.telemetry import Metrics


def test_a_history_gets_the_librarys_answer_by_http(app: Application, recommender: Recommender) -> None:
    reply = post(app, "/v1/recommend", {"history": [1, "2", "x"], "k": 3})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    answer = reply.json()
    assert set(answer) == {"items", "unknown_items", "fallback", "model_version"}
    assert answer["unknown_items"] == ["x"]
    assert answer["fallback"] is False
    expected = recommender.recommend([[1, 2]], k=3)
    assert [item["item_id"] for item in answer["items"]] == expected["item_id"].to_list()
    assert [item["score"] for item in answer["items"]] == pytest.approx(expected["score"].to_list())
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3]
    assert answer["items"][0]["title"] == f"Film {answer['items'][0]['item_id']}"


def test_an_empty_history_gets_popular_items(app: Application, recommender: Recommender) -> None:
    answer = post(app, "/v1/recommend", {"history": []}).json()
    assert answer["fallback"] is True
    assert [i["item_id"] for i in answer["items"]] == recommender.recommend([[]], k=10)["item_id"].to_list()


def test_several_histories_are_answered_in_order(app: Application) -> None:
    one, two = {"history": [1, 2], "k": 3}, {"history": ["x"], "k": 2}
    results = post(app, "/v1/recommend", {"requests": [one, two]}).json()["results"]
    assert results == [post(app, "/v1/recommend", one).json(), post(app, "/v1/recommend", two).json()]
    assert post(app, "/v1/recommend", {"requests": []}).json() == {"results": []}


def test_users_items_search_explanations_and_the_model_are_answered(app: Application, recommender: Recommender) -> None:
    answer = ask(app, "GET", "/v1/users/17/recommendations?k=4&deny=1&deny=2&keep_seen=false").json()
    expected = recommender.recommend_users([17], k=4, deny=[1, 2], keep_seen=False)
    assert [i["item_id"] for i in answer["items"]] == expected["item_id"].to_list()
    similar = ask(app, "GET", "/v1/items/5/similar?k=2").json()
    assert [i["item_id"] for i in similar["items"]] == recommender.similar_items(5, 2)["item_id"].to_list()
    assert ask(app, "GET", "/v1/items?query=film+12").json()["items"][0]["item_id"] == 12
    explained = post(app, "/v1/explain", {"history": [1, 2], "item_id": 9}).json()
    assert {reason["item_id"] for reason in explained["reasons"]} == {1, 2}
    facts = ask(app, "GET", "/v1/model").json()
    assert facts["n_items"] == 30
    assert facts["limits"]["max_k"] == 50
    assert facts["model_version"] == answer["model_version"]
    assert facts["results"] == json.loads(json.dumps([result.to_dict() for result in recommender.results]))


def ids_in(answer: Any) -> list[Any]:
    return [item["item_id"] for item in answer["items"]]


@pytest.mark.parametrize("history", [[1, 2], [], ["x"]], ids=["known", "empty", "unknown"])
def test_unknown_ids_of_allow_and_deny_are_skipped_and_listed(app: Application, history: list[Any]) -> None:
    def answered(**filters: Any) -> tuple[list[Any], list[Any]]:
        reply = post(app, "/v1/recommend", {"history": history, "k": 4, **filters})
        assert reply.status_code == 200
        return ids_in(reply.json()), reply.json()["unknown_items"]

    unknown = [i for i in history if i == "x"]
    plain, _ = answered()
    assert len(plain) == 4
    few, listed = answered(allow=[plain[2], "a", str(plain[0]), plain[1], 99], deny=["d", plain[1]])
    assert (few, listed) == ([plain[0], plain[2]], [*unknown, "a", 99, "d"])
    assert answered(deny=["d", 99]) == (plain, [*unknown, "d", 99])
    for allow in (["a", 99], []):  # nothing that is known is allowed, so nothing is given
        assert answered(allow=allow) == ([], [*unknown, *allow])
        assert answered(allow=allow, deny=["d"]) == ([], [*unknown, *allow, "d"])


def test_unknown_ids_of_filters_in_the_query_string_are_skipped_and_listed(app: Application) -> None:
    def answered(query: str) -> tuple[list[Any], list[Any]]:
        reply = ask(app, "GET", f"/v1/users/17/recommendations?k=4{query}")
        assert reply.status_code == 200
        return ids_in(reply.json()), reply.json()["unknown_items"]

    plain, _ = answered("")
    filters = f"&allow={plain[2]}&allow=a&allow={plain[1]}&allow=99&deny=d&deny={plain[1]}"
    assert answered(filters) == ([plain[2]], ["a", "99", "d"])
    assert answered("&deny=d") == (plain, ["d"])
    assert answered("&allow=a&allow=99") == ([], ["a", "99"])


def test_items_are_filtered_by_their_attributes_and_lists_made_diverse(
    app: Application, recommender: Recommender
) -> None:
    asked = {"history": [1, 2], "k": 4, "where": "genre = 'drama' and price < 20", "diversity": 0.7, "deny": [3]}
    expected = recommender.recommend([[1, 2]], k=4, where=asked["where"], diversity=0.7, deny=[3])["item_id"].to_list()
    assert len(expected) == 4
    assert ids_in(post(app, "/v1/recommend", asked).json()) == expected
    both = post(app, "/v1/recommend", {"requests": [asked, {"history": [1, 2], "k": 4}]}).json()["results"]
    assert list(map(ids_in, both)) == [expected, recommender.recommend([[1, 2]], k=4)["item_id"].to_list()]
    query = "k=4&where=genre+%3D+%27drama%27+and+price+%3C+20&diversity=0.7"
    users = ask(app, "GET", f"/v1/users/17/recommendations?{query}").json()
    filters: dict[str, Any] = {"where": asked["where"], "diversity": 0.7}
    assert ids_in(users) == recommender.recommend_users([17], k=4, **filters)["item_id"].to_list()
    similar = ask(app, "GET", "/v1/items/5/similar?k=3&where=tags+is+null").json()
    assert ids_in(similar) == recommender.similar_items(5, 3, where="tags is null")["item_id"].to_list()
    facts = ask(app, "GET", "/v1/model").json()
    assert facts["columns"] == {
        "title": "text", "genre": "text", "price": "number", "tags": "text, list", "item_id": "number",
        "count": "number",
    }  # fmt: skip


def test_an_expression_that_does_not_fit_is_told_with_its_place_without_the_clients_text(app: Application) -> None:
    bad = {"history": [1], "where": "price < 3 and secret = 'hidden'"}
    told = "where, character 15: a column was expected, and none has this name"
    for place, reply in {
        "": post(app, "/v1/recommend", bad),
        "requests[1].": post(app, "/v1/recommend", {"requests": [{"history": [1]}, bad]}),
        "where": ask(app, "GET", "/v1/users/17/recommendations?where=secret"),
        "where, ": ask(app, "GET", "/v1/items/5/similar?where=secret"),
    }.items():
        assert reply.status_code == 422
        error = reply.json()["error"]
        assert error.startswith(place if place.startswith("where") else place + told)
        assert "the columns are title (text), genre (text), price (number)" in error
        assert "secret" not in error
        assert "hidden" not in error


def test_a_new_expression_waits_with_the_large_requests_and_a_known_one_does_not(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, weights = quiet_app(with_attributes(recommender)), []
    submit = app.batcher.submit_large

    async def observed(jobs: Any, rows: int) -> Any:
        weights.append(rows)
        return await submit(jobs, rows)

    monkeypatch.setattr(app.batcher, "submit_large", observed)
    for where, seen in (("price < 9", True), ("price < 9", False), ("price < 8", True)):
        weights.clear()
        assert post(app, "/v1/recommend", {"history": [1], "where": where}).status_code == 200
        assert (set(weights) == {SCAN_ROWS}) == seen
    app.close()


def test_a_filter_of_one_request_leaves_the_others_of_its_body_alone(app: Application) -> None:
    alone = {"history": [1, 2], "k": 3}
    requests = [alone, {**alone, "allow": ["a"]}, {**alone, "deny": [5, "d"]}, {"history": [], "allow": [7]}, alone]
    results = post(app, "/v1/recommend", {"requests": requests}).json()["results"]
    for request, result in zip(requests, results, strict=True):
        assert ids_in(result) == ids_in(post(app, "/v1/recommend", request).json())
    assert [len(result["items"]) for result in results] == [3, 0, 3, 1, 3]
    assert [result["unknown_items"] for result in results] == [[], ["a"], ["d"], [], []]


def test_ids_in_paths_may_have_slashes_and_any_letter(markov_log: pl.DataFrame) -> None:
    log = markov_log.with_columns(
        pl.format("a/b ü{}", "item_id").alias("item_id"), pl.format("u/{}", "user_id").alias("user_id")
    )
    app = quiet_app(sasrec.fit(log, **SMALL))
    assert ask(app, "GET", "/v1/items/a%2Fb%20%C3%BC5/similar").status_code == 200
    assert ask(app, "GET", "/v1/users/u%2F17/recommendations").status_code == 200
    app.close()


def test_ready_only_with_a_model_and_not_while_draining(recommender: Recommender) -> None:
    service = Service(Metrics())
    app = create_app(None, ServerConfig(access_log=False), service=service)
    assert ask(app, "GET", "/health/live").status_code == 200
    loading = ask(app, "GET", "/health/ready")
    assert (loading.status_code, loading.json()["status"]) == (503, "loading")
    refused = post(app, "/v1/recommend", {"history": [1]})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    service.use(recommender)
    assert ask(app, "GET", "/health/ready").json()["status"] == "ready"
    app.is_draining = True
    draining = ask(app, "GET", "/health/ready")
    assert (draining.status_code, draining.json()["status"]) == (503, "draining")
    late = post(app, "/v1/recommend", {"history": [1]})
    assert (late.status_code, late.headers["connection"]) == (200, "close")
    app.close()


def test_a_full_queue_is_503_with_retry_after_and_recovers(recommender: Recommender) -> None:
    app = quiet_app(recommender, queue_size=2, max_requests=2)

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            body = {"history": [1]}
            many = await asyncio.gather(*(client.post("/v1/recommend", json=body) for _ in range(20)))
            return [*many, await client.post("/v1/recommend", json={"requests": [body, body]})]

    *many, last = asyncio.run(main())
    assert {reply.status_code for reply in many} == {200, 503}
    assert all(reply.headers["retry-after"] == "1" for reply in many if reply.status_code == 503)
    assert len({reply.text for reply in many if reply.status_code == 200}) == 1
    assert last.status_code == 200
    app.close()


def test_metrics_tell_what_happened(recommender: Recommender) -> None:
    app = quiet_app(recommender)
    post(app, "/v1/recommend", {"history": [1, "x"]})
    post(app, "/v1/recommend", {"history": [], "k": 0})
    text = ask(app, "GET", "/metrics").text
    for line in (
        'sasrec_requests_total{code="200",route="/v1/recommend"} 1.0',
        'sasrec_requests_total{code="422",route="/v1/recommend"} 1.0',
        'sasrec_request_seconds_count{route="/v1/recommend"} 2.0',
        "sasrec_batch_rows_count 1.0",
        "sasrec_requests_in_flight 0.0",
        "sasrec_queue_rows 0.0",
        "sasrec_history_items_total 2.0",
        "sasrec_unknown_items_total 1.0",
        "sasrec_last_reload_ok 1.0",
    ):
        assert line in text.splitlines()
    assert re.search(r'^sasrec_model_info\{version="[0-9a-f]{12}"\} 1.0$', text, re.MULTILINE)
    app.close()


def test_events_reach_the_next_recommendation(recommender: Recommender, tmp_path: Path) -> None:
    app = quiet_app(recommender, events=str(tmp_path / "events.db"), max_events=3)
    before = ask(app, "GET", "/v1/users/17/recommendations").json()
    wanted = [item["item_id"] for item in before["items"][:2]]
    events = {"events": [{"user_id": "17", "item_id": wanted[0]}, {"user_id": 17, "item_id": "new"}]}
    stored = post(app, "/v1/events", events)
    assert stored.json() == {"stored": 2, "unknown_items": ["new"]}
    after = ask(app, "GET", "/v1/users/17/recommendations").json()
    assert wanted[0] not in [item["item_id"] for item in after["items"]]
    assert after["unknown_items"] == ["new"]
    expected = recommender.recommend([[*recommender_history(recommender, 17), wanted[0]]], k=10)
    assert [item["item_id"] for item in after["items"]] == expected["item_id"].to_list()
    assert ask(app, "GET", "/v1/users/17.0/recommendations").json() == after
    unknown = post(app, "/v1/events", {"events": [*events["events"], {"user_id": "secret", "item_id": 1}]})
    assert unknown.status_code == 404
    assert "none was stored" in unknown.json()["error"]
    assert "secret" not in unknown.text
    assert post(app, "/v1/events", events).status_code == 503
    assert post(app, "/v1/events", {"user_id": 17, "item_id": 1}).json()["stored"] == 1
    app.close()


@pytest.mark.parametrize("spelled", ["17", "17.0", 17.0])
def test_events_of_every_spelling_of_a_user_are_that_users(
    recommender: Recommender, tmp_path: Path, spelled: Any
) -> None:
    app = quiet_app(recommender, events=str(tmp_path / "events.db"))
    best = ask(app, "GET", "/v1/users/17/recommendations").json()["items"][0]["item_id"]
    assert post(app, "/v1/events", {"user_id": spelled, "item_id": f"{best}.0"}).json() == {
        "stored": 1,
        "unknown_items": [],
    }
    for user in (17, "17.0"):
        after = ask(app, "GET", f"/v1/users/{user}/recommendations").json()["items"]
        assert best not in [item["item_id"] for item in after]
    app.close()


def recommender_history(recommender: Recommender, user: int) -> list[Any]:
    assert recommender.sequences is not None
    row = recommender.sequences.row_of_user(user)
    return recommender.vocabulary.ids_of(recommender.sequences.history(row)).to_list()


def test_only_http_is_spoken(app: Application) -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(RuntimeError, match="lifespan off"):
        asyncio.run(app({"type": "lifespan"}, nothing, nothing))


def test_a_large_request_gets_the_answers_of_small_ones(app: Application) -> None:
    requests = [{"history": list(range(1, 1 + i % 30)), "k": 1 + i % 50} for i in range(128)]
    results = post(app, "/v1/recommend", {"requests": requests}).json()["results"]
    assert results[::9] == [post(app, "/v1/recommend", request).json() for request in requests[::9]]
    long = [{"history": ["x" * 400] * 50 + [1, 2]}] * 3  # a body that is decoded on another thread
    assert post(app, "/v1/recommend", {"requests": long}).json()["results"] == [
        post(app, "/v1/recommend", request).json() for request in long
    ]
    refused = post(app, "/v1/recommend", {"history": ["x" * 20_000], "k": 0})
    assert (refused.status_code, refused.json()["error"]) == (422, "k is not a number of items from 1 to 50")


def test_not_ready_when_the_thread_that_computes_has_ended(recommender: Recommender, tmp_path: Path) -> None:
    app = quiet_app(recommender, events=str(tmp_path / "events.db"))
    assert ask(app, "GET", "/health/ready").status_code == 200
    for batcher in (app.batcher, app.events.batcher):
        batcher.has_failed = True
        reply = ask(app, "GET", "/health/ready")
        assert (reply.status_code, reply.json()["status"]) == (503, "failed")
        batcher.has_failed = False
    app.close()


def test_not_ready_when_a_task_that_watches_over_the_server_has_ended(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    app = quiet_app(recommender)

    async def main() -> None:
        async def watch() -> None:
            raise ZeroDivisionError

        helper = asyncio.ensure_future(watch())
        helper.add_done_callback(app.helper_ended)
        await asyncio.wait([helper])

    asyncio.run(main())
    assert ask(app, "GET", "/health/ready").json()["status"] == "failed"
    assert "ZeroDivisionError" in caplog.text
    app.close()
