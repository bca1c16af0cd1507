"""Each benchmark on a small made log: its lines have the promised fields, and a peer's own code is really driven."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import polars as pl
import pytest

import sasrec
from sasrec.core.isa import load_native

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = ["--threads", "1", "--json", "--set", "max_seq_len=8", "--set", "embedding_dim=8"]
RUNS = {
    "train_speed": ["--repeats", "2", "--steps", "1", "--peer-steps", "2", "--peer"],  # the peer's folder follows
    "eval_speed": ["--repeats", "2", "--users", "50", "--requests", "4"],
    "batch_recommend": ["--repeats", "2", "--users", "50", "--peer-users", "40", "--peer"],  # likewise
    "load_speed": ["--repeats", "2"],
    "quality": ["--seeds", "1", "--set", "max_epochs=1"],
    "roofline": ["--repeats", "1"],
    "time_to_quality": ["--seeds", "1", "--ndcg", "0", "--hr", "0", "--set", "max_epochs=2"],
    "scale": ["--repeats", "1", "--epochs", "2", "--max-steps", "1"],
    "serve_load": [
        "--repeats", "1", "--seconds", "1", "--overload-seconds", "1", "--generator", "python", "--connections", "4",
        "--items", "60", "--peer",
    ],  # the peer's folder follows
}  # fmt: skip
SIDE = {"median", "min", "max", "unit", "runs"}
FACTS = {"data", "preset", "engine", "settings", "threads", "isa", "machine", "versions", "commit", "command"}


def what_auto_takes() -> str:
    return "native" if load_native().module else "torch"


PEER_MODEL = """
import torch

class SASRec(torch.nn.Module):
    def __init__(self, n_users, n_items, args):
        super().__init__()
        self.item_emb = torch.nn.Embedding(n_items + 1, args.hidden_units)
        self.pos_emb = torch.nn.Embedding(args.maxlen + 1, args.hidden_units)

    def forward(self, users, seq, pos, neg):
        seq, pos, neg = (self.item_emb(torch.LongTensor(part)) for part in (seq, pos, neg))
        return (seq * pos).sum(-1), (seq * neg).sum(-1)

    def log2feats(self, seq):
        return self.item_emb(torch.LongTensor(seq))

    def predict(self, users, seq, items):
        return self.item_emb(torch.LongTensor(items)).matmul(self.log2feats(seq)[:, -1].T).T
"""
PEER_UTILS = """
import queue
import numpy as np

def data_partition(name):
    users = {}
    for line in open(f"data/{name}.txt"):
        user, item = map(int, line.split())
        users.setdefault(user, []).append(item)
    cut = lambda start, stop: {u: items[start:stop] for u, items in users.items()}
    return [cut(None, -2), cut(-2, -1), cut(-1, None), max(users), max(max(items) for items in users.values())]

class WarpSampler:
    def __init__(self, train, n_users, n_items, batch_size, maxlen, n_workers):
        self.result_queue = queue.Queue(1)
        self.result_queue.put(None)
        rng = np.random.default_rng(0)
        self.batch = [range(batch_size), *rng.integers(1, n_items + 1, (3, batch_size, maxlen))]

    def next_batch(self):
        return self.batch

    def close(self):
        pass

def evaluate(model, dataset, args):
    print("a peer may print")
    return 0.25, 0.5
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory, markov_log) -> Path:
    path = tmp_path_factory.mktemp("log") / "made.txt"
    markov_log.write_csv(path, separator=" ", include_header=False)
    return path


@pytest.fixture(scope="module")
def peer(tmp_path_factory) -> Path:
    """A stand-in with the published code's interface, not its model."""
    folder = tmp_path_factory.mktemp("peer")
    (folder / "model.py").write_text(PEER_MODEL)
    (folder / "utils.py").write_text(PEER_UTILS)
    return folder


@pytest.fixture(scope="module")
def lines(log, peer) -> dict[str, list[dict]]:
    """The JSON lines of all benchmarks, which run side by side: only their form is looked at."""
    runs = {name: [*flags, f"pmixer={peer}"] if flags[-1] == "--peer" else flags for name, flags in RUNS.items()}
    started = {name: _start(name, log, flags) for name, flags in runs.items()}
    printed = {name: process.communicate(timeout=120) for name, process in started.items()}
    failed = {name: printed[name][1] for name, process in started.items() if process.returncode}
    assert not failed
    return {name: [json.loads(line) for line in out.splitlines()] for name, (out, _) in printed.items()}


def _start(name: str, log: Path, flags: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--data", str(log), *SMALL, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def benchmark_modules(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("name", "whats"),
    [
        (
            "eval_speed",
            ["evaluation, sampled", "evaluation, full", "score 101 items for one user", "top 10 for one user"],
        ),
        ("load_speed", ["read a log", "map a prepared folder"]),
        ("scale", ["prepare", "memory after each epoch"]),
        ("time_to_quality", ["time to quality"]),
        ("roofline", ["roofline of a training epoch"]),
    ],
)
def test_lines_without_a_peer_have_all_fields(lines, name, whats):
    assert [line["what"] for line in lines[name]] == whats
    for line in lines[name]:
        assert set(line) >= FACTS | {"what", "ours", "peer", "ratio"}
        assert set(line["ours"]) >= SIDE
        assert 0 < line["ours"]["min"] <= line["ours"]["median"] <= line["ours"]["max"]
        assert line["peer"] is None
        assert line["ratio"] is None
        assert (line["data"], line["threads"]) == ("made", 1)
        assert line["engine"] == ("torch" if name == "scale" else what_auto_takes())
        assert {"sasrec", "torch", "numpy", "python"} <= set(line["versions"])


def test_quality_lines_are_those_of_the_results_folder(lines):
    assert [(line["split"], line["protocol"]) for line in lines["quality"]] == [
        ("valid", "full"),  # the made catalogue is too small for the sampled protocol
        ("test", "full"),
        ("test", "sampled"),
    ]
    for line in lines["quality"]:
        assert set(line) >= FACTS | {"split_method", "seeds", "metrics", "train_seconds"}
        assert line["seeds"] == [0]
        assert line["metrics"]["ndcg@10"]["mean"] > 0
        assert line["metrics"]["ndcg@10"]["std"] is None  # one seed has none


def test_scale_reports_memory_of_prepare_and_of_each_epoch(lines):
    prepared, epochs = lines["scale"]
    assert prepared["ours"]["peak_rss_mib"] > 0
    assert epochs["ours"]["growth"] >= 0
    assert epochs["ours"]["max_steps"] == 1


def test_a_peer_is_timed_in_turn_and_scaled_to_an_epoch(lines):
    (line,) = lines["train_speed"]
    ours, peer, ratio = line["ours"], line["peer"], line["ratio"]
    assert set(line) >= FACTS
    assert set(peer) >= SIDE | {"name", "versions", "differs"}
    assert (peer["name"], peer["steps"], peer["steps_per_epoch"]) == ("pmixer", 2, 2)
    assert (ours["steps"], ours["steps_per_epoch"]) == (1, 2)
    by_round = [p / o for p, o in zip(peer["runs"], ours["runs"], strict=True)]
    assert (ratio["min"], ratio["max"]) == (min(by_round), max(by_round))


def test_lists_for_many_users_are_timed_for_both_sides_and_as_a_file_for_ours(lines):
    many, file = lines["batch_recommend"]
    assert (many["ours"]["unit"], many["ours"]["n_users"], many["peer"]["n_users"]) == ("users/s", 50, 40)
    assert many["peer"]["users/s as one product"] > 0
    by_round = [o / p for o, p in zip(many["ours"]["runs"], many["peer"]["runs"], strict=True)]
    assert (many["ratio"]["min"], many["ratio"]["max"]) == (min(by_round), max(by_round))
    assert (file["what"], file["peer"], file["ours"]["n_users"]) == ("top 10 of all users as a file", None, 200)
    assert file["ours"]["seconds_writing"] > 0


def test_the_server_is_loaded_beside_the_peer_and_the_framework_and_overloaded(lines):
    started, echo, peer, overload = lines["serve_load"]
    for line in (started, echo, peer, overload):
        assert set(line) >= FACTS
        assert set(line["ours"]) >= SIDE
        assert line["n_items"] == 60
    assert 0 < started["ours"]["median"] < 60
    assert started["ours"]["rss_mib"] > 0
    assert [line["peer"]["name"] for line in (echo, peer)] == ["echo", "pmixer"]
    for side in (peer["ours"], peer["peer"]):
        assert (side["status"], side["lost"], side["wrong"]) == (0, 0, 0)
        assert 0 < side["p50"] <= side["p99"] <= side["slowest"]
        assert side["median"] == side["requests"] / side["seconds"]
    assert peer["ratio"]["median"] == peer["ours"]["median"] / peer["peer"]["median"]
    assert set(overload["ours"]["codes"]) <= {"200", "503"}
    assert (overload["ours"]["lost"], overload["ours"]["wrong"]) == (0, 0)
    assert overload["ours"]["recovery_seconds"] < 5


def test_a_load_generator_that_is_missing_is_named(benchmark_modules, monkeypatch):
    import serve_load

    monkeypatch.setattr(serve_load, "has_wrk", lambda: False)
    with pytest.raises(serve_load.BenchmarkError, match="apt-get install wrk"):
        serve_load.main(["--data", "log.txt", "--generator", "wrk"])


def test_no_line_names_a_folder_of_this_machine(lines, log):
    text = json.dumps(lines)
    assert "made.txt" in text
    assert str(log.parent) not in text
    assert str(BENCHMARKS.parent) not in text


def test_a_peer_without_an_adapter_is_refused(benchmark_modules):
    from peers import main

    with pytest.raises(SystemExit, match="there is no adapter for 'other'; there are: pmixer"):
        main("other")


def test_a_failing_side_is_named_with_its_error(benchmark_modules, tmp_path):
    from harness import BenchmarkError, Worker

    script = "from harness import serve; serve(lambda setup: 1 / 0)"
    with pytest.raises(BenchmarkError, match="thing failed at start: ZeroDivisionError"):
        Worker("thing", [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); {script}"], {}, 1)


def test_settings_on_the_command_line_are_json_or_text(benchmark_modules):
    from harness import setting

    assert [setting(text) for text in ("a=1", "b=0.5", "c=post_norm", "d=true")] == [
        ("a", 1), ("b", 0.5), ("c", "post_norm"), ("d", True)
    ]  # fmt: skip


def test_synthetic_log_has_the_sizes_asked_for_and_a_heavy_tail(benchmark_modules):
    from synthetic import make_log

    made = make_log(9_000, 900, 400, seed=1)
    assert (len(made), made["user_id"].n_unique(), made["item_id"].n_unique()) == (9_000, 900, 400)
    assert made["user_id"].is_sorted()
    assert made.equals(make_log(9_000, 900, 400, seed=1))
    assert not made.equals(make_log(9_000, 900, 400, seed=2))
    lengths, counts = made["user_id"].value_counts()["count"], made["item_id"].value_counts()["count"]
    assert lengths.max() > 5 * lengths.median()
    assert counts.max() > 5 * counts.median()
    assert len(made) - made.select(pl.struct("user_id", "item_id").n_unique()).item() < 90


def test_synthetic_log_refuses_sizes_that_cannot_be(benchmark_modules):
    from synthetic import make_log

    with pytest.raises(ValueError, match="100 rows are too few for 50 users"):
        make_log(100, 50, 10, seed=0)


def test_the_cost_of_filters_is_measured_for_each_share_of_the_items() -> None:
    flags = ["--items", "300", "--dim", "8", "--repeats", "20", "--most", "1e9"]
    command = [sys.executable, str(BENCHMARKS / "filter_speed.py"), *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["asked"] for line in lines] == ["where"] * 5 + ["diversity"]
    assert lines[0]["left"] == 0
    assert 0 < lines[1]["left"] < lines[3]["left"] < lines[4]["left"] < 300
    assert all(line["plain_us"] > 0 for line in lines)
    assert "are allowed" in done.stderr


def test_a_warm_start_is_measured_in_epochs_and_a_second_call_goes_on(log, tmp_path):
    settings = ["max_seq_len=8", "embedding_dim=8", "n_blocks=1", "max_epochs=3", "threads=1", "batch_size=32"]
    flags = [f"--set={one}" for one in settings] + ["--set-warm=max_epochs=1", "--output", str(tmp_path / "runs")]
    command = [sys.executable, str(BENCHMARKS / "warm_start.py"), "--data", str(log), *flags]
    first, again = (
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(2)
    )
    assert first == again
    assert first["epochs"] == {"anew": 3, "warm": 1}
    assert first["items"] == {"kept": 30, "new": 0, "gone": 0}
    assert first["goal"] == pytest.approx(0.99 * first["best"]["anew"])
    assert list(first["curves"]["warm"]) == ["1"]


def test_ctrl_c_in_a_training_ends_a_warm_start_before_the_next_one(log, tmp_path):
    flags = ["--data", str(log), "--output", str(tmp_path / "runs"), *TINY, *ENDLESS]
    command = [sys.executable, str(BENCHMARKS / "warm_start.py"), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        history = tmp_path / "runs" / "old" / "history.jsonl"
        while not history.is_file() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert said.strip().endswith(f"error: the training in {history.parent} was interrupted; the same call goes on")
    assert not (tmp_path / "runs" / "anew").exists()


@pytest.fixture
def items(tmp_path) -> Path:
    """What is known of the made log's items: a list for each."""
    path = tmp_path / "items.json"
    path.write_text(json.dumps({item: [f"of {item % 5}", f"by {item % 3}"] for item in range(1, 31)}))
    return path


def test_a_warm_start_is_measured_with_features_too(log, items, tmp_path):
    settings = ["max_seq_len=8", "embedding_dim=8", "n_blocks=1", "max_epochs=2", "threads=1", "batch_size=32"]
    flags = [*(f"--set={one}" for one in settings), "--items", str(items), "--output", str(tmp_path / "runs")]
    command = [sys.executable, str(BENCHMARKS / "warm_start.py"), "--data", str(log), *flags]
    assert json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["has_features"]
    for run in ("old", "anew", "warm"):
        assert json.loads((tmp_path / "runs" / run / "config.json").read_text())["model"]["n_features"] > 0


TINY = ["--preset=fast", "--set=max_seq_len=8", "--set=embedding_dim=8", "--set=n_blocks=1"]
ENDLESS = ["--set=max_epochs=100000", "--set=patience=100000", "--set=threads=1"]


def test_epochs_with_and_without_features_are_timed_in_turn(log, items):
    flags = ["--data", str(log), "--attributes", str(items), "--epochs", "2", "--threads", "1", *TINY]
    command = [sys.executable, str(BENCHMARKS / "feature_speed.py"), *flags]
    line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (line["n_features"], line["features_per_item"]) == (8, 2)
    assert line["ratio"] == pytest.approx(line["seconds"]["with"] / line["seconds"]["without"])


def test_epochs_with_and_without_a_setting_are_timed_in_turn(log):
    flags = ["--data", str(log), "--set-with", "orthogonal_steps=true", "--epochs", "2", "--threads", "1", *TINY]
    command = [sys.executable, str(BENCHMARKS / "setting_speed.py"), *flags]
    line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert line["set_with"] == {"orthogonal_steps": True}
    assert line["ratio"] == pytest.approx(line["seconds"]["with"] / line["seconds"]["without"])


def test_items_without_events_are_measured_beside_what_knows_only_features_and_counts(log, items):
    flags = ["--data", str(log), "--items", str(items), "--seeds", "2", *TINY, "--set=max_epochs=2", "--set=threads=1"]
    flags += ["--set=cold_scale=3"]
    command = [sys.executable, str(BENCHMARKS / "cold_items.py"), *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = {line["scorer"]: line for line in map(json.loads, done.stdout.splitlines())}
    models, other = ["model", "model, cold_scale=0"], ["", ", cold_scale=0", ", no cold rivals", ", without features"]
    usual = [f"usual targets{what}" for what in other]
    assert list(lines) == [*models, "shared_features", "popularity", *usual]
    assert done.stderr.startswith("3 cold items, ")
    for name in ("model", "shared_features"):
        assert 0 <= lines[name]["ndcg@10 among all"]["mean"] <= lines[name]["ndcg@10 among cold"]["mean"] <= 1
    assert lines["popularity"]["ndcg@10 among all"]["mean"] == 0
    assert lines["model"]["ndcg@10 among cold"]["stderr"] > 0
    found = {name: {metric: of["mean"] for metric, of in line.items() if "@" in metric} for name, line in lines.items()}
    assert found["model"]["ndcg@10 among all"] > found["model, cold_scale=0"]["ndcg@10 among all"]
    assert all(found[name].keys() == found["usual targets"].keys() for name in usual)
    assert found["usual targets, no cold rivals"] != found["usual targets, cold_scale=0"]
    assert found["usual targets"]["ndcg@10 valid"] != found["usual targets, cold_scale=0"]["ndcg@10 valid"]


class _CtrlC:
    """Ctrl-C in the first epoch."""

    def on_epoch(self, line):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_training_ends_the_measuring_of_cold_items_without_figures(
    benchmark_modules, log, items, tmp_path, monkeypatch, capsys
):
    import cold_items
    from harness import BenchmarkError

    monkeypatch.setattr("sasrec.fit", partial(sasrec.fit, callbacks=[_CtrlC()]))
    flags = ["--data", str(log), "--items", str(items), "--output", str(tmp_path / "lines"), *TINY, *ENDLESS]
    with pytest.raises(BenchmarkError, match="training was interrupted; nothing is measured"):
        cold_items.main(flags)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "lines").exists()


GPU = [sys.executable, str(BENCHMARKS / "gpu.py")]


def test_what_a_gpu_does_is_measured_part_by_part_also_without_one(log, peer):
    flags = ["--ml-1m", str(log), "--peer", str(peer), "--device", "cpu", "--minutes", "2"]
    small = ["--threads", "1", "--ndcg", "0", *TINY[1:], "--set=max_epochs=2"]
    done = subprocess.run([*GPU, *flags, *small], check=True, capture_output=True, text=True)
    first, *lines = map(json.loads, done.stdout.splitlines())
    assert first["part"] == "device"
    assert set(first) >= {"device", "machine", "versions", "commit", "command", "minutes"}
    assert str(log.parent) not in done.stdout
    expected = [(part, preset) for preset in ("paper", "best") for part in ("epoch", "parity")]
    expected += [("peer", "paper"), ("quality", "best")]
    assert [(line["part"], line["preset"]) for line in lines] == expected
    assert {line["data"] for line in lines} == {"ml-1m"}
    for line in lines:
        if line["part"] == "epoch":
            assert len(line["runs"]) == 3
            assert 0 < line["seconds"] == min(run["seconds"] for run in line["runs"])
            assert line["peak_mib"] is None
        if line["part"] == "parity":
            assert line["largest_difference"]["device"] < 1e-4 * line["largest_feature"]
            assert line["same_places_in_top_10"]["device"] > 0.95
            assert line["test"]["device"] == pytest.approx(line["test"]["cpu"], abs=0.01)
            loss = line["loss_of_a_step"]
            assert loss["device, float32"] == pytest.approx(loss["cpu"], rel=1e-4)
            assert loss["device, bf16"] == pytest.approx(loss["cpu"], rel=1e-2)
        if line["part"] in ("peer", "quality"):
            assert line["seconds"] > 0


def test_without_a_cuda_device_the_measuring_of_one_ends_with_2():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = subprocess.run([*GPU, "--ml-1m", "log.txt"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no CUDA device: ")


def test_a_part_that_fails_or_has_no_time_says_so_and_the_others_go_on(log, tmp_path):
    flags = ["--ml-1m", str(log), "--video", str(tmp_path / "none.txt"), "--device", "cpu", "--threads", "1", *TINY[1:]]
    done = subprocess.run([*GPU, *flags, "--ndcg", "1", "--set=max_epochs=1"], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    errors = {(line["part"], line["data"]): line["error"] for line in lines if "error" in line}
    assert set(errors) == {("epoch", "Video"), ("quality", "ml-1m")}
    assert "was not reached; the best epoch by valid had" in errors["quality", "ml-1m"]
    late = subprocess.run([*GPU, *flags, "--minutes", "0"], capture_output=True, text=True)
    assert all("no time was left" in json.loads(line)["error"] for line in late.stdout.splitlines()[1:])


def test_a_server_is_attacked_and_what_honest_clients_see_is_told(log, tmp_path):
    run = tmp_path / "run"
    settings = {"max_seq_len": 8, "embedding_dim": 8, "n_blocks": 1, "max_epochs": 1, "threads": 1}
    sasrec.fit(log, output=run, **settings)
    flags = ["--run", str(run), "--seconds", "8", "--connections", "2", "--kinds", "upgrades", "breaks_off"]
    command = [sys.executable, str(BENCHMARKS / "serve_attack.py"), *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # 1: too slow on a busy machine
    found = json.loads(done.stdout[: done.stdout.rindex("}") + 1])  # a verdict follows
    assert set(found["attack"]["done"]) == {"upgrades", "breaks_off"}
    assert found["beside"]["codes"].keys() == {"200"}
    assert (found["beside"]["lost"], found["beside"]["not_ready"], found["exit_code"]) == (0, 0, 0)


def test_growth_is_measured_point_by_point_and_drawn_and_points_that_are_there_are_kept(tmp_path):
    flags = [
        "--folder",
        tmp_path / "logs",
        "--events",
        "3e3,6e3",
        "--items",
        "50,100",
        "--lengths",
        "5",
        "--steps",
        "3",
    ]
    flags += ["--warm-up", "1", "--step-events", "2000", "--results", tmp_path / "points", "--plot", tmp_path / "a.svg"]
    command = [sys.executable, str(BENCHMARKS / "scale_curves.py"), *map(str, flags)]
    first = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    points = [json.loads(line) for line in first.splitlines()]
    assert [point["kind"] for point in points] == ["reading", "reading", "items", "items", "length"]
    assert all(point["peak_mib"] > 50 for point in points)
    assert all(point["ms_per_step"] > 0 for point in points[2:])
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == first
    assert (tmp_path / "a.svg").read_text().count("<path") > 4


def test_a_made_log_has_the_sizes_asked_for_in_files_by_time(benchmark_modules, tmp_path):
    import made_log

    for texts in (False, True):
        made = made_log.Made(5000, 300, 40, n_files=3, texts=texts, seed=1)
        made_log.write(made, tmp_path / str(texts), "parquet")
        frame = pl.concat(map(pl.read_parquet, sorted((tmp_path / str(texts)).iterdir())))
        assert len(frame) == 5000
        assert frame["timestamp"].is_sorted()
        assert 200 < frame["user_id"].n_unique() <= 300
        assert 35 <= frame["item_id"].n_unique() <= 40
        assert frame.schema["user_id"] == (pl.String if texts else pl.Int64)
        counts = frame["item_id"].value_counts()["count"].sort(descending=True)
        assert counts[0] > 8 * counts[30]
