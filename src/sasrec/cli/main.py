"""The program `sasrec`: its commands, its global options and its exit codes (0 done, 1 failed, 2 wrong usage).

Results go to stdout; progress and logs go to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from polars.exceptions import PanicException

from sasrec import __version__
from sasrec.cli import console
from sasrec.cli.help import Command, Group, IdCommand, examples
from sasrec.core.errors import ConfigError, SASRecError
from sasrec.core.tables import printable
from sasrec.training.interrupts import hear_lost_interrupts

COMMANDS = {  # in the order of --help: the module of this package and its function
    "prepare": ("train", "prepare"),
    "inspect": ("train", "inspect"),
    "train": ("train", "train"),
    "benchmark": ("train", "benchmark_"),
    "tune": ("tune", "tune"),
    "evaluate": ("measure", "evaluate"),
    "compare": ("measure", "compare_"),
    "recommend": ("recommend", "recommend"),
    "score": ("recommend", "score"),
    "similar": ("recommend", "similar"),
    "explain": ("recommend", "explain"),
    "add-items": ("deploy", "add_items"),
    "serve": ("serve", "serve"),
    "online-report": ("online", "online_report"),
    "convert": ("deploy", "convert_"),
    "export": ("deploy", "export"),
    "push": ("deploy", "push"),
    "datasets": ("train", "datasets"),
    "info": ("measure", "info"),
    "demo": ("train", "demo"),
}


class _Commands(Mapping[str, Any]):
    """Typer's command of each name, loaded when it is asked for: no command waits for what others need."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module, function = COMMANDS[name]
            alone = typer.Typer(add_completion=False)
            kind = IdCommand if name == "similar" else Command
            command = getattr(import_module(f"sasrec.cli.{module}"), function)
            alone.command(name=name, cls=kind, epilog=examples(name))(command)
            self._loaded[name] = typer.main.get_command(alone)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Program(Group):
    """The program, with commands that are loaded when they are asked for."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**{**attrs, "commands": _Commands()})

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of --help."""
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C says so and is a failure. Typer, which would have it next, says nothing."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.stderr.print("interrupted")
            raise typer.Exit(1) from None


app = typer.Typer(cls=_Program, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and debug messages")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="show no progress, only warnings")] = False,
) -> None:
    """Train, measure and serve sequential recommendations from a log of events."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    console.set_up_logging(quiet=quiet, debug=debug)
    context.obj = {"quiet": quiet}


def main() -> None:
    """Run the command line: one sentence and an exit code for what goes wrong, a traceback only with --debug."""
    hear_lost_interrupts()
    try:
        _run()
    except SystemExit as end:
        if end.code and "torch" in sys.modules:  # else there is no world, and what knows worlds need not be loaded
            from sasrec.engine.distributed import end_in_world

            end_in_world(end.code)
        raise


def _run() -> None:
    debug = "--debug" in sys.argv
    try:
        app()
    except SASRecError as error:
        if debug:
            raise
        console.stderr.print(f"error: {printable(str(error))}", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; nothing more to say
        sys.exit(1)
    except (Exception, PanicException) as error:  # a panic inside Polars is no Exception
        if debug:
            raise
        text = f"error: unexpected {type(error).__name__}: {error}; run again with sasrec --debug for the traceback"
        console.stderr.print(printable(text), markup=False, soft_wrap=True)
        sys.exit(1)
