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

import harness
from feature_speed import compared_in_turn

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
    line = {"data": arguments.data, "set_with": extra, **compared_in_turn(engines, batches, arguments.epochs)}
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    harness.run(main)
