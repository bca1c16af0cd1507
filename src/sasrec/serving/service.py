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
from msgspec.structs import replace

from sasrec.core.errors import CheckpointError, RequestError, SASRecError
from sasrec.ranking.diversity import n_candidates
from sasrec.recommender import Recommender, load
from sasrec.serving.exposures import Arm, Shown
from sasrec.serving.schemas import Answer, encode, sentence
from sasrec.serving.served_model import EventReader, Row, ServedModel
from sasrec.serving.telemetry import Metrics, ModelMetrics

logger = logging.getLogger(__name__)
PART_WEIGHT = 16  # of what is computed of a large request before others have their turn
PAIRS = 20_000  # of items that are compared for diverse lists in about the time of a usual row
KEPT_SHARE = 0.5  # of the items: a new model that knows less of them is of another catalogue


class RecommendJob(NamedTuple):
    """Rows to recommend for; the answer is theirs, separated by commas. `model`: None = the one that answers then.

    `challenger`: the same for rows of that arm. `shown`: takes the lists of a server that measures.
    """

    rows: list[Row]
    model: ServedModel | None = None
    challenger: ServedModel | None = None
    shown: Shown | None = None


Models = dict[Arm, ServedModel | None]
Job = RecommendJob | Callable[[ServedModel], Any]  # the latter: any other question to the model


class Service:
    """The model that answers now.

    Args:
        metrics: told about batches and models.
        events: of users since training, or None.
        path: the run folder, or a link to one, to load from; None = only what is given to `use`.
        threads: of the engine.
        told: about this model; None = what the metrics tell of the first one.
    """

    kind = "model"  # what messages call it

    def __init__(
        self,
        metrics: Metrics,
        events: EventReader | None = None,
        path: Path | None = None,
        threads: int = 1,
        told: ModelMetrics | None = None,
    ) -> None:
        self.model: ServedModel | None = None
        self.challenger: Service | None = None  # the service of a second model, for rows of that arm
        self.reload_error: str | None = None
        self.told = told or metrics.of_model
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
        self.told.changed(model.version)

    def load(self) -> None:
        """Load the run folder for the first time.

        Raises:
            SASRecError: it cannot be served.
        """
        assert self.path is not None
        self._loaded_from = self._place()
        with _one_sentence(self.path):
            self.use(load(self.path, threads=self.threads))
        if self.challenger is not None:
            self.challenger.load()

    def reload(self) -> bool:
        """Load the run folder again and say whether it answers now; if not, `reload_error` has the reason.

        The same for the challenger, which tells of itself.
        """
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
                logger.error("the %s could not be reloaded, and the one before it answers: %s", self.kind, error)
            self.reload_error = error
            self.told.reloads.labels("failed" if error else "done").inc()
            self.told.reload_ok.set(0 if error else 1)
            if error is None:
                logger.info("%s %s answers now", self.kind, self.model.version)
        if self.challenger is not None:
            self.challenger.reload()
        return error is None

    def has_moved(self) -> bool:
        """Whether the path leads to another folder than the one loaded last, or tried last."""
        if self.challenger is not None and self.challenger.has_moved():
            return True
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
        named = RecommendJob([]) if callable(first) else first
        models: Models = {"run": named.model or self.model, "challenger": named.challenger or self.of_arm("challenger")}
        model = models["run"]
        if model is None:
            return [RequestError(503, "the model is being loaded; try again in a second")] * len(jobs)
        rows = [row for job in jobs if not callable(job) for row in job.rows]
        answers = iter(model.answer(rows) if self.challenger is None else _answered_by_arm(rows, models))
        return [_called(job, model) if callable(job) else self._encoded(job, answers, models) for job in jobs]

    def of_arm(self, arm: Arm) -> ServedModel | None:
        """The model that answers an arm now."""
        service = self.challenger if arm == "challenger" else self
        return None if service is None else service.model

    def _encoded(
        self, job: RecommendJob, answers: Iterator[Answer | RequestError], models: Models
    ) -> bytes | Exception:
        found = []
        for answer in [next(answers) for _ in job.rows]:
            if isinstance(answer, RequestError):
                return answer
            found.append(answer)
        self._count(job, found)
        if job.shown is None:
            return b",".join(map(encode, found))
        n_items = {arm: len(model.vocabulary) for arm, model in models.items() if model is not None}
        return job.shown.encoded(job.rows, found, n_items)

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


def _answered_by_arm(rows: Sequence[Row], models: Models) -> list[Answer | RequestError]:
    """The answers to rows, each by the model of its arm."""
    answers: dict[int, Answer | RequestError] = {}
    for arm, model in models.items():
        places = [place for place, row in enumerate(rows) if row.arm == arm]
        asked = [rows[place] for place in places]
        if model is None:
            found: Sequence[Answer | RequestError] = [RequestError(503, "the challenger is being loaded")] * len(asked)
        elif arm == "run":
            found = model.answer(asked)
        else:
            found = _with_histories(asked, model, models["run"])
        answers.update(zip(places, found, strict=True))
    return [answers[place] for place in range(len(rows))]


def _with_histories(rows: Sequence[Row], model: ServedModel, run: ServedModel | None) -> list[Answer | RequestError]:
    """A model's answers, where users' histories are those that another one knows."""
    assert run is not None
    told: list[Row | RequestError] = []
    for row in rows:
        try:
            history = row.query.history if row.user is None else run.history_of(row.user)
            told.append(row._replace(query=replace(row.query, history=history), user=None))
        except RequestError as error:
            told.append(error)
    answers = iter(model.answer([row for row in told if not isinstance(row, RequestError)]))
    return [row if isinstance(row, RequestError) else next(answers) for row in told]


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
