"""Several workers behind one port, from outside: signals, crashes; and what is refused before any of them starts."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from hostile import Client, head, request
from server_process import PATIENCE, READY, Load, ServerProcess, command, port_of, running, start_and_fail, until

from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.supervisor import serve


@pytest.mark.slow
def test_sigterm_under_load_of_new_connections_answers_every_accepted_request(runs: Path) -> None:
    with running(runs / "a", "--workers", 2) as server:
        load = Load(server.port, keep_alive=False)
        until(lambda: load.codes[200] > 100)
        server.signal(signal.SIGTERM)
        load.join()  # each client goes on until it is refused
        assert server.process.wait(PATIENCE) == 0
    assert load.lost == []
    assert set(load.codes) == {200}


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_answers_every_request_that_has_begun(runs: Path) -> None:
    asked = request({"history": [1, 2, 3]})
    with running(runs / "a", "--workers", 2) as server, contextlib.ExitStack() as held:
        until(lambda: server.n_ready() == 2)
        clients = [held.enter_context(Client(server.port)) for _ in range(6)]
        for client in clients:
            client.send(asked[:-5])
        time.sleep(0.3)
        group = os.getpgid(server.process.pid)
        for pid in [*server.workers(), server.process.pid]:  # a terminal's signal goes to all of its group
            if os.getpgid(pid) == group:
                os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        replies = [client.ask(asked[-5:]) for client in clients]
    assert [reply and reply.status for reply in replies] == [200] * 6


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_all_of_them_end_when_their_supervisor_is_killed(runs: Path) -> None:
    server = ServerProcess(runs / "a", "--workers", 2)
    until(lambda: server.n_ready() == 2)
    assert [server.recommend()[0] for _ in range(20)] == [200] * 20
    killed = server.workers()[0]
    os.kill(killed, signal.SIGKILL)
    assert [server.recommend()[0] for _ in range(20)] == [200] * 20  # by the other one
    until(lambda: server.n_ready() == 3)
    workers = server.workers()
    assert killed not in workers
    assert len(workers) == 2
    assert server.metric("sasrec_answers_total") == 40  # also those of the worker that has gone
    until(lambda: server.metric("sasrec_requests_in_flight") == 0)
    server.signal(signal.SIGHUP)
    until(lambda: server.metric("sasrec_reloads_total") == 2)  # both of them
    server.process.kill()
    until(lambda: not any(map(is_alive, workers)))
    server.end()
    assert "Traceback" not in server.said()


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
def test_sighup_while_workers_start_ends_none_of_them_and_is_not_forgotten(run: Path, runs: Path) -> None:
    process = subprocess.Popen(command(run, "--workers", 2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    end = time.monotonic() + 1.5
    until(lambda: len(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()) == 2)
    while time.monotonic() < end:  # as they start, and after that
        process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    with Client(until(lambda: port_of(process.pid))) as client:
        until(lambda: client.ask(head("GET", "/health/ready")).status == 200)
        before = client.ask(head("GET", "/health/ready")).json()["model_version"]
        shutil.copytree(runs / "b", run, dirs_exist_ok=True)
        process.send_signal(signal.SIGHUP)
        until(lambda: client.ask(head("GET", "/health/ready")).json()["model_version"] != before)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE)[1].decode()
    assert process.returncode == 0
    assert re.search(READY, said)
    assert "ended (code" not in said, said


@pytest.mark.slow
def test_folders_for_metrics_of_servers_that_were_killed_are_removed_and_others_are_not(
    runs: Path, tmp_path: Path
) -> None:
    with running(runs / "a", "--workers", 2, TMPDIR=str(tmp_path)):
        [held] = tmp_path.glob("sasrec-metrics-*")
        stale, fresh = tmp_path / "sasrec-metrics-stale", tmp_path / "sasrec-metrics-fresh"
        for folder in (stale, fresh):
            folder.mkdir()
            (folder / "counter_1.db").write_bytes(b"x")
        for folder in (stale, held):
            os.utime(folder, (0, 0))
        (tmp_path / "sasrec-metrics-link").symlink_to(runs)
        with running(runs / "a", "--workers", 2, TMPDIR=str(tmp_path)):
            assert held.is_dir()
            assert fresh.is_dir()
            assert not stale.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"sasrec-metrics-fresh", "sasrec-metrics-link"}
    assert (runs / "a").is_dir()


@pytest.mark.slow
def test_workers_that_cannot_serve_a_folder_end_with_one_sentence_and_exit_1(run: Path) -> None:
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    done = start_and_fail(run, "--workers", 2)
    assert done.returncode == 1
    assert "model.safetensors is damaged" in done.stderr
    assert "no worker could serve the run folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n# nothing\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            serve(run, ServerConfig(port=port))
    with pytest.raises(ConfigError, match="holds no API key"):
        serve(run, ServerConfig(api_key_file=str(tmp_path / "keys")))
    with pytest.raises(ConfigError, match="cannot be read"):
        serve(run, ServerConfig(api_key_file=str(tmp_path / "nothing")))
    with pytest.raises(CheckpointError, match="there is no run folder"):
        serve(tmp_path / "nothing", ServerConfig())
    with pytest.raises(ConfigError, match="queue_size=512"):
        ServerConfig(max_requests=600)
