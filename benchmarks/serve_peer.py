"""What one would write first: a FastAPI handler around a peer's predict(); and FastAPI that only echoes, the bound.

`python serve_peer.py pmixer SETUP` or `python serve_peer.py echo SETUP`, SETUP a JSON object with the peer's folder
("source"), the model's shape, n_items and threads. Prints its port. The weights are the peer's initial ones: its time
does not depend on them.
"""

from __future__ import annotations

import json
import socket
import sys
from argparse import Namespace
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Question(BaseModel):
    """A request body."""

    history: list[int]
    k: int = 10


def echo(setup: dict[str, Any]) -> FastAPI:
    """The framework alone: the request parsed and checked, and an answer of the usual size."""
    app = FastAPI()
    items = [{"item_id": i, "score": 3.9364471435546875 - i / 100, "rank": i} for i in range(1, 11)]

    @app.post("/v1/recommend")
    async def recommend(question: Question) -> dict[str, Any]:
        return {"items": items, "n": len(question.history)}

    return app


def pmixer(setup: dict[str, Any]) -> FastAPI:
    """predict() for all items, what was seen taken out, the best k."""
    import numpy as np
    import torch

    torch.set_num_threads(setup["threads"])
    sys.path.insert(0, setup["source"])
    from model import SASRec

    shape, n_items = setup["model"], setup["n_items"]
    arguments = Namespace(
        maxlen=shape["max_seq_len"], hidden_units=shape["embedding_dim"], num_blocks=shape["n_blocks"],
        num_heads=shape["n_heads"], dropout_rate=shape["dropout"], device="cpu", norm_first=False,
    )  # fmt: skip
    model = SASRec(1, n_items, arguments)
    model.eval()
    every = np.arange(1, n_items + 1)
    app = FastAPI()

    @app.post("/v1/recommend")
    def recommend(question: Question) -> dict[str, Any]:
        seq = np.zeros([arguments.maxlen], np.int32)
        recent = question.history[-arguments.maxlen :]
        if recent:
            seq[-len(recent) :] = recent
        with torch.no_grad():
            scores = model.predict(np.array([0]), np.array([seq]), every)[0]
        scores[torch.tensor(question.history, dtype=torch.long) - 1] = -torch.inf
        best, rows = torch.topk(scores, min(question.k, n_items))
        pairs = zip(rows.tolist(), best.tolist(), strict=True)
        return {"items": [{"item_id": row + 1, "score": score, "rank": i} for i, (row, score) in enumerate(pairs, 1)]}

    return app


def main() -> None:
    app = {"echo": echo, "pmixer": pmixer}[sys.argv[1]](json.loads(sys.argv[2]))
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(app, log_level="error", access_log=False, loop="uvloop", http="httptools")
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
