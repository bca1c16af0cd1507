"""A summary over seeds: mean and spread by hand, and as tables."""

from __future__ import annotations

import json
import math

import pytest
from made import ML_1M, SAMPLED, estimate, make_result, make_training

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.evaluation.results import Result
from sasrec.experiments.summary import SeedRun, Spread, over_seeds, summarise, summary_page, summary_text
from sasrec.runs.folder import RunConfig

CONFIG = RunConfig(ModelConfig(), TrainConfig(), EvalConfig(), "paper", "made", ML_1M, "0")


def result(value: float, stderr: float | None = 0.25) -> Result:
    return make_result(metrics={"ndcg@10": estimate(value, stderr)}, warnings=("few",))


def run(seed: int, *results: Result) -> SeedRun:
    return SeedRun(seed, CONFIG, list(results), make_training(best_epoch=seed), f"seed-{seed}")


def test_spread_over_seeds_by_hand() -> None:
    spread = over_seeds([result(1.0), result(2.0, 0.75), result(6.0, 0.5)]).metrics["ndcg@10"]
    assert spread == Spread(
        3.0, pytest.approx(math.sqrt(7)), pytest.approx(math.sqrt(7 / 3)), users_stderr=0.5, values=[1.0, 2.0, 6.0]
    )


def test_one_seed_has_no_spread() -> None:
    assert over_seeds([result(1.0, None)]).metrics["ndcg@10"] == Spread(1.0, None, None, None, [1.0])


def test_a_summary_is_json_of_how_it_was_measured_and_how_each_run_went() -> None:
    told = json.loads(json.dumps(summarise([run(3, result(1.0)), run(4, result(2.0))]).to_dict()))
    assert list(told) == ["seeds", "runs", "results"]
    assert told["seeds"] == [3, 4]
    assert [(r["seed"], r["folder"], r["best_epoch"]) for r in told["runs"]] == [(3, "seed-3", 3), (4, "seed-4", 4)]
    assert list(told["runs"][0])[2:] == list(vars(make_training()))
    (one,) = told["results"]
    assert (one["k"], one["warnings"], one["candidates"]) == ([10], ["few"], "all 12 items")
    assert set(one) == set(make_result().to_dict())
    assert one["metrics"]["ndcg@10"]["values"] == [1.0, 2.0]
    assert one["baselines"]["popularity"] == {"ndcg@10": 0.25, "hr@10": 0.3, "coverage@10": 0.1}


def test_the_summary_reads_well_as_text_and_as_markdown() -> None:
    summary = summarise([run(3, make_result()), run(4, make_result())])
    text, page = summary_text(summary), summary_page("made", summary)
    header, first, *_ = text.splitlines()[1:]
    assert header.split("  ")[0] == ""
    assert [cell.strip() for cell in header.split("  ") if cell.strip()] == [
        "mean", "std", "std error", "min", "max", "users' std error", "popularity", "last_item"
    ]  # fmt: skip
    figures = ["0.5000", "0.0000", "0.0000", "0.5000", "0.5000", "0.0100", "0.2500", "0.4000"]
    assert first.split() == ["ndcg@10", *figures]
    assert f"| ndcg@10 | {' | '.join(figures)} |" in page
    assert "| coverage@10 | 0.6250 | 0.0000 | 0.0000 | 0.6250 | 0.6250 | - | 0.1000 | - |" in page
    assert page.startswith("# made: seeds 3, 4\n\n## Test, full protocol\n")
    assert "| 3 | 3 | 3 | 62 | max_epochs | seed-3 |" in page
    for words in (text, page):
        assert "mean: over 2 seeds; std: spread over training seeds; std error: uncertainty of that mean;" in words
        assert "users' std error: uncertainty from the sample of users." in words
        assert "Krichene & Rendle 2020" not in words


def test_why_protocols_disagree_is_said_where_both_were_measured() -> None:
    both = [make_result(split="valid"), make_result(), make_result(**SAMPLED)]
    assert "Krichene & Rendle 2020" in summary_text(summarise([run(3, *both)]))


def test_names_in_a_page_are_no_markup() -> None:
    foreign = make_result(metrics={"ndcg@10": estimate(0.5)}, candidates="<script>x</script> | [a](b)")
    page = summary_page("a|b<img src=x>", summarise([run(3, foreign)]))
    assert page.startswith("# a\\|b\\<img src=x\\>: seeds 3")
    assert "<script" not in page.replace("\\<", "")
    assert "[a]" not in page
