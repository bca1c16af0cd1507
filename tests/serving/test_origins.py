"""Requests of browsers: a foreign host and a foreign site are refused where it matters, and nothing else is."""

from pathlib import Path

import pytest
from served import ask, post, quiet_app

from sasrec.recommender import Recommender

EVENT = {"user_id": 1, "item_id": 2}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"Origin": "http://test", "Sec-Fetch-Site": "same-origin"}, 200),  # our page
        ({"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"}, 200),  # our page behind a proxy
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://test"}, 200),  # of an old browser
        ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_events_of_other_sites_pages_are_refused(
    recommender: Recommender, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    app = quiet_app(recommender, events=str(tmp_path / "events.db"))
    reply = post(app, "/v1/events", EVENT, headers=headers)
    assert reply.status_code == status
    if status == 403:
        assert "not taken from other sites' pages" in reply.json()["error"]
        assert app.events.events_of(1) == []
    assert post(app, "/v1/recommend", {"history": [1]}, headers=headers).status_code == 200  # it changes nothing
    app.close()


def test_a_body_needs_no_content_type(recommender: Recommender, tmp_path: Path) -> None:
    app = quiet_app(recommender, events=str(tmp_path / "events.db"))
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # curl -d
    for headers in ({}, form):
        assert ask(app, "POST", "/v1/events", content=b'{"user_id": 1, "item_id": 2}', headers=headers).json() == {
            "stored": 1, "unknown_items": [],
        }  # fmt: skip
    app.close()


def test_only_allowed_hosts_are_answered_but_for_those_who_watch(recommender: Recommender) -> None:
    app = quiet_app(recommender, allowed_hosts="sasrec.example, Localhost,::1")
    for host in ("sasrec.example", "SASREC.example:8000", "localhost", "[::1]:8000", "[::1]"):
        assert ask(app, "GET", "/v1/model", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "sasrec.example.evil.example", "10.0.0.1:8000", ""):
        for path in ("/v1/model", "/", "/openapi.json", "/nothing"):
            refused = ask(app, "GET", path, headers={"Host": host})
            assert refused.status_code == 403
            assert "--allowed-hosts" in refused.json()["error"]
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert ask(app, "GET", path, headers={"Host": host}).status_code == 200
    app.close()


def test_any_host_is_answered_by_default(recommender: Recommender) -> None:
    app = quiet_app(recommender)
    assert ask(app, "GET", "/v1/model", headers={"Host": "any.example"}).status_code == 200
    app.close()
