"""A package that only some uses need: imported where it is there, named with its extra where it is not."""

import sys

import pytest

from sasrec.core.errors import ConfigError
from sasrec.core.extras import require


def test_a_package_that_is_there_is_imported() -> None:
    sys.modules.pop("tabnanny", None)
    require("tabnanny", "reading", extra="any")
    assert "tabnanny" in sys.modules


def test_the_sentence_names_the_use_the_package_its_error_and_the_extra() -> None:
    with pytest.raises(ConfigError) as caught:
        require("no_such_package", "flying", extra="wings")
    assert str(caught.value) == (
        "flying needs no_such_package (No module named 'no_such_package'): pip install 'sasrec[wings]'"
    )


def test_what_else_would_help_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wings", None)
    with pytest.raises(ConfigError, match=r"pip install 'sasrec\[air\]', or walk$"):
        require("wings", "flying", extra="air", instead="walk")
