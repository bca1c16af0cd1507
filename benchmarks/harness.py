"""Ours and peers, measured in turn. In: a script's flags; out: JSON lines with ratios, on stdout.

Each side is a process of its own (ours.py, peers.py) that answers a JSON line with a JSON line: a peer keeps its own
interpreter and its own imports, and the sides take turns, so that the machine's mood meets them alike.
`serve` also runs under a peer's interpreter, so that only the standard library is imported at the top.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sasrec.recommender import Recommender

HERE = Path(__file__).resolve().parent
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
ERROR_LINES = 15  # of a failed side's stderr

Answer = dict[str, Any]
Ask = Callable[["Worker"], Answer]


class BenchmarkError(Exception):
    """A side could not be started or failed."""


def parser(description: str | None, *, needs_data: bool = True) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    flags = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    flags.add_argument(
        "--data", required=needs_data, help="log file; peers need text lines 'user item', integers from 1"
    )
    flags.add_argument("--preset", default="paper", help="preset that decides the settings of both sides")
    flags.add_argument("--engine", default="auto", help="our engine: auto, torch or native")
    flags.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting on top of the preset"
    )
    flags.add_argument(
        "--peer", action="append", default=[], metavar="NAME=DIR_OR_VENV", help="a peer to measure; may be repeated"
    )
    flags.add_argument(
        "--peer-python", default=None, help="interpreter for peers given as a checkout; default: this one"
    )
    flags.add_argument("--threads", type=int, default=0, help="CPU threads of each side; 0 = all of this process")
    flags.add_argument("--repeats", type=int, default=3, help="how often each side is measured")
    flags.add_argument("--json", action="store_true", help="print JSON lines")
    return flags


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Call a script's main; a failed side becomes one sentence and exit code 1."""
    try:
        main(None)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")


class Worker:
    """A side in its own process.

    Args:
        name: what results call it.
        command: the program and its arguments.
        setup: the first line it is given; it answers with what it is.
        threads: put into its environment before it starts.

    Raises:
        BenchmarkError: it did not start.
    """

    def __init__(self, name: str, command: Sequence[str], setup: Answer, threads: int) -> None:
        self.name, self.is_peer = name, name != "sasrec"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment(threads),
        )
        try:
            self.about = self._exchange(setup)
        except BenchmarkError:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> Answer:
        """The answer to one request; {"unsupported": why} where this side has no such thing.

        Raises:
            BenchmarkError: the side failed.
        """
        return self._exchange({"do": do, **arguments})

    def _exchange(self, request: Answer) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            last = "".join(self._errors.readlines()[-ERROR_LINES:])
            raise BenchmarkError(f"{self.name} ended while asked for {request.get('do', 'a start')}:\n{last}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self.name} failed at {request.get('do', 'start')}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let it end by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # it has ended already
                    pipe.close()
        self._process.wait()
        self._errors.close()


def serve(make: Callable[[Answer], Any]) -> None:
    """The worker's side: make an object from the first line, then call the methods that further lines name.

    What the code under test prints goes nowhere: it would mix with the answers, and a terminal costs time.
    """
    with os.fdopen(os.dup(1), "w") as answers, open(os.devnull, "w") as nowhere:  # noqa: PTH123 - also for old Pythons
        os.dup2(nowhere.fileno(), 1)
        side = None
        for line in sys.stdin:
            try:
                request = json.loads(line)
                if side is None:
                    side = make(request)
                    answer = side.about()
                else:
                    method = getattr(side, request.pop("do"), None)
                    answer = method(**request) if method else {"unsupported": "this side has no such thing"}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        if side is not None and hasattr(side, "close"):
            side.close()


class Session:
    """Ours and the peers, started and ready to be asked in turn.

    Args:
        arguments: of `parser`.
        settings: on top of the preset and `--set`.

    Raises:
        BenchmarkError: a side did not start.
    """

    def __init__(self, arguments: argparse.Namespace, **settings: Any) -> None:
        self.arguments = arguments
        self.threads = arguments.threads or usable_cpus()
        self.data = Path(arguments.data).name.split(".")[0]
        self.workers: list[Worker] = []
        setup = {
            "data": str(Path(arguments.data).resolve()),
            "preset": arguments.preset,
            "engine": arguments.engine,
            "threads": self.threads,
            "settings": {**dict(map(setting, arguments.set)), **settings},
        }
        try:
            self.workers.append(Worker("sasrec", [sys.executable, str(HERE / "ours.py")], setup, self.threads))
            for peer in arguments.peer:
                name, _, source = peer.partition("=")
                self._start_peer(name.lower(), source, setup)
        except BaseException:
            self.close()
            raise

    def _start_peer(self, name: str, source: str, setup: Answer) -> None:
        root = Path(source)
        if not source or not root.is_dir():
            raise BenchmarkError(f"--peer {name}={source} is not a folder; give NAME=DIR or NAME=VENV")
        pythons = [root / "bin" / "python", root / ".venv" / "bin" / "python"]
        python = next((str(p) for p in pythons if p.exists()), self.arguments.peer_python or sys.executable)
        command = [python, str(HERE / "peers.py"), name]
        told = {**setup, "source": str(root.resolve()), "settings": self.ours.about["settings"]}
        self.workers.append(Worker(name, command, told, self.threads))

    @property
    def ours(self) -> Worker:
        """Our own side."""
        return self.workers[0]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all sides."""
        for worker in self.workers:
            worker.close()

    def compare(self, what: str, unit: str, ask: Ask, *, warm_up: Ask | None = None, higher: bool = False) -> None:
        """Ask all sides in turn, `repeats` times, and print a line for each peer (one without any).

        Args:
            what: the line's name.
            unit: of the answers' "value".
            ask: asks one side; its answer has "value" and perhaps details to print beside the summary.
            warm_up: asked once before, not counted; default: `ask` itself.
            higher: more is better: the ratio is ours over the peer's, else the peer's over ours.
        """
        first = [(warm_up or ask)(worker) for worker in self.workers]
        able = [w for w, answer in zip(self.workers, first, strict=True) if "unsupported" not in answer]
        if self.ours not in able:
            raise BenchmarkError(f"{what}: {first[0]['unsupported']}")
        rounds = []
        for number in range(self.arguments.repeats):
            rounds.append([ask(worker) for worker in able])
            said = ", ".join(f"{w.name} {a['value']:.4g} {unit}" for w, a in zip(able, rounds[-1], strict=True))
            print(f"{what}, round {number + 1}: {said}", file=sys.stderr)
        ours, *peers = [summary([r[i] for r in rounds], unit) for i in range(len(able))]
        for worker, peer in zip(able[1:], peers, strict=True):
            self.print_line(what, ours, {"name": worker.name, **peer, **worker.about}, higher)
        if not peers:
            self.print_line(what, ours, None, higher)

    def print_line(self, what: str, ours: Answer, peer: Answer | None, higher: bool = False) -> None:
        """One result on stdout."""
        ratio = None
        if peer is not None:
            ratio = ratios(peer["runs"], ours["runs"]) if not higher else ratios(ours["runs"], peer["runs"])
        emit(
            {"what": what, "data": self.data, "ours": ours, "peer": peer, "ratio": ratio, **self.facts()},
            self.arguments,
        )

    def facts(self) -> Answer:
        """What a line says about how it came about."""
        from sasrec.core.provenance import command_line, commit, machine  # not at the top: a peer has no sasrec

        about = self.ours.about
        return {
            "preset": self.arguments.preset,
            "engine": about["engine"],
            "settings": about["settings"],
            "threads": self.threads,
            "isa": about["isa"],
            "machine": machine(),
            "versions": about["versions"],
            "commit": commit(),
            "command": command_line(f"python benchmarks/{Path(sys.argv[0]).name}"),
        }


def summary(answers: Sequence[Answer], unit: str) -> Answer:
    """Median, min and max of the answers' values, all values, and the details of the last answer."""
    values = [a["value"] for a in answers]
    details = {k: v for k, v in answers[-1].items() if k != "value"}
    return {**spread(values), "unit": unit, "runs": values, **details}


def spread(values: Sequence[float]) -> Answer:
    """Median, min and max."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(upper: Sequence[float], lower: Sequence[float]) -> Answer:
    """Median, min and max of upper / lower, round by round."""
    return spread([u / v for u, v in zip(upper, lower, strict=True)])


def emit(line: Answer, arguments: argparse.Namespace) -> None:
    """Print a line as JSON, or for people."""
    if arguments.json:
        print_json(line)
        return
    text = [f"{line['what']} ({line['data']}, {line['threads']} threads):", "ours", _words(line["ours"])]
    if line["peer"] is not None:
        ratio = line["ratio"]
        text += [f"; {line['peer']['name']}", _words(line["peer"])]
        text.append(f"; ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(" ".join(text).replace(" ;", ";"), flush=True)


def print_json(line: Answer) -> None:
    """Print one JSON line now."""
    print(json.dumps(line), flush=True)


def _words(side: Answer) -> str:
    return f"{side['median']:.4g} {side['unit']} ({side['min']:.4g} to {side['max']:.4g})"


def setting(text: str) -> tuple[str, Any]:
    """The pair of NAME=VALUE; a value that is JSON is taken as such."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BenchmarkError(f"--set {text} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def whole(trained: Recommender, what: str, then: str) -> Recommender:
    """A training's result, if Ctrl-C did not end it: half of a model has no figures, and nothing begins from it.

    Args:
        trained: what came of it.
        what: it is called.
        then: what can be done about it.

    Raises:
        BenchmarkError: Ctrl-C ended it.
    """
    result = trained.train_result
    if result is None or not result.is_whole:
        raise BenchmarkError(f"{what} was interrupted; {then}")
    return trained


def environment(threads: int) -> dict[str, str]:
    """This process's environment with one number of threads for every library that asks it."""
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def usable_cpus() -> int:
    """CPUs that the package takes where it is not told how many."""
    from sasrec.core import threads  # here: a peer's interpreter, which only serves, need not have it

    return threads.usable_cpus()


def memory_mib(field: str = "VmRSS") -> float | None:
    """Resident memory of this process now (VmRSS) or at its most (VmHWM), where the system tells."""
    found = (line for line in _lines("/proc/self/status") if line.startswith(field + ":"))
    line = next(found, "")
    return int(line.split()[1]) / 1024 if line else None


def _lines(path: str) -> Iterable[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def seconds_of(work: Callable[[], Any], times: int = 1) -> float:
    """Wall seconds of so many calls."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - began


def latency(work: Callable[[Any], Any], requests: Sequence[Any], warm_up: int = 5) -> Answer:
    """Seconds of single calls, one for each request: the median and the 99th percentile."""
    for request in requests[:warm_up]:
        work(request)
    times = []
    for request in requests:
        began = time.perf_counter()
        work(request)
        times.append(time.perf_counter() - began)
    times.sort()
    return {"seconds": statistics.median(times), "p99": times[int(0.99 * (len(times) - 1))]}


def versions(names: Iterable[str]) -> Mapping[str, str]:
    """Versions of installed packages, and Python's."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
