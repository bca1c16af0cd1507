"""What a server that measures does beside answering: whose model answers, ids of lists, feedback, figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sasrec.core.server_config import ServerConfig
from sasrec.serving.challenger import Challenger
from sasrec.serving.decoding import ItemId
from sasrec.serving.endpoints import Call, Reply
from sasrec.serving.exposures import Arm, Shown
from sasrec.serving.feedback import FeedbackStore
from sasrec.serving.feedback_file import pseudonym, share_place
from sasrec.serving.online_figures import answered
from sasrec.serving.online_schemas import Feedback
from sasrec.serving.schemas import encode
from sasrec.serving.served_model import Row
from sasrec.serving.service import Service


class Online:
    """The measuring of one server.

    Args:
        store: of what was shown and what came of it.
        run: the service of the model that answers whoever is not the challenger's.
        challenger: of the model for a share of the users; None = there is none.
    """

    def __init__(self, store: FeedbackStore, run: Service, challenger: Challenger | None) -> None:
        self.store, self.run, self.challenger = store, run, challenger

    @classmethod
    def open(cls, config: ServerConfig, service: Service) -> Online:
        """The measuring that a config asks for; the service gets its challenger, which is yet to be loaded.

        Raises:
            CheckpointError: the file cannot be used.
        """
        store = FeedbackStore.open(config, service.metrics)
        service.challenger = challenger = Challenger(service, config) if config.challenger else None
        return cls(store, service, challenger)

    def of_user(self, row: Row, user: ItemId | None, *, is_shown: bool) -> Row:
        """A row that somebody will see; user None = it is not told who."""
        if user is None:
            return row._replace(is_shown=is_shown)
        salt = self.store.salt
        is_of_share = self.challenger is not None and share_place(salt, user) < self.challenger.share
        arm: Arm = "challenger" if is_of_share else "run"
        return row._replace(arm=arm, hashed_user=pseudonym(salt, user), is_shown=is_shown)

    def begin(self, call: Call, rows: Sequence[Row]) -> Shown:
        """What takes the lists of a request; the log names the challenger where all of them are its own."""
        model = self.run.of_arm("challenger")
        if model is not None and all(row.arm == "challenger" for row in rows):
            call.model_version = model.version
        return Shown()

    async def kept(self, shown: Shown, pieces: list[bytes]) -> list[bytes]:
        """The encoded answers once their lists are kept; without ids if they cannot be."""
        return pieces if await self.store.keep(shown.exposures) else shown.without_ids(pieces)

    async def add(self, feedback: Sequence[Feedback]) -> Reply:
        """The answer of POST /v1/feedback once it is stored.

        Raises:
            RequestError: 422 or 503, nothing of it was.
        """
        kept = await self.store.add(feedback)
        self.store.metrics.feedback.inc(kept.stored)
        return Reply(200, encode(kept))

    def facts(self) -> dict[str, Any]:
        """What GET /v1/model tells beside the model."""
        challenger = self.challenger
        told = None
        if challenger is not None and challenger.model is not None:
            told = {
                "model_version": challenger.model.version,
                "share": challenger.share,
                "loaded_at": challenger.model.loaded_at,
                "reload_error": challenger.reload_error,
            }
        return {"accepts_feedback": True, "challenger": told}

    async def figures(self, call: Call) -> Reply:
        """GET /v1/online."""
        call.parameters()
        groups = await asyncio.to_thread(self.store.figures)
        arms: tuple[Arm, ...] = "run", "challenger"
        models = [(self.run.of_arm(arm), arm) for arm in arms]
        now = [(model.version, arm) for model, arm in models if model is not None]
        return Reply(200, encode(answered(groups, now)))

    async def exposition(self) -> bytes:
        """The metrics of the file."""
        return self.store.metrics.exposition(await asyncio.to_thread(self.store.figures))
