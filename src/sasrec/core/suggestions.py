"""What a misspelt name was probably meant to be, said in the message that refuses it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

LEAST = 0.6  # how alike two names are, from 0 to 1, for one to be told in place of the other
BEGINNING = 3  # letters with which a name is known, where it is the beginning of one alone
LONGEST = 200  # letters of a name that are looked at
MOST = 1000  # names that are looked through; a log may have as many columns as it likes


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is most like this one, capitals and - or _ or a space aside; None = none is like it."""
    spelt: dict[str, str] = {}
    for one in islice(known, MOST):
        spelt.setdefault(_plain(one), one)
    wanted = _plain(str(name))
    if found := get_close_matches(wanted, spelt, 1, LEAST):
        return spelt[found[0]]
    begun = [one for one in spelt if len(wanted) >= BEGINNING and one.startswith(wanted)]
    return spelt[begun[0]] if len(begun) == 1 else None


def suggestion(name: object, known: Iterable[str]) -> str:
    """What stands behind a name in the message that refuses it: " (did you mean 'user'?)", or nothing."""
    found = nearest(name, known)
    return "" if found is None else f" (did you mean {found!r}?)"


def suggested_path(path: Path) -> str:
    """The same for a path that leads nowhere: what lies in its folder under such a name."""
    try:
        with os.scandir(path.parent) as entries:
            beside = [one.name for one in islice(entries, MOST) if one.name.isprintable() and one.name[0] != "."]
    except OSError:
        return ""
    found = nearest(path.name, beside)
    return "" if found is None else f" (did you mean {str(path.with_name(found))!r}?)"


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]+", "_", name[:LONGEST].casefold().strip("-_ "))
