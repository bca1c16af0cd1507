"""The settings file: what docs/config.md prints means there what it means as a flag; all else is one sentence."""

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from sasrec.cli import main as cli
from sasrec.cli.flags import ConfigFile, settings_of, with_flags
from sasrec.cli.settings_file import MOST_BYTES, read_settings
from sasrec.core.config import CONFIGS, DERIVED, from_dict
from sasrec.core.errors import ConfigError
from sasrec.core.server_config import ServerConfig

DOCS = Path(__file__).resolve().parents[2] / "docs" / "config.md"
CLASSES: dict[str, Any] = {**CONFIGS, "server": ServerConfig}
PART_OF = {cls.__name__: part for part, cls in CLASSES.items()}


def printed() -> list[tuple[str, str, str]]:
    """(part, setting, value) of all defaults, choices and presets' values on the page, as they are printed there."""
    found, part = [], ""
    owners = {field.name: name for name, cls in CONFIGS.items() for field in dataclasses.fields(cls)}
    for line in DOCS.read_text().splitlines():
        part = PART_OF.get(line[3:], "") if line.startswith("## ") else part
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells or not cells[0].startswith("`"):
            continue
        name = cells[0].strip("`")
        choices = re.findall(r"`(\w+)`", cells[1]) if part else []
        values = [cells[2], *choices] if part else [value for value in cells[1:] if value]
        found += [(part or owners[name], name, value) for value in values]
    return sorted(set(found))


def by_flag(part: str, *arguments: str) -> Any:
    """The config that a command makes of these arguments."""
    made = []

    @with_flags(part)
    def command(config: ConfigFile = None, **given: Any) -> None:
        made.append(from_dict(CLASSES[part], settings_of(given, config)))

    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(arguments))
    assert not done.exit_code, done.output
    return made[0]


def flag_of(part: str, name: str, value: str) -> list[str]:
    dashed = name.replace("_", "-")
    if get_type_hints(CLASSES[part])[name] is bool:
        return [f"--{dashed}" if value in ("True", "true") else f"--no-{dashed}"]
    return [f"--{dashed}", value]


def test_the_page_prints_every_setting() -> None:
    fields = {(part, field.name) for part, cls in CLASSES.items() for field in dataclasses.fields(cls)}
    assert {(part, name) for part, name, _ in printed()} == fields
    assert len(printed()) > 120  # choices and presets' values, too


@pytest.mark.parametrize(("part", "name", "value"), [one for one in printed() if one[1] not in DERIVED])
def test_what_the_page_prints_means_the_same_in_the_file_and_as_a_flag(
    part: str, name: str, value: str, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(f"{name}: {value}\n")
    assert by_flag(part, "--config", str(tmp_path / "s.yaml")) == by_flag(part, *flag_of(part, name, value))


NUMBERS = ["1e-3", "1E-3", "1.e-3", ".5", "0", "+0.25", "5e-1", "1e-08", "0_0.1_0"]
WHOLE = ["10", "+10", "0123", "1_000"]
TEXTS = ["123", "1e3", "no", "off", "true", "0x10", "1:30", "2001-01-01", "cuda:1", "10.0.0.1, 10.0.0.2", "::1", "a b"]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("train", "learning_rate", value) for value in NUMBERS),
        *(("server", "max_history", value) for value in WHOLE),
        *(("server", "events", value) for value in TEXTS),
        *(("model", "tied", value) for value in ("true", "false", "True", "False")),
    ],
)
def test_other_ways_to_write_a_value_mean_the_same_too(part: str, name: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"{name}: {value}\n")
    assert by_flag(part, "--config", str(tmp_path / "s.yaml")) == by_flag(part, *flag_of(part, name, value))


def settings(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "s.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_settings(path)


def test_quotes_comments_lists_and_line_ends_are_read_as_yaml_has_them(tmp_path: Path) -> None:
    lines = [
        "\ufeff# mine",
        "--- # begins",
        "filter_seen: 'no'",
        "k: [5, 0x0A]",
        'loss: "bce"',
        "events: ''",
        "host: ~",
    ]
    wanted = {"filter_seen": "no", "k": [5, 10], "loss": "bce", "events": "", "host": ""}
    assert settings(tmp_path, "\r\n".join(lines)) == wanted
    assert settings(tmp_path, "k:\n- 5\n- 10\n") == {"k": [5, 10]}
    assert settings(tmp_path, "{seed: 3, n_blocks: 0o17}") == {"seed": 3, "n_blocks": 15}


def test_quoted_numbers_are_text(tmp_path: Path) -> None:
    assert settings(tmp_path, "seed: '3'") == {"seed": "3"}


def laughs() -> str:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "holds no settings; write lines such as 'max_epochs: 50'"),
    "only comments": ("# dropout: 0.3\n", "holds no settings; write lines such as 'max_epochs: 50'"),
    "only a null": ("~\n", "line 1 of .*s.yaml is not a setting; write lines such as 'max_epochs: 50'"),
    "a list": ("- dropout: 0.3\n", "line 1 of .*s.yaml is not a setting; write lines such as"),
    "a word": ("\ndropout\n", "line 2 of .*s.yaml is not a setting; write lines such as"),
    "no colon": ("dropout 0.3\nseed 3\n", "line 1 of .*s.yaml is not a setting"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "line 2 of .*s.yaml is not valid YAML: .*but found another document"),
    "twice": ("dropout: 0.3\nseed: 1\ndropout: 0.2\n", "dropout stands in lines 1 and 3 of .*s.yaml; keep one of them"),
    "twice, once quoted": ("seed: 3\n'seed': 4\n", "seed stands in lines 1 and 2 of .*s.yaml; keep one of them"),
    "twice in a row": ("{seed: 3, seed: 4}", "seed stands twice in line 1 of .*s.yaml; keep one of them"),
    "a list as name": ("? [seed]\n: 3\n", "line 1 of .*s.yaml has a list where the name of a setting belongs"),
    "no value": ("seed: 1\ndropout:\n", "dropout has no value in line 2 of .*s.yaml; give one or take the line out"),
    "null": ("tied: null", "tied has no value in line 1 of .*s.yaml"),
    "settings in a section": (
        "train:\n  seed: 3\n", r"train in line 2 of .*s.yaml has settings below it; write all of them side by side"
    ),
    "section in a list": ("k: [{a: 1}]", "k in line 1 of .*s.yaml has settings below it"),
    "indented by a tab": ("k:\n\t- 5\n", r"line 2 of .*s.yaml is not valid YAML: .*'\\t'.*; use spaces"),
    "open bracket": ("k: [5, 10\nseed: 3\n", r"line 2 of .*s.yaml is not valid YAML: expected ',' or ']'"),
    "open quote": ('events: "a\n', "line 2 of .*s.yaml is not valid YAML: found unexpected end of stream"),
    "two colons": ("host: a: b\n", "line 1 of .*s.yaml is not valid YAML: mapping values are not allowed here"),
    "aliases": ("a: &x 3\nb: *x\n", r"line 2 of .*s.yaml takes a value from elsewhere \(\*x\); write the value itself"),
    "merged": ("a: &x {seed: 3}\n<<: *x\n", r"line 2 of .*s.yaml takes a value from elsewhere \(\*x\)"),
    "billion laughs": (laughs(), r"line 2 of .*s.yaml takes a value from elsewhere \(\*a\)"),
    "tag": ("seed: !!int 3\n", "line 1 of .*s.yaml has the tag .*int; write the value alone"),
    "object": ("seed: !!python/object/apply:os.getcwd []\n", "line 1 of .*s.yaml has the tag .*getcwd; write"),
    "deep": ("k: " + "[" * 5000, "line 1 of .*s.yaml has lists within lists; a setting takes one list at most"),
    "nested list": ("k: [[5, 10]]", "line 1 of .*s.yaml has lists within lists"),
    "latin-1": ("host: é".encode("latin-1"), "s.yaml is not text in UTF-8; save it as UTF-8"),
    "utf-16": ("seed: 3\n".encode("utf-16"), "s.yaml is not text in UTF-8; save it as UTF-8"),
    "utf-16 without a mark": ("seed: 3\n".encode("utf-16-le"), "s.yaml is not text in UTF-8"),
    "utf-32": ("seed: 3\n".encode("utf-32"), "s.yaml is not text in UTF-8"),
    "binary": (b"PK\x03\x04\x00\x00", "s.yaml is not text in UTF-8"),
    "control character": (b"seed: 3\x07\n", "s.yaml is not text in UTF-8"),
    "huge": (b"# " + b"x" * MOST_BYTES, "s.yaml has more than 1,048,576 bytes; a settings file has a few lines"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_settings_file_is_one_sentence_with_its_line(case: str, tmp_path: Path) -> None:
    text, words = BAD[case]
    with pytest.raises(ConfigError, match=words) as caught:
        settings(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tied: no", "tied='no' is not of type bool; use true or false"),
        ("tied: 1", "tied=1 is not of type bool; use true or false"),
        ("dropout: 1:30", "dropout='1:30' is not of type float"),
        ("valid_cut: 2001-01-01", "valid_cut='2001-01-01' is not of type float"),
        ("learning_rate: .inf", "learning_rate=inf is not a finite number"),
        ("learning_rate: .nan", "learning_rate=nan is not a finite number"),
        ("learning_rate: 1e999", "learning_rate=inf is not a finite number"),
        ("max_epochs: 1e3", "max_epochs=1000.0 is not of type int"),
        ("seed: " + "9" * 5000, "seed=inf is not of type int"),
        ("max_epochs: 10000000000", "max_epochs=10000000000 is too large"),
        ("seed: '3'", "seed='3' is not of type int"),
        ("loss: no", "loss='no' is not one of bce, gbce"),
        ("true: 3", "unknown setting 'true'"),
        ("1: 3", "unknown setting '1'"),
        ("epochs:", "unknown setting 'epochs'"),
    ],
)
def test_a_value_of_another_kind_is_named_as_it_was_written(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(tmp_path, text, monkeypatch, capsys)
    assert words in said


def refusal(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `sasrec train` says of a settings file that it refuses."""
    (folder / "log.txt").write_text("".join(f"{u} {i}\n" for u in range(5) for i in range(5)))
    (folder / "s.yaml").write_text(text)
    command = [
        "sasrec",
        "train",
        str(folder / "log.txt"),
        "-o",
        str(folder / "run"),
        "--config",
        str(folder / "s.yaml"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "a folder"])
def test_a_file_that_cannot_be_read_is_one_sentence(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "s.yaml")
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*s.yaml: (No such file|Is a directory)"):
        read_settings(tmp_path / "s.yaml")
