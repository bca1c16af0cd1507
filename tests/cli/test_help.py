"""--help is short, --help-all is whole, examples work, and what is misspelt is told the nearest name."""

import shlex
from typing import Any

import pytest
import typer
from cli.conftest import Run

from sasrec.cli.help import COMMON, EXAMPLES
from sasrec.cli.main import COMMANDS, app
from sasrec.core.config import OF_INIT

MOST_LINES = 60
PROGRAM: Any = typer.main.get_command(app)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")


def params_of(command: str) -> list[Any]:
    return list(PROGRAM.commands[command].params)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_help_all_names_every_option(run: Run, command: str) -> None:
    brief, whole = run(command, "--help").out, run(command, "--help-all").out
    assert len(brief.splitlines()) <= MOST_LINES
    words, flags = set(whole.split()), [flag for param in params_of(command) for flag in param.opts]
    options = [flag for flag in flags if flag.startswith("-")]
    assert not [flag for flag in options if flag not in words]
    if len([flag for flag in options if flag in brief.split()]) < len(options):
        assert "--help-all" in brief.split()
    assert "--help-all" not in whole.partition("Show this message")[2].partition("--help-all")[2]  # named once


@pytest.mark.usefixtures("wide")
def test_help_leaves_out_what_stands_in_a_panel_and_is_not_common(run: Run) -> None:
    brief = run("train", "--help").out
    assert "--embedding-dim" in brief
    assert "--adam-beta1" not in brief
    assert "--adam-beta1" in run("train", "--help-all").out
    left_out = [p for p in params_of("train") if p.opts[0].startswith("-") and p.opts[0] not in brief.split()]
    assert f"Show {len(left_out)} further options" in " ".join(brief.replace("│", " ").split())


def test_every_common_option_exists_in_its_panel() -> None:
    there = {(p.rich_help_panel, p.name) for command in COMMANDS for p in params_of(command)}
    assert {(panel, name) for panel, names in COMMON.items() for name in names} <= there


def test_flags_that_a_command_could_only_refuse_are_not_among_its_own() -> None:
    assert set(OF_INIT) <= {param.name for param in params_of("train")}
    for command, nowhere in (("tune", {*OF_INIT}), ("benchmark", {*OF_INIT, "split_method", "protocol"})):
        assert not nowhere & {param.name for param in params_of(command)}, command


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_of_the_help_are_commands_as_they_are_typed(line: str) -> None:
    program, name, *words = shlex.split(line)
    assert program == "sasrec"
    PROGRAM.commands[name].make_context(name, words)


@pytest.mark.usefixtures("wide")
def test_examples_stand_at_the_end_of_the_help(run: Run) -> None:
    for name, lines in EXAMPLES.items():
        assert run(name, "--help").out.rstrip().endswith(f"$ {lines[-1]}")


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "log", "-o", "run", "--embeding-dim", "8"], "--embeding-dim. Did you mean '--embedding-dim'?"),
        (["train", "log", "-o", "run", "--no-lazy-adm"], "Did you mean '--no-lazy-adam'?"),
        (["train", "log", "-o", "run", "--embedding_dim", "8"], "Did you mean '--embedding-dim'?"),
        (["train", "log", "-o", "run", "--loss", "bc"], "'sampled_softmax', 'cross_entropy'. Did you mean 'bce'?"),
        (["train", "log", "-o", "run", "--split-method", "temprol"], "Did you mean 'temporal'?"),
        (["evaluate", "run", "--split", "tset"], "Did you mean 'test'?"),
        (["similar", "run", "-8", "--wehre", "x"], "Got unexpected extra argument"),
        (["similar", "run", "8", "--wehre", "x"], "Did you mean '--where'?"),
        (["trian"], "Did you mean 'train'"),
        (["--quit", "train"], "Did you mean '--quiet'?"),
    ],
)  # fmt: skip
def test_misspelt_word_is_refused_with_the_nearest(run: Run, words: list[str], said: str) -> None:
    outcome = run(*words)
    assert outcome.code == 2
    assert said in " ".join(word for word in outcome.err.split() if word not in "│╭╮╰╯")
    assert "Possible options" not in outcome.err


@pytest.mark.usefixtures("wide")
def test_word_like_no_other_is_refused_without_a_guess(run: Run) -> None:
    for words in (["train", "log", "-o", "run", "--zzzz"], ["train", "log", "-o", "run", "--loss", "zzzz"]):
        outcome = run(*words)
        assert outcome.code == 2
        assert "Did you mean" not in outcome.err
