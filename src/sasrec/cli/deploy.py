"""The commands that hand a model on: add-items, convert, export and push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sasrec.cli.flags import Json, Overwrite, Run
from sasrec.cli.output import print_json
from sasrec.converting import convert
from sasrec.core.errors import ConfigError
from sasrec.core.files import atomic_write
from sasrec.export.onnx import export_onnx
from sasrec.export.vectors import export_embeddings
from sasrec.model.folding import fold
from sasrec.model.published import LAYOUTS, dump_published
from sasrec.publishing import push as push_run
from sasrec.recommender import load
from sasrec.runs.folder import RunFolder
from sasrec.runs.hub import is_address


def add_items(
    run: Run,
    items: Annotated[
        Path, typer.Argument(help="a file of items with the attributes that RUN's features are made from")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the run folder to write")],
    item_vectors: Annotated[
        Path | None,
        typer.Option("--item-vectors", help="a .npy file of the items' vectors, if RUN was trained with one"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a run that recommends further items, too, by their features. Nothing is trained. See docs/items.md."""
    before = load(run)
    after = before.add_items(items, item_vectors)
    after.save(output, overwrite=overwrite, histories=after.sequences is not None)
    n_items, n_before = len(after.vocabulary), len(before.vocabulary)
    typer.echo(f"wrote {output}: model {after.model_version}, {n_items:,} items, {n_items - n_before:,} of them new")


def convert_(
    source: Annotated[Path, typer.Argument(help="a checkpoint (.pth) of the published code, or a run folder")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="the run folder or, from a run, the .pth file to write")
    ],
    layout: Annotated[
        str | None, typer.Option("--layout", help="revision of the published code: " + ", ".join(LAYOUTS))
    ] = None,
    log: Annotated[str | None, typer.Option("--log", help="the log that the checkpoint was trained on")] = None,
    n_heads: Annotated[
        int | None, typer.Option("--n-heads", help="number of attention heads; default: from the file name, else 1")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint of pmixer/SASRec.pytorch to a run folder, or a run folder to such a checkpoint."""
    source = RunFolder.open(source).path if is_address(source) else source
    if source.is_dir():
        recommender = load(source)
        if output.exists() and not overwrite:
            raise ConfigError(f"output {output} exists; use --overwrite or another name")
        model = recommender.config.model
        weights = fold(recommender.engine.weights(), recommender.engine.features, model)
        atomic_write(output, dump_published(model, weights, layout))
    else:
        if log is None and layout in LAYOUTS:
            raise ConfigError("--log is needed: the log that the checkpoint was trained on, for its items and users")
        convert(source, layout, log, n_heads=n_heads).save(output, overwrite=overwrite)
    typer.echo(f"wrote {output}")


def export(
    run: Run,
    format_: Annotated[
        Literal["onnx", "embeddings"],
        typer.Option("--format", help="onnx = the whole model; embeddings = the item vectors"),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the folder to write; default: onnx, onnx-int8 or embeddings inside RUN"),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="onnx: store the item tables as bytes (8-bit integers)")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the export in --output")] = False,
    json_: Json = False,
) -> None:
    """Write a model for other programs: an ONNX graph, checked against this package, or item vectors."""
    if output is None and is_address(run):
        raise ConfigError("--output is needed for a run at the Hub: the folder to write")
    if int8 and format_ != "onnx":
        raise ConfigError("--int8 is for --format onnx; vector databases have their own compression")
    folder = output or run / (f"{format_}-int8" if int8 else format_)
    recommender = load(run)
    if format_ == "onnx":
        facts = export_onnx(recommender, folder, int8=int8, overwrite=overwrite)
    else:
        facts = export_embeddings(recommender, folder, overwrite=overwrite)
    if json_:
        print_json({"output": str(folder), **facts})
        return
    typer.echo(f"wrote {folder}: model {facts['model_version']}, {facts['n_items']:,} items")
    if "check" in facts:
        typer.echo(_check_sentence(facts["check"], int8))


def push(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    repo: Annotated[str, typer.Argument(help="user/model at the Hugging Face Hub; made where it is not there yet")],
    public: Annotated[bool, typer.Option("--public", help="let everybody read it; default: private")] = False,
    license_: Annotated[
        str | None, typer.Option("--license", help="for the card, as the Hub names it, such as apache-2.0")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="for the card: a data set at the Hub; may be repeated")
    ] = None,
    with_histories: Annotated[
        bool, typer.Option("--with-histories", help="push the ids and histories of the log's users, too")
    ] = False,
    json_: Json = False,
) -> None:
    """Push a run to the Hugging Face Hub, from where sasrec.load reads it. See docs/hub.md.

    Says first which files leave this machine: the model, its items, figures and pages. Users and their histories stay
    here unless --with-histories is given.
    """
    asked: dict[str, Any] = {"license": license_, "datasets": dataset or ()}
    address = push_run(RunFolder.open(run), repo, private=not public, with_histories=with_histories, **asked)
    if json_:
        print_json({"address": str(address), "repository": address.repo, "revision": address.revision})
        return
    typer.echo(f"pushed: {address}")


def _check_sentence(check: dict[str, Any], int8: bool) -> str:
    if int8:
        return (
            f"recall@{check['k']} against float32 {check['recall']:.4f} on {check['n_histories']} histories; scores "
            f"differ by up to {check['largest_difference']:.2g}"
        )
    return (
        f"scores and lists as this package's on {check['n_histories']} histories, to {check['largest_difference']:.1g}"
    )
