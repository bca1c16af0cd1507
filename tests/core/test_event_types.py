"""Texts that name types of events and their weights."""

from typing import Any

import pytest

from sasrec.core.config import EvalConfig, TrainConfig, from_dict
from sasrec.core.errors import ConfigError
from sasrec.core.event_types import types_in, weights_in


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("", ()),
        ("purchase", ("purchase",)),
        (" purchase , cart,,purchase", ("purchase", "cart")),
        ('"add, to cart",view', ("add, to cart", "view")),
    ],
)
def test_types_are_separated_by_commas_and_quoted_where_they_hold_one(text: str, types: tuple[str, ...]) -> None:
    assert types_in(text) == types


def test_weights_are_numbers_after_the_last_equals_sign() -> None:
    assert weights_in('view=0.2, a=b=1,"add, to cart"=3e-1') == {"view": 0.2, "a=b": 1.0, "add, to cart": 0.3}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"view": 0.2, "purchase": 1}, "view=0.2,purchase=1"),
        ({"add, to cart": 2.0}, '"add, to cart=2.0"'),
        (["view=0.2", "purchase=1"], "view=0.2,purchase=1"),
    ],
)
def test_weights_may_be_a_mapping_or_a_list(given: Any, text: str) -> None:
    config = TrainConfig(event_weights=given)
    assert config.event_weights == text
    assert from_dict(TrainConfig, {"event_weights": given}) == config
    assert TrainConfig(event_weights=text) == config


def test_target_events_may_be_a_list() -> None:
    config = EvalConfig(target_events=["purchase", "add, to cart"])
    assert config.target_types == ("purchase", "add, to cart")
    assert EvalConfig(target_events=config.target_events) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("view", "'view', which is not TYPE=WEIGHT; write event_weights such as view=0.2,purchase=1"),
        ("=1", "'=1', which is not TYPE=WEIGHT"),
        ("view=much", "'view' the weight 'much'; use 0 or a number from 1e-09 to 1e\\+09"),
        ("view=-1", "'view' the weight '-1'"),
        ("view=nan", "'view' the weight 'nan'"),
        ("view=inf", "'view' the weight 'inf'"),
        ("view=1e-30", "'view' the weight '1e-30'"),
        ("view=1,view=2", "names 'view' twice"),
        ("view=1\nbuy=2", "is not a list of event types"),
    ],
)
def test_weights_that_cannot_be_counted_with_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(event_weights=text)


@pytest.mark.parametrize(("value", "message"), [(" , ", "names no type"), (5, "is not of type str"), ([1], "of type")])
def test_targets_that_are_no_types_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalConfig(target_events=value)
