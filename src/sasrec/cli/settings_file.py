"""Reads a settings file: flat YAML in, settings by name out, each value as its flag would have it.

Values are read by YAML 1.2's core schema. PyYAML itself follows YAML 1.1, for which 1e-3 is text and no is a boolean.
A setting that takes text takes what is written as it stands. Nothing nests, so aliases, tags and sections are refused,
and a file's size bounds the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from sasrec.core.config import CONFIGS
from sasrec.core.errors import ConfigError
from sasrec.core.server_config import ServerConfig

MOST_BYTES = 2**20
MOST_DIGITS = 30  # of a whole number; more than any setting has
EXAMPLE = "write lines such as 'max_epochs: 50'"
NOT_TEXT = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
EMPTY = re.compile("|~|null|Null|NULL")
DIGITS = "[0-9]+(?:_[0-9]+)*"  # underscores are not in YAML 1.2, but Python and flags take them
SCHEMA: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (  # what a value without quotes is; else text
    (EMPTY, lambda text: None),
    (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(f"[-+]?{DIGITS}"), lambda text: int(text) if len(text) <= MOST_DIGITS else float(text)),
    (re.compile("0o[0-7]+|0x[0-9a-fA-F]+"), lambda text: int(text, 0)),
    (re.compile(rf"[-+]?(?:\.{DIGITS}|{DIGITS}(?:\.(?:{DIGITS})?)?)(?:[eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), lambda text: float(text.replace(".", "", 1))),
)
SETTINGS = {
    field.name: get_type_hints(cls)[field.name] for cls in (*CONFIGS.values(), ServerConfig) for field in fields(cls)
}
TEXT_SETTINGS = {name for name, kind in SETTINGS.items() if kind is str or isinstance((*get_args(kind), None)[0], str)}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file, not yet checked against their types and ranges.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or is more than names with values or lists of values.
    """
    root = _parse(path)
    if root is None:
        raise ConfigError(f"{path} holds no settings; {EXAMPLE}")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{_place(root, path)} is not a setting; {EXAMPLE}")
    lines: dict[str, int] = {}
    settings: dict[str, Any] = {}
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{_place(key, path)} has a list where the name of a setting belongs; {EXAMPLE}")
        name, line = str(key.value), _line(key.start_mark)
        if name in lines:
            where = f"twice in line {line}" if lines[name] == line else f"in lines {lines[name]} and {line}"
            raise ConfigError(f"{name} stands {where} of {path}; keep one of them")
        lines[name] = line
        settings[name] = _value(name, value, path)
    return settings


def _parse(path: Path) -> yaml.Node | None:
    """The file's only document; None = there is none."""
    text = _text(path)
    try:
        return _Loader(text, path).get_single_node()
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem)
        problem = f"{error.context}, {problem}" if problem.startswith("but") else problem
        mark = error.problem_mark or error.context_mark
        where = f"line {_line(mark)} of {path}" if mark else f"{path}"
        advice = "; use spaces" if "\\t" in problem else ""
        raise ConfigError(f"{where} is not valid YAML: {problem}{advice}") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} has more than {MOST_BYTES:,} bytes; a settings file has a few lines of text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if NOT_TEXT.search(text):
        raise ConfigError(f"{path} is not text in UTF-8; save it as UTF-8")
    return text


class _Loader(yaml.BaseLoader):
    """Leaves all values as text, and takes neither aliases nor tags, nor lists within lists."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self.path = path
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        where = f"line {_line(event.start_mark)} of {self.path}"
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where} takes a value from elsewhere (*{event.anchor}); write the value itself")
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"{where} has the tag {event.tag}; write the value alone")
        if self.depth > 3:  # a file, a list, a section in it: that far it can be named
            raise ConfigError(f"{where} has lists within lists; a setting takes one list at most")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _value(name: str, node: yaml.Node, path: Path) -> Any:
    """A setting's value, or the list of its values."""
    if not isinstance(node, yaml.SequenceNode):
        return _item(name, node, path)
    return [_item(name, item, path) for item in node.value]


def _item(name: str, node: yaml.Node, path: Path) -> Any:
    where = _place(node, path)
    if isinstance(node, yaml.SequenceNode):
        raise ConfigError(f"{where} has lists within lists; a setting takes one list at most")
    if isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{name} in {where} has settings below it; write all of them side by side")
    text = str(node.value)
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None  # without quotes
    if name in TEXT_SETTINGS:
        return "" if is_plain and EMPTY.fullmatch(text) else text
    value = _plain_value(text) if is_plain else text
    if value is None and name in SETTINGS:
        raise ConfigError(f"{name} has no value in {where}; give one or take the line out")
    return value


def _plain_value(text: str) -> Any:
    return next((read(text) for pattern, read in SCHEMA if pattern.fullmatch(text)), text)


def _place(node: yaml.Node, path: Path) -> str:
    return f"line {_line(node.start_mark)} of {path}"


def _line(mark: yaml.Mark) -> int:
    return int(mark.line) + 1
