"""The facts of a run, and the words that the report and the model card share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from string import Template

from sasrec.core.arrays import Int64
from sasrec.data.vocabulary import Vocabulary
from sasrec.evaluation.results import Result
from sasrec.reading.understanding import Understanding
from sasrec.report.examples import Example
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import EpochLine

MAX_TEXT = 160  # characters of a title or an id that are shown
STOPPED = {
    "max_epochs": "all epochs were done",
    "patience": "the valid metric had stopped improving",
    "max_minutes": "the time was used up",
    "max_steps": "all steps were done",
    "callback": "a callback ended it",
    "interrupted": "it was interrupted",
    "measuring": "it was interrupted while it was measured",
}


@dataclass(frozen=True)
class RunFacts:
    """Everything that the pages show."""

    config: RunConfig
    lengths: Int64  # (n_users,) events per user
    item_counts: Int64  # (n_items,) events per item
    history: Sequence[EpochLine]
    results: Sequence[Result]
    examples: Sequence[Example]
    environment: Mapping[str, str | int]
    best_epoch: int
    seconds: float
    stopped: str
    understanding: Understanding | None = None  # how the log was read; None = not known
    vocabulary: Vocabulary | None = None  # with what is known of items; None = not known

    @property
    def without_users(self) -> RunFacts:
        """The same without what may tell of users: examples, the first events as read, and what is odd about them."""
        read = self.understanding
        return replace(
            self, examples=[], understanding=None if read is None else replace(read, first_events=[], notes=[])
        )

    @property
    def warnings(self) -> list[str]:
        """The warnings of results, each once; a warning of one split only begins with the split's name."""
        by_split = sorted({(result.split, text) for result in self.results for text in result.warnings})
        texts = [text for _, text in by_split]
        told = [text if texts.count(text) > 1 else f"{split}: {text}" for split, text in by_split]
        return list(dict.fromkeys(told))


def template(name: str) -> Template:
    """A file of templates/."""
    return Template(files("sasrec.report").joinpath("templates", name).read_text(encoding="utf-8"))


def shown(value: object, limit: int | None = MAX_TEXT) -> str:
    """Foreign text in one line and cut to a limit; what UTF-8 cannot hold becomes a question mark."""
    text = " ".join(str(value).encode("utf-8", "replace").decode("utf-8").split())
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def model_in_words(config: RunConfig) -> str:
    """Shape, loss and origin of the weights in one sentence."""
    model, train = config.model, config.train
    came = f"converted from a {config.layout} checkpoint" if config.layout else f"seed {train.seed}"
    types = config.eval.target_types
    predicts = f", predicts {' and '.join(types)} events" if types else ""
    return (
        f"Block {model.block}, {model.n_blocks} deep, width {model.embedding_dim}, loss {train.loss}, "
        f"preset {config.preset}, {came}{predicts}."
    )


def refit_note(config: RunConfig) -> str:
    """The note for a run that was trained again on all events."""
    return (
        f"The saved model was afterwards trained again on all events, for {config.refit_epochs} epochs; the figures "
        "are those of the model before."
    )


def plain(value: object) -> str:
    """A setting in words: yes and no, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
