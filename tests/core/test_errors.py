"""What all errors have in common."""

from __future__ import annotations

import pytest

from sasrec.core.errors import ConfigError, DataError, RequestError, SASRecError, UnknownItemError


@pytest.mark.parametrize("kind", [SASRecError, DataError, ConfigError, UnknownItemError])
def test_message_that_quotes_a_whole_file_is_cut_in_the_middle(kind: type[SASRecError]) -> None:
    whole = str(kind("log.csv has the id " + "x" * 10_000 + "; name another column"))
    assert 4000 < len(whole) < 4010
    assert whole.startswith("log.csv has the id xxx")
    assert whole.endswith("xxx; name another column")
    assert "x [...] x" in whole


def test_usual_message_is_as_it_is() -> None:
    assert str(DataError("x" * 4000)) == "x" * 4000
    assert str(UnknownItemError("'a'")) == "'a'"
    error = RequestError(503, "busy")
    assert (error.status, str(error)) == (503, "busy")
