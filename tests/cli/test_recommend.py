"""Ids that people hand to commands: files of them, lists with commas, negative numbers."""

from __future__ import annotations

import codecs
import functools
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cli.conftest import Run
from conftest import make_markov_log
from served import save_plain, with_attributes

import sasrec
from sasrec.cli import console
from sasrec.export.all_users import Listing, recommend_all, write_frame

SMALL: dict[str, Any] = {"embedding_dim": 8, "n_blocks": 1, "max_epochs": 1, "filter_seen": "yes", "threads": 1}
SHIFT = 9  # the items of the numbers are -8 to 21


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ids are integers, some of them negative; users too."""
    folder = tmp_path_factory.mktemp("numbers") / "run"
    log = make_markov_log(60).with_columns(pl.col("user_id") - SHIFT, pl.col("item_id") - SHIFT)
    sasrec.fit(log, **SMALL, output=folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ids are texts; three of them have commas."""
    folder = tmp_path_factory.mktemp("texts") / "run"
    named = pl.col("item_id").replace_strict(
        {1: "heat, uncut", 2: "tt42", 3: "a,b", 4: "a", 5: "b", 6: '7" single'}, default=pl.format("f{}", "item_id")
    )
    sasrec.fit(make_markov_log(60).with_columns(named), **SMALL, output=folder)
    return folder


FILES: dict[str, bytes] = {
    "lines": b"5\n6\n",
    "mark": codecs.BOM_UTF8 + b"5\r\n6\r\n",
    "floats": b"5.0\n6.0\n",
    "quotes": b'"5"\n"6"\n',
    "commas": b"5,\n6,\n",
    "line": b"5,6",
    "table": b"title,item_id\na,5\nb,6\n",
    "json": b"[5, 6.0]",
    "gzip": gzip.compress(b"5\n6\n"),
    "utf-16": "5\n6\n".encode("utf-16"),
}


@pytest.mark.parametrize("form", FILES)
def test_every_form_of_a_list_allows_denies_and_names_users(form: str, run: Run, numbers: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_bytes(FILES[form])
    asked = ["recommend", numbers, "--history", "1,2", "-k", 50, "--json"]
    everything = run(*asked).items
    assert set(everything) >= {5, 6}
    assert run(*asked, "--deny", path).items == [item for item in everything if item not in (5, 6)]
    assert sorted(run(*asked, "--allow", path).items) == [5, 6]
    path.write_bytes(FILES[form].replace(b"item_id", b"user_id"))
    users = json.loads(run("recommend", numbers, "--users", path, "-k", 1, "--json").out)
    assert [row["user_id"] for row in users] == [5, 6]


def test_parquet_is_a_list_too(run: Run, numbers: Path, tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 2], "item_id": [5.0, 6.0]}).write_parquet(tmp_path / "ids")
    asked = ["recommend", numbers, "--history", "1,2", "-k", 50, "--json"]
    assert sorted(run(*asked, "--allow", tmp_path / "ids").items) == [5, 6]


def test_what_is_unknown_is_said_and_a_list_without_a_known_id_fails(run: Run, numbers: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids"
    asked = ["recommend", numbers, "--history", "1", "-k", 50, "--json"]
    path.write_text("5\n0006\n")
    outcome = run(*asked, "--deny", path)
    assert 5 not in outcome.items
    assert "1 of the 2 items of deny are unknown, such as '0006'; they are skipped" in outcome.err
    path.write_text("5;\n6;\n")
    outcome = run(*asked, "--deny", path)
    assert outcome.code == 1
    assert "2 of the 2 items of deny are unknown, such as '5;': none is in the log" in outcome.err


def test_an_empty_file_denies_nothing_allows_nothing_and_names_nobody(run: Run, numbers: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("item_id\n")
    asked = ["recommend", numbers, "--history", "1", "-k", 50, "--json"]
    denied = run(*asked, "--deny", tmp_path / "ids")
    assert denied.items == run(*asked).items
    assert "WARNING: the deny list" in denied.err
    (tmp_path / "users").write_text("user_id\n")
    for arguments, words in [
        ((*asked, "--allow", tmp_path / "ids"), "nothing is allowed"),
        (("recommend", numbers, "--users", tmp_path / "users"), "holds no id"),
        (("recommend", numbers, "--users", tmp_path / "ids"), "column 'item_id'"),
    ]:
        outcome = run(*arguments)
        assert outcome.code == 1
        assert words in outcome.err
        assert len([line for line in outcome.err.splitlines() if not line.startswith("INFO: ")]) == 1


def test_lists_come_through_pipes_and_standard_input(numbers: Path) -> None:
    program = f"{sys.executable} -m sasrec"
    asked = f"recommend {numbers} --history 1 -k 50 --json"
    through_pipe = f"{program} {asked} --allow <(printf '5\\n6\\n' | gzip -c)"
    done = subprocess.run(["bash", "-c", through_pipe], check=True, capture_output=True, text=True)
    assert {row["item_id"] for row in json.loads(done.stdout)} == {5, 6}
    from_stdin = [sys.executable, "-m", "sasrec", *asked.split(), "--allow", "-"]
    done = subprocess.run(
        from_stdin, check=True, capture_output=True, text=True, input="\ufeff5\n6\n", encoding="utf-8"
    )
    assert {row["item_id"] for row in json.loads(done.stdout)} == {5, 6}


def test_standard_input_is_one_list_only(run: Run, numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"5\n")))
    outcome = run("recommend", numbers, "--history", "1", "--allow", "-", "--deny", "-")
    assert outcome.code == 2
    assert "only one of --users, --allow and --deny can be read from standard input" in outcome.err


@pytest.mark.parametrize("spelled", ["-8", "-8.0"])
def test_a_negative_id_is_an_argument_wherever_it_stands(spelled: str, run: Run, numbers: Path) -> None:
    wanted = sasrec.load(numbers).similar_items(-8, 5)["item_id"].to_list()
    for arguments in [
        (numbers, spelled, "-k", 5, "--json"),
        (numbers, "-k", 5, spelled, "--json"),
        ("-k", 5, "--json", numbers, spelled),
        ("--json", numbers, spelled, "-k5"),
        ("--json", "--k=5", numbers, "--", spelled),
    ]:
        assert run("similar", *arguments).items == wanted
    assert (
        run("similar", numbers, 8, "-k", 5, "--json").items
        == sasrec.load(numbers).similar_items(8, 5)["item_id"].to_list()
    )


def test_a_misspelt_option_is_still_an_error(run: Run, numbers: Path) -> None:
    for arguments in [
        (8, "--jsn"),
        (-8, "--jsn"),
        ("--jsn", -8),
        (8, "-x"),
        (-8, "-x"),
        (-8, -9),
        ("-h8",),
        ("-k", -8),
    ]:
        outcome = run("similar", numbers, *arguments)
        assert outcome.code == 2, arguments
        assert not outcome.out
    assert run("similar", "--jsn", numbers, -8).code == 2


def test_negative_ids_are_values_of_options(run: Run, numbers: Path) -> None:
    recommender = sasrec.load(numbers)
    after = recommender.recommend([[-8, 5]], 4)["item_id"].to_list()
    for history in (["--history", "-8,5"], ["--history=-8,5"], ["--history", "-8.0, 5"]):
        assert run("recommend", numbers, *history, "-k", 4, "--json").items == after
    of_user = run("recommend", numbers, "--user", "-8", "--user", "5", "-k", 2, "--json")
    assert [row["user_id"] for row in json.loads(of_user.out)] == [-8, -8, 5, 5]
    assert run("score", numbers, "--history", "-8", "--items", "-7,6", "--json").items == ["-7", "6"]
    explained = run("explain", numbers, "--history", "-8,5", "--item", "-7", "--json")
    assert explained.items == recommender.explain([-8, 5], -7)["item_id"].to_list()


def test_negative_ids_reach_a_process_of_its_own(numbers: Path) -> None:
    command = [sys.executable, "-m", "sasrec", "-q", "similar", str(numbers), "-8", "-k", "3", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(json.loads(done.stdout)) == 3


HISTORIES = {
    "heat, uncut": ["heat, uncut"],
    " heat, uncut ": ["heat, uncut"],
    '"heat, uncut",tt42': ["heat, uncut", "tt42"],
    'tt42, "heat, uncut"': ["tt42", "heat, uncut"],
    "tt42,f7": ["tt42", "f7"],
    "tt42\nf7\n": ["tt42", "f7"],
    "a,b": ["a,b"],
    '"a","b"': ["a", "b"],
    "a,b,": ["a", "b"],
    '7" single': ['7" single'],
    'f7,7" single': ["f7", '7" single'],
}


@pytest.mark.parametrize("given", HISTORIES)
def test_lists_of_ids_are_a_line_of_csv_and_a_known_id_is_itself(given: str, run: Run, texts: Path) -> None:
    recommender, ids = sasrec.load(texts), HISTORIES[given]
    outcome = run("recommend", texts, "--history", given, "-k", 3, "--json")
    assert outcome.items == recommender.recommend([ids], 3)["item_id"].to_list()
    assert "unknown" not in outcome.err
    assert run("score", texts, "--history", "f9", "--items", given, "--json").items == ids
    explained = run("explain", texts, "--history", given, "--item", "heat, uncut", "--json")
    assert explained.items == recommender.explain(ids, "heat, uncut")["item_id"].to_list()


def test_a_list_that_is_no_csv_is_refused(run: Run, texts: Path) -> None:
    outcome = run("recommend", texts, "--history", '"heat, uncut')
    assert outcome.code == 2
    assert "a list of ids has a quote that is not closed, or text behind one" in outcome.err


def test_ids_with_commas_and_minus_are_single_values(run: Run, texts: Path) -> None:
    assert len(run("similar", texts, "heat, uncut", "-k", 3, "--json").items) == 3
    for arguments in (["--", "-abc"], ["-8"]):
        outcome = run("similar", texts, *arguments)
        assert outcome.code == 1
        assert f"item '{arguments[-1]}' is not in the log" in outcome.err


@pytest.fixture(scope="module")
def goods(numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the numbers, whose items have a kind and a price."""
    loaded, folder = sasrec.load(numbers), tmp_path_factory.mktemp("goods") / "run"
    n = len(loaded.vocabulary)
    attributes = pl.DataFrame({"kind": ["a", "b", None][: n % 3] + ["a", "b", None] * (n // 3), "price": range(n)})
    save_plain(with_attributes(loaded, attributes), folder)
    return folder


def test_attributes_filter_lists_and_diversity_orders_them(run: Run, goods: Path, tmp_path: Path) -> None:
    loaded, where = sasrec.load(goods), "kind = 'a' and price < 20"
    asked = ["recommend", goods, "--history", "1,2", "-k", 5, "--json"]
    expected = loaded.recommend([[1, 2]], k=5, where=where)["item_id"].to_list()
    assert run(*asked, "--where", where).items == expected
    assert len(expected) == 5
    filters: dict[str, Any] = {"where": where, "diversity": 0.9}
    diverse = loaded.recommend([[1, 2]], k=5, **filters)["item_id"].to_list()
    assert run(*asked, "--where", where, "--diversity", 0.9).items == diverse
    assert diverse != expected
    similar = run("similar", goods, 5, "--where", where, "--json").items
    assert similar == loaded.similar_items(5, where=where)["item_id"].to_list()
    assert run("recommend", goods, "--all-users", "--output", tmp_path / "lists.csv", "--where", where).code == 0
    assert set(pl.read_csv(tmp_path / "lists.csv")["item_id"]) <= set(loaded.recommend_users(where=where)["item_id"])


def test_a_bad_expression_or_diversity_is_wrong_usage_and_nothing_left_is_said(run: Run, goods: Path) -> None:
    asked = ["recommend", goods, "--history", "1,2"]
    outcome = run(*asked, "--where", "pric < 3")
    assert outcome.code == 2
    assert "error: where, character 1: a column was expected, and none has this name, perhaps price" in outcome.err
    assert outcome.err.endswith("the columns are kind (text), price (number), item_id (number), count (number)\n")
    outcome = run(*asked, "--diversity", 1.5)
    assert (outcome.code, "diversity=1.5 is not a number from 0 (off) to 1" in outcome.err) == (2, True)
    outcome = run(*asked, "--where", "price < 0", "--json")
    assert (outcome.code, json.loads(outcome.out)) == (0, [])
    assert "no item fulfils where, so there is nothing to recommend" in outcome.err


SOME = [44, 3, -8, 3, 20, 17, 9]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes 3 users at a time, and tells of each part."""
    monkeypatch.setattr("sasrec.cli.recommend.recommend_all", functools.partial(recommend_all, part_users=3))
    monkeypatch.setattr(console, "PLAIN_SECONDS", -1)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("form", ["lines", "utf-16", "table", "column", "json", "gzip", "parquet", "standard input"])
def test_users_of_every_form_of_a_file_are_written_in_parts(
    form: str, run: Run, numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"{user}\n" for user in SOME)
    path, output = tmp_path / "users", tmp_path / "lists.csv"
    if form == "parquet":
        pl.DataFrame({"user_id": SOME}).write_parquet(path)
    else:
        path.write_bytes({
            "lines": lines.encode(), "utf-16": lines.encode("utf-16"), "gzip": gzip.compress(lines.encode()),
            "table": ("name;user_id\n" + "".join(f"a;{user}\n" for user in SOME)).encode(),
            "column": f"user_id\n{lines}".encode(), "json": json.dumps(SOME).encode(), "standard input": lines.encode(),
        }[form])  # fmt: skip
    if form == "standard input":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        path = Path("-")
    outcome = run("recommend", numbers, "--users", path, "-k", 2, "--deny", write_ids(tmp_path), "--output", output)
    assert (outcome.code, outcome.out) == (0, f"wrote the lists of 7 users to {output}\n")
    assert "3 of 7 users\n6 of 7 users  " in outcome.err
    write_frame(sasrec.load(numbers).recommend_users(SOME, 2, deny=[5]), tmp_path / "wanted.csv")
    assert output.read_bytes() == (tmp_path / "wanted.csv").read_bytes()


def write_ids(folder: Path) -> Path:
    """A file that denies item 5."""
    (folder / "denied").write_text("5\n")
    return folder / "denied"


@pytest.mark.usefixtures("small_parts")
def test_users_after_ctrl_c_go_on_where_they_were(
    run: Run, numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, plain = tmp_path / "lists.parquet", Listing.write_part
    (tmp_path / "users").write_text("\n".join(map(str, SOME)))
    asked = ["recommend", numbers, "--users", tmp_path / "users", "--output", output]

    def interrupted(self: Listing, recommender: Any, rows: Any, path: Path, *more: Any) -> tuple[float, float]:
        if path.stem.endswith("6"):
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, recommender, rows, path, *more)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Listing, "write_part", interrupted)
    outcome = run(*asked)
    signal.signal(signal.SIGINT, previous)
    assert outcome.code == 1
    assert "stopped; what is done is kept, and the same command goes on from there" in outcome.err
    assert not output.exists()
    monkeypatch.setattr(Listing, "write_part", plain)
    outcome = run(*asked)
    assert "going on behind the 6 users" in outcome.err
    assert pl.read_parquet(output).equals(sasrec.load(numbers).recommend_users(SOME))


def test_an_unknown_user_of_a_file_is_named_before_anything_is_written(run: Run, numbers: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("3\n03\nnobody\n")
    asked = ["recommend", numbers, "--users", tmp_path / "users"]
    for more in ([], ["--output", tmp_path / "lists.csv"]):
        outcome = run(*asked, *more)
        assert outcome.code == 1
        assert "user '03' is not in the log (60 users); give a history of items instead" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["users"]
