"""Print results, and take apart the lists that commands are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import typer

from sasrec.core.amounts import shown_bytes
from sasrec.core.tables import COMMANDS, plain_table, printable
from sasrec.data.event_types import types_in_words
from sasrec.data.sequences import Sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.estimating import Estimate
from sasrec.export.all_users import write_frame
from sasrec.training.progress import duration


def print_facts(sequences: Sequences, json_: bool) -> None:
    """What a log is like."""
    facts = sequences.facts.to_dict()
    if json_:
        print_json(facts)
        return
    if "event_types" in facts:
        facts["event_types"] = types_in_words(facts["event_types"])
    for name, value in facts.items():
        print_text(f"{name:15} {value:,}" if type(value) is int else f"{name:15} {value}")


def names_of(text: str) -> list[str]:
    """The names of a comma-separated flag."""
    return [part.strip() for part in text.split(",") if part.strip()]


def print_frame(
    frame: pl.DataFrame, output: Path | None, json_: bool, vocabulary: Vocabulary, *, guard_cells: bool = False
) -> None:
    """A frame into a file, or onto stdout as JSON or as a table with titles."""
    if output is not None:
        write_frame(frame, output, guard_cells=guard_cells)
        typer.echo(f"wrote {len(frame):,} rows to {output}")
    elif json_:
        print_json(frame.to_dicts())
    else:
        print_table(frame, vocabulary)


def print_table(frame: pl.DataFrame, vocabulary: Vocabulary) -> None:
    """A frame as a table, with titles where they are known."""
    if vocabulary.titles is not None:
        titles = vocabulary.titles_of(vocabulary.indices_of(frame["item_id"].to_list()))
        frame = frame.with_columns(pl.Series("title", titles))
    rows = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in row] for row in frame.iter_rows()]
    typer.echo(plain_table([frame.columns, *rows]))


def print_json(value: Any) -> None:
    """A value on one line; what a terminal would obey is escaped as JSON does it."""
    text = json.dumps(value, ensure_ascii=False)
    typer.echo(COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_text(text: str) -> None:
    """Lines for people, with names and titles of others in them."""
    typer.echo(printable(text))


def estimate_lines(found: Estimate) -> list[str]:
    """An estimate in words."""
    parts = ", ".join(f"{name} {shown_bytes(n)}" for name, n in found.memory.items() if n)
    valid = f"; a validation {duration(found.seconds_per_valid)}" if found.seconds_per_valid else ""
    epoch = found.seconds_per_step * found.steps_per_epoch
    limit = ", which max_minutes allows" if found.is_limited else ""
    return [
        f"memory: {shown_bytes(found.bytes)} ({parts})",
        f"time: {1000 * found.seconds_per_step:.3g} ms a step, {duration(epoch)} an epoch of "
        f"{found.steps_per_epoch:,} steps{valid}",
        f"in all: at most {duration(found.seconds)}{limit} ({found.max_epochs} epochs; patience may end it sooner)",
    ]
