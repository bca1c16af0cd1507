"""What the reader of a log has to say: each warning is logged once, and kept for the description of the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sasrec.core.errors import DataError

logger = logging.getLogger(__name__)


class NeedsMemoryError(DataError):
    """A log is of a form that can only be read as a whole; the message says which."""


@dataclass(frozen=True)
class Note:
    """A warning, and what to do about it."""

    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.fix}" if self.fix else self.text


@dataclass
class Notes:
    """The warnings of one reading."""

    notes: list[Note] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  # beside them

    def warn(self, text: str, fix: str = "") -> None:
        """Log a warning and keep it; the same one again is not repeated."""
        note = Note(text, fix)
        if note not in self.notes:
            self.notes.append(note)
            logger.warning("%s", note)

    def tell(self, text: str) -> None:
        """Log something that may be of use; it is no part of the log's description."""
        self.told.append(text)
        logger.info("%s", text)

    def repeat(self, others: Notes) -> None:
        """Say what another reader has noted."""
        for text in others.told:
            self.tell(text)
        for note in others.notes:
            self.warn(note.text, note.fix)
