"""Begin from an earlier run, and measure it on a new log, by commands."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from cli.conftest import Run
from conftest import make_markov_log

SMALL = ["--max-epochs", "1", "--batch-size", "32", "--filter-seen", "yes", "--threads", "1"]
SHAPE = ["--embedding-dim", "8", "--n-blocks", "1", "--max-seq-len", "8"]
FRAME = make_markov_log(60)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with yesterday's log and today's, and no reports, which take most of the time."""
    monkeypatch.setattr("sasrec.recommender.write_pages", lambda model, folder, **options: None)
    FRAME.group_by("user_id", maintain_order=True).head(9).write_csv(tmp_path / "old.csv")
    FRAME.write_csv(tmp_path / "new.csv")
    FRAME.with_columns(pl.format("sku-{}", "item_id").alias("item_id")).write_csv(tmp_path / "other.csv")
    return tmp_path


def test_a_run_begins_from_yesterdays_and_both_are_compared_on_todays_log(run: Run, logs: Path) -> None:
    old, new = logs / "old", logs / "new"
    assert run("train", logs / "old.csv", "-o", old, *SMALL, *SHAPE).code == 0
    begun = run("train", logs / "new.csv", "--init", old, "-o", new, *SMALL)
    assert begun.code == 0, begun.err
    assert f"begins from {old}: 30 items kept, none new, 0 gone" in begun.err
    alone = run("evaluate", old, "--log", logs / "new.csv", "--json")
    assert json.loads(alone.out)["n_targets"] == 60
    compared = json.loads(run("compare", old, new, "--log", logs / "new.csv", "--json").out)
    assert compared["metrics"]["ndcg@10"]["a"] == json.loads(alone.out)["metrics"]["ndcg@10"]["value"]
    own = json.loads(run("evaluate", new, "--json").out)
    assert compared["metrics"]["ndcg@10"]["b"] == own["metrics"]["ndcg@10"]["value"]
    without = run("compare", old, new)
    assert without.code == 2
    assert "were trained on different logs, so their users cannot be paired; --log gives one" in without.err
    again = run("train", logs / "new.csv", "--init", old, "-o", new, *SMALL, "--resume")
    assert again.code == 0, again.err
    for flags in ([], ["--init", new]):
        refused = run("train", logs / "new.csv", "-o", new, *SMALL, "--resume", *flags)
        assert refused.code == 2, refused.err
        assert "cannot resume" in refused.err.splitlines()[-1] or "is both the run to begin from" in refused.err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["new.csv", "--init", "none"], 1, "there is no run folder"),
        (["new.csv", "--init", "new.csv"], 1, "is a file, and a training begins from a run folder"),
        (["new.csv", "--init", "old", "--embedding-dim", "16"], 2, "embedding_dim=16 does not fit"),
        (["other.csv", "--init", "old"], 2, "the log has none of the 30 items of"),
    ],
)
def test_what_cannot_be_begun_from_is_one_sentence_and_nothing_is_written(
    run: Run, logs: Path, flags: list[str], code: int, message: str
) -> None:
    assert run("train", logs / "old.csv", "-o", logs / "old", *SMALL, *SHAPE).code == 0
    given = [logs / word if place in (0, 2) else word for place, word in enumerate(flags)]
    outcome = run("train", *given, "-o", logs / "new", *SMALL)
    assert outcome.code == code
    assert message in outcome.err.splitlines()[-1]
    assert not (logs / "new").exists()
