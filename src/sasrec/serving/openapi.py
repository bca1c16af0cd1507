"""The OpenAPI document of a server, made of its limits and of the classes that check requests."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from sasrec import __version__
from sasrec.core.config import ServerConfig
from sasrec.ranking.where import MAX_LENGTH
from sasrec.serving.schemas import (
    DEFAULT_K,
    MAX_ID,
    MAX_TEXT,
    Answer,
    Answers,
    Event,
    Events,
    ExplainQuery,
    Explanation,
    Health,
    Items,
    Problem,
    Queries,
    Query,
    SimilarItems,
    Stored,
)


class Operation(NamedTuple):
    """A route in the OpenAPI document."""

    method: str
    path: str
    summary: str
    gives: type[Struct] | None  # None = text
    takes: tuple[type[Struct], ...] = ()
    parameters: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    example: Any = None


FILTERS = ("k", "allow", "deny", "keep_seen", "where", "diversity")
OPERATIONS = [
    Operation("post", "/v1/recommend", "The best next items after a history, or after each of several", Answer,
              (Query, Queries), codes=(422, 503), example={"history": [1, 2, 3], "k": 5}),
    Operation("get", "/v1/users/{user_id}/recommendations", "The best next items of a user of the log", Answer,
              parameters=("user_id", *FILTERS), codes=(404, 422, 503)),
    Operation("get", "/v1/items/{item_id}/similar", "The items nearest to an item", SimilarItems,
              parameters=("item_id", "k", "where"), codes=(404, 422, 503)),
    Operation("get", "/v1/items", "Items whose title or id has these words; without any, the most popular", Items,
              parameters=("query", "k"), codes=(422, 503)),
    Operation("post", "/v1/explain", "Which items of a history speak for an item", Explanation,
              (ExplainQuery,), codes=(404, 422, 503), example={"history": [1, 2, 3], "item_id": 4}),
    Operation("post", "/v1/events", "Store events of known users, so that their next recommendations know them", Stored,
              (Event, Events), codes=(403, 404, 422, 503), example={"user_id": 1, "item_id": 2}),
    Operation("get", "/v1/model", "The model and the limits of this server", None, codes=(503,)),
    Operation("get", "/health/live", "Whether the process runs", Health),
    Operation("get", "/health/ready", "Whether requests are answered", Health, codes=(503,)),
    Operation("get", "/metrics", "Metrics in Prometheus' text format", None),
]  # fmt: skip
FILTER_RULES = {
    "allow": "Only these items, once for each; ids not known are skipped, and without any known id no item is left",
    "deny": "None of these items, once for each; ids not known are skipped",
    "where": "Only items whose attributes fulfil this expression, such as price < 30 and category = 'lego'",
    "diversity": "How much less items count that are like those above them",
}
MEANINGS = {
    401: "The API key is missing or wrong",
    403: "The request comes from a page of another site",
    404: "No such user or item",
    422: "The request does not fit",
    503: "Not now: no model yet, draining, or more requests than can be answered; try again after Retry-After seconds",
}


def openapi(limits: ServerConfig, *, with_key: bool, with_events: bool) -> dict[str, Any]:
    """The OpenAPI document of a server with these limits."""
    types = [Query, Queries, ExplainQuery, Event, Events, Answer, Answers, SimilarItems, Items, Explanation, Stored,
             Problem, Health]  # fmt: skip
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    _add_limits(schemas, limits)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        if operation.path != "/v1/events" or with_events:
            paths[operation.path] = {operation.method: _described_operation(operation, limits, with_key)}
    components: dict[str, Any] = {"schemas": schemas}
    if with_key:
        components["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
    about = "Sequential recommendation by a trained SASRec model. Item ids: an integer and its text are the same id."
    info = {"title": "sasrec", "version": __version__, "description": about}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _add_limits(schemas: dict[str, Any], limits: ServerConfig) -> None:
    for name in ("Query", "ExplainQuery"):
        schemas[name]["properties"]["history"]["maxItems"] = limits.max_history
    query = schemas["Query"]["properties"]
    query["k"] |= {"minimum": 1, "maximum": limits.max_k, "default": min(DEFAULT_K, limits.max_k)}
    for name in ("allow", "deny"):
        query[name]["anyOf"][0]["maxItems"] = limits.max_filter
    query["where"]["anyOf"][0]["maxLength"] = MAX_LENGTH
    query["diversity"] |= {"minimum": 0, "maximum": 1}
    schemas["Queries"]["properties"]["requests"]["maxItems"] = limits.max_requests
    schemas["Events"]["properties"]["events"]["maxItems"] = limits.max_requests
    for described in schemas["Event"]["properties"].values():
        text = next(kind for kind in described["anyOf"] if kind["type"] == "string")
        text["maxLength"] = MAX_ID


def _described_operation(operation: Operation, limits: ServerConfig, with_key: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {"200": _success(operation)},
    }
    is_protected = with_key and operation.path.startswith("/v1/")
    for code in (*((401,) if is_protected else ()), *operation.codes):
        gives = Health if operation.path.startswith("/health") else Problem
        described["responses"][str(code)] = {"description": MEANINGS[code], "content": _json(_reference(gives))}
    if operation.takes:
        schemas = [_reference(taken) for taken in operation.takes]
        content = _json(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})
        content["application/json"]["example"] = operation.example
        described["requestBody"] = {"required": True, "content": content}
    if operation.parameters:
        described["parameters"] = [_parameter(name, limits) for name in operation.parameters]
    if is_protected:
        described["security"] = [{"key": []}]
    return described


def _success(operation: Operation) -> dict[str, Any]:
    if operation.path == "/metrics":
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    elif operation.gives is None:
        content = _json({"type": "object"})
    elif Queries in operation.takes:
        content = _json({"anyOf": [_reference(Answer), _reference(Answers)]})
    else:
        content = _json(_reference(operation.gives))
    return {"description": "The answer", "content": content}


def _reference(kind: type[Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _parameter(name: str, limits: ServerConfig) -> dict[str, Any]:
    schemas: dict[str, dict[str, Any]] = {
        "k": {"type": "integer", "minimum": 1, "maximum": limits.max_k, "default": min(DEFAULT_K, limits.max_k)},
        "keep_seen": {"type": "boolean"},
        "query": {"type": "string", "maxLength": MAX_TEXT},
        "where": {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH},
        "diversity": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
        "allow": {"type": "array", "items": {"type": "string"}, "maxItems": limits.max_filter},
        "deny": {"type": "array", "items": {"type": "string"}, "maxItems": limits.max_filter},
    }
    where = "path" if name.endswith("_id") else "query"
    described = {
        "name": name,
        "in": where,
        "required": where == "path",
        "schema": schemas.get(name, {"type": "string", "minLength": 1}),
    }
    return described | ({"description": FILTER_RULES[name]} if name in FILTER_RULES else {})
