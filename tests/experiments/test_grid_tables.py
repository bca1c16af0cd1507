"""Tables of result lines: both protocols side by side, and why they may disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made import make_line

from sasrec.experiments.grid_tables import benchmark_page, benchmark_text, table_rows
from sasrec.experiments.lines import ResultLine, read_lines


def line(**changes: Any) -> ResultLine:
    return ResultLine.from_dict(make_line(**changes))


def test_the_table_sets_both_protocols_side_by_side() -> None:
    sampled = {"protocol": "sampled", "metrics": {"ndcg@10": {"mean": 0.9, "std": 0.02}}}
    rows = table_rows([line(split="valid"), line(), line(**sampled), line(overrides={"dropout": 0.1})])
    assert rows == [
        [
            "",
            "full NDCG@10",
            "full HR@10",
            "sampled NDCG@10",
            "users' error of full NDCG@10",
            "seeds",
            "best epochs",
            "training",
        ],
        ["paper", "0.5000 ± 0.0100", "0.7500", "0.9000 ± 0.0200", "0.0300", "2", "3, 5", "62 s"],
        ["paper, dropout=0.1", "0.5000 ± 0.0100", "0.7500", "-", "0.0300", "2", "3, 5", "62 s"],
        ["popularity", "0.2500", "0.5000", "0.2500", "", "", "", ""],
    ]


def test_why_protocols_disagree_is_said_where_both_stand() -> None:
    both = [line(), line(protocol="sampled")]
    assert "Krichene & Rendle 2020" in benchmark_text(both)
    assert "Krichene" not in benchmark_text([line()])
    page = benchmark_page("made", [*both, line(split_method="temporal")])
    assert page.startswith("# made\n")
    assert "## test, temporal, 9 users" in page
    assert "8 users" not in benchmark_text([line(split="valid", n_users=8), line()])


@pytest.mark.parametrize("name", ["ml-1m", "Video"])
def test_the_committed_results_make_a_table(name: str) -> None:
    lines = read_lines(Path(__file__).resolve().parents[2] / "benchmarks" / "results" / f"{name}.jsonl")
    assert len(table_rows([line for line in lines if line.split_method == "leave_one_out"])) > 3
