"""Epochs that a training needs on a log that has grown: begun from the earlier log's run, and from nothing.

The earlier log is the first --share of each user's events, or (--cut time) of all events in time. Both trainings have
the same valid targets: none that the earlier run was trained on. What counts is the first epoch whose valid figure is
within 1 % of the best that training from nothing finds. Runs stay in --output; a call with the same folder goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import polars as pl

import sasrec
from sasrec.data.logs import Log, load_log
from sasrec.data.sequences import build_sequences
from sasrec.fitting import FitOptions, fit_log
from sasrec.recommender import Recommender
from sasrec.runs.memory import unseen_by
from sasrec.training.result import TrainResult

ENOUGH = 0.99  # of the best valid figure of the training from nothing


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("--data", required=True, help="log file")
    flags.add_argument("--output", type=Path, required=True, help="folder for the three runs")
    flags.add_argument("--preset", default="best", help="preset of all trainings")
    flags.add_argument("--cut", choices=["position", "time"], default="position", help="how the earlier log is cut off")
    flags.add_argument("--share", type=float, default=0.8, help="share of the events in the earlier log")
    flags.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of all trainings")
    flags.add_argument(
        "--set-warm", action="append", default=[], metavar="NAME=VALUE", help="a setting of the begun training alone"
    )
    flags.add_argument("--items", type=Path, help="an item file")
    flags.add_argument("--features", nargs="+", default=["attributes"], help="its columns that are features")
    arguments = flags.parse_args(argv)
    log, settings = load_log(arguments.data), dict(map(harness.setting, arguments.set))
    earlier = _earlier(log, arguments.cut, arguments.share)
    if arguments.items is not None:
        items = sasrec.read_items(arguments.items)
        log, earlier = (_described(one, items, arguments.features) for one in (log, earlier))
    folder, preset = arguments.output, arguments.preset
    old = _train(earlier, preset, folder / "old", settings)
    anew = _train(unseen_by(log, [old]), preset, folder / "anew", settings)
    warm_settings = settings | dict(map(harness.setting, arguments.set_warm))
    warm = _train(log, preset, folder / "warm", warm_settings, folder / "old")
    print(json.dumps(_line(log, old, anew, warm, vars(arguments))))


def _earlier(log: Log, cut: str, share: float) -> Log:
    """The part of a log that is there first."""
    sequences = log.sequences
    users = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
    frame = pl.DataFrame(
        {
            "user_id": sequences.user_ids.gather(users),
            "item_id": log.vocabulary.ids_of(np.asarray(sequences.items)),
        }
    )
    if sequences.timestamps is not None:
        frame = frame.with_columns(pl.Series("timestamp", np.asarray(sequences.timestamps)))
    place = pl.int_range(pl.len()).over("user_id")
    kept = place < (share * pl.len().over("user_id")).floor()
    if cut == "time":
        kept = pl.col("timestamp") < pl.col("timestamp").quantile(share)
    return Log(*build_sequences(frame.filter(kept)), f"{log.name}, the first {share:.0%}")


def _described(log: Log, items: pl.DataFrame, features: Sequence[str]) -> Log:
    """A log whose items have features; no items besides."""
    known = pl.Series(log.vocabulary.indices_of(items["item_id"].to_list()) > 0)
    return log.with_items(items.filter(known), features)


def _train(log: Log, preset: str, output: Path, settings: Mapping[str, Any], init: Path | None = None) -> Recommender:
    """A run, or what is there of it and the rest.

    Raises:
        harness.BenchmarkError: Ctrl-C ended it: the next training would begin from half of a model.
    """
    options = FitOptions(preset, output, resume=output.is_dir(), report=False, init=init)
    return harness.whole(fit_log(log, options, settings), f"the training in {output}", "the same call goes on")


def _line(log: Log, old: Recommender, anew: Recommender, warm: Recommender, asked: Mapping[str, Any]) -> dict[str, Any]:
    curves = {name: _curve(run) for name, run in (("anew", anew), ("warm", warm))}
    goal = ENOUGH * max(curves["anew"].values())
    needed = next((epoch for epoch, value in curves["warm"].items() if value >= goal), None)
    assert warm.config.init is not None
    return {
        "what": "warm start",
        "data": log.name,
        "metric": warm.config.train.valid_metric,
        "goal": goal,
        "epochs": {name: max(curve) for name, curve in curves.items()},
        "best": {name: max(curve.values()) for name, curve in curves.items()},
        "best_epoch": {name: max(curve, key=curve.__getitem__) for name, curve in curves.items()},
        "needed": needed,
        "items": {name: getattr(warm.config.init, name) for name in ("kept", "new", "gone")},
        "left_out": warm.results[0].init_seen_targets,
        "test": {name: run.results[1].metrics["ndcg@10"] for name, run in (("anew", anew), ("warm", warm))},
        "curves": curves,
        **{name: value for name, value in asked.items() if name not in ("data", "output", "items")},
        "has_features": log.vocabulary.features is not None,
    }


def _curve(run: Recommender) -> dict[int, float]:
    """The valid figure of each epoch that was validated."""
    result: TrainResult | None = run.train_result
    assert result is not None
    metric = run.config.train.valid_metric
    return {line.epoch: line.valid[metric] for line in result.history if line.valid is not None}


if __name__ == "__main__":
    harness.run(main)
