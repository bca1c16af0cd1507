"""The errors that this package raises on purpose.

SASRecError
|- DataError          the log, a frame or a candidate file is not usable
|- ConfigError        a setting is unknown, out of range or contradicts another
|- CheckpointError    a run folder or checkpoint is missing, damaged or of another layout
|- UnknownItemError   an item (or user) that the vocabulary does not hold
|- TrainingError      training cannot go on (a loss that is not a number)
`- RequestError       a request to the server that it does not answer, with its HTTP status

Every message says what is wrong, where, the value, and what to do about it, in one sentence.
"""

MAX_MESSAGE = 4000  # characters; what a message quotes may be a file without an end


class SASRecError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        message: one sentence; of one that quotes too much the middle is left out.
    """

    def __init__(self, message: str = "") -> None:
        half = MAX_MESSAGE // 2
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[:half]} [...] {message[-half:]}")


class DataError(SASRecError):
    """The log, a frame or a candidate file cannot be used as it is."""


class ConfigError(SASRecError):
    """A setting is unknown, out of range or contradicts another."""


class CheckpointError(SASRecError):
    """A run folder or a checkpoint is missing, damaged or of another layout."""


class UnknownItemError(SASRecError, KeyError):
    """An item or user id that the vocabulary does not hold."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class TrainingError(SASRecError):
    """Training cannot go on; the last good checkpoint is kept."""


class RequestError(SASRecError):
    """A request that the server does not answer.

    Args:
        status: of the HTTP response; 503 is worth trying again.
        message: what is wrong, without any of the request's own text.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def first_line(error: BaseException) -> str:
    """The first line of an error's text, which may be a page; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
