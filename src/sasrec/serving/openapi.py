"""The OpenAPI document of a server, made of its limits and of the classes that check requests."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from sasrec import __version__
from sasrec.core.server_config import ServerConfig
from sasrec.ranking.where import MAX_LENGTH
from sasrec.serving.online_schemas import (
    KIND,
    Feedback,
    Feedbacks,
    Figures,
    Kept,
    MeasuredAnswer,
    MeasuredAnswers,
    OnlineQueries,
    OnlineQuery,
    TwoHealths,
)
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
FEEDBACK_EXAMPLE = {
    "recommendation_id": "019ad0a2-4b1e-7c53-8f0d-6a2f5d1c9b7e", "item_id": 2, "kind": "click",
}  # fmt: skip
ONLY_WITH = {"/v1/events": "events", "/v1/feedback": "feedback", "/v1/online": "feedback"}  # a file: a setting
MEASURED: dict[type[Struct], type[Struct]] = {
    Query: OnlineQuery, Queries: OnlineQueries, Answer: MeasuredAnswer, Answers: MeasuredAnswers,
}  # fmt: skip
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
    Operation("post", "/v1/feedback", "Tell what somebody did with an item of a list", Kept,
              (Feedback, Feedbacks), codes=(403, 422, 503), example=FEEDBACK_EXAMPLE),
    Operation("get", "/v1/online", "What came of the lists that are kept, by model version", Figures),
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
    "shown": "Whether somebody will see the list; if not, nothing is kept of it",
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
    kinds = _Kinds(limits)
    types: list[type[Struct]] = [
        Query, Queries, ExplainQuery, Event, Events, Answer, Answers, SimilarItems, Items, Explanation, Stored,
        Problem, Health,
    ]  # fmt: skip
    more: list[type[Struct]] = [Feedback, Feedbacks, Kept, Figures] if limits.feedback else []
    served = [kinds.served(kind) for kind in types]
    _, schemas = msgspec.json.schema_components([*served, *more], ref_template="#/components/schemas/{name}")
    _add_limits(schemas, limits, kinds)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        setting = ONLY_WITH.get(operation.path)
        if setting is None or (with_events if setting == "events" else getattr(limits, setting)):
            paths[operation.path] = {operation.method: _described_operation(operation, limits, with_key, kinds)}
    components: dict[str, Any] = {"schemas": schemas}
    if with_key:
        components["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
    about = "Sequential recommendation by a trained SASRec model. Item ids: an integer and its text are the same id."
    info = {"title": "sasrec", "version": __version__, "description": about}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


class _Kinds:
    """Which classes a server takes and gives: those that measure have more to say.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: ServerConfig) -> None:
        self._instead: dict[type[Struct], type[Struct]] = dict(MEASURED) if limits.feedback else {}
        if limits.challenger:
            self._instead[Health] = TwoHealths

    def served(self, kind: type[Struct]) -> type[Struct]:
        """The class in place of the usual one."""
        return self._instead.get(kind, kind)

    def reference(self, kind: type[Struct]) -> dict[str, str]:
        """Where its description is."""
        return {"$ref": f"#/components/schemas/{self.served(kind).__name__}"}


def _add_limits(schemas: dict[str, Any], limits: ServerConfig, kinds: _Kinds) -> None:
    names = {kind: kinds.served(kind).__name__ for kind in (Query, Queries)}
    for name in (names[Query], "ExplainQuery"):
        schemas[name]["properties"]["history"]["maxItems"] = limits.max_history
    query = schemas[names[Query]]["properties"]
    query["k"] |= {"minimum": 1, "maximum": limits.max_k, "default": min(DEFAULT_K, limits.max_k)}
    for name in ("allow", "deny"):
        query[name]["anyOf"][0]["maxItems"] = limits.max_filter
    query["where"]["anyOf"][0]["maxLength"] = MAX_LENGTH
    query["diversity"] |= {"minimum": 0, "maximum": 1}
    schemas[names[Queries]]["properties"]["requests"]["maxItems"] = limits.max_requests
    schemas["Events"]["properties"]["events"]["maxItems"] = limits.max_requests
    ids = list(schemas["Event"]["properties"].values())
    if limits.feedback:
        ids += [query["user_id"], schemas["Feedback"]["properties"]["item_id"]]
        schemas["Feedbacks"]["properties"]["feedback"]["maxItems"] = limits.max_requests
        schemas["Feedback"]["properties"]["kind"]["pattern"] = f"^{KIND}$"
        schemas["Feedback"]["properties"]["recommendation_id"]["format"] = "uuid"
    for described in ids:
        text = next(kind for kind in described["anyOf"] if kind["type"] == "string")
        text["maxLength"] = MAX_ID


def _described_operation(operation: Operation, limits: ServerConfig, with_key: bool, kinds: _Kinds) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {"200": _success(operation, kinds)},
    }
    is_protected = with_key and operation.path.startswith("/v1/")
    for code in (*((401,) if is_protected else ()), *operation.codes):
        gives = Health if operation.path.startswith("/health") else Problem
        described["responses"][str(code)] = {"description": MEANINGS[code], "content": _json(kinds.reference(gives))}
    if operation.takes:
        schemas = [kinds.reference(taken) for taken in operation.takes]
        content = _json(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})
        content["application/json"]["example"] = operation.example
        described["requestBody"] = {"required": True, "content": content}
    if operation.parameters:
        more = ("shown",) if kinds.served(operation.gives or Problem) is MeasuredAnswer else ()
        described["parameters"] = [_parameter(name, limits) for name in (*operation.parameters, *more)]
    if is_protected:
        described["security"] = [{"key": []}]
    return described


def _success(operation: Operation, kinds: _Kinds) -> dict[str, Any]:
    if operation.path == "/metrics":
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    elif operation.gives is None:
        content = _json({"type": "object"})
    elif Queries in operation.takes:
        content = _json({"anyOf": [kinds.reference(Answer), kinds.reference(Answers)]})
    else:
        content = _json(kinds.reference(operation.gives))
    return {"description": "The answer", "content": content}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _parameter(name: str, limits: ServerConfig) -> dict[str, Any]:
    schemas: dict[str, dict[str, Any]] = {
        "k": {"type": "integer", "minimum": 1, "maximum": limits.max_k, "default": min(DEFAULT_K, limits.max_k)},
        "keep_seen": {"type": "boolean"},
        "shown": {"type": "boolean", "default": True},
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
