"""The program `sasrec`: its commands, its global options and its exit codes (0 done, 1 failed, 2 wrong usage).

Results go to stdout; progress and logs go to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from polars.exceptions import PanicException

from sasrec import __version__
from sasrec.cli import console, deploy, measure, online, recommend, train, tune
from sasrec.cli.help import Command, Group, IdCommand, examples
from sasrec.core.errors import ConfigError, SASRecError
from sasrec.core.tables import printable
from sasrec.engine.distributed import end_in_world

COMMANDS: dict[str, Callable[..., None]] = {  # in the order of --help
    "prepare": train.prepare,
    "inspect": train.inspect,
    "train": train.train,
    "benchmark": train.benchmark_,
    "tune": tune.tune,
    "evaluate": measure.evaluate,
    "compare": measure.compare_,
    "recommend": recommend.recommend,
    "score": recommend.score,
    "similar": recommend.similar,
    "explain": recommend.explain,
    "add-items": deploy.add_items,
    "serve": deploy.serve,
    "online-report": online.online_report,
    "convert": deploy.convert_,
    "export": deploy.export,
    "push": deploy.push,
    "datasets": train.datasets,
    "info": measure.info,
    "demo": train.demo,
}

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False)


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


for _name, _command in COMMANDS.items():
    _class = IdCommand if _name == "similar" else Command
    app.command(name=_name, cls=_class, epilog=examples(_name))(_command)


def main() -> None:
    """Run the command line: one sentence and an exit code for what goes wrong, a traceback only with --debug."""
    try:
        _run()
    except SystemExit as end:
        if end.code:
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
    except KeyboardInterrupt:
        console.stderr.print("interrupted")
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; nothing more to say
        sys.exit(1)
    except (Exception, PanicException) as error:  # a panic inside Polars is no Exception
        if debug:
            raise
        text = f"error: unexpected {type(error).__name__}: {error}; run again with sasrec --debug for the traceback"
        console.stderr.print(printable(text), markup=False, soft_wrap=True)
        sys.exit(1)
