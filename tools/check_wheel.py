"""Train on a small made-up log with the installed package. In: the engine to take; out: what was installed and used."""

import sys

import numpy as np
import polars as pl

import sasrec
from sasrec.engine.protocol import environment


def main() -> None:
    """Fit, recommend, and say where the package lies; the compiled core must do it all without torch."""
    engine = sys.argv[1] if len(sys.argv) > 1 else "native"
    users, items = np.divmod(np.arange(600), 12)
    log = pl.DataFrame({"user_id": users, "item_id": (users + 7 * items) % 30})
    recommender = sasrec.fit(log, engine=engine, max_epochs=2, embedding_dim=16, threads=1)
    assert len(recommender.recommend([[1, 8]], k=5)) == 5
    assert engine == "torch" or "torch" not in sys.modules, "the compiled core imported torch"
    print(f"{sasrec.__file__}: {environment()['engine']}")


if __name__ == "__main__":
    main()
