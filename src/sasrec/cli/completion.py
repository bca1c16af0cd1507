"""What Tab offers in bash, zsh and fish: answered from a table of all commands, without loading any of them.

Typer writes the shells' scripts (`sasrec --show-completion`), and answers other shells itself, which takes a second.
tools/generate_docs.py writes the table, completions.json.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

ASKED = "_SASREC_COMPLETE"  # set by the shells' scripts, to complete_bash and the like
TABLE = Path(__file__).with_name("completions.json")
Table = Mapping[str, Any]


class Offer(NamedTuple):
    """A word that may stand there, and what it means."""

    word: str
    help: str = ""


def complete() -> None:
    """Answer a shell that asks, and end the process; return where it is none of those known here."""
    answers = {"complete_bash": _bash, "complete_zsh": _zsh, "complete_fish": _fish}
    answer = answers.get(os.environ.get(ASKED, ""))
    if answer is not None:
        sys.exit(answer(json.loads(TABLE.read_text(encoding="utf-8"))))


def offers(table: Table, words: Sequence[str], begun: str) -> list[Offer]:
    """What may follow.

    Args:
        table: help and options of the program and its commands.
        words: those that stand after the program's name.
        begun: the beginning of the next one; "" = nothing of it yet.

    Returns:
        None of them where a path is wanted: shells complete those themselves.
    """
    command, options, n_arguments, awaited = None, table["options"], 0, None
    for word in words:
        if awaited is not None:
            awaited = awaited if word == "=" else None  # bash makes three words of --loss=bce
        elif word.startswith("-") and word != "-":
            option = options.get(word)
            awaited = option if option is not None and not option.get("flag") else None
        elif command is None:
            command = table["commands"].get(word)
            if command is None:
                return []
            options = command["options"]
        else:
            n_arguments += 1
    if awaited is not None:
        return _values(awaited.get("choices", ()), "" if begun == "=" else begun)
    if begun.startswith("-"):
        name, equals, value = begun.partition("=")
        if equals:
            found = _values(options.get(name, {}).get("choices", ()), value)
            return [Offer(f"{name}={offer.word}", offer.help) for offer in found]
        return [Offer(name, option["help"]) for name, option in options.items() if name.startswith(begun)]
    if command is None:
        return [Offer(name, one["help"]) for name, one in table["commands"].items() if name.startswith(begun)]
    return _argument(command["arguments"], n_arguments, begun)


def _values(choices: Sequence[str], begun: str) -> list[Offer]:
    """Choices; of a list with commas, for its last part."""
    before, comma, last = begun.rpartition(",")
    return [Offer(f"{before}{comma}{choice}") for choice in choices if choice.startswith(last)]


def _argument(arguments: Sequence[Sequence[str]], place: int, begun: str) -> list[Offer]:
    """Names that begin so, unless a file does."""
    if not arguments or not begun or any(Path().glob(f"{escape(begun)}*") if "/" not in begun else [begun]):
        return []
    return _values(arguments[min(place, len(arguments) - 1)], begun)


def _bash(table: Table) -> int:
    words, place = _split(os.environ.get("COMP_WORDS", "")), int(os.environ.get("COMP_CWORD", "1"))
    print("\n".join(offer.word for offer in offers(table, words[1:place], "".join(words[place : place + 1]))))
    return 0


def _zsh(table: Table) -> int:
    found = [f'"{word}":"{text}"' if text else f'"{word}"' for word, text in map(_escaped, _asked(table))]
    print("_arguments '*: :(({}))'".format("\n".join(found)) if found else "_files")
    return 0


def _fish(table: Table) -> int:
    found = list(_asked(table))
    if os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return int(not found)  # 1 = complete files
    print("\n".join(f"{word}\t{text}" if text else word for word, text in found))
    return 0


def _asked(table: Table) -> Iterator[Offer]:
    """The offers for a line up to the cursor, as zsh and fish give it."""
    line = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(line)[1:]
    begun = words.pop() if words and not line.endswith(" ") else ""
    yield from offers(table, words, begun)


def _escaped(offer: Offer) -> Offer:
    """As zsh takes it; the table's help has no signs that mean something there."""
    return Offer(offer.word.replace("$", "").replace("`", "").replace(":", r"\\:"), offer.help)


def _split(line: str) -> list[str]:
    """The words of a line; an open quote ends with it."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:
        words.append(lexer.token)
    return words
