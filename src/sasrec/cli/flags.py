"""Flags of the commands: those that several commands share, and one for each setting.

The flag of a setting takes its name, type, range and help from the field of the config.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from sasrec.cli.settings_file import read_settings
from sasrec.core.config import CONFIGS, DERIVED, METRICS
from sasrec.core.presets import PRESETS
from sasrec.core.server_config import ServerConfig
from sasrec.data.logs import Reading
from sasrec.reading.datasets import DATASETS
from sasrec.reading.readers import FORMATS

PANELS = {"model": "Model", "train": "Training", "eval": "Evaluation", "server": "Server"}
OFFERED = {  # by Tab, for settings that are text
    "format": FORMATS, "device": ("auto", "cpu", "cuda"), "valid_metric": [f"{one}@10" for one in METRICS],
}  # fmt: skip
SHORT_FLAGS = {"k": ["-k"]}

HISTORY_HELP = (
    "item ids, oldest first, separated by commas; an id with a comma stands in double quotes ('\"heat, uncut\",tt42'), "
    "unless the whole text is one known id"
)


def names(known: Iterable[str]) -> Callable[[], list[str]]:
    """What a shell offers for a text that is one of these, or some with commas between."""
    return lambda: list(known)


Logs = Annotated[
    list[str],
    typer.Argument(
        autocompletion=names(DATASETS),
        metavar="LOG",
        help="log files, folders or patterns of one log (- = standard input); or a folder written by prepare or train; "
        "or the name of a data set",
    ),
]
Run = Annotated[Path, typer.Argument(help="a run folder, or hf://user/model@REVISION at the Hugging Face Hub")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Output = Annotated[Path, typer.Option("--output", "-o", help="the folder to write")]
History = Annotated[str | None, typer.Option("--history", help=HISTORY_HELP)]
K = Annotated[int, typer.Option("-k", "--k", help="length of the list")]
Where = Annotated[
    str | None,
    typer.Option("--where", help="only items whose attributes fulfil this, such as \"price < 30 and brand = 'lego'\""),
]
Split = Annotated[Literal["valid", "test"], typer.Option("--split", help="which targets are measured")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run in --output")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; flags win over it")]
PresetName = Annotated[
    str,
    typer.Option("--preset", help="settings for this log: " + ", ".join(PRESETS), autocompletion=names(PRESETS)),
]
NoHistories = Annotated[
    bool,
    typer.Option("--no-histories", help="do not store users' histories in the run folder", rich_help_panel="Training"),
]

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        help="where the work is done: ray = the cluster that RAY_ADDRESS names, else one of this machine; "
        "ray://HOST:PORT = that one; default: in this process",
        rich_help_panel="Cluster",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="processes on the cluster; default: one for each CPU, and of a training one for each machine",
        rich_help_panel="Cluster",
    ),
]


def with_flags(
    *parts: str, reading: bool = False, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's **settings the flags of these configs, but for some, and of reading a log.

    The help of commands that begin with a run tells no defaults: what is not given there is as in the run.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        extra = [p for p in _reading_parameters() if p.name not in without] if reading else []
        tell_defaults = reading or "server" in parts
        parameters = [
            *own,
            *extra,
            *(p for p in _config_parameters(*parts, tell_defaults=tell_defaults) if p.name not in without),
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _config_parameters(*parts: str, tell_defaults: bool) -> list[inspect.Parameter]:
    """A flag for each field of these configs; None = not given."""
    parameters = []
    for part in parts:
        cls = ServerConfig if part == "server" else CONFIGS[part]
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name in DERIVED:
                continue
            kind = hints[field.name]
            if get_args(kind) == (int, ...):
                kind = list[int]
            default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            told = f" (default: {'none' if default == '' else default})" if tell_defaults else ""
            text = f"{field.metadata['help']}{told}"
            parameters.append(_flag(field.name, kind, text, PANELS[part]))
    return parameters


def _reading_parameters() -> list[inspect.Parameter]:
    """A flag for each field of Reading; None = not given."""
    hints = get_type_hints(Reading)
    return [
        _flag(field.name, hints[field.name], field.metadata["help"], "Reading the log")
        for field in dataclasses.fields(Reading)
    ]


def _flag(name: str, kind: Any, text: str, panel: str) -> inspect.Parameter:
    dashed = "--" + name.replace("_", "-")
    declaration = f"{dashed}/--no-{dashed[2:]}" if kind in (bool, bool | None) else dashed
    option = typer.Option(
        declaration,
        *SHORT_FLAGS.get(name, []),
        help=text,
        rich_help_panel=panel,
        show_default=False,
        autocompletion=names(OFFERED[name]) if name in OFFERED else None,
    )
    annotation = operator.getitem(Annotated, (kind | None, option))  # built, not written: it is not static
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def settings_of(given: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """The settings that were given: those of the YAML file, with flags on top."""
    flags = {k: v for k, v in given.items() if v is not None and v != []}
    return {**(read_settings(config) if config is not None else {}), **flags}


def split_reading(given: Mapping[str, Any]) -> tuple[Reading, dict[str, Any]]:
    """The flags of reading a log, and all others."""
    names = {field.name for field in dataclasses.fields(Reading)}
    reading = {name: value for name, value in given.items() if name in names and value is not None}
    return Reading(**reading), {name: value for name, value in given.items() if name not in names}
