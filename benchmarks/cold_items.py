"""How well items without any event are recommended by their features.

A tenth of the items, drawn with seed 0 from the sorted ids, lose all of their events before training. A target is each
user's last event of such an item that has an event of another item before it; the history before it holds the other
items only. Each target is ranked among all items that the user had not, and among the items without events alone.

Lines: the model (mean over seeds, with the standard error over seeds), the items that share most features with the
user's last item, popularity. Beside them, what the model does for the usual targets of valid and test, whose candidates
are all items, too, and what a model without features does, which knows no cold item.

Longer rows of cold items (`cold_scale`) find more cold targets and cost warm ones. So the model is measured with its
own `cold_scale` and with 0, which leaves them as they are: the same weights, the same targets. What warm targets would
have without any cold rival, with rows of next to no length, is told as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import polars as pl

import sasrec
from sasrec.core.arrays import Float64, Int32
from sasrec.core.presets import OF_FEATURES
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import create_engine
from sasrec.evaluation.protocols import rank_metrics
from sasrec.ranking.scorers import ModelScorer, Popularity, SharedFeatures
from sasrec.recommender import Recommender

SHARE = 10  # one item of so many is cold
NO_RIVAL = 1e-3  # a cold_scale that leaves cold items scores near 0, below what a trained model's lists hold
K = (10,)


@dataclass(frozen=True)
class Cold:
    """A log without the events of some items, and what is to be found of these."""

    log: pl.DataFrame  # user_id, item_id in time order, without cold items
    items: list[Any]  # that are cold
    histories: list[list[Any]]  # before each target, oldest first, without cold items
    targets: list[Any]
    had: list[list[Any]]  # all items before each target, cold ones too, but for the target's own: they are no rivals


def without_some(log: pl.DataFrame) -> Cold:
    """Take all events of some items out of a log."""
    ids = np.sort(log["item_id"].unique().to_numpy())
    cold = set(np.random.default_rng(0).choice(ids, len(ids) // SHARE, replace=False).tolist())
    histories, targets, had = [], [], []
    for items in log.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list():
        places = [j for j, item in enumerate(items) if item in cold and any(i not in cold for i in items[:j])]
        if places:
            histories.append([i for i in items[: places[-1]] if i not in cold])
            targets.append(items[places[-1]])
            had.append([i for i in items[: places[-1]] if i != targets[-1]])
    return Cold(log.filter(~pl.col("item_id").is_in(cold)), sorted(cold), histories, targets, had)


def measured(scorer: Any, histories: Ragged, targets: Int32, had: Ragged, warm: Int32) -> dict[str, float]:
    """NDCG@10 and HR@10 among all items that the user had not, and among the cold ones alone."""
    figures = {}
    alone = Ragged.from_lists([np.union1d(had.row(row), warm) for row in range(len(had))])
    for name, hidden in (("all", had), ("cold", alone)):
        ranks = np.concatenate(
            [
                _ranks(scorer, histories.take(rows), targets[rows], hidden.take(rows))
                for rows in (slice(i, min(i + 256, len(targets))) for i in range(0, len(targets), 256))
            ]
        )
        figures |= {f"{metric} among {name}": float(v.mean()) for metric, v in rank_metrics(ranks, K).items()}
    return figures


def _ranks(scorer: Any, histories: Ragged, targets: Int32, hidden: Ragged) -> Float64:
    scores = np.array(scorer.scores(histories), np.float64)
    wanted = scores[np.arange(len(targets)), targets]
    scores[:, 0] = -np.inf
    scores[hidden.row_of, hidden.values] = -np.inf
    greater = (scores > wanted[:, None]).sum(axis=1)
    equal = (scores == wanted[:, None]).sum(axis=1) - 1
    ranks: Float64 = 1 + greater + equal / 2
    return ranks


def scorers_of(recommender: Recommender, unscaled: Recommender) -> dict[str, Any]:
    """The model, with its rows of cold items and as their features make them, and what stands beside it."""
    models = {"model": recommender, "model, cold_scale=0": unscaled}
    length, counts = recommender.config.model.max_seq_len, np.concatenate([[0], recommender.vocabulary.counts])
    scorers = {name: ModelScorer(one.engine, length, one.next_items.index) for name, one in models.items()}
    return scorers | {s.name: s for s in (SharedFeatures(recommender.vocabulary.features), Popularity(counts))}


def with_scale(recommender: Recommender, cold_scale: float) -> Recommender:
    """The same weights with other rows of cold items."""
    items, before = recommender.vocabulary, recommender.engine
    config = replace(recommender.config, model=replace(recommender.config.model, cold_scale=cold_scale))
    engine = create_engine(config.model, len(items), before.train_config, before.weights(), features=items.features)
    return Recommender(engine, items, config, recommender.sequences)


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("--data", required=True, help="a log")
    flags.add_argument("--items", required=True, help="an item file with the column `attributes`")
    flags.add_argument("--format", help="of the log, as `sasrec train --format`")
    flags.add_argument("--preset", default="best")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of training")
    flags.add_argument("--output", help="a file for the lines")
    given = flags.parse_args(argv)
    log = sasrec.read_interactions(given.data, format=given.format)
    cold = without_some(log)
    items = sasrec.read_items(given.items)
    settings = dict(map(harness.setting, given.set))
    print(f"{len(cold.items)} cold items, {len(cold.targets)} targets", file=sys.stderr)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        described = {"items": items, "item_features": ["attributes"]}
        recommender = _train(cold.log, preset=given.preset, seed=seed, **described, **settings)
        index = recommender.vocabulary.indices_of
        histories, had = (Ragged.from_lists([index(ids) for ids in lists]) for lists in (cold.histories, cold.had))
        warm = np.setdiff1d(np.arange(1, len(recommender.vocabulary) + 1, dtype=np.int32), index(cold.items))
        unscaled = with_scale(recommender, 0)
        for name, scorer in scorers_of(recommender, unscaled).items():
            found.setdefault(name, []).append(measured(scorer, histories, index(cold.targets), had, warm))
        plain = {name: value for name, value in settings.items() if name not in OF_FEATURES}
        without = _train(cold.log, preset=given.preset, seed=seed, **plain)
        usual = {
            "": recommender, ", cold_scale=0": unscaled, ", no cold rivals": with_scale(recommender, NO_RIVAL),
            ", without features": without,
        }  # fmt: skip
        for name, of in usual.items():
            found.setdefault(f"usual targets{name}", []).append(_usual(of))
        for name, of_seeds in found.items():
            print(seed, name, json.dumps(of_seeds[-1]), file=sys.stderr)
    lines = [
        {
            "data": given.data,
            "preset": given.preset,
            "settings": settings,
            "scorer": name,
            "cold_scale": recommender.config.model.cold_scale,
            "seeds": given.seeds,
            **{metric: _spread([one[metric] for one in figures]) for metric in figures[0]},
        }
        for name, figures in found.items()
    ]
    text = "\n".join(map(json.dumps, lines))
    print(text)
    if given.output:
        Path(given.output).write_text(text + "\n")


def _train(log: pl.DataFrame, **options: Any) -> Recommender:
    """As `sasrec.fit`.

    Raises:
        harness.BenchmarkError: Ctrl-C ended it.
    """
    return harness.whole(sasrec.fit(log, **options), "training", "nothing is measured")


def _usual(recommender: Recommender) -> dict[str, float]:
    """Of the usual targets, which are all of items with events, but for those that valid or test have alone."""
    results = {part: recommender.evaluate(part, protocol="full", baselines=False) for part in ("valid", "test")}
    return {f"{m} {part}": r.metrics[m]["value"] for part, r in results.items() for m in ("ndcg@10", "hr@10")}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "stderr": deviation}


if __name__ == "__main__":
    harness.run(main)
