"""Seconds of a training epoch with and without items' features, in turn.

The attributes are a JSON object {item_id: [integers]}. Both models train on the same batches, in one process; epochs
alternate, so that the machine's mood meets both alike, and the best of each counts. --vectors adds made-up vectors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sasrec.core.provenance import isa_of
from sasrec.core.threads import set_threads
from sasrec.data.batches import TrainBatches
from sasrec.data.item_features import ItemFeatures
from sasrec.data.logs import Log, load_log
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import Engine, create_engine
from sasrec.fitting import configure


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("--data", required=True, help="log file")
    flags.add_argument("--attributes", required=True, help="JSON object of the items' attributes")
    flags.add_argument("--preset", default="best", help="preset that decides the settings")
    flags.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a setting on top of the preset")
    flags.add_argument("--vectors", type=int, default=0, help="width of made-up vectors; 0 = none")
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all of this process")
    flags.add_argument("--epochs", type=int, default=5, help="how often each side is measured")
    arguments = flags.parse_args(argv)
    more = {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    log = load_log(arguments.data)
    split, config = configure(log, arguments.preset, {"threads": arguments.threads, **more})
    batches = TrainBatches(split, config.model, config.train)
    features = read_features(Path(arguments.attributes), log, arguments.vectors)
    model = replace(config.model, n_features=features.n_features, vector_dim=features.vector_dim)
    engines = {
        "without": create_engine(config.model, features.n_items, config.train),
        "with": create_engine(model, features.n_items, config.train, features=features),
    }
    sides = {"without": batches, "with": TrainBatches(split, model, config.train)}
    answer: dict[str, Any] = {
        "data": arguments.data,
        "n_features": features.n_features,
        "features_per_item": len(features.values.values) / features.n_items,
        "vector_dim": features.vector_dim,
        **compared_in_turn(engines, sides, arguments.epochs),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


def read_features(path: Path, log: Log, vector_dim: int) -> ItemFeatures:
    """The attributes of a log's items, numbered in ascending order."""
    attributes = {str(item): values for item, values in json.loads(path.read_text()).items()}
    rows = [[], *(attributes.get(str(item), []) for item in log.vocabulary.ids)]
    known = sorted({value for row in rows for value in row})
    number = {value: i for i, value in enumerate(known)}
    values = Ragged.from_lists([sorted({number[value] for value in row}) for row in rows])
    vectors = np.random.default_rng(0).standard_normal((len(rows), vector_dim), np.float32)
    vectors[0] = 0
    return ItemFeatures(values, len(known), vectors if vector_dim else None)


def compared_in_turn(engines: Mapping[str, Engine], batches: Mapping[str, TrainBatches], epochs: int) -> dict[str, Any]:
    """The best epoch of the sides "without" and "with", and how many times as long the second takes."""
    set_threads(engines["with"].threads)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for epoch in range(epochs):
        for name, engine in engines.items():
            seconds[name].append(seconds_of_epoch(engine, batches[name], epoch))
    best = {name: min(taken) for name, taken in seconds.items()}
    return {
        "engine": engines["with"].name,
        "isa": isa_of(engines["with"]),
        "threads": engines["with"].threads,
        "seconds": best,
        "ratio": best["with"] / best["without"],
    }


def seconds_of_epoch(engine: Engine, batches: TrainBatches, epoch: int) -> float:
    """Batches, gradients, Adam and the average of the weights where there is one."""
    train, began = engine.train_config, time.perf_counter()
    for batch in batches.epoch(epoch):
        engine.forward_backward(batch)
        engine.optimizer_step(train.learning_rate)
        if train.ema_decay:
            engine.update_average(train.ema_decay_at(batch.step))
    engine.pop_loss()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
