"""Use the installed package from a made-up log to an answer over HTTP. In: the engine; out: what was used, in a line.

The compiled core must do it all in an environment that has no torch.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import polars as pl

import sasrec
from sasrec.engine.protocol import environment

WRITTEN = ("config.json", "model.safetensors", "metrics.json", "report.html", "curve.png", "README.md")


def train_and_measure(engine: str, run: Path) -> None:
    """Fit with a report, measure, recommend, and again from the run folder."""
    users, items = np.divmod(np.arange(600), 12)
    log = pl.DataFrame({"user_id": users, "item_id": (users + 7 * items) % 30})
    recommender = sasrec.fit(log, engine=engine, max_epochs=2, embedding_dim=16, threads=1, output=run)
    assert recommender.evaluate(protocol="full").metrics["ndcg@10"]["value"] > 0
    assert len(sasrec.load(run).recommend([[1, 8]], k=5)) == 5
    assert all((run / name).stat().st_size for name in WRITTEN)


def export(run: Path) -> None:
    """Item vectors, by the command: an ONNX graph takes an extra."""
    command("export", str(run), "--format", "embeddings", "--output", str(run.with_name("vectors")))
    assert np.load(run.with_name("vectors") / "embeddings.npy").shape == (30, 16)


def command(*arguments: str) -> None:
    """A command that must end well."""
    subprocess.run([sys.executable, "-m", "sasrec", "--quiet", *arguments], check=True, stdout=subprocess.DEVNULL)


def serve(run: Path) -> None:
    """One request to a server of its own, which must end well when it is told to."""
    arguments = ["serve", str(run), "--port", "0", "--no-access-log"]
    with subprocess.Popen([sys.executable, "-m", "sasrec", *arguments], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+:\d+", line)))
        body = json.dumps({"history": [1, 8], "k": 5}).encode()
        with urllib.request.urlopen(f"{address}/v1/recommend", body, timeout=60) as reply:
            assert len(json.load(reply)["items"]) == 5
        with urllib.request.urlopen(address, timeout=60) as page:
            assert b"<html" in page.read()
        server.terminate()
        server.stderr.read()
    assert server.returncode == 0


def main() -> None:
    """Do it all, and say where the package lies and what it took."""
    engine = sys.argv[1]
    assert engine == "torch" or importlib.util.find_spec("torch") is None, "this environment has torch"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        train_and_measure(engine, run)
        export(run)
        serve(run)
    print(f"{sasrec.__file__}: {environment()['engine']}")


if __name__ == "__main__":
    main()
