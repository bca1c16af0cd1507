"""The description of the API: it is valid, has every route and limit, and every answer is as it says."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from served import ask, post

from sasrec.core.server_config import ServerConfig
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


def test_a_server_that_measures_describes_what_it_takes_and_gives_more() -> None:
    described = openapi(
        ServerConfig(max_requests=2, feedback="f.db", challenger="b:0.1"), with_key=True, with_events=False
    )
    schemas, paths = described["components"]["schemas"], described["paths"]
    assert {"user_id", "shown"} < set(schemas["OnlineQuery"]["properties"])
    assert "recommendation_id" in schemas["MeasuredAnswer"]["properties"]
    assert schemas["Feedbacks"]["properties"]["feedback"]["maxItems"] == 2
    assert paths["/v1/feedback"]["post"]["security"] == [{"key": []}]
    assert paths["/v1/users/{user_id}/recommendations"]["get"]["parameters"][-1]["name"] == "shown"
    assert "challenger_version" in schemas["TwoHealths"]["properties"]
    plain = openapi(LIMITS, with_key=True, with_events=False)
    assert not {"/v1/feedback", "/v1/online"} & set(plain["paths"])
    assert "OnlineQuery" not in plain["components"]["schemas"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "measuring"])
def test_the_description_is_valid_openapi_with_every_route(
    kind: str, recommender: Recommender, runs: Path, tmp_path: Path
) -> None:
    app = create_app(recommender, settings_of(kind, runs, tmp_path))
    described = ask(app, "GET", "/openapi.json").json()
    templates = {endpoint.path.replace(":path", "") for endpoint in app.routes}
    assert set(described["paths"]) == templates - {"/", "/static/{name}", "/openapi.json"}
    schemathesis.openapi.from_dict(described).validate()
    app.close()


def settings_of(kind: str, runs: Path, folder: Path) -> ServerConfig:
    measuring = {"feedback": str(folder / "f.db"), "challenger": f"{runs / 'a'}:0.3"} if kind == "measuring" else {}
    return ServerConfig(access_log=False, max_k=50, events=str(folder / "e.db"), **measuring)


@pytest.fixture(params=["plain", "measuring"])
def fuzzed(recommender: Recommender, runs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    made = create_app(recommender, settings_of(request.param, runs, tmp_path))
    described = ask(made, "GET", "/openapi.json").json()
    yield schemathesis.openapi.from_dict(described), made
    made.close()


def say_expressions(part: Any) -> None:
    """Make an expression of each `where`: no description can say which texts are some."""
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        say_expressions(inner)
    if isinstance(part, dict) and isinstance(part.get("where"), str):
        part["where"] = f"count > {len(part['where'])} or genre = 'drama'"


def name_a_list(part: Any, answer: Any) -> None:
    """Let feedback be on a list that was given, and of few kinds: no description can say which those are."""
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        name_a_list(inner, answer)
    if isinstance(part, dict) and "recommendation_id" in part:
        part["recommendation_id"] = answer["recommendation_id"]
        part["item_id"] = answer["items"][len(part["kind"]) % 10]["item_id"]
        part["kind"] = part["kind"][0]
        if part["kind"] > "m":
            part["kind"] = "other"


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
    n_cases, answer = 0, post(app, "/v1/recommend", {"history": [1]}).json()

    def check(case: Any) -> None:
        nonlocal n_cases
        n_cases += 1
        if case.meta.generation.mode.is_positive:
            say_expressions(case.body)
            name_a_list(case.body, answer)
            say_expressions(case.query)
        reply = case.call(app=app)
        assert reply.status_code < 500 or reply.status_code == 503, case.as_curl_command()
        case.validate_response(reply)

    for operation, mode in plans:
        bounded(given(case=operation.as_strategy(generation_mode=mode))(check))()
    assert n_cases > FUZZ_CASES / 2  # routes that take nothing have few cases
