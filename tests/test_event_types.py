"""Types of events from the log to the result: purchases predicted from views, and told wherever a run is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from made import SETTINGS, make_shop_log

import sasrec
from sasrec.core.errors import ConfigError
from sasrec.core.isa import load_native
from sasrec.evaluation.comparison import compare
from sasrec.fitting import fit

SHOP_SETTINGS: dict[str, Any] = {
    "preset": "fast", "embedding_dim": 32, "n_blocks": 1, "max_seq_len": 20, "max_epochs": 30, "batch_size": 32,
    "threads": 1, "patience": 0,
}  # fmt: skip


@pytest.mark.slow
def test_purchases_with_views_as_history_beat_purchases_alone_and_all_events_alike() -> None:
    log = make_shop_log()
    purchases = log.filter(pl.col("event") == "purchase").drop("event")
    typed = {"event_column": "event", "target_events": "purchase"}
    models = [
        fit(log, **typed, **SHOP_SETTINGS),
        fit(purchases, **SHOP_SETTINGS),
        fit(log, **typed, event_weights="view=1", **SHOP_SETTINGS),  # all events alike, measured on purchases
    ]
    results = [next(r for r in model.results if r.split == "test" and r.protocol == "full") for model in models]
    with_views, alone, alike = (result.metrics["ndcg@10"]["value"] for result in results)
    assert all(result.n_users == 500 for result in results)
    assert with_views > 0.7
    assert with_views > alone + 0.25
    assert with_views > alike + 0.25


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_run_by_types_of_events_says_so_wherever_it_is_told(tmp_path: Path, engine: str) -> None:
    if engine == "native" and load_native().module is None:
        pytest.skip(load_native().why)
    log = make_shop_log(60, 20).with_columns(weight=pl.lit(0.5))
    rec = fit(
        log, output=tmp_path / "run", event_column="event", weight_column="weight", target_events=["purchase"],
        event_weights={"view": 0.1}, engine=engine, **SETTINGS,
    )  # fmt: skip
    loaded = sasrec.load(tmp_path / "run")
    for result in (*rec.results, *loaded.results, loaded.evaluate()):
        assert result.target_events == ("purchase",)
        assert result.to_dict()["target_events"] == ["purchase"]
    assert loaded.config.train.event_weights == "view=0.1"
    assert loaded.config.data.event_types == {"purchase": 300, "view": loaded.config.data.n_events - 300}
    assert not loaded.hides_seen
    card, page = ((tmp_path / "run" / name).read_text() for name in ("README.md", "report.html"))
    assert "predicts purchase events" in card
    assert "Types of events: view (" in card
    assert "types of events" in page
    assert "targets are purchase events" in page
    with pytest.raises(ConfigError, match=r"was trained on .* events that the leave_one_out split asked for holds out"):
        fit(log, event_column="event", **SETTINGS).evaluate(target_events="purchase")


def test_a_run_without_types_tells_of_none(tmp_path: Path) -> None:
    rec = fit(make_shop_log(60, 20), **SETTINGS)
    told = rec.results[0].to_dict()
    assert "target_events" not in told
    assert set(rec.config.data.to_dict()).isdisjoint({"event_types", "has_weights"})


def test_an_unknown_type_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for settings in ({"target_events": "cart"}, {"event_weights": "cart=1"}):
        with pytest.raises(ConfigError, match=r"names 'cart', which no event is; the log has view \([\d,]+\), pur"):
            fit(make_shop_log(60, 20), event_column="event", output=tmp_path / "run", **settings, **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_results_of_other_targets_are_not_compared() -> None:
    rec = fit(make_shop_log(60, 20), event_column="event", target_events="purchase", **SETTINGS)
    purchases, all_events = rec.evaluate(), rec.evaluate(target_events="")
    with pytest.raises(ConfigError, match=r"the results differ in (n_users|excluded|target_events)"):
        compare(purchases, all_events)
    with pytest.raises(ConfigError, match="the results differ in target_events"):
        compare(purchases, replace(purchases, target_events=("view",)))
