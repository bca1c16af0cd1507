"""The description of the API: it is valid, has every route and limit, and every answer is as it says."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from served import ask

from sasrec.core.config import ServerConfig
from sasrec.recommender import Recommender
from sasrec.serving.app import Application, create_app
from sasrec.serving.openapi import openapi

LIMITS = ServerConfig(max_k=20, max_history=5, max_filter=3, max_requests=2)
FUZZ_CASES = int(os.environ.get("SASREC_FUZZ_CASES", "300"))  # more of them: docs/serving.md


def test_the_description_has_the_limits_and_only_what_is_on() -> None:
    plain = openapi(LIMITS, with_key=False, with_events=False)
    assert plain["components"]["schemas"]["Query"]["properties"]["history"]["maxItems"] == 5
    assert plain["components"]["schemas"]["Query"]["properties"]["where"]["anyOf"][0]["maxLength"] == 1000
    assert plain["components"]["schemas"]["Query"]["properties"]["diversity"]["maximum"] == 1
    assert "/v1/events" not in plain["paths"]
    assert "security" not in plain["paths"]["/v1/recommend"]["post"]
    full = openapi(LIMITS, with_key=True, with_events=True)
    assert full["paths"]["/v1/events"]["post"]["security"] == [{"key": []}]
    assert "401" in full["paths"]["/v1/model"]["get"]["responses"]
    assert "security" not in full["paths"]["/health/live"]["get"]


def test_the_description_tells_the_rule_for_unknown_ids_of_filters() -> None:
    described = openapi(LIMITS, with_key=False, with_events=False)
    query, answer = (described["components"]["schemas"][name]["description"] for name in ("Query", "Answer"))
    assert "skipped and listed" in query
    assert "where it knows no id of `allow`, the answer has no items" in query
    assert "the ids of the history, of `allow` and of `deny`, in this order" in answer
    parameters = described["paths"]["/v1/users/{user_id}/recommendations"]["get"]["parameters"]
    rules = {parameter["name"]: parameter.get("description", "") for parameter in parameters}
    assert "ids not known are skipped" in rules["deny"]
    assert "without any known id no item is left" in rules["allow"]


@pytest.mark.slow
def test_the_description_is_valid_openapi_with_every_route(app: Application) -> None:
    described = ask(app, "GET", "/openapi.json").json()
    templates = {endpoint.path.replace(":path", "") for endpoint in app.routes}
    assert set(described["paths"]) == templates - {"/", "/static/{name}", "/openapi.json"}
    schemathesis.openapi.from_dict(described).validate()


@pytest.fixture
def fuzzed(recommender: Recommender, tmp_path: Path) -> Iterator[Any]:
    config = ServerConfig(access_log=False, max_k=50, events=str(tmp_path / "e.db"))
    made = create_app(recommender, config)
    described = ask(made, "GET", "/openapi.json").json()
    yield schemathesis.openapi.from_dict(described), made
    made.close()


def say_expressions(part: Any) -> None:
    """Make an expression of each `where`: no description can say which texts are some."""
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        say_expressions(inner)
    if isinstance(part, dict) and isinstance(part.get("where"), str):
        part["where"] = f"count > {len(part['where'])} or genre = 'drama'"


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
        if case.meta.generation.mode.is_positive:
            say_expressions(case.body)
            say_expressions(case.query)
        reply = case.call(app=app)
        assert reply.status_code < 500 or reply.status_code == 503, case.as_curl_command()
        case.validate_response(reply)

    for operation, mode in plans:
        bounded(given(case=operation.as_strategy(generation_mode=mode))(check))()
    assert n_cases > FUZZ_CASES / 2  # routes that take nothing have few cases
