"""A command as it speaks to people: a short --help, a whole --help-all, examples, and the nearest of a misspelt name.

An option without a panel is for everybody. Of those in a panel, --help shows the ones that are COMMON.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sasrec.core.suggestions import nearest

NEGATIVE_NUMBER = re.compile(r"-[0-9]+(\.0+)?")
LINE_END = re.compile(r"(?<!\n)\n(?!\n)")  # inside a paragraph
QUOTED = re.compile(r"'([^']*)'")
ALL = "sasrec.help_all"  # in a context's meta: whether everything is shown
COMMON = {  # of each panel the options that most users need
    "Reading the log": {"user_column", "item_column", "timestamp_column", "titles"},
    "Model": {"embedding_dim"},
    "Training": {"max_epochs", "max_minutes", "seed", "threads"},
    "Evaluation": {"protocol", "k"},
    "Server": {"host", "port", "workers", "threads", "api_key_file", "events"},
}
EXAMPLES = {  # at the end of --help
    "prepare": ("sasrec prepare events.parquet -o prepared --memory 4GB",),
    "inspect": ("sasrec inspect events.csv",),
    "train": (
        "sasrec train events.csv -o runs/first --preset fast",
        "sasrec train ml-100k -o runs/ml-100k --max-minutes 10",
    ),
    "benchmark": ("sasrec benchmark events.csv -o runs/bench --presets fast,best --seeds 3",),
    "tune": ("sasrec tune events.csv -o runs/tuned --trials 20 --max-minutes 60",),
    "evaluate": ("sasrec evaluate runs/first --protocol sampled",),
    "compare": ("sasrec compare runs/first runs/second",),
    "recommend": (
        "sasrec recommend runs/first --user 42 -k 5",
        "sasrec recommend runs/first --all-users -o lists.parquet",
    ),
    "similar": ("sasrec similar runs/first 50",),
    "serve": ("sasrec serve runs/first --port 8080 --workers 2",),
    "export": ("sasrec export runs/first --format embeddings",),
    "datasets": ("sasrec datasets --fetch ml-100k",),
}


class Command(TyperCommand):
    """A command with --help-all beside --help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, with --help-all as the last, which is not shown where --help shows all."""
        params = list(super().get_params(ctx))
        if self.get_help_option(ctx) is None:
            return params
        return [*params, self._help_all(ctx)]

    def _help_all(self, ctx: Any) -> Any:
        if not hasattr(self, "_all"):
            option: Any = copy.copy(self.get_help_option(ctx))
            option.name, option.opts, option.callback = "help_all", ["--help-all"], _show_all
            left_out = [param for param in self.params if not _is_shown(param)]
            panels = dict.fromkeys(_panel(param) for param in left_out)
            option.help = f"Show {len(left_out)} further options: {', '.join(map(str, panels))}."
            option.hidden = not left_out
            self._all = option
        return self._all

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print --help; without what is in panels and not common, unless all is asked for."""
        whole, text = self.params, self.help
        if not ctx.meta.get(ALL):
            self._help_all(ctx)
            self.params = [p for p in whole if _is_shown(p)]
        self.help = text and LINE_END.sub(" ", text)  # paragraphs as wide as the terminal
        try:
            super().format_help(ctx, formatter)
        finally:
            self.params, self.help = whole, text

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any command, and an error tells the nearest option or choice."""
        return _with_suggestion(super().parse_args, ctx, args)


class IdCommand(Command):
    """A command with an id as its argument: a negative number is one, not an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any command, but beside a negative number an unknown option is an argument, so there are too many."""
        ctx.ignore_unknown_options = any(map(NEGATIVE_NUMBER.fullmatch, args))
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """The program itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any group, and an error tells the nearest option."""
        return _with_suggestion(super().parse_args, ctx, args)


def examples(name: str) -> str | None:
    """What stands below a command's options; None = nothing."""
    lines = EXAMPLES.get(name, ())
    return "\n".join([f"Example{'s' * (len(lines) > 1)}:", *(f"  $ {line}" for line in lines)]) if lines else None


def _panel(param: Any) -> str | None:
    return getattr(param, "rich_help_panel", None)


def _is_shown(param: Any) -> bool:
    return (panel := _panel(param)) is None or param.name in COMMON.get(panel, ())


def _show_all(ctx: Any, param: Any, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[ALL] = True
        typer.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _with_suggestion(parse: Callable[[Any, list[str]], list[str]], ctx: Any, args: list[str]) -> list[str]:
    """Parse; what Typer says of an unknown option or choice is completed by the nearest there is."""
    try:
        return parse(ctx, args)
    except Exception as error:  # Typer has its own copy of Click, whose errors it does not export
        message = str(getattr(error, "message", ""))
        if getattr(error, "possibilities", None) is not None:
            known = [opt for param in ctx.command.get_params(ctx) for opt in (*param.opts, *param.secondary_opts)]
            found, error.possibilities = nearest(error.option_name, known), None  # type: ignore[attr-defined]
        elif isinstance(error, typer.BadParameter) and " is not one of " in message:
            given, *choices = QUOTED.findall(message)
            found, message = nearest(given, choices), message.removeprefix("Value error, ")
        else:
            raise
        error.message = message if found is None else f"{message.rstrip('.')}. Did you mean {found!r}?"  # type: ignore[attr-defined]
        raise
