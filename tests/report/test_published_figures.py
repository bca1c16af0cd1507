"""Published figures: those of the known logs, each with its source, and beside none that differ."""

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from made import ML_1M, make_result

from sasrec.report.published_figures import comparable, known_logs, published_figures


def test_published_figures_are_those_of_the_known_logs() -> None:
    assert published_figures(ML_1M)[0].metrics == {"ndcg@10": 0.5905, "hr@10": 0.8245}
    assert len(published_figures(replace(ML_1M, n_users=31_013, n_items=23_715, n_events=287_107))) == 6
    assert len(published_figures(replace(ML_1M, n_users=22_363, n_items=12_101, n_events=198_502))) == 12
    assert published_figures(replace(ML_1M, n_events=999_610)) == []


def test_figures_of_another_version_of_a_log_stand_beside_none() -> None:
    differing = [figure for log in known_logs().values() for figure in log.figures if figure.differs]
    assert differing
    shown = {figure.source for figure in published_figures(ML_1M)}
    assert not shown & {figure.source for figure in differing}


BEAUTY = replace(ML_1M, n_users=22_363, n_items=12_101, n_events=198_502)


@pytest.mark.parametrize(
    ("changes", "n"),
    [
        ({}, 11),
        ({"split_method": "temporal_by_user", "cut": 1400025600, "temporal_targets": "last"}, 1),
        ({"split_method": "temporal_by_user", "cut": 1400025601, "temporal_targets": "last"}, 0),
        ({"split_method": "temporal_by_user", "cut": 1400025600}, 0),
        ({"split_method": "temporal"}, 0),
        ({"split": "valid"}, 0),
    ],
)
def test_figures_stand_beside_results_of_the_same_split_and_cut(changes: dict[str, Any], n: int) -> None:
    found = comparable(BEAUTY, make_result(**changes))
    assert len(found) == n
    if changes.get("cut"):
        assert [figure.metrics["ndcg@10"] for figure in found] == [0.0369][:n]


@pytest.mark.parametrize("name", known_logs())
def test_published_figures_have_a_source_and_lie_between_nought_and_one(name: str) -> None:
    for figure in known_logs()[name].figures:
        assert set(figure.metrics) <= {"ndcg@10", "hr@10"}
        assert figure.source
        assert 0 < figure.metrics["ndcg@10"] < figure.metrics.get("hr@10", 1) <= 1


def test_the_file_has_no_key_that_is_not_read() -> None:
    logs = json.loads(files("sasrec.report").joinpath("published_figures.json").read_text("utf-8"))
    assert {key for log in logs.values() for key in log} == {
        "about", "n_users", "n_items", "n_events", "has_timestamps", "figures"
    }  # fmt: skip
    figures = [figure for log in logs.values() for figure in log["figures"]]
    assert {key for figure in figures for key in figure} == {
        "source", "protocol", "metrics", "differs", "split_method", "cut"
    }  # fmt: skip
