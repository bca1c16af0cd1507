"""Rows of cells as text: aligned columns for a terminal, or Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What a terminal obeys in place of showing it: C0 but for tabs and line ends, DEL, C1, and marks that reorder a line.
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
MARKUP = re.compile(r"([\\`\[\]<>|])")


def printable(text: str) -> str:
    """Foreign text for a terminal: what it would obey is shown as an escape."""
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown_text(text: str) -> str:
    """Foreign text in one line that cannot become markup."""
    return MARKUP.sub(r"\\\1", printable(" ".join(text.split())))


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the header, with aligned columns; foreign text in them is harmless."""
    rows = [[printable(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the header, as Markdown; all columns but the first hold numbers."""
    marks = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], marks, *rows[1:]])
