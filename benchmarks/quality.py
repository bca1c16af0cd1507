"""NDCG and HR after training, ours over seeds and, with peers, each peer's in turn by its own evaluation.

Without a peer the lines are those of `sasrec benchmark`, which benchmarks/results/*.jsonl keeps: one for each split and
protocol, mean and standard deviation over seeds; that command also goes on after a cut-off. With a peer, which trains
for --peer-epochs without choosing an epoch, a further line compares its own test figure with ours of the same protocol:
ratio = ours / the peer's, so above 1 ours is better.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

import harness
import msgspec
from harness import Answer, BenchmarkError, Session, Worker

from sasrec.evaluation.results import Result
from sasrec.experiments.lines import Origin, ResultLine, line_of

METRICS = ("ndcg@10", "hr@10")


def main(argv: Sequence[str] | None = None) -> None:
    flags = harness.parser(__doc__)
    flags.set_defaults(repeats=1)
    flags.add_argument("--seeds", dest="repeats", type=int, help="seeds 0, 1, ...: the same as --repeats")
    flags.add_argument("--peer-epochs", type=int, default=20, help="epochs that a peer trains")
    arguments = flags.parse_args(argv)
    fits: list[Answer] = []
    peers: list[list[Answer]] = []
    for seed in range(arguments.repeats):
        with Session(arguments, seed=seed) as session:
            fits.append(session.ours.ask("fit"))
            print(f"seed {seed}: {fits[-1]['epochs']} epochs in {fits[-1]['train_seconds']:.0f} s", file=sys.stderr)
            peers.append([_fit_peer(worker, arguments.peer_epochs) for worker in session.workers[1:]])
    for line in _results(fits, session):
        _print(line, arguments)
    for i, worker in enumerate(session.workers[1:]):
        _compare(session, worker, fits, [answers[i] for answers in peers])


def _fit_peer(worker: Worker, epochs: int) -> Answer:
    """Train a peer and take the figures of the first protocol it has."""
    trained = worker.ask("train", epochs=epochs)
    for protocol in ("sampled", "full"):
        answer = worker.ask("evaluate", protocol=protocol)
        if "unsupported" not in answer:
            seconds = epochs * trained["seconds"]
            return {"protocol": protocol, "epochs": epochs, "train_seconds": seconds, **answer["metrics"]}
    raise BenchmarkError(f"{worker.name} has no evaluation")


def _results(fits: Sequence[Answer], session: Session) -> list[ResultLine]:
    """A line for each split and protocol."""
    results = [msgspec.convert(fit["results"], list[Result]) for fit in fits]
    origin = Origin(
        data=session.data,
        seeds=list(range(len(fits))),
        train_seconds=statistics.mean(fit["train_seconds"] for fit in fits),
        best_epochs=[fit["best_epoch"] for fit in fits],
        overrides=dict(map(harness.setting, session.arguments.set)),
        fingerprint=results[0][0].data,
        **session.facts(),
    )
    return [line_of(of_seeds, origin) for of_seeds in zip(*results, strict=True)]


def _compare(session: Session, worker: Worker, fits: Sequence[Answer], peer: Sequence[Answer]) -> None:
    """Lines that set a peer's test figures beside ours of the same protocol."""
    protocol = peer[0]["protocol"]
    ours = [next(r for r in fit["results"] if (r["split"], r["protocol"]) == ("test", protocol)) for fit in fits]
    for metric in METRICS:
        ours_side = harness.summary(
            [
                {"value": r["metrics"][metric]["value"], "train_seconds": f["train_seconds"], "epochs": f["epochs"]}
                for r, f in zip(ours, fits, strict=True)
            ],
            metric,
        )
        kept = [{"value": p[metric], "train_seconds": p["train_seconds"], "epochs": p["epochs"]} for p in peer]
        peer_side = {"name": worker.name, **harness.summary(kept, metric), **worker.about}
        session.print_line(f"quality {metric}, test, {protocol}", ours_side, peer_side, higher=True)


def _print(line: ResultLine, arguments: argparse.Namespace) -> None:
    if arguments.json:
        harness.print_json(line.to_dict())
        return
    figures = ", ".join(
        f"{name} {m.mean:.4f}" + ("" if m.std is None else f" +- {m.std:.4f}")
        for name, m in line.metrics.items()
        if name in METRICS
    )
    print(f"{line.origin.data}, {line.split}, {line.protocol}, seeds {line.origin.seeds}: {figures}")


if __name__ == "__main__":
    harness.run(main)
