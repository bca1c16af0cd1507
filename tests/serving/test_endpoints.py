"""What holds on every route: errors as one sentence of JSON, bodies in pieces, API keys, the access log."""

import asyncio
import io
import json
from typing import Any

import pytest
from served import ask, post, quiet_app

from sasrec.core.server_config import ServerConfig
from sasrec.recommender import Recommender
from sasrec.serving.app import Application, create_app
from sasrec.serving.keys import Keys


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
    app = quiet_app(recommender)

    async def broken(call: Any) -> Any:
        raise ZeroDivisionError("secret")

    app.routes[0].app.handler = broken
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
    app.keys = Keys(["fourth"])
    assert post(app, "/v1/recommend", body, headers={"X-API-Key": "first"}).status_code == 401
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
