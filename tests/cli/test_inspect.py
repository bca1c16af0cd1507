"""`sasrec inspect`, and several files of one log on the command line."""

import json
import shlex
from pathlib import Path

import pytest
from cli.conftest import Run

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"
LOG = """\
userId,movieId,date,device
ben,0113,2024-03-01 21:00,tv
anna,0113,2024-03-01 20:15,phone
anna,tt42,2024-03-02 19:30,tv
anna,"heat, uncut",2024-03-02 19:30,tv
anna,0113,2024-03-09T10:00:00+01:00,tv
ben,tt42,2024-03-03,phone
"""
AS_READ = """\
log            events.csv
read as        a table with a header, separated by commas
columns        user = userId, item = movieId, timestamp = date
left alone     device
times          2024-03-01 to 2024-03-09; from dates, in seconds since 1970
order of rows  not by time

First events as read
user  item         time
ben   0113         2024-03-01 21:00:00
anna  0113         2024-03-01 20:15:00
anna  tt42         2024-03-02 19:30:00
anna  heat, uncut  2024-03-02 19:30:00
anna  0113         2024-03-09 09:00:00

events         6
users          2
items          3
events a user  min 2, 25 % 2.5, median 3, 75 % 3.5, max 4
short users    50 % of users have fewer than 3 events
largest user   anna, with 66.7 % of the events
top item       0113, with 50 % of the events

Of a user's events after the first
repeats        25 % are of an item that the user had before
in a row       0 % are of the same item as the event before
ties           25 % have the same time as the event before

Leave-one-out would give
train          4 events
valid          1 user, one event each
test           1 user, one event each

Warnings
"""


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call the command line in a folder with a log."""
    monkeypatch.chdir(tmp_path)
    Path("events.csv").write_text(LOG)
    return run


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def test_inspect_tells_all_of_a_log_on_stdout_and_writes_nothing(run: Run) -> None:
    code, out, err = run("inspect", "events.csv")
    assert (code, err) == (0, "")
    assert out.startswith(AS_READ)
    assert out.endswith("\nTo train on it\nsasrec train events.csv --output runs/events\n")
    assert max(map(len, out.splitlines())) <= 80
    assert files() == {"events.csv"}


def test_the_page_on_data_shows_what_inspect_prints(run: Run) -> None:
    shown = DOCS.read_text().partition("$ sasrec inspect events.csv\n")[2].partition("```")[0]
    assert shown == run("inspect", "events.csv")[1]


def test_a_warning_is_in_the_text_alone(run: Run) -> None:
    Path("na.csv").write_text(LOG.replace("ben", "NA"))
    code, out, err = run("inspect", "na.csv")
    assert (code, err, out.count("'NA'")) == (0, "", 1)
    assert "'NA' as user, which counts as one user\n  Fix: --drop-missing leaves them out\n" in out
    assert "'NA'" in run("prepare", "na.csv", "--output", "p")[2]  # the loggers speak again afterwards


def test_the_command_to_train_has_the_flags_that_were_given_and_runs_as_it_is(run: Run) -> None:
    Path("my log.txt").write_text(LOG.partition("\n")[2])
    given = ["my log.txt", "--columns", "user,item,timestamp,-", "--repeats", "last", "--drop-missing"]
    command = json.loads(run("inspect", *given, "--json")[1])["command"]
    assert shlex.split(command) == ["sasrec", "train", *given[:3], "--drop-missing", "--repeats", "last",
                                    "--output", "runs/my log"]  # fmt: skip
    text = run("inspect", *given)[1].partition("To train on it\n")[2]
    assert shlex.split(text.replace("\\\n", "")) == shlex.split(command)
    assert max(map(len, text.splitlines())) <= 80


def test_inspect_prints_everything_as_one_json_object(run: Run) -> None:
    found = json.loads(run("inspect", "events.csv", "--json")[1])
    assert found["log"] == "events"
    assert found["understanding"]["columns"] == {"user": "userId", "item": "movieId", "timestamp": "date"}
    assert found["understanding"]["first_events"][0] == ["ben", "0113", 1709326800]
    assert found["facts"]["n_events"] == 6
    assert found["events_per_user"] == {"min": 2, "q25": 2.5, "median": 3, "q75": 3.5, "max": 4}
    assert found["top_item"] == {"id": "0113", "share": 0.5, "title": None}
    assert found["leave_one_out"] == {"train_events": 4, "valid_users": 1, "test_users": 1}
    assert {"text", "fix"} == set(found["warnings"][0])


def test_a_prepared_folder_is_inspected_like_its_log(run: Run) -> None:
    run("prepare", "events.csv", "--output", "prepared")
    assert run("inspect", "prepared")[1].startswith(AS_READ)
    Path("prepared/sequences/log.json").unlink()  # as an earlier version left it
    out = run("inspect", "prepared")[1]
    assert out.startswith("log            prepared: prepared by an earlier version")
    assert out.partition("\nevents ")[2].startswith(AS_READ.partition("\nevents ")[2])


def test_what_cannot_be_read_is_one_sentence_as_in_train(run: Run) -> None:
    Path("bad.csv").write_text("user,item\n1,\n")
    code, out, err = run("inspect", "bad.csv")
    assert (code, out) == (1, "")
    told = "error: line 2 of bad.csv has nothing in column 'item'; every event needs a user and an item"
    assert err.startswith(told)
    assert err.count("\n") == 1


def test_several_files_are_one_log_wherever_a_log_is_taken(run: Run) -> None:
    head, *rows = LOG.splitlines(keepends=True)
    for part, of_part in (("1", rows[:2]), ("2", rows[2:])):
        Path(f"part-{part}.csv").write_text(head + "".join(of_part))
    whole = json.loads(run("prepare", "events.csv", "--output", "whole", "--json")[1])
    assert json.loads(run("prepare", "part-1.csv", "part-2.csv", "-o", "parts", "--json")[1]) == whole
    assert json.loads(run("prepare", "part-*.csv", "-o", "pattern", "--json")[1]) == whole
    found = json.loads(run("inspect", "part-1.csv", "part-2.csv", "--json")[1])
    assert (found["log"], found["facts"]) == ("part", whole)
    assert found["command"] == "sasrec train part-1.csv part-2.csv --output runs/part"


@pytest.mark.parametrize("command", ["prepare", "train", "benchmark"])
def test_a_data_set_or_a_prepared_folder_among_several_logs_is_refused(run: Run, command: str) -> None:
    run("prepare", "events.csv", "--output", "prepared")
    for other, what in (("ml-100k", "the name of a data set"), ("prepared", "a prepared folder")):
        code, out, err = run(command, "events.csv", other, "--output", "made")
        told = f"error: {other} is {what}, which is a log of its own; give it alone, or only files\n"
        assert (code, out, err) == (2, "", told)
    assert not Path("made").exists()


def test_info_tells_how_the_log_of_a_run_was_read(run: Run) -> None:
    small = ["--embedding-dim", "8", "--n-blocks", "1", "--max-epochs", "1", "--preset", "paper"]
    assert run("train", "events.csv", "--output", "r", *small)[0] == 0
    counted, read = json.loads(run("info", "r", "--json")[1])["log"]
    assert counted == "events.csv: 6 events of 2 users and 3 items, 2024-03-01 to 2024-03-09"
    assert read.startswith("read as a table with a header, separated by commas: user = userId, item = movieId")
    Path("r/sequences/log.json").unlink()
    assert "log" not in json.loads(run("info", "r", "--json")[1])
