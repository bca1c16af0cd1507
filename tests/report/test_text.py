"""Results in words and tables: aligned, with their protocol, beside published figures of the same log."""

from dataclasses import replace

import pytest
from made import ML_1M, SAMPLED, estimate, make_result

from sasrec.core.tables import markdown_table
from sasrec.report.text import (
    agreement,
    both_protocols,
    known_logs,
    metrics_table,
    pair_rows,
    protocol_in_words,
    published_figures,
)


def test_published_figures_are_those_of_the_known_logs() -> None:
    assert published_figures(ML_1M)[0].metrics == {"ndcg@10": 0.5905, "hr@10": 0.8245}
    assert len(published_figures(replace(ML_1M, n_users=31_013, n_items=23_715, n_events=287_107))) == 6
    assert len(published_figures(replace(ML_1M, n_users=22_363, n_items=12_101, n_events=198_502))) == 5
    assert published_figures(replace(ML_1M, n_events=999_610)) == []


def test_figures_of_another_version_of_a_log_stand_beside_none() -> None:
    differing = [f for log in known_logs().values() for f in log["figures"] if "differs" in f]
    assert differing
    shown = {figure.source for figure in published_figures(ML_1M)}
    assert not shown & {figure["source"] for figure in differing}


@pytest.mark.parametrize("name", known_logs())
def test_published_figures_have_a_source_and_lie_between_nought_and_one(name: str) -> None:
    for figure in known_logs()[name]["figures"]:
        assert set(figure) <= {"source", "protocol", "ndcg@10", "hr@10", "differs"}
        assert figure["source"]
        assert figure["protocol"] in ("full", "sampled")
        assert 0 < figure["ndcg@10"] < figure.get("hr@10", 1) <= 1


def test_metrics_table_is_a_line_of_protocol_and_aligned_rows() -> None:
    assert metrics_table([make_result()]).splitlines() == [
        "test (leave one out), full protocol: all 12 items, excluding the user's items before the target, but not the "
        "target; ties expected; 5 users; ± is a 95 % interval",
        "            ndcg@10         hr@10",
        "model       0.5000 ±0.0196  0.7500 ±0.0196",
        "popularity  0.2500 ±0.0196  0.3000 ±0.0196",
        "last_item   0.4000 ±0.0196  0.5000 ±0.0196",
        "            coverage@10",
        "model       0.6250",
        "popularity  0.1000",
        "last_item   -",
    ]


def test_metrics_table_parts_results_by_an_empty_line() -> None:
    assert metrics_table([]) == ""
    assert metrics_table([make_result(), make_result(**SAMPLED, split="valid")]).count("\n\n") == 1


def test_metrics_table_of_both_protocols_ends_with_why_they_may_disagree() -> None:
    last = metrics_table([make_result(), make_result(**SAMPLED)]).split("\n\n")[-1]
    assert "Krichene & Rendle 2020" in last
    assert last.endswith("in the same order: model, last_item, popularity.")


def test_protocol_names_seed_targets_and_cold_items() -> None:
    words = protocol_in_words(make_result(**SAMPLED, n_targets=8, n_cold=2, cold_share=0.25, split_method="temporal"))
    assert "test (temporal), sampled protocol: the target and 100 items" in words
    assert "seed 42; 8 targets of 5 users, 25 % of targets never in train" in words


def test_disagreement_of_the_protocols_is_told_with_both_orders() -> None:
    sampled = make_result(**SAMPLED)
    sampled["metrics"]["ndcg@10"] = estimate(0.3)
    text = agreement([make_result(), sampled])
    assert "model, last_item, popularity by full, last_item, model, popularity by sampled" in text
    alone = [make_result(baselines={}), make_result(**SAMPLED, baselines={})]
    assert agreement(alone).endswith("Choose models by full.")


@pytest.mark.parametrize("changes", [{"split": "valid"}, {"n_users": 4}, {"split_method": "temporal"}, {"k": [5]}])
def test_only_results_on_the_same_targets_stand_side_by_side(changes: dict[str, object]) -> None:
    assert both_protocols([make_result(), make_result(**SAMPLED)])
    assert both_protocols([make_result(), make_result(**SAMPLED | changes)]) == []


def test_side_by_side_is_a_row_a_scorer() -> None:
    rows = pair_rows([make_result(), make_result(**SAMPLED, baselines={})])
    assert rows[0] == ["", "full NDCG@10", "full HR@10", "sampled NDCG@10", "sampled HR@10"]
    assert rows[1] == ["model", "0.5000 ±0.0196", "0.7500 ±0.0196", "0.5000 ±0.0196", "0.7500 ±0.0196"]
    assert rows[2][3:] == ["-", "-"]


def test_markdown_tables_have_a_line_of_alignment() -> None:
    table = markdown_table([["", "a"], ["x", "1"]])
    assert table.splitlines() == ["|  | a |", "| --- | ---: |", "| x | 1 |"]
