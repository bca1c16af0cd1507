"""Types of events on the command line."""

import json
from pathlib import Path

from cli.conftest import Run
from made import SETTINGS, make_shop_log

SMALL = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]


def test_commands_take_types_and_tell_them(run: Run, tmp_path: Path) -> None:
    log, prepared, folder = tmp_path / "shop.csv", tmp_path / "prepared", tmp_path / "run"
    make_shop_log(60, 20).write_csv(log)
    untold = run("inspect", log).out
    assert "\ntypes " not in untold
    assert "column 'event' may hold types of events" in untold.replace("\n  ", " ")
    inspected = run("inspect", log, "--event-column", "event").out
    assert "\ntypes          view (" in inspected
    assert "--event-column event" in inspected
    facts = json.loads(run("prepare", log, "--event-column", "event", "-o", prepared, "--json").out)
    assert set(facts["event_types"]) == {"view", "purchase"}
    typed = ["--target-events", "purchase", "--event-weights", "view=0.1"]
    trained = run("train", prepared, "-o", folder, "--json", *typed, *SMALL)
    assert all(result["target_events"] == ["purchase"] for result in json.loads(trained.out)["results"])
    assert "target_events: purchase" in run("info", folder).out


def test_a_settings_file_takes_lists_of_types(run: Run, tmp_path: Path) -> None:
    log, settings, folder = tmp_path / "shop.csv", tmp_path / "settings.yaml", tmp_path / "run"
    make_shop_log(60, 20).write_csv(log)
    settings.write_text("target_events: [purchase]\nevent_weights: [view=0.1, purchase=2]\n")
    assert run("train", log, "--event-column", "event", "--config", settings, "-o", folder, *SMALL).code == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["eval"]["target_events"] == "purchase"
    assert config["train"]["event_weights"] == "view=0.1,purchase=2"


def test_types_that_cannot_be_used_end_in_one_sentence(run: Run, tmp_path: Path) -> None:
    log, folder = tmp_path / "shop.csv", tmp_path / "run"
    make_shop_log(60, 20).write_csv(log)
    for flags, message in [
        (["--target-events", "purchase"], "target_events names 'purchase', and this log was read without types of"),
        (["--event-column", "event", "--target-events", "cart"], "names 'cart', which no event is; the log has view ("),
        (["--event-column", "event", "--event-weights", "view"], "event_weights has 'view', which is not TYPE=WEIGHT"),
        (["--event-column", "kind"], "has no column 'kind'; its columns are: user_id, item_id, event"),
        (["--weight-column", "event"], "in column 'event'; a weight is 0 or a number from 1e-09 to 1e+09"),
    ]:
        code, out, err = run("train", log, "-o", folder, *flags, *SMALL)
        assert code in (1, 2)
        assert out == ""
        (told,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert message in told
        assert not folder.exists()
