"""Metrics."""

import pytest

from sasrec.serving.telemetry import Metrics


def test_requests_are_counted_by_route_and_code_and_timed_whatever_the_code() -> None:
    metrics = Metrics()
    for code in (200, 200, 422, 503):
        metrics.request("/v1/recommend", code, 0.002)
    value = metrics.registry.get_sample_value
    assert value("sasrec_requests_total", {"route": "/v1/recommend", "code": "200"}) == 2
    assert value("sasrec_requests_total", {"route": "/v1/recommend", "code": "503"}) == 1
    assert value("sasrec_request_seconds_count", {"route": "/v1/recommend"}) == 4
    assert value("sasrec_request_seconds_bucket", {"route": "/v1/recommend", "le": "0.0025"}) == 4
    assert value("sasrec_request_seconds_bucket", {"route": "/v1/recommend", "le": "0.001"}) == 0


def test_the_models_age_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr("sasrec.serving.telemetry.time.time", lambda: now)
    metrics = Metrics()
    assert b"sasrec_model_age_seconds 0.0" in metrics.exposition().splitlines()
    metrics.of_model.changed("abc")
    now += 60
    assert b"sasrec_model_age_seconds 60.0" in metrics.exposition().splitlines()
