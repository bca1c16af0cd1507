"""Bodies and query strings: what fits is read, what does not gets one sentence without any of its own text."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasrec.core.errors import RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.openapi import openapi
from sasrec.serving.schemas import DEFAULT_K, Event, Parameters, Query, Reader, sentence

LIMITS = ServerConfig(max_k=20, max_history=5, max_filter=3, max_requests=2)
READER = Reader(LIMITS)


def refusal(body: bytes) -> str:
    with pytest.raises(RequestError) as refused:
        READER.queries(body)
    assert refused.value.status == 422
    return str(refused.value)


def test_a_history_alone_gets_the_defaults() -> None:
    query = READER.queries(b'{"history": [1, "b"]}')
    assert isinstance(query, Query)
    assert (query.history, query.k, query.allow, query.deny, query.keep_seen) == ([1, "b"], DEFAULT_K, None, None, None)


def test_all_fields_are_read_alone_and_in_a_list() -> None:
    one = {"history": [1], "k": 20, "allow": [1, "x", 2], "deny": [], "keep_seen": True, "where": "a<1", "diversity": 1}
    query = READER.queries(json.dumps(one).encode())
    assert READER.queries(json.dumps({"requests": [one, one]}).encode()) == [query, query]
    assert READER.queries(b'{"requests": []}') == []


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    query = READER.queries(b'{"history": [1.0, 2e1, "1.0"], "k": 3.0}')
    assert isinstance(query, Query)
    assert (query.history, query.k) == ([1, 20, "1.0"], 3)
    assert type(query.history[0]) is int
    assert READER.explain(b'{"history": [2], "item_id": 3.0}').item_id == 3
    [query] = READER.queries(b'{"requests": [{"history": [], "k": 3.0}]}')
    [query] = READER.queries(b'{"requests": [{"history": [1.0], "where": "x", "diversity": 0.25}]}')
    assert (query.where, query.diversity) == ("x", 0.25)
    assert refusal(b'{"history": [1.0, ' + b"[" * 100_000 + b"]" * 100_000 + b"]}")


def test_an_item_may_be_called_as_a_field_is() -> None:
    query = READER.queries(b'{"history": ["requests"]}')
    assert isinstance(query, Query)
    assert query.history == ["requests"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[1]", "expected object, got array"),
        (b'{"history": [1]} x', "trailing characters"),
        (b'{"k": 3}', "missing required field history"),
        (b'{"history": 3}', r"expected array, got int - at $.history"),
        (b'{"history": [1.5]}', "$.history[0]"),
        (b'{"history": [null]}', "$.history[0]"),
        (b'{"history": [true]}', "$.history[0]"),
        (b'{"history": [NaN]}', "does not fit: JSON is malformed"),
        (b'{"history": ["\xff"]}', "UTF-8"),
        (b'{"history": ["\\ud800"]}', "truncated"),
        (b'{"history": [1], "k": 0}', "k is not a number of items from 1 to 20"),
        (b'{"history": [1], "k": 21}', "k is not a number of items from 1 to 20"),
        (b'{"history": [1], "k": -99999999999999999999999}', "from 1 to 20"),
        (b'{"history": [1], "k": 1e999}', "out of range"),
        (b'{"history": [1], "k": "5"}', "expected int, got str"),
        (b'{"history": [1], "k": true}', "expected int, got bool"),
        (b'{"history": [1], "keep_seen": 1}', "expected bool | null, got int"),
        (b'{"history": [1], "allow": {}}', "$.allow"),
        (b'{"history": [1, 2, 3, 4, 5, 6]}', "history has 6 elements, and at most 5 are taken"),
        (b'{"history": [], "allow": [1, 2, 3, 4]}', "allow has 4 elements"),
        (b'{"history": [], "deny": [1, 2, 3, 4]}', "deny has 4 elements"),
        (b'{"history": [], "where": "' + b"x" * 1001 + b'"}', "where has 1001 characters, and at most 1000 are taken"),
        (b'{"history": [], "where": 3}', "expected str | null, got int - at $.where"),
        (b'{"history": [1.0], "where": ["secret"]}', "expected str | null, got array"),
        (b'{"requests": [{"history": [], "where": "' + b"x" * 1001 + b'"}]}', "requests[0].where has 1001 characters"),
        (b'{"history": [], "diversity": 1.01}', "diversity is not a number from 0 (off) to 1"),
        (b'{"history": [], "diversity": -1}', "diversity is not a number from 0 (off) to 1"),
        (b'{"history": [], "diversity": 1e999}', "out of range"),
        (b'{"history": [], "diversity": "0.5"}', "expected float, got str"),
        (b'{"requests": [{"history": [], "diversity": 7}]}', "requests[0].diversity is not a number"),
        (b'{"history": [], "secret": 1}', "not one of history, k, allow, deny, keep_seen, where, diversity"),
        (b'{"requests": [{"history": []}, {"history": [], "secret": 1}]}', "not one of history, k"),
        (b'{"requests": [{"history": []}], "history": []}', "not one of requests"),
        (b'{"requests": [{"history": []}, {"history": [], "k": 99}]}', "requests[1].k is not"),
        (b'{"requests": [{"k": 1}]}', "missing required field history - at $.requests[0]"),
        (b'{"requests": [{"history": []}, {"history": []}, {"history": []}]}', "requests has 3 elements"),
        (b"[" * 100_000, "expected object"),
        (b'{"history": ' + b"[" * 100_000, "$.history[0]"),
        (b'{"history": [' + b"9" * 5000 + b"]}", "out of range"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(body: bytes, words: str) -> None:
    message = refusal(body)
    assert words in message
    assert "secret" not in message
    assert "NaN" not in message
    assert "\n" not in message


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(body=st.binary() | st.text().map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (READER.queries, READER.explain, READER.events):
        with contextlib.suppress(RequestError):
            read(body)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=7),
    max_leaves=20,
)
FIELDS = st.sampled_from(["history", "k", "allow", "deny", "keep_seen", "where", "diversity", "requests", "other"])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_json_is_refused_unless_it_keeps_all_limits(fields: dict[str, Any]) -> None:
    try:
        found = READER.queries(json.dumps(fields).encode())
    except RequestError:
        return
    for query in [found] if isinstance(found, Query) else found:
        assert 1 <= query.k <= 20
        assert len(query.history) <= 5
        assert 0 <= query.diversity <= 1
        assert query.where is None or len(query.where) <= 1000
        assert all(type(i) in (int, str) for i in query.history + (query.allow or []) + (query.deny or []))
    assert "other" not in fields


def test_the_default_k_is_never_above_the_most() -> None:
    reader = Reader(ServerConfig(max_k=4))
    for query in (reader.queries(b'{"history": []}'), *reader.queries(b'{"requests": [{"history": []}]}')):
        assert isinstance(query, Query)
        assert query.k == 4
    with pytest.raises(RequestError, match="from 1 to 4"):
        reader.queries(b'{"history": [], "k": 10}')
    assert openapi(reader.limits, with_key=False, with_events=False)["components"]["schemas"]["Query"]["properties"][
        "k"
    ] == {"type": "integer", "default": 4, "minimum": 1, "maximum": 4}


def test_events_come_alone_or_in_a_list() -> None:
    assert READER.events(b'{"user_id": 1, "item_id": "a"}') == [Event(1, "a")]
    assert READER.events(b'{"events": [{"user_id": 1, "item_id": "a"}]}') == [Event(1, "a")]
    with pytest.raises(RequestError, match="not one of user_id, item_id"):
        READER.events(b'{"events": [{"user_id": 1, "item_id": "a", "secret": 1}]}')


def test_parameters_are_read() -> None:
    given_ = Parameters(
        "k=3&keep_seen=true&allow=1&allow=a%2Cb&query=über%20x".encode(), "k", "keep_seen", "allow", "query"
    )
    assert given_.integer("k", 10, 20) == 3
    assert given_.flag("keep_seen") is True
    assert given_.ids("allow") == ["1", "a,b"]
    assert Parameters(b"query=%C3%BCber+x", "query").text("query") == "über x"
    more = Parameters(b"where=price+%3C+3+and+a%3D%27%C3%BC%27&diversity=.5", "where", "diversity")
    assert (more.expression("where"), more.share("diversity")) == ("price < 3 and a='ü'", 0.5)
    none = Parameters(b"", "k")
    assert (none.expression("x"), none.share("x")) == (None, 0.0)
    assert (none.integer("k", 10, 20), none.flag("x"), none.ids("x"), none.text("x")) == (10, None, None, "")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("k=0", "k is not a number of items from 1 to 20"),
        ("k=21", "from 1 to 20"),
        ("k=-1", "from 1 to 20"),
        ("k=1.0", "from 1 to 20"),
        ("k=%C2%B2", "from 1 to 20"),
        ("k=" + "9" * 5000, "from 1 to 20"),
        ("k=1&k=2", "k is given more than once"),
        ("flag=secret", "flag is neither true nor false"),
        ("secret=1", "a parameter is not one of k, flag, text, share, where"),
        ("share=1.5", "share is not a number from 0 (off) to 1"),
        ("share=nan", "share is not a number from 0 (off) to 1"),
        ("share=", "share is not a number from 0 (off) to 1"),
        ("share=secret", "share is not a number from 0 (off) to 1"),
        ("where=" + "x" * 1001, "where has 1001 characters"),
        ("where=a&where=b", "where is given more than once"),
        ("text=" + "x" * 201, "text is longer than 200 characters"),
        ("&".join(["k=1"] * 100_001), "too many"),
    ],
)
def test_parameters_that_do_not_fit_get_a_sentence(query: str, words: str) -> None:
    def read() -> None:
        parameters = Parameters(query.encode(), "k", "flag", "text", "share", "where")
        parameters.integer("k", 10, 20), parameters.flag("flag"), parameters.text("text")
        parameters.share("share"), parameters.expression("where")

    with pytest.raises(RequestError) as refused:
        read()
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


HOSTILE = {
    "large exponents": b'{"history": [' + b",".join([b"1e300"] * 170_000) + b", 1.5]}",
    "large exponents of a legal length": b'{"history": [' + b",".join([b"1e300"] * 9_000) + b"]}",
    "large exponents of k": b'{"requests": [' + b",".join([b'{"history": [], "k": 1e300}'] * 30_000) + b"]}",
    "nested lists": b'{"history": [1.0, ' + b",".join([b"[" * 300 + b"]" * 300] * 1_700) + b"]}",
    "nested lists beside floats": b'{"history": [1.0], "k": [' + b",".join([b"[" * 300 + b"]" * 300] * 1_700) + b"]}",
    "objects": b'{"history": [1.0], "k": [' + b",".join([b"{}"] * 300_000) + b"]}",
    "long numbers": b'{"history": [1.0, ' + b",".join([b"9" * 4_000] * 250) + b"]}",
    "long fractions": b'{"history": [1.0, ' + b",".join([b"1." + b"0" * 4_000] * 250) + b"]}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("what", ["queries", "explain", "events"])
def test_a_megabyte_costs_no_more_whatever_is_in_it(body: bytes, what: str) -> None:
    reader = Reader(ServerConfig())
    plain = b'{"history": [' + b",".join([b'"a"'] * 250_000) + b"]}"

    def seconds(body: bytes) -> float:
        began = time.process_time()
        with contextlib.suppress(RequestError):
            getattr(reader, what)(body)
        return time.process_time() - began

    usual = min(seconds(plain) for _ in range(3))
    assert min(seconds(body) for _ in range(3)) < 4 * usual + 0.05


def test_whole_numbers_beside_floats_stay_exact_and_what_doubles_cannot_tell_apart_is_refused() -> None:
    query = READER.queries(b'{"history": [1.0, 12345678901234567890, 90071992547409.0, -3e0, "e"], "k": 2e0}')
    assert isinstance(query, Query)
    assert (query.history, query.k) == ([1, 12345678901234567890, 90071992547409, -3, "e"], 2)
    for number in (b"9007199254740992.0", b"1e300", b"-1e16", b"1e-3"):
        assert "expected a whole number below 9007199254740992 or a text - at $.history[1]" in refusal(
            b'{"history": [1.0, ' + number + b"]}"
        )
    assert "expected int, got str - at $.k" in refusal(b'{"history": [1.0], "k": "5"}')
    assert "at $.history[1]" in refusal(b'{"history": [1.0, null]}')


def test_ids_of_events_are_bounded() -> None:
    longest = "x" * 512
    assert READER.events(json.dumps({"user_id": 1, "item_id": longest}).encode()) == [Event(1, longest)]
    for item in (longest + "x", 10**600):
        with pytest.raises(RequestError, match=r"events\[1\].item_id is longer than 512 characters"):
            READER.events(json.dumps({"events": [{"user_id": 1, "item_id": i} for i in (1, item)]}).encode())
    with pytest.raises(RequestError, match="user_id is longer than 512 characters"):
        READER.events(json.dumps({"user_id": longest + "x", "item_id": 1.0}).encode())


def test_an_error_has_an_end() -> None:
    assert sentence("short") == "short"
    assert len(sentence("x" * 10**7)) < 600
