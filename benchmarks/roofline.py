"""How much of the machine a training epoch uses: its arithmetic against the fastest matrix product in the same run.

GFLOP counts what the mathematics needs, at the true widths: products of the forward pass once and of the backward pass
twice, causal attention at half its square, the loss's dot products. What an engine computes on top (padding, weights
made again in the backward pass, softmax, norms, dropout, Adam) is time but not arithmetic here. Bytes are what has to
move through memory for dense Adam: weights and both moments of every row, read and written at every step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import harness
import numpy as np
from harness import Answer, Session, Worker
from threadpoolctl import threadpool_limits

SQUARE = 2048  # rows of the matrices of the reference product: large enough to run at full speed


def main(argv: Sequence[str] | None = None) -> None:
    arguments = harness.parser(__doc__).parse_args(argv)
    with Session(arguments) as session:
        work = session.ours.ask("work")
        with threadpool_limits(session.threads):
            best = max(product_gflops() for _ in range(5))

        def ask(worker: Worker) -> Answer:
            answer = worker.ask("train")
            rate = work["gflop"] / answer["seconds"]
            details = {"gflop": work["gflop"], "gflops": rate, "share_of_product": rate / best, "product_gflops": best}
            return {"value": answer["seconds"], **details, "adam_gb": work["adam_gb"], "positions": work["positions"]}

        session.compare("roofline of a training epoch", "s", ask)


def product_gflops() -> float:
    """GFLOP/s of one large float32 product by NumPy's BLAS."""
    a = np.random.default_rng(0).standard_normal((SQUARE, SQUARE), np.float32)
    a @ a
    began = time.perf_counter()
    a @ a
    return 2 * SQUARE**3 / (time.perf_counter() - began) / 1e9


if __name__ == "__main__":
    harness.run(main)
