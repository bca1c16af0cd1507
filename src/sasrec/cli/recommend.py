"""The commands that answer for a user or an item: recommend, score, similar and explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from sasrec.cli import console
from sasrec.cli.flags import HISTORY_HELP, History, Json, K, On, Run, Where, Workers
from sasrec.cli.output import print_frame
from sasrec.cluster.connection import check_place, connected
from sasrec.cluster.recommend import ClusterMakers
from sasrec.core.errors import ConfigError
from sasrec.data.id_lists import ids_of_text, read_filter, read_users
from sasrec.export.all_users import recommend_all
from sasrec.reading.sources import STDIN
from sasrec.recommender import Recommender, load
from sasrec.runs.hub import is_address


def recommend(
    context: typer.Context,
    run: Run,
    users: Annotated[
        Path | None,
        typer.Option("--users", help="file of user ids (- = standard input); an interrupted --output is continued"),
    ] = None,
    user: Annotated[list[str] | None, typer.Option("--user", help="a user id of the log; may be repeated")] = None,
    history: History = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="all users of the log; an interrupted --output is continued")
    ] = False,
    k: K = 10,
    allow: Annotated[
        Path | None,
        typer.Option("--allow", help="file of item ids (- = standard input); only these are recommended"),
    ] = None,
    deny: Annotated[
        Path | None, typer.Option("--deny", help="file of item ids (- = standard input); these are never recommended")
    ] = None,
    keep_seen: Annotated[
        bool | None,
        typer.Option(
            "--keep-seen/--hide-seen", help="recommend items of the history too, or never; default: as measured"
        ),
    ] = None,
    where: Where = None,
    diversity: Annotated[
        float, typer.Option("--diversity", help="how much less items count that are like those above them, from 0 to 1")
    ] = 0.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write a .parquet, .csv or .jsonl file instead of printing")
    ] = None,
    guard_cells: Annotated[
        bool,
        typer.Option(
            "--guard-cells", help="in a .csv, put ' before ids that a spreadsheet takes for formulas, such as =1+1"
        ),
    ] = False,
    on: On = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Recommend the next items for users of the log or after a history."""
    check_place(on, workers)
    goes_by_parts = output is not None and (all_users or users is not None)
    if on is not None and not goes_by_parts:
        raise ConfigError("--on is for lists of many users in a file; add --output, and --users FILE or --all-users")
    if on is not None and is_address(run):
        raise ConfigError("--on needs a run folder that all machines of the cluster see, not one at the Hub")
    chosen = [users is not None, bool(user), history is not None, all_users]
    if guard_cells and output is None:
        raise ConfigError("--guard-cells is for --output FILE.csv")
    if sum(chosen) != 1:
        raise ConfigError("give one of --users FILE, --user ID, --history ID,ID,... or --all-users")
    if list(map(str, (users, allow, deny))).count(STDIN) > 1:
        raise ConfigError("only one of --users, --allow and --deny can be read from standard input")
    filters: dict[str, Any] = {
        "allow": None if allow is None else read_filter(allow, "allow"),
        "deny": None if deny is None else read_filter(deny, "deny"),
        "keep_seen": keep_seen,
        "where": where,
        "diversity": diversity,
    }
    wanted = user or None if users is None else read_users(users)
    makers = None if on is None or output is None else _makers(context, on, workers, run, output)
    recommender = load(run)
    if output is not None and goes_by_parts:
        options = {**filters, "users": wanted, "guard_cells": guard_cells, "makers": makers}
        _recommend_all(recommender, output, k, options, quiet=context.obj["quiet"])
        return
    if history is not None:
        details = recommender.recommend_detailed([ids_of_text(history, recommender.vocabulary)], k, **filters)
        frame = details.frame
        if details.fallback[0]:
            console.stderr.print("no item of the history is known; these are popular items", soft_wrap=True)
    else:
        frame = recommender.recommend_users(wanted, k, **filters)
    print_frame(frame, output, json_, recommender.vocabulary, guard_cells=guard_cells)


def _makers(context: typer.Context, on: str, workers: int | None, run: Path, output: Path) -> ClusterMakers:
    """Workers of a cluster, all of which see the run and the output."""
    cluster = context.with_resource(connected(on, workers))
    for place in (run.absolute(), output.absolute().parent):
        cluster.check(place)
    return ClusterMakers(cluster, run.absolute())


def _recommend_all(recommender: Recommender, output: Path, k: int, options: dict[str, Any], *, quiet: bool) -> None:
    try:
        with console.UsersDisplay(quiet=quiet) as display:
            summary = recommend_all(recommender, output, k, progress=display.update, **options)
    except KeyboardInterrupt:
        console.stderr.print("stopped; what is done is kept, and the same command goes on from there", soft_wrap=True)
        raise typer.Exit(1) from None
    typer.echo(f"wrote the lists of {summary.n_users:,} users to {output}")


def score(
    run: Run,
    history: Annotated[str, typer.Option("--history", help=HISTORY_HELP)],
    items: Annotated[str, typer.Option("--items", help="item ids to score, separated likewise")],
    json_: Json = False,
) -> None:
    """Score given items after a history, as predict() of the published code does."""
    recommender = load(run)
    wanted = ids_of_text(items, recommender.vocabulary)
    scores = recommender.score([ids_of_text(history, recommender.vocabulary)], wanted)[0].tolist()
    frame = pl.DataFrame({"item_id": [str(i) for i in wanted], "score": scores})
    print_frame(frame, None, json_, recommender.vocabulary)


def similar(
    run: Run,
    item: Annotated[str, typer.Argument(help="id of the item, such as 8 or -8; -- comes before an id like -x")],
    k: K = 10,
    where: Where = None,
    json_: Json = False,
) -> None:
    """List the items nearest to an item, by the cosine of their embeddings."""
    recommender = load(run)
    print_frame(recommender.similar_items(item, k, where=where), None, json_, recommender.vocabulary)


def explain(
    run: Run,
    history: Annotated[str, typer.Option("--history", help=HISTORY_HELP)],
    item: Annotated[str, typer.Option("--item", help="id of the item to explain")],
    json_: Json = False,
) -> None:
    """Show which items of a history raise the score of an item.

    The contribution of an item is how far the score falls when that item is left out of the history.
    """
    recommender = load(run)
    frame = recommender.explain(ids_of_text(history, recommender.vocabulary), item)
    print_frame(frame, None, json_, recommender.vocabulary)
