"""Lists of all users in one file: what recommend_users gives, in parts, and again after a kill."""

import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log

import sasrec
from sasrec.cli import console
from sasrec.cli import main as cli
from sasrec.core.errors import CheckpointError, ConfigError, DataError, UnknownItemError
from sasrec.export.all_users import recommend_all
from sasrec.recommender import Recommender

READERS = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson}
N_USERS = 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bulk") / "run"
    small: dict[str, Any] = {"embedding_dim": 16, "n_blocks": 1, "max_epochs": 1, "filter_seen": "yes", "threads": 1}
    sasrec.fit(make_markov_log(N_USERS), **small, output=folder)
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return sasrec.load(run)


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("part_users", [7, 50, 10_000])
def test_the_file_holds_what_recommend_users_gives(
    recommender: Recommender, tmp_path: Path, suffix: str, part_users: int
) -> None:
    output = tmp_path / f"lists{suffix}"
    calls: list[tuple[int, int]] = []
    summary = recommend_all(
        recommender, output, 4, part_users=part_users, progress=lambda done, total: calls.append((done, total))
    )
    written = READERS[suffix](output)
    wanted = recommender.recommend_users(k=4)
    assert written.columns == wanted.columns
    assert written.drop("score").cast(pl.Int64).equals(wanted.drop("score").cast(pl.Int64))
    assert (written["score"] - wanted["score"].cast(pl.Float64)).abs().max() < 1e-5
    assert suffix != ".parquet" or written.equals(wanted)
    assert calls[-1] == (N_USERS, N_USERS)
    assert len(calls) == -(-N_USERS // part_users)
    assert (summary.n_users, summary.n_resumed) == (N_USERS, 0)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_filters_are_obeyed(recommender: Recommender, tmp_path: Path) -> None:
    filters: dict[str, Any] = {"allow": ["1", 2, 3, 4], "deny": [2], "keep_seen": True}
    recommend_all(recommender, tmp_path / "lists.parquet", 3, part_users=64, **filters)
    written = pl.read_parquet(tmp_path / "lists.parquet")
    assert written.equals(recommender.recommend_users(k=3, **filters))
    assert set(written["item_id"]) == {1, 3, 4}
    more: dict[str, Any] = {"where": "item_id > 9 and not count > 80", "diversity": 0.5}
    recommend_all(recommender, tmp_path / "more.parquet", 3, part_users=64, **more)
    written = pl.read_parquet(tmp_path / "more.parquet")
    assert written.equals(recommender.recommend_users(k=3, **more))
    assert written["item_id"].min() > 9


def kill_after(run: Path, output: Path, parts: int) -> None:
    """A process that is killed when so many parts of 30 users are done."""
    program = f"""
import os, signal, sasrec
from sasrec.export.all_users import recommend_all
def progress(done, total):
    if done == {30 * parts}:
        os.kill(os.getpid(), signal.SIGKILL)
recommend_all(sasrec.load({str(run)!r}), {str(output)!r}, 5, part_users=30, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Leaves what a process leaves that is killed when 3 parts of an output are done."""

    @cache
    def folder_of(name: str) -> Path:
        folder = tmp_path_factory.mktemp("killed")
        kill_after(run, folder / name, 3)
        assert [path.name for path in folder.iterdir()] == [f".{name}.parts"]
        return folder

    return lambda output: shutil.copytree(folder_of(output.name), output.parent, dirs_exist_ok=True)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_after_a_kill_the_same_call_goes_on_and_gives_the_same_file(
    killed: Callable[[Path], None],
    recommender: Recommender,
    tmp_path: Path,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / f"lists{suffix}"
    killed(output)
    assert not output.exists()
    (tmp_path / f".lists{suffix}.parts" / ".half.1234.tmp").write_text("half a part")
    asked = count_rows(recommender, monkeypatch)
    summary = recommend_all(recommender, output, 5, part_users=30)
    assert summary.n_resumed == 90
    assert asked == [0, 30, 30, 30, 20]  # the first looks at the arguments only
    monkeypatch.undo()
    recommend_all(recommender, tmp_path / f"again{suffix}", 5, part_users=30)
    assert output.read_bytes() == (tmp_path / f"again{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"again{suffix}", output.name]


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("damage", ["emptied", "truncated", "flipped", "of another place"])
def test_a_damaged_part_is_computed_again(
    recommender: Recommender, tmp_path: Path, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / f"lists{suffix}"

    def stop(done: int, total: int) -> None:
        if done == 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend_all(recommender, output, 5, part_users=30, progress=stop)
    first, second, _ = sorted((tmp_path / f".lists{suffix}.parts").glob(f"0*{suffix}"))
    data = second.read_bytes()
    second.write_bytes({
        "emptied": b"", "truncated": data[:-9], "flipped": bytes([*data[:60], data[60] ^ 1, *data[61:]]),
        "of another place": first.read_bytes(),
    }[damage])  # fmt: skip
    with caplog.at_level(logging.WARNING, "sasrec"):
        summary = recommend_all(recommender, output, 5, part_users=30)
    assert summary.n_resumed == 60
    assert f"{second} is not as it was written; its users are computed again" in caplog.text
    recommend_all(recommender, tmp_path / f"again{suffix}", 5, part_users=30)
    assert output.read_bytes() == (tmp_path / f"again{suffix}").read_bytes()


def test_events_that_are_cut_off_meanwhile_are_an_error_and_no_crash(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    loaded = sasrec.load(tmp_path / "run")

    def cut(done: int, total: int) -> None:
        os.truncate(tmp_path / "run" / "sequences" / "items.npy", 200)

    with pytest.raises(CheckpointError, match=r"items\.npy was cut off while it was in use"):
        recommend_all(loaded, tmp_path / "lists.csv", 3, part_users=30, progress=cut)
    with pytest.raises(CheckpointError, match=r"items\.npy was cut off while it was in use"):
        loaded.evaluate()


def test_a_folder_of_parts_that_is_a_link_is_left_alone(recommender: Recommender, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tmp").write_text("dear")
    (tmp_path / ".lists.csv.parts").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"\.lists\.csv\.parts is a link"):
        recommend_all(recommender, tmp_path / "lists.csv", 5)
    assert (tmp_path / "mine" / "thesis.tmp").read_text() == "dear"


def count_rows(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many users each call of recommend_rows asks for."""
    asked: list[int] = []
    plain = recommender.recommend_rows

    def counted(rows: slice, *arguments: Any, **settings: Any) -> pl.DataFrame:
        asked.append(rows.stop - rows.start)
        return plain(rows, *arguments, **settings)

    monkeypatch.setattr(recommender, "recommend_rows", counted)
    return asked


@pytest.mark.parametrize("change", ["k", "deny", "keep_seen", "where", "diversity", "part_users", "model"])
def test_parts_of_other_settings_are_not_gone_on_with(
    run: Path, killed: Callable[[Path], None], tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "lists.parquet"
    killed(output)
    recommender = sasrec.load(run)
    settings: dict[str, Any] = {"k": 5, "part_users": 30}
    if change == "model":
        weights = recommender.engine.weights()
        weights["item_embedding.weight"] *= -1
        recommender.engine.load_weights(weights)
    else:
        others = {"k": 3, "deny": [1], "keep_seen": True, "where": "item_id > 1", "diversity": 0.5, "part_users": 45}
        settings[change] = others[change]
    with caplog.at_level(logging.WARNING, "sasrec"):
        assert recommend_all(recommender, output, **settings).n_resumed == 0
    assert "of another model or of other settings; starting again" in caplog.text
    del settings["part_users"]
    assert pl.read_parquet(output).equals(recommender.recommend_users(**settings))


def test_long_lists_make_parts_of_fewer_users(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_rows(recommender, monkeypatch)
    recommend_all(recommender, tmp_path / "lists.parquet", 10, part_rows=100)
    assert set(asked[1:]) == {10}


def test_two_processes_do_not_write_the_same_output(recommender: Recommender, tmp_path: Path) -> None:
    output = tmp_path / "lists.parquet"

    def second(done: int, total: int) -> None:
        with pytest.raises(ConfigError, match=r"another process is writing .*lists.parquet; wait for it, or"):
            recommend_all(recommender, output, 5)

    recommend_all(recommender, output, 5, progress=second)
    assert output.exists()


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("lists.xlsx", {}, ConfigError, "must end in .parquet, .csv, .jsonl"),
        ("lists.csv", {"k": 0}, ConfigError, "k=0 is not a number of items"),
        ("lists.csv", {"k": 5.0}, ConfigError, "k=5.0 is not a number of items"),
        ("lists.csv", {"keep_seen": "no"}, ConfigError, "keep_seen='no' is of type str; use True, False or None"),
        ("lists.csv", {"part_users": 0}, ConfigError, "part_users=0 is not a number of users; use 1 or more"),
        ("lists.csv", {"part_rows": 1e6}, ConfigError, "part_rows=1000000.0 is not a number of rows"),
        ("lists.csv", {"diversity": 2}, ConfigError, r"diversity=2 is not a number from 0 \(off\) to 1"),
        ("lists.csv", {"where": "price < 3"}, ConfigError, r"count \(number\); this model knows no attributes"),
        ("lists.csv", {"allow": ["who?"]}, UnknownItemError, "who?"),
        ("lists.csv", {"allow": "12"}, DataError, "allow is of type str, not a list of ids"),
        ("lists.csv", {"deny": {12: 1}}, DataError, "deny is of type dict, not a list of ids"),
    ],
)
def test_what_cannot_be_done_writes_nothing(
    recommender: Recommender, tmp_path: Path, name: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recommend_all(recommender, tmp_path / name, **settings)
    assert not list(tmp_path.iterdir())


def test_numpys_scalars_and_arrays_are_pythons_own(recommender: Recommender, tmp_path: Path) -> None:
    recommend_all(recommender, tmp_path / "wanted.csv", 4, deny=[3], keep_seen=True)
    given = np.array([3])
    recommend_all(
        recommender, tmp_path / "lists.csv", np.int64(4), deny=given, keep_seen=np.True_, part_users=np.int64(64),
        part_rows=np.int64(1000),
    )  # fmt: skip
    assert (tmp_path / "lists.csv").read_bytes() == (tmp_path / "wanted.csv").read_bytes()


def test_a_folder_that_cannot_be_written_is_one_sentence(recommender: Recommender, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*file/lists.csv: Not a directory"):
        recommend_all(recommender, tmp_path / "file" / "lists.csv")


def test_the_log_tells_the_throughput(
    recommender: Recommender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sasrec"):
        recommend_all(recommender, tmp_path / "lists.csv")
    assert "200 users in " in caplog.text
    assert " users/s; " in caplog.text


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command, with small parts."""
    monkeypatch.setattr("sasrec.cli.recommend.recommend_all", functools.partial(recommend_all, part_users=64))
    monkeypatch.setattr(sys, "argv", ["sasrec", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background, deaf to it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_keeps_what_is_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lists.parquet"
    plain = Recommender.recommend_rows

    def interrupted(self: Recommender, rows: slice, *arguments: Any, **settings: Any) -> pl.DataFrame:
        if rows.start == 128:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, rows, *arguments, **settings)

    monkeypatch.setattr(Recommender, "recommend_rows", interrupted)
    assert call(monkeypatch, "recommend", run, "--all-users", "--output", output) == 1
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not output.exists()
    monkeypatch.setattr(Recommender, "recommend_rows", plain)
    assert call(monkeypatch, "recommend", run, "--all-users", "--output", output) == 0
    said = capsys.readouterr()
    assert "going on behind the 128 users" in said.err
    assert said.out == f"wrote the lists of 200 users to {output}\n"
    assert pl.read_parquet(output).equals(sasrec.load(run).recommend_users(k=10))


def test_progress_goes_to_stderr_and_quiet_says_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", -1)
    assert call(monkeypatch, "recommend", run, "--all-users", "--output", tmp_path / "lists.csv") == 0
    said = capsys.readouterr()
    assert "64 of 200 users\n128 of 200 users  " in said.err
    assert "200 of 200 users  " in said.err
    assert said.out.count("\n") == 1
    assert call(monkeypatch, "--quiet", "recommend", run, "--all-users", "--output", tmp_path / "lists.csv") == 0
    assert capsys.readouterr().err == ""


FORMULAS = ["=1+1", "+1", "-1", "@x", "\tx", "plain", "a=b"]


@pytest.fixture(scope="module")
def formulas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose users' ids look like formulas."""
    folder = tmp_path_factory.mktemp("formulas") / "run"
    log = make_markov_log(len(FORMULAS)).with_columns(
        pl.col("user_id").replace_strict(dict(enumerate(FORMULAS, 1)), return_dtype=pl.String)
    )
    sasrec.fit(log, embedding_dim=8, n_blocks=1, max_epochs=1, threads=1, output=folder)
    return folder


def test_ids_that_a_spreadsheet_would_take_for_formulas_can_be_guarded(
    formulas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = sasrec.load(formulas), tmp_path / "lists.csv"
    recommend_all(model, output, 1)
    assert set(pl.read_csv(output)["user_id"]) == set(FORMULAS)
    recommend_all(model, output, 1, guard_cells=True)
    guarded = {"'=1+1", "'+1", "'-1", "'@x", "'\tx", "plain", "a=b"}
    assert set(pl.read_csv(output)["user_id"]) == guarded
    users = ["--user", "=1+1", "--user", "plain"]
    assert call(monkeypatch, "recommend", formulas, *users, "-k", 1, "--guard-cells", "--output", output) == 0
    assert pl.read_csv(output)["user_id"].to_list() == ["'=1+1", "plain"]
    for wrong in (["--output", tmp_path / "lists.jsonl"], []):
        assert call(monkeypatch, "recommend", formulas, *users, "--guard-cells", *wrong) == 2
    with pytest.raises(ConfigError, match=r"guard_cells is for \.csv, .* and not for lists\.parquet"):
        recommend_all(model, tmp_path / "lists.parquet", 1, guard_cells=True)
