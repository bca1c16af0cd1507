"""What `where` and `diversity` cost a request: one history's list, as the server makes it, with and without them.

    first use    milliseconds to read an expression and make its mask, each time another one
    known        microseconds that an expression adds to a request once its mask is kept; fewer items may take less
    diversity    microseconds that it adds
Models are made, not trained, with random weights and attributes. Requests are asked in turn with and without, and times
are those of the CPU, so that other work on the machine counts little. Exit code 1 where a known expression adds more
than --most microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from sasrec import __version__
from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.data.sequences import build_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.engine.protocol import create_engine
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunConfig
from sasrec.serving.schemas import Query
from sasrec.serving.served_model import Row, ServedModel

HISTORY = 20  # items
EXPRESSIONS = {  # by the share of the items that they leave, about
    "nothing": "price < 0",
    "1 %": "price < 1",
    "10 %": "kind = 'k3' and not tags in ('t1')",
    "half": "price < 50 or brand like 'no brand%'",
    "nearly all": "not kind in ('k1') or price is null",
}


def made_model(n_items: int, dim: int, threads: int) -> ServedModel:
    """A model with random weights, whose items have random attributes."""
    rng = np.random.default_rng(0)
    log = pl.DataFrame({"user_id": np.arange(n_items) // 5, "item_id": np.arange(n_items)})
    sequences, vocabulary = build_sequences(log)
    price = np.where(rng.random(n_items) < 0.05, np.nan, rng.uniform(0, 100, n_items))
    attributes = pl.DataFrame(
        {
            "kind": [f"k{i}" for i in rng.integers(0, 9, n_items)],
            "brand": [f"brand {i}" for i in rng.integers(0, n_items // 4 + 1, n_items)],
            "price": price,
            "tags": [[f"t{a}", f"t{b}"] for a, b in rng.integers(0, 40, (n_items, 2))],
        }
    )
    model, train = ModelConfig(embedding_dim=dim), TrainConfig(threads=threads)
    vocabulary = Vocabulary(vocabulary.item_ids, vocabulary.counts, None, attributes)
    config = RunConfig(model, train, EvalConfig(), "", "made", sequences.facts, __version__)
    return ServedModel(Recommender(create_engine(model, n_items, train), vocabulary, config, sequences))


def seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def added(model: ServedModel, rows: Sequence[tuple[Row, Row]]) -> tuple[float, float]:
    """Microseconds of a plain request, and what the other one of a pair adds: medians."""
    pairs = [(seconds(lambda: model.answer([a])), seconds(lambda: model.answer([b]))) for a, b in rows]  # noqa: B023
    plain, other = (1e6 * statistics.median(times) for times in zip(*pairs, strict=True))
    return plain, other - plain


def measured(model: ServedModel, k: int, repeats: int) -> list[dict[str, object]]:
    """A line for each expression, and one for diversity."""
    n_items = len(model.vocabulary)
    rng = np.random.default_rng(1)
    histories = [rng.integers(0, n_items, HISTORY).tolist() for _ in range(repeats)]
    model.answer([Row(Query(history, k, diversity=0.5)) for history in histories[:32]])
    lines: list[dict[str, object]] = []
    for share, where in EXPRESSIONS.items():
        variants = [f"{where} and count < {10**6 + i}" for i in range(5)]
        first = statistics.median(seconds(lambda: model.masks.mask(one)) for one in variants)  # noqa: B023
        n_left = int(model.masks.mask(where).sum())
        plain, more = added(model, [(Row(Query(h, k)), Row(Query(h, k, where=where))) for h in histories])
        lines.append(
            {"items": n_items, "asked": "where", "share": share, "left": n_left, "first_use_ms": round(1e3 * first, 2),
             "plain_us": round(plain, 1), "added_us": round(more, 1)}
        )  # fmt: skip
    plain, more = added(model, [(Row(Query(h, k)), Row(Query(h, k, diversity=0.5))) for h in histories])
    lines.append({"items": n_items, "asked": "diversity", "plain_us": round(plain, 1), "added_us": round(more, 1)})
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--items", type=int, nargs="+", default=[3_416, 24_000, 200_000], help="sizes of the catalogue")
    flags.add_argument("--dim", type=int, default=50, help="width of the model")
    flags.add_argument("--k", type=int, default=10, help="length of a list")
    flags.add_argument("--threads", type=int, default=1, help="of the engine")
    flags.add_argument("--repeats", type=int, default=2_000, help="requests of each kind")
    flags.add_argument("--most", type=float, default=50.0, help="microseconds that a known expression may add")
    arguments = flags.parse_args(argv)
    worst = 0.0
    for n_items in arguments.items:
        model = made_model(n_items, arguments.dim, arguments.threads)
        for line in measured(model, arguments.k, arguments.repeats):
            print(json.dumps(line), flush=True)
            worst = max(worst, float(line["added_us"]) if line["asked"] == "where" else 0.0)
    print(f"a known expression adds at most {worst:.1f} us; {arguments.most:g} are allowed", file=sys.stderr)
    sys.exit(worst > arguments.most)


if __name__ == "__main__":
    main()
