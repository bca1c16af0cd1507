"""The HTTP contract, in this process: answers, errors, limits, keys, health, metrics, log, pages."""

import asyncio
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

import sasrec
from sasrec.core.config import ServerConfig
from sasrec.recommender import Recommender
from sasrec.serving.app import Application, create_app
from sasrec.serving.service import Service
from sasrec.serving.telemetry import Metrics

SMALL: dict[str, Any] = {
    "embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "threads": 1, "max_epochs": 1, "filter_seen": "yes",
}  # fmt: skip
TITLES = pl.DataFrame({"item_id": range(1, 31), "title": [f"Film {i}" for i in range(1, 31)]})
FUZZ_CASES = int(os.environ.get("SASREC_FUZZ_CASES", "300"))  # more of them: docs/serving.md


@pytest.fixture(scope="module")
def recommender(markov_log: pl.DataFrame) -> Recommender:
    return sasrec.fit(markov_log, titles=TITLES, **SMALL)


def ask(app: Application, method: str, path: str, **request: Any) -> httpx.Response:
    """One request, in an event loop of its own."""

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(main())


def post(app: Application, path: str, body: Any, **request: Any) -> httpx.Response:
    return ask(app, "POST", path, json=body, **request)


@pytest.fixture(scope="module")
def app(recommender: Recommender) -> Iterator[Application]:
    made = create_app(recommender, ServerConfig(access_log=False, max_k=50, max_body_bytes=100_000))
    yield made
    made.close()


def small_app(recommender: Recommender | None, **config: Any) -> Application:
    return create_app(recommender, ServerConfig(**{"access_log": False, **config}))


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


def test_ids_in_paths_may_have_slashes_and_any_letter(markov_log: pl.DataFrame) -> None:
    log = markov_log.with_columns(
        pl.format("a/b ü{}", "item_id").alias("item_id"), pl.format("u/{}", "user_id").alias("user_id")
    )
    app = small_app(sasrec.fit(log, **SMALL))
    assert ask(app, "GET", "/v1/items/a%2Fb%20%C3%BC5/similar").status_code == 200
    assert ask(app, "GET", "/v1/users/u%2F17/recommendations").status_code == 200
    app.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/recommend", {"history": [1], "k": 51}, 422, "k is not a number of items from 1 to 50"),
        ("POST", "/v1/recommend", {"history": "secret"}, 422, "expected array, got str"),
        ("POST", "/v1/recommend", {"history": [1] * 10_001}, 422, "history has 10001 elements"),
        ("POST", "/v1/recommend", {"history": ["secret" * 20_000]}, 422, "longer than 100000 bytes"),
        ("POST", "/v1/explain", {"history": ["secret"], "item_id": 1}, 404, "nothing to explain"),
        ("POST", "/v1/explain", {"history": [1], "item_id": "secret"}, 404, "this item is not in the log"),
        ("GET", "/v1/users/secret/recommendations", None, 404, "this user is not in the log (200 users)"),
        ("GET", "/v1/items/secret/similar", None, 404, "this item is not in the log"),
        ("GET", "/v1/items/1/similar?k=secret", None, 422, "k is not a number"),
        ("GET", "/v1/items?secret=1", None, 422, "a parameter is not one of query, k"),
        ("GET", "/v1/model?x=1", None, 422, "those known (none)"),
        ("GET", "/secret", None, 404, "there is nothing at this path"),
        ("GET", "/static/../../secret", None, 404, "there is nothing at this path"),
        ("GET", "/static/secret", None, 404, "there is nothing at this path"),
        ("POST", "/v1/events", {"user_id": 1, "item_id": 1}, 404, "there is nothing at this path"),
        ("GET", "/v1/recommend", None, 405, "this path takes POST only"),
        ("DELETE", "/v1/model", None, 405, "this path takes GET, HEAD only"),
    ],
)  # fmt: skip
def test_errors_are_a_sentence_in_json_without_the_clients_text(
    app: Application, method: str, path: str, body: Any, status: int, words: str
) -> None:
    reply = ask(app, method, path, json=body) if body is not None else ask(app, method, path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert words in reply.json()["error"]
    assert "secret" not in reply.text
    if status == 405:
        assert reply.headers["allow"]


async def send_parts(app: Application, parts: list[bytes]) -> int:
    """The status of a request whose body comes in these parts; 0 = no answer."""
    statuses: list[int] = []
    left = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]

    async def receive() -> Any:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "query_string": b"", "headers": []}
    await app({**scope, "client": None}, receive, send)
    return statuses[0] if statuses else 0


def test_a_body_in_pieces_is_read_whole_and_one_without_end_is_given_up(app: Application) -> None:
    def status(parts: list[bytes]) -> int:
        return asyncio.run(send_parts(app, parts))

    assert status([b'{"his', b'tory": ', b"[1]}"]) == 200
    assert status([b'{"his', b'tory": ']) == 422
    assert status([b"x" * 60_000] * 3) == 422
    assert status([b"x" * 60_000] * 10_000) == 422


def test_a_client_that_goes_before_its_body_has_come_is_counted_and_not_answered(app: Application) -> None:
    def gone() -> float:
        labels = {"route": "/v1/recommend", "code": "499"}
        return app.metrics.registry.get_sample_value("sasrec_requests_total", labels) or 0

    before = gone()
    assert asyncio.run(send_parts(app, [])) == 0
    assert gone() == before + 1


def test_a_failure_of_ours_is_a_500_that_tells_nothing_and_the_log_has_it(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    app = small_app(recommender)

    async def broken(call: Any) -> Any:
        raise ZeroDivisionError("secret")

    app._router.routes[0].app.handler = broken
    reply = ask(app, "POST", "/v1/recommend", json={})
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] in caplog.text
    app.close()


def test_keys_open_the_api_and_nothing_else_needs_one(recommender: Recommender) -> None:
    app = create_app(recommender, ServerConfig(access_log=False), keys=["first", "second"])
    body = {"history": [1]}
    for headers in ({}, {"X-API-Key": "third"}, {"X-API-Key": ""}, {"X-API-Key": "firs"}):
        refused = post(app, "/v1/recommend", body, headers=headers)
        assert refused.status_code == 401
        assert "X-API-Key" in refused.json()["error"]
        assert refused.headers["www-authenticate"] == "ApiKey"
    for key in ("first", "second"):
        assert post(app, "/v1/recommend", body, headers={"X-API-Key": key}).status_code == 200
    for path in ("/", "/health/live", "/health/ready", "/metrics", "/openapi.json"):
        assert ask(app, "GET", path).status_code == 200
    app.set_keys(["fourth"])
    assert post(app, "/v1/recommend", body, headers={"X-API-Key": "first"}).status_code == 401
    app.close()


def test_ready_only_with_a_model_and_not_while_draining(recommender: Recommender) -> None:
    service = Service(Metrics())
    app = create_app(None, ServerConfig(access_log=False), service=service)
    assert ask(app, "GET", "/health/live").status_code == 200
    loading = ask(app, "GET", "/health/ready")
    assert (loading.status_code, loading.json()["status"]) == (503, "loading")
    refused = post(app, "/v1/recommend", {"history": [1]})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    service.serve(recommender)
    assert ask(app, "GET", "/health/ready").json()["status"] == "ready"
    app.is_draining = True
    draining = ask(app, "GET", "/health/ready")
    assert (draining.status_code, draining.json()["status"]) == (503, "draining")
    late = post(app, "/v1/recommend", {"history": [1]})
    assert (late.status_code, late.headers["connection"]) == (200, "close")
    app.close()


def test_a_full_queue_is_503_with_retry_after_and_recovers(recommender: Recommender) -> None:
    app = small_app(recommender, queue_size=2, max_requests=2)

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
    app = small_app(recommender)
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


def test_the_log_has_a_line_a_request_without_bodies_keys_and_query_strings(recommender: Recommender) -> None:
    file = io.BytesIO()
    app = create_app(recommender, ServerConfig(), keys=["sesame"], log_file=file)
    headers = {"X-API-Key": "sesame", "X-Request-ID": "abc-1"}
    post(app, "/v1/recommend", {"history": ["secret"]}, headers=headers)
    ask(app, "GET", "/v1/items?query=secret", headers={**headers, "X-Request-ID": 'no "id'})
    app.close()
    first, second = map(json.loads, file.getvalue().splitlines())
    assert set(first) == {
        "time", "method", "route", "status", "ms", "bytes", "client", "request_id", "model_version",
    }  # fmt: skip
    assert (first["method"], first["route"], first["status"], first["request_id"]) == (
        "POST", "/v1/recommend", 200, "abc-1",
    )  # fmt: skip
    assert second["request_id"] != 'no "id'
    assert b"secret" not in file.getvalue()
    assert b"sesame" not in file.getvalue()


def test_pages_are_served_with_a_strict_policy_and_only_those(app: Application) -> None:
    page = ask(app, "GET", "/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page.text)
    again = ask(app, "GET", "/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert ask(app, "HEAD", "/").status_code == 200


def test_events_reach_the_next_recommendation(recommender: Recommender, tmp_path: Path) -> None:
    app = small_app(recommender, events=str(tmp_path / "events.db"), max_events=3)
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
    unknown = post(app, "/v1/events", {"events": [*events["events"], {"user_id": "secret", "item_id": 1}]})
    assert unknown.status_code == 404
    assert "none was stored" in unknown.json()["error"]
    assert "secret" not in unknown.text
    assert post(app, "/v1/events", events).status_code == 503
    assert post(app, "/v1/events", {"user_id": 17, "item_id": 1}).json()["stored"] == 1
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


@pytest.mark.slow
def test_the_description_is_valid_openapi_with_every_route(app: Application) -> None:
    described = ask(app, "GET", "/openapi.json").json()
    templates = {endpoint.path.replace(":path", "") for endpoint in app._router.routes}
    assert set(described["paths"]) == templates - {"/", "/static/{name}", "/openapi.json"}
    schemathesis.openapi.from_dict(described).validate()


@pytest.fixture(scope="module")
def fuzzed(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    config = ServerConfig(access_log=False, max_k=50, events=str(tmp_path_factory.mktemp("events") / "e.db"))
    made = create_app(recommender, config)
    described = ask(made, "GET", "/openapi.json").json()
    yield schemathesis.openapi.from_dict(described), made
    made.close()


@pytest.mark.slow
def test_whatever_fits_the_description_or_not_is_answered_as_described(fuzzed: tuple[Any, Application]) -> None:
    schema, app = fuzzed
    operations = [result.ok() for result in schema.get_all_operations()]
    plans = [
        (operation, mode)
        for operation in operations
        for mode in schemathesis.GenerationMode
        if mode.is_positive or operation.body or list(operation.iter_parameters())  # else nothing can be wrong
    ]
    bounded = settings(
        max_examples=-(-FUZZ_CASES // len(plans)), deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    n_cases = 0

    def check(case: Any) -> None:
        nonlocal n_cases
        n_cases += 1
        reply = case.call(app=app)
        assert reply.status_code < 500 or reply.status_code == 503, case.as_curl_command()
        case.validate_response(reply)

    for operation, mode in plans:
        bounded(given(case=operation.as_strategy(generation_mode=mode))(check))()
    assert n_cases > FUZZ_CASES / 2  # routes that take nothing have few cases
