"""A second model that answers a share of the users, so that the two can be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sasrec.core.errors import CheckpointError
from sasrec.core.server_config import ServerConfig, read_run_share
from sasrec.recommender import Recommender
from sasrec.serving.service import KEPT_SHARE, Service


class Challenger(Service):
    """The model of the challenger's share, on the thread and in the queues of the first one.

    Users' histories are the first model's for both: the challenger's own are not kept in memory.

    Args:
        run: the service of the first model.
        config: path and share.
    """

    kind = "challenger"

    def __init__(self, run: Service, config: ServerConfig) -> None:
        path, self.share = read_run_share(config.challenger)
        super().__init__(run.metrics, None, Path(path), run.threads, told=run.metrics.of_challenger())
        self.run = run

    def use(self, recommender: Recommender) -> None:
        """Warm a model up and let it answer from now on, if it fits the first one.

        Raises:
            SASRecError: it cannot answer, or does not fit; the model before it stays.
        """
        if self.run.model is not None:
            self._check_fits(recommender, self.run.model.recommender)
        config, results = recommender.config, recommender.results
        super().use(Recommender(recommender.engine, recommender.vocabulary, config, None, results))

    def _check_fits(self, recommender: Recommender, run: Recommender) -> None:
        """Refuse a model that would answer its users' requests with errors, or with hardly any item."""
        ids = run.vocabulary.ids
        kept = np.count_nonzero(recommender.vocabulary.indices_of(ids))
        if kept < KEPT_SHARE * len(ids):
            raise CheckpointError(
                f"the challenger in {self.path} knows {kept} of the {len(ids)} items of the model that it is compared "
                "with, so it is of another catalogue; give a run of the same one"
            )
        theirs = recommender.masks.types
        missing = [f"{name!r} ({kind})" for name, kind in run.masks.types.items() if theirs.get(name) != kind]
        if missing:
            raise CheckpointError(
                f"the items of the challenger in {self.path} have no column {missing[0]}, which the model that it is "
                "compared with has, so expressions would fail for its users; give a run with the same attributes"
            )
