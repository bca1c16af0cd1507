"""The model that answers now: jobs of checked requests become encoded answers, all of a batch by the same model.

A `ServedModel` never changes: a reload loads another one beside it, warms it up and puts it in its place.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sasrec.core.errors import CheckpointError, RequestError, SASRecError
from sasrec.ranking.diversity import n_candidates
from sasrec.recommender import Recommender, load
from sasrec.serving.schemas import Answer, encode, sentence
from sasrec.serving.served_model import EventReader, Row, ServedModel
from sasrec.serving.telemetry import Metrics

logger = logging.getLogger(__name__)
PART_WEIGHT = 16  # of what is computed of a large request before others have their turn
PAIRS = 20_000  # of items that are compared for diverse lists in about the time of a usual row
KEPT_SHARE = 0.5  # of the items: a new model that knows less of them is of another catalogue


class RecommendJob(NamedTuple):
    """Rows to recommend for; the answer is theirs, separated by commas. `model`: None = the one that answers then."""

    rows: list[Row]
    model: ServedModel | None = None


Job = RecommendJob | Callable[[ServedModel], Any]  # the latter: any other question to the model


class Service:
    """The model that answers now.

    Args:
        metrics: told about batches and models.
        events: of users since training, or None.
        path: the run folder, or a link to one, to load from; None = only what is given to `use`.
        threads: of the engine.
    """

    def __init__(
        self, metrics: Metrics, events: EventReader | None = None, path: Path | None = None, threads: int = 1
    ) -> None:
        self.model: ServedModel | None = None
        self.reload_error: str | None = None
        self.metrics, self.events, self.path, self.threads = metrics, events, path, threads
        self._loading = threading.Lock()
        self._loaded_from: tuple[str, int, int] | None = None

    def use(self, recommender: Recommender) -> None:
        """Warm a model up and let it answer from now on.

        Raises:
            SASRecError: it cannot answer; the model before it stays.
        """
        model = ServedModel(recommender, self.events)
        model.warm_up()
        self.model = model
        self.metrics.model_changed(model.version)

    def load(self) -> None:
        """Load the run folder for the first time.

        Raises:
            SASRecError: it cannot be served.
        """
        assert self.path is not None
        self._loaded_from = self._place()
        with _one_sentence(self.path):
            self.use(load(self.path, threads=self.threads))

    def reload(self) -> bool:
        """Load the run folder again and say whether it answers now; if not, `reload_error` has the reason."""
        if self.path is None or self.model is None:
            return False
        with self._loading:
            self._loaded_from = self._place()
            try:
                with _one_sentence(self.path):
                    recommender = load(self.path, threads=self.threads)
                    self._check_catalogue(recommender)
                    self.use(recommender)
                error = None
            except SASRecError as failure:  # whatever it is, the old model goes on
                error = sentence(str(failure))
            if error is not None:
                logger.error("the model could not be reloaded, and the one before it answers: %s", error)
            self.reload_error = error
            self.metrics.reloads.labels("failed" if error else "done").inc()
            self.metrics.reload_ok.set(0 if error else 1)
            if error is None:
                logger.info("model %s answers now", self.model.version)
        return error is None

    def has_moved(self) -> bool:
        """Whether the path leads to another folder than the one loaded last, or tried last."""
        return self.path is not None and self._place() not in (None, self._loaded_from)

    def _place(self) -> tuple[str, int, int] | None:
        assert self.path is not None
        try:
            folder = self.path.resolve(strict=True)
            found = folder.stat()
        except (OSError, RuntimeError):  # the latter: links in a circle
            return None
        return str(folder), found.st_dev, found.st_ino

    def _check_catalogue(self, recommender: Recommender) -> None:
        """Refuse a model of another catalogue: a link set wrongly must not replace a model that fits the clients."""
        assert self.model is not None
        before = self.model.vocabulary
        kept = np.count_nonzero(recommender.vocabulary.indices_of(before.ids))
        if kept < KEPT_SHARE * len(before):
            raise CheckpointError(
                f"the model in {self.path} knows {kept} of the {len(before)} items of the model that answers, so it is "
                "of another catalogue; restart the server if that is meant"
            )

    def answer(self, jobs: Sequence[Job]) -> list[bytes | Exception]:
        """The encoded answers of jobs, all by the same model: that of the first job, if it names one."""
        first = jobs[0]
        model = self.model if callable(first) or first.model is None else first.model
        if model is None:
            return [RequestError(503, "the model is being loaded; try again in a second")] * len(jobs)
        answers = iter(model.answer([row for job in jobs if not callable(job) for row in job.rows]))
        return [_called(job, model) if callable(job) else self._encoded(job, answers) for job in jobs]

    def _encoded(self, job: RecommendJob, answers: Iterator[Answer | RequestError]) -> bytes | Exception:
        found = []
        for answer in [next(answers) for _ in job.rows]:
            if isinstance(answer, RequestError):
                return answer
            found.append(answer)
        self._count(job, found)
        return b",".join(map(encode, found))

    def _count(self, job: RecommendJob, answers: Sequence[Answer]) -> None:
        metrics = self.metrics
        metrics.answers.inc(len(answers))
        metrics.history_items.inc(sum(len(row.query.history) for row in job.rows))
        unknown = sum(map(_unknown_in_history, job.rows, answers))
        if unknown:
            metrics.unknown_items.inc(unknown)
        fallbacks = sum(answer.fallback for answer in answers)
        if fallbacks:
            metrics.fallbacks.inc(fallbacks)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Whatever is wrong with a run folder is an error of ours: a panic of compiled code is not even an Exception."""
    try:
        yield
    except SASRecError:
        raise
    except BaseException as error:
        found = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(
            f"the model in {path} cannot be loaded, so a file of it is damaged; train or copy it again ({found})"
        ) from error


def weight(row: Row) -> int:
    """What a row costs, in rows of usual size: its ids are looked up, its list is made and written."""
    query = row.query
    n_ids = len(query.history) + row.n_events + len(query.allow or ()) + len(query.deny or ())
    n_alike = query.k * n_candidates(query.k) if query.diversity else 0  # pairs of items that are compared
    has_mask = query.allow is not None or query.where is not None
    return 1 + n_ids // 1000 + query.k // 100 + has_mask + n_alike // PAIRS


def parted(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows in parts of a bounded weight, or of one row."""
    part: list[Row] = []
    left = PART_WEIGHT
    for row in rows:
        left -= weight(row)
        if left < 0 and part:
            yield part
            part, left = [], PART_WEIGHT - weight(row)
        part.append(row)
    if part:
        yield part


def _unknown_in_history(row: Row, answer: Answer) -> int:
    """How many items of the history are unknown; the answer lists those of `allow` and `deny` beside them."""
    if not answer.unknown_items:
        return 0
    unknown, query = set(answer.unknown_items), row.query
    return len(answer.unknown_items) - sum(item in unknown for item in [*(query.allow or ()), *(query.deny or ())])


def _called(call: Callable[[ServedModel], Any], model: ServedModel) -> bytes | Exception:
    try:
        return encode(call(model))
    except RequestError as error:
        return error
