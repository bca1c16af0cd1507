"""Seconds of a training epoch with settings of training and without them, in turn.

Both models have the same shape and train on the same batches, in one process; epochs alternate, so that the machine's
mood meets both alike, and the best of each counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import harness
from feature_speed import seconds_of_epoch

from sasrec.core.provenance import isa_of
from sasrec.core.threads import set_threads
from sasrec.data.batches import TrainBatches
from sasrec.data.logs import load_log
from sasrec.engine.protocol import create_engine
from sasrec.fitting import configure


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("--data", required=True, help="log file")
    flags.add_argument("--preset", default="best", help="preset that decides the settings")
    flags.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of both sides")
    flags.add_argument(
        "--set-with", action="append", required=True, metavar="NAME=VALUE", help="a setting of training on one side"
    )
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all of this process")
    flags.add_argument("--epochs", type=int, default=5, help="how often each side is measured")
    arguments = flags.parse_args(argv)
    settings, extra = (dict(map(harness.setting, texts)) for texts in (arguments.set, arguments.set_with))
    log = load_log(arguments.data)
    split, config = configure(log, arguments.preset, {"threads": arguments.threads, **settings})
    sides = {"without": config.train, "with": replace(config.train, **extra)}
    engines = {name: create_engine(config.model, split.sequences.n_items, train) for name, train in sides.items()}
    batches = {name: TrainBatches(split, config.model, train) for name, train in sides.items()}
    set_threads(engines["with"].threads)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for epoch in range(arguments.epochs):
        for name, engine in engines.items():
            seconds[name].append(seconds_of_epoch(engine, batches[name], epoch))
    best = {name: min(taken) for name, taken in seconds.items()}
    answer: dict[str, Any] = {
        "data": arguments.data,
        "set_with": extra,
        "engine": engines["with"].name,
        "isa": isa_of(engines["with"]),
        "threads": engines["with"].threads,
        "seconds": best,
        "ratio": best["with"] / best["without"],
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
