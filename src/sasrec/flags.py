"""What commands are given: the flags they share, each config field as one. In: configs; out: flags, and back settings.

A flag's name, type, range and help come from the field itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer
import yaml

from sasrec.config import CONFIGS, ServerConfig
from sasrec.errors import ConfigError, DataError
from sasrec.interactions import filter_k_core, filter_repeats, read_titles
from sasrec.recommender import load_log, read_log
from sasrec.sequences import Sequences, Vocabulary, build_sequences

PANELS = {"model": "Model", "train": "Training", "eval": "Evaluation", "server": "Server"}
SHORT_FLAGS = {"k": ["-k"]}

LogArgument = Annotated[str, typer.Argument(help="a log file, a folder from prepare or train, or a data set's name")]
Run = Annotated[Path, typer.Argument(help="a run folder")]
Json = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
Output = Annotated[Path, typer.Option("--output", "-o", help="the folder to write")]
History = Annotated[str | None, typer.Option("--history", help="item ids, oldest first, separated by commas")]
K = Annotated[int, typer.Option("-k", "--k", help="how many items")]
Split = Annotated[Literal["valid", "test"], typer.Option("--split", help="which targets")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run in --output")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; flags win")]
READING: dict[str, Any] = {
    "format": (str | None, "pairs, sequences, triples, ratings, csv, jsonl, parquet, inter, ...; told by the file"),
    "user_column": (str | None, "the column that holds the user"),
    "item_column": (str | None, "the column that holds the item"),
    "timestamp_column": (str | None, "the column that holds the time"),
    "repeats": (Literal["keep", "first", "last", "consecutive"] | None, "keep = all events; first or last of each item of a user; consecutive = without immediate repeats"),  # noqa: E501
    "k_core": (int | None, "drop users and items with fewer events than this, until none is left"),
    "one_pass": (bool | None, "with --k-core: count once, as the paper did"),
    "titles": (Path | None, "file with item ids and titles"),
}  # fmt: skip


def with_flags(
    *parts: str, reading: bool = False, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's **settings the flags of these configs, but for some, and of reading a log."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        extra = (
            [_flag(name, kind, text, "Reading the log") for name, (kind, text) in READING.items()] if reading else []
        )
        parameters = [*own, *extra, *(p for p in _config_parameters(*parts) if p.name not in without)]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _config_parameters(*parts: str) -> list[inspect.Parameter]:
    """A flag for each field of these configs; None = not given."""
    parameters = []
    for part in parts:
        cls = ServerConfig if part == "server" else CONFIGS[part]
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind = hints[field.name]
            if get_args(kind) == (int, ...):
                kind = list[int]
            default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            unless = "unless set:" if part == "server" else "unless set: the preset's, or"
            text = f"{field.metadata['help']} ({unless} {default if default != '' else 'none'})"
            parameters.append(_flag(field.name, kind, text, PANELS[part]))
    return parameters


def _flag(name: str, kind: Any, text: str, panel: str) -> inspect.Parameter:
    dashed = "--" + name.replace("_", "-")
    declaration = f"{dashed}/--no-{dashed[2:]}" if kind in (bool, bool | None) else dashed
    option = typer.Option(declaration, *SHORT_FLAGS.get(name, []), help=text, rich_help_panel=panel, show_default=False)
    annotation = operator.getitem(Annotated, (kind | None, option))  # built, not written: it is not static
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def settings_of(given: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """The settings that were given: those of the YAML file, with flags on top."""
    flags = {k: v for k, v in given.items() if v is not None and v != []}
    return {**_read_yaml(config), **flags}


def _read_yaml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not hold settings; write lines such as 'max_epochs: 50'")
    return values


def load_log_of(source: str, given: dict[str, Any]) -> tuple[Sequences, Vocabulary, str]:
    """Take the reading flags out of `given` and read the log they describe."""
    reading = {name: given.pop(name, None) for name in READING}
    titles_file, core = reading.pop("titles"), reading.pop("k_core")
    repeats, one_pass = reading.pop("repeats"), reading.pop("one_pass")
    reading = {k: v for k, v in reading.items() if v is not None}
    if repeats or core:
        sequences, vocabulary, name = _filtered(source, reading, repeats or "keep", core, bool(one_pass))
    else:
        sequences, vocabulary, name = load_log(source, **reading)
    if titles_file is not None:
        vocabulary = vocabulary.with_titles(read_titles(titles_file))
    return sequences, vocabulary, name


def _filtered(
    source: str, reading: dict[str, Any], repeats: Any, core: int | None, one_pass: bool
) -> tuple[Sequences, Vocabulary, str]:
    if Path(source).is_dir():
        raise ConfigError(f"--repeats and --k-core filter a log file, and {source} is a prepared folder")
    log, titles, name = read_log(source, **reading)
    log = filter_repeats(log, repeats)
    if core:
        log = filter_k_core(log, core, core, iterated=not one_pass)
        if not len(log):
            raise DataError(f"no event is left after the {core}-core filter of {source}; use a smaller --k-core")
    sequences, vocabulary = build_sequences(log)
    return sequences, vocabulary if titles is None else vocabulary.with_titles(titles), name
