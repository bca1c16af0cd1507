"""A recommender to serve, and requests to an application in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from sasrec.core.server_config import ServerConfig
from sasrec.data.vocabulary import Vocabulary
from sasrec.recommender import Recommender
from sasrec.serving.app import Application, create_app

SMALL: dict[str, Any] = {
    "embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "threads": 1, "max_epochs": 1, "filter_seen": "yes",
}  # fmt: skip
TITLES = pl.DataFrame({"item_id": range(1, 31), "title": [f"Film {i}" for i in range(1, 31)]})


ATTRIBUTES = pl.DataFrame(
    {
        "genre": [None if i == 5 else ["drama", "comedy", "crime"][i % 3] for i in range(1, 31)],
        "price": [None if i % 10 == 0 else float(i) for i in range(1, 31)],
        "tags": [[] if i % 4 == 0 else ["new", f"t{i % 5}"] for i in range(1, 31)],
    }
)


def with_attributes(recommender: Recommender, attributes: pl.DataFrame | None = ATTRIBUTES) -> Recommender:
    """The same model, whose items have attributes, or none."""
    own = recommender.vocabulary
    vocabulary = Vocabulary(own.item_ids, own.counts, own.titles, attributes)
    rest = recommender.config, recommender.sequences, recommender.results, recommender.train_result
    return Recommender(recommender.engine, vocabulary, *rest)


def save_plain(recommender: Recommender, folder: Path) -> None:
    """Save what serving reads; the report of a training takes longer than the training."""
    parts = recommender.engine, recommender.vocabulary, recommender.config, recommender.sequences
    Recommender(*parts, recommender.results).save(folder, overwrite=True)


def point(link: Path, target: Path | str) -> None:
    """Let the link lead elsewhere at one moment, as a deployment does."""
    (link.parent / "next").symlink_to(target)
    (link.parent / "next").rename(link)


def ask(app: Application, method: str, path: str, **request: Any) -> httpx.Response:
    """One request, in an event loop of its own."""

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(main())


def post(app: Application, path: str, body: Any, **request: Any) -> httpx.Response:
    return ask(app, "POST", path, json=body, **request)


def quiet_app(recommender: Recommender | None, **config: Any) -> Application:
    """An application without an access log."""
    return create_app(recommender, ServerConfig(**{"access_log": False, **config}))
