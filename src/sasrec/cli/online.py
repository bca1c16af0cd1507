"""The command that says what came of a server's lists: online-report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sasrec.cli.flags import Json
from sasrec.cli.output import print_json, print_text
from sasrec.core.errors import ConfigError


def online_report(
    file: Annotated[Path, typer.Argument(help="the file of serve --feedback; a server may be writing it")],
    kind: Annotated[str | None, typer.Option("--kind", help="only feedback of this kind; default: all")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="only lists of this version of the challenger; default: all of them")
    ] = None,
    forget: Annotated[
        str | None, typer.Option("--forget", help="remove a user's lists and feedback from FILE, and nothing else")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare the two models of serve --challenger by what users did with their lists. See docs/online.md.

    Hit rate: the share of lists with feedback. Intervals and p-values are over users, since what one user does is not
    independent. Lists count that were shown while the challenger answered, to users who were named.
    """
    from sasrec.serving.online_report import forget as forget_user
    from sasrec.serving.online_report import report

    if forget is not None:
        if kind is not None or version is not None:
            raise ConfigError("--forget removes all that is kept of a user; leave --kind and --version out")
        n_lists, n_feedback = forget_user(file, forget)
        if json_:
            print_json({"removed_lists": n_lists, "removed_feedback": n_feedback})
        else:
            print_text(f"removed {n_lists:,} lists and {n_feedback:,} pieces of feedback of this user from {file}")
        return
    found = report(file, kind, version)
    if json_:
        print_json(found.to_dict())
    else:
        print_text(found.to_text())
