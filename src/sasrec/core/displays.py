"""How a value shows itself in a notebook: `_repr_html_` of a class calls `html_of`, and report/notebook.py says how.

So a class of a room that knows nothing of pages is shown by the room that does.
"""

from __future__ import annotations

from functools import singledispatch
from html import escape


@singledispatch
def html_of(value: object) -> str:
    """The value as HTML that any page may contain: foreign text in it is escaped, and nothing of it is run."""
    return f"<pre>{escape(repr(value))}</pre>"
