"""Results in words and tables: aligned, with their protocol."""

from dataclasses import replace
from typing import Any

import pytest
from made import SAMPLED, estimate, make_result

from sasrec.core.tables import markdown_table
from sasrec.report.text import (
    agreement,
    both_protocols,
    metrics_table,
    pair_rows,
    protocol_in_words,
)


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
    assert last.endswith("Here both give the same order: model, last_item, popularity.")


def test_protocol_names_seed_targets_and_cold_items() -> None:
    words = protocol_in_words(make_result(**SAMPLED, n_targets=8, n_cold=2, cold_share=0.25, split_method="temporal"))
    assert "test (temporal), sampled protocol: the target and 100 items" in words
    assert "seed 42; 8 targets of 5 users, 25 % of targets never in train" in words


def test_protocol_tells_of_targets_that_another_log_makes_unfit() -> None:
    words = protocol_in_words(make_result(unknown_targets=2, init_seen_targets=3))
    assert "; 5 users, 2 targets unknown to the model, 3 left out that it was trained on; ±" in words
    assert "5 users, others that it was trained on may be" in protocol_in_words(make_result(init_unchecked=True))


def test_disagreement_of_the_protocols_is_told_with_both_orders() -> None:
    sampled = make_result(**SAMPLED)
    sampled = replace(sampled, metrics={**sampled.metrics, "ndcg@10": estimate(0.3)})
    text = agreement([make_result(), sampled])
    assert "model, last_item, popularity by full, last_item, model, popularity by sampled" in text
    alone = [make_result(baselines={}), make_result(**SAMPLED, baselines={})]
    assert agreement(alone).endswith("Choose models by full.")


@pytest.mark.parametrize("changes", [{"split": "valid"}, {"n_users": 4}, {"split_method": "temporal"}, {"k": (5,)}])
def test_only_results_on_the_same_targets_stand_side_by_side(changes: dict[str, Any]) -> None:
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
