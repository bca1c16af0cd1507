"""A training shows itself: lines where they stay, one line on a terminal, one output in a notebook."""

import io
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import sasrec
from sasrec.training.bar import Bar, bar_html
from sasrec.training.progress import Progress

FIRST = Progress(
    epoch=1, max_epochs=20, step=5, steps_per_epoch=5, train_loss=1.5, users_per_second=100.0, seconds=2.0,
    seconds_left=38.0, best_epoch=1, valid={"ndcg@10": 0.25},
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pipe_gets_a_line_for_the_first_epoch_and_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar() as bar:
        for epoch in range(1, 21):
            bar(replace(FIRST, epoch=epoch, step=2))
            bar(replace(FIRST, epoch=epoch))
    said = capsys.readouterr()
    assert said.out == ""
    *lines, last = said.err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/20", "epoch 10/20", "epoch 20/20"]
    assert last == "best epoch 1 of 20, 2.0 s of training"


def test_terminal_gets_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Bar() as bar:
        bar(FIRST)
        bar(replace(FIRST, measured=("test, full", 10, 200)))
    text = sys.stderr.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    lines = text.rstrip("\n").split("\r")
    assert lines[-2].rstrip() == "measuring test, full: 10 of 200 rankings"
    assert len(lines[-2]) >= len(lines[-3])  # nothing of the longer line stays


def test_notebook_gets_one_output_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython
    import IPython.display

    shown: list[dict[str, str]] = []
    n_outputs = []

    def display(bundle: dict[str, str], **options: Any) -> SimpleNamespace:
        assert options == {"raw": True, "display_id": True}
        n_outputs.append(1)
        shown.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: shown.append(bundle))

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr(IPython.display, "display", display)
    with Bar() as bar:
        bar(FIRST)
        bar(replace(FIRST, epoch=20))
    assert len(n_outputs) == 1
    assert '<progress value="100" max="100"' in shown[-2]["text/html"]
    assert shown[-2]["text/plain"].startswith("epoch 20/20")
    assert shown[-1]["text/plain"] == "best epoch 1 of 20, 2.0 s of training"


def test_training_that_failed_says_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        with Bar() as bar:
            bar(FIRST)
            raise ValueError("no number")

    with pytest.raises(ValueError, match="no number"):
        failing()
    assert "of training" not in capsys.readouterr().err


def test_text_of_a_bar_is_text() -> None:
    assert "&lt;b&gt;" in bar_html(0, 0, "<b>")
    assert 'max="1"' in bar_html(0, 0, "")


@pytest.mark.parametrize(("asked", "lines"), [(True, True), (False, False), (None, False)])
def test_fit_shows_its_progress_where_it_is_asked_to(
    asked: bool | None, lines: bool, markov_log: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    sasrec.fit(markov_log, progress=asked, embedding_dim=8, n_blocks=1, max_seq_len=8, max_epochs=1, threads=1)
    assert ("epoch 1/1" in capsys.readouterr().err) == lines
