"""Tab: what is offered, in the shells themselves where they are installed, without loading the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sasrec.cli.completion import TABLE, offers
from sasrec.core.presets import PRESETS
from sasrec.reading.datasets import DATASETS

MADE = json.loads(TABLE.read_text())


def words_offered(*words: str) -> list[str]:
    return [offer.word for offer in offers(MADE, words[:-1], words[-1])]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["--ver"], ["--version"]),
        (["--debug", "tr"], ["train"]),
        (["train", "log", "--embed"], ["--embedding-dim"]),
        (["train", "log", "--no-la"], ["--no-lazy-adam"]),
        (["train", "--preset", ""], list(PRESETS)),
        (["train", "--preset", "f"], ["fast"]),
        (["train", "--preset", "=", "f"], ["fast"]),
        (["train", "--preset=f"], ["--preset=fast"]),
        (["train", "--loss", "b"], ["bce"]),
        (["train", "--overwrite", "--split-method", "t"], ["temporal", "temporal_by_user"]),
        (["train", "--track", "mlflow,w"], ["mlflow,wandb"]),
        (["benchmark", "log", "--presets", "paper,b"], ["paper,best"]),
        (["datasets", "--fetch", ""], list(DATASETS)),
        (["train", "ml-100"], ["ml-100k"]),
        (["train", "-o", "ml-100"], []),
        (["train", ""], []),
        (["serve", ""], []),
        (["nothing", "--x"], []),
        (["train", "--nothing", "ml-100"], ["ml-100k"]),
    ],
)
def test_words_that_may_follow_are_offered(
    words: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words_offered(*words) == expected


def test_file_of_the_users_goes_before_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ml-100.csv").touch()
    assert words_offered("train", "ml-100") == []


def test_help_in_the_table_has_no_sign_that_a_shell_obeys() -> None:
    told = [one["help"] for command in MADE["commands"].values() for one in (command, *command["options"].values())]
    assert not set("".join(told)) & set("\"'`$\\:()<>|&*?[]{}~!#\n\t")


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment whose `sasrec` is this checkout's, as an installation would have it."""
    script = tmp_path / "bin" / "sasrec"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom sasrec.__main__ import main\nmain()\n")
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def test_answer_to_a_shell_loads_neither_numpy_nor_typer(program: dict[str, str]) -> None:
    asked = {
        **program,
        "_SASREC_COMPLETE": "complete_bash",
        "COMP_WORDS": "sasrec\ntrain\n--preset\n",
        "COMP_CWORD": "3",
    }
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from sasrec.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.split() == list(PRESETS)
    loaded = set(done.stderr.split())
    assert "sasrec.cli.completion" in loaded
    assert not loaded & {"numpy", "polars", "typer", "rich", "sasrec.cli.main"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sasrec eval", ["evaluate"]),
        ("sasrec train log --preset ", list(PRESETS)),
        ("sasrec train ml-100", ["ml-100k"]),
        ("sasrec train log --batch-s", ["--batch-size"]),
        ("sasrec train ", []),
    ],
)
def test_bash_completes_by_the_script_that_show_completion_prints(
    line: str, expected: list[str], program: dict[str, str], tmp_path: Path
) -> None:
    words = line.split(" ")
    script = (
        'source <(sasrec --show-completion); '
        f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; "
        '$(complete -p sasrec | sed "s/.*-F \\([^ ]*\\).*/\\1/") sasrec; printf "%s\\n" "${COMPREPLY[@]}"'
    )  # fmt: skip
    done = subprocess.run(["bash", "-c", script], env=program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(program: dict[str, str], tmp_path: Path) -> None:
    script = "sasrec --show-completion | source; complete -C 'sasrec train log --preset '"
    done = subprocess.run(["fish", "-c", script], env=program, cwd=tmp_path, capture_output=True, text=True)
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == set(PRESETS)


@pytest.mark.parametrize(
    ("shell", "extra", "said"),
    [
        ("complete_zsh", {}, '_arguments \'*: :(("paper"\n"fast"\n"best"))\''),
        ("complete_fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "paper\nfast\nbest"),
    ],
)
def test_answer_has_the_form_that_typers_script_of_the_shell_takes(
    shell: str, extra: dict[str, str], said: str, program: dict[str, str]
) -> None:
    asked = {**program, "_SASREC_COMPLETE": shell, "_TYPER_COMPLETE_ARGS": "sasrec train log --preset ", **extra}
    done = subprocess.run(["sasrec"], env=asked, capture_output=True, text=True)
    assert done.stdout.strip() == said


def test_fish_and_zsh_are_told_to_complete_files(program: dict[str, str]) -> None:
    asked = {**program, "_TYPER_COMPLETE_ARGS": "sasrec serve ", "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert subprocess.run(["sasrec"], env={**asked, "_SASREC_COMPLETE": "complete_fish"}).returncode == 1
    zsh = subprocess.run(["sasrec"], env={**asked, "_SASREC_COMPLETE": "complete_zsh"}, capture_output=True, text=True)
    assert zsh.stdout.strip() == "_files"


def test_typer_answers_the_same_where_the_table_is_not_asked(
    program: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sasrec.cli import main as cli

    monkeypatch.setenv("_SASREC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "sasrec train log --loss s")
    monkeypatch.setenv("COMP_CWORD", "4")
    with pytest.raises(SystemExit):
        cli.app(prog_name="sasrec")
    assert capsys.readouterr().out.split() == words_offered("train", "log", "--loss", "s")
