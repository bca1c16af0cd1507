"""The world on torch.distributed: what processes tell each other, and what they say when one of them is gone."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from made import without
from worlds import ends_of, free_port, start_process

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.threads import usable_cpus
from sasrec.engine import distributed
from sasrec.engine.distributed import is_one_of_several, joined, placed

HEAD = """
import json, os, signal, sys, time
import numpy as np
from sasrec.core.errors import SASRecError
from sasrec.core.world import on_first, together
from sasrec.engine.distributed import TorchWorld, joined
told = {}
try:
    with joined(float(sys.argv[1])) as world:
"""
TAIL = """
    print(json.dumps(told), flush=True)
except SASRecError as error:
    print(type(error).__name__, error, file=sys.stderr, flush=True)
    os._exit(3)
"""


def start(size: int, body: str, silence: float = 30) -> list[subprocess.Popen[str]]:
    port = free_port()
    command = ["-c", HEAD + textwrap.indent(textwrap.dedent(body), " " * 8) + TAIL, str(silence)]
    return [start_process(rank, size, port, command) for rank in range(size)]


def test_processes_tell_each_other_numbers_rows_texts_and_arrays() -> None:
    body = """
        rank = world.rank
        told["gathered"] = world.gather(np.array([rank + 0.5, 7.0])).tolist()
        rows = np.full((rank, 3), rank, np.float32)
        told["rows"] = [part.tolist() for part in world.gather_rows(rows, [0, 1, 2])]
        told["none"] = [len(part) for part in world.gather_rows(rows[:0], [0, 0, 0])]
        told["texts"] = world.gather_text("\\u00e9" * rank)
        array = np.full(4, 2.0**-rank, np.float32)
        world.add(array)
        told["sum"] = array.tolist()
        ranks = np.zeros((2, 2), np.int32)
        ranks[rank // 2] = rank
        world.add(ranks)
        told["ranks"] = ranks.tolist()
        arrays = {"a b": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2)), "one": np.float32(5)}
        found = world.broadcast(arrays if rank == 0 else None)
        told["arrays"] = {name: [array.dtype.name, array.tolist()] for name, array in found.items()}
        told["place"] = [world.rank, world.size, world.local_rank, world.local_size]
        told["first"] = on_first(world, lambda: "done")
    """
    ends = ends_of(start(3, body))
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    found = [json.loads(out) for _, out, _ in ends]
    assert [told.pop("place") for told in found] == [[0, 3, 0, 3], [1, 3, 1, 3], [2, 3, 2, 3]]
    assert [told.pop("first") for told in found] == ["done", None, None]
    assert found[0] == found[1] == found[2]
    assert found[0] == {
        "gathered": [[0.5, 7], [1.5, 7], [2.5, 7]],
        "rows": [[], [[1, 1, 1]], [[2, 2, 2], [2, 2, 2]]],
        "none": [0, 0, 0],
        "texts": ["", "é", "éé"],
        "sum": [1.75] * 4,
        "ranks": [[1, 1], [2, 2]],
        "arrays": {"a b": ["float64", [[0, 1, 2], [3, 4, 5]]], "empty": ["float64", []], "one": ["float32", 5.0]},
    }


def test_long_work_of_one_process_is_no_silence() -> None:
    body = """
        told["answer"] = together(world, lambda: time.sleep(6 * (world.rank == 0)) or world.rank)
    """
    ends = ends_of(start(2, body, silence=2))
    assert [json.loads(out)["answer"] for _, out, _ in ends] == [0, 1]


def test_work_that_fails_on_one_process_ends_all_with_a_sentence_each() -> None:
    body = """
        def work():
            if world.rank == 1:
                raise SASRecError("the disk is full")
            time.sleep(60)
        together(world, work)
    """
    began = time.monotonic()
    (code, _, first), (other_code, _, second) = ends_of(start(2, body))
    assert time.monotonic() - began < 50
    assert (code, other_code) == (3, 3)
    assert first == "OtherFailedError process 1 of 2 failed, and says why\n"
    assert second == "SASRecError the disk is full\n"


@pytest.mark.parametrize(("signum", "why"), [(signal.SIGKILL, "the connection was closed"), (signal.SIGSTOP, "3 s")])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_is_killed_or_stands_still_is_missed(signum: signal.Signals, why: str, victim: int) -> None:
    body = f"""
        world.gather(np.zeros(1))
        if world.rank == {victim}:
            os.kill(os.getpid(), {int(signum)})
        while True:
            world.gather(np.zeros(1))
    """
    processes = start(3, body, silence=3)
    others = [process for rank, process in enumerate(processes) if rank != victim]
    try:
        ends = ends_of(others, timeout=60)
    finally:
        processes[victim].kill()
        processes[victim].communicate()
    assert [code for code, _, _ in ends] == [3, 3]
    assert any(why in err for _, _, err in ends), ends  # a neighbour may end before the silence has lasted for both
    for _, _, err in ends:
        assert "cannot reach the others" in err
        assert "the same command with --resume goes on" in err


def test_a_launcher_that_has_made_the_process_group_keeps_it() -> None:
    body = """
        import torch.distributed as dist
        other = TorchWorld()
        told["size"] = other.size
        other.leave()
        told["kept"] = dist.is_initialized()
        world.gather(np.zeros(1))
    """
    ends = ends_of(start(2, body))
    assert [json.loads(out) for _, out, _ in ends] == [{"size": 2, "kept": True}] * 2


@pytest.mark.parametrize("launcher", ["", "dist.init_process_group('gloo')"])
def test_no_thread_outlives_a_world_and_can_end_python_by_a_signal(launcher: str) -> None:
    script = f"""
        import os
        import numpy as np
        import torch.distributed as dist
        from sasrec.engine.distributed import joined
        {launcher}
        tasks = lambda: set(os.listdir("/proc/self/task"))
        before = tasks()
        with joined() as world:
            world.gather(np.zeros(1))
        print(len(tasks() - before))
    """
    port = free_port()
    ends = ends_of([start_process(rank, 2, port, ["-c", textwrap.dedent(script)]) for rank in range(2)])
    assert [(code, out) for code, out, _ in ends] == [(0, "0\n")] * 2, ends


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in zip(distributed.VARIABLES, ("1", "2", "localhost", "1234"), strict=True):
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_process_is_alone_unless_the_environment_tells_of_others(environment: pytest.MonkeyPatch) -> None:
    assert is_one_of_several()
    environment.setenv("WORLD_SIZE", "1")
    environment.setenv("RANK", "0")
    assert not is_one_of_several()
    environment.setenv("WORLD_SIZE", "2")
    environment.delenv("MASTER_PORT")
    assert not is_one_of_several()
    with joined() as world:
        assert world is None


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "two")])
def test_an_environment_that_makes_no_sense_is_refused(environment: pytest.MonkeyPatch, rank: str, size: str) -> None:
    environment.setenv("RANK", rank)
    environment.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match=r"RANK='.*' and WORLD_SIZE='.*' are no process and number of processes"):
        is_one_of_several()


def test_training_in_several_processes_without_torch_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,2\n")
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}
    command = [sys.executable, "-m", "sasrec", "train", str(tmp_path / "log.csv"), "-o", str(tmp_path / "run")]
    environment = {**os.environ, **without(tmp_path, "torch"), **told}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "training in several processes needs torch" in done.stderr
    assert "pip install 'sasrec[torch]'" in done.stderr


class Places:
    """A world that tells what it is told to."""

    rank, size, local_rank = 1, 4, 1

    def __init__(self, local_size: int, fewest: float = 1e9) -> None:
        self.local_size, self.fewest = local_size, fewest

    def gather(self, values: Any) -> Any:
        return values.clip(max=self.fewest)


def test_processes_of_a_machine_share_its_cpus_unless_threads_are_set() -> None:
    assert placed(ModelConfig(), TrainConfig(), Places(1)).threads == usable_cpus()
    assert placed(ModelConfig(), TrainConfig(), Places(10_000)).threads == 1
    assert placed(ModelConfig(), TrainConfig(), Places(1, fewest=1)).threads == 1
    assert placed(ModelConfig(), TrainConfig(threads=5), Places(10_000)).threads == 5


def test_each_process_takes_a_cuda_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placed(ModelConfig(), TrainConfig(device="cuda"), Places(2)).device == "cuda:1"
    assert placed(ModelConfig(), TrainConfig(device="cuda:0"), Places(2)).device == "cuda:0"
    assert placed(ModelConfig(), TrainConfig(), Places(2)).device == "auto"  # the core's
    assert placed(ModelConfig(), TrainConfig(engine="torch"), Places(2)).device == "cuda:1"
    assert placed(ModelConfig(), TrainConfig(device="cpu"), Places(2)).device == "cpu"
    with pytest.raises(ConfigError, match="2 CUDA devices for 3 processes; start as many processes as devices"):
        placed(ModelConfig(), TrainConfig(device="cuda"), Places(3))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert placed(ModelConfig(), TrainConfig(device="cuda"), Places(2)).device == "cuda"
