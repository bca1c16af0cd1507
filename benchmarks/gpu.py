"""What a CUDA device does with this package, in under ten minutes: a JSON line for each finding, printed at once.

Lines have a "part":

device   the GPU, its memory, versions, the commit and the command
epoch    seconds of a training epoch of each log and preset, users ranked a second, peak memory
parity   the same weights on the GPU and on the CPU: features, lists, metrics; the loss of a step in float32 and bf16
peer     seconds of an epoch of pmixer's own code on the same device (--peer)
quality  wall seconds from the start of `sasrec train` on ml-1m to a model, chosen by valid, that is good enough on test

Each part has its share of --minutes and is cut there; a line says from how many steps it was made. A run that is killed
has printed what it had found. A part that fails prints its error, and the others go on.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from harness import HERE, Answer, BenchmarkError, Worker, print_json, setting
from time_to_quality import train_until

from sasrec.core.config import TrainConfig, to_dict
from sasrec.core.errors import ConfigError
from sasrec.core.provenance import command_line, commit, machine, versions
from sasrec.core.threads import set_threads, usable_cpus
from sasrec.data.batches import Batch, TrainBatches
from sasrec.data.logs import load_log
from sasrec.data.splits import Split
from sasrec.engine.device import ON_CPU, ON_CUDA, device_of, name_of
from sasrec.engine.prefetch import batches_for
from sasrec.engine.protocol import Engine, create_engine
from sasrec.engine.torch_engine import TorchEngine
from sasrec.evaluation.protocols import evaluate
from sasrec.fitting import configure
from sasrec.ranking.device_index import index_for
from sasrec.ranking.scorers import ModelScorer
from sasrec.runs.folder import RunConfig

PRESETS = ("paper", "best")
TIMED_EPOCHS = 3
EPOCH_SHARE, PEER_SHARE = 0.1, 0.15  # of all minutes, for each log and preset, and for each log
PARITY_USERS = 2000
PEER_WARM_UP = 5  # steps


@dataclass(frozen=True)
class Bench:
    """What all parts are asked for."""

    device: str
    threads: int
    settings: Answer  # on top of the presets
    ends: float  # on time.perf_counter's clock
    seconds: float  # in all

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.ends - time.perf_counter())


@dataclass(frozen=True)
class Side:
    """A log under a preset, on the device."""

    split: Split
    config: RunConfig
    engine: TorchEngine
    batches: TrainBatches


def main(argv: Sequence[str] | None = None) -> int:
    flags = _parser()
    arguments = flags.parse_args(argv)
    files = {name: path for name, path in (("ml-1m", arguments.ml_1m), ("Video", arguments.video)) if path}
    if not files:
        flags.error("give --ml-1m FILE, --video FILE or both")
    try:
        device = device_of(arguments.device)
    except (ConfigError, ImportError) as error:
        sys.stderr.write(f"error: no CUDA device: {error}. With --device cpu everything runs, and measures nothing\n")
        return 2
    threads, seconds = arguments.threads or usable_cpus(), 60 * arguments.minutes
    settings = {**dict(map(setting, arguments.set)), "threads": threads}
    bench = Bench(str(device), threads, settings, time.perf_counter() + seconds, seconds)
    print_json({"part": "device", "device": name_of(device), **_facts(bench)})
    parts = [
        ("epoch", name, preset, partial(_measure, bench, files[name], preset)) for name in files for preset in PRESETS
    ]
    if arguments.peer:
        parts += [("peer", name, "paper", partial(_peer, bench, files[name], Path(arguments.peer))) for name in files]
    if "ml-1m" in files:
        parts.append(("quality", "ml-1m", "best", partial(_quality, bench, files["ml-1m"], arguments.ndcg)))
    worked = [_reported(bench, *part) for part in parts]
    return int(not all(worked))


def _parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("--ml-1m", help="ml-1m.txt, or another log in its place")
    flags.add_argument("--video", help="Video.txt, likewise")
    flags.add_argument("--peer", help="a checkout of pmixer/SASRec.pytorch, or its folder with main.py")
    flags.add_argument("--minutes", type=float, default=9.0, help="end after so long")
    flags.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script without a GPU")
    flags.add_argument("--ndcg", type=float, default=0.2, help="test NDCG@10 on ml-1m to reach")
    flags.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all of this process")
    flags.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting on top of presets")
    return flags


def _facts(bench: Bench) -> Answer:
    import torch

    about: Answer = {"machine": machine(), "versions": versions(), "commit": commit(), "threads": bench.threads}
    if bench.device != "cpu":
        properties = torch.cuda.get_device_properties(device_of(bench.device))
        about |= {"memory_mib": properties.total_memory / 2**20, "cuda": torch.version.cuda}
    return {**about, "minutes": bench.seconds / 60, "command": command_line("python benchmarks/gpu.py")}


def _reported(bench: Bench, part: str, name: str, preset: str, work: Callable[[], Iterator[Answer]]) -> bool:
    """Print the lines of a part as they are found, or why there are none; False = it failed."""
    said = {"part": part, "data": name, "preset": preset}
    try:
        if not bench.left:
            raise BenchmarkError("no time was left; give more --minutes")
        for line in work():
            print_json(said | line)
    except Exception as error:
        traceback.print_exc()
        print_json(said | {"error": f"{type(error).__name__}: {error}"})
        return False
    return True


def _measure(bench: Bench, path: str, preset: str) -> Iterator[Answer]:
    """Epochs, ranking and parity of a log under a preset."""
    log = load_log(path)
    split, config = configure(log, preset, {"engine": "torch", "device": bench.device, **bench.settings})
    engine = TorchEngine(config.model, len(log.vocabulary), config.train, ON_CUDA)
    set_threads(bench.threads)
    side = Side(split, config, engine, TrainBatches(split, config.model, config.train))
    yield _epochs(side, min(bench.left, EPOCH_SHARE * bench.seconds))
    yield {"part": "parity", **_parity(side)}


def _epochs(side: Side, seconds: float) -> Answer:
    """Seconds of epochs, the first not counted, and of ranking the valid users once."""
    began, runs = time.perf_counter(), []
    _forget_peak(side.engine)
    warm_up = _epoch(side, 0, seconds / 4)
    while len(runs) < TIMED_EPOCHS and time.perf_counter() - began < seconds:
        runs.append(_epoch(side, 1 + len(runs), seconds - (time.perf_counter() - began)))
    peak = _peak_mib(side.engine)
    began = time.perf_counter()
    _metrics(side.engine, side, "valid", 0)
    ranking = time.perf_counter() - began
    return {
        "seconds": min((run["seconds"] for run in runs), default=None),
        "runs": runs,
        "warm_up": warm_up,
        "steps_per_epoch": side.batches.steps_per_epoch,
        "users": len(side.batches.users),
        "peak_mib": peak,
        "peak_mib_ranking": _peak_mib(side.engine),
        "users_ranked_per_second": len(side.split.valid) / ranking,
        "settings": {**to_dict(side.config.model), **to_dict(side.config.train)},
    }


def _epoch(side: Side, number: int, seconds: float) -> Answer:
    """Wall seconds of an epoch as the training loop runs it, scaled from its first steps where time is up before."""
    engine, batches, train = side.engine, side.batches, side.config.train
    began, steps = time.perf_counter(), 0
    for batch in batches_for(engine, batches.epoch(number)):
        engine.forward_backward(batch)
        engine.optimizer_step(train.learning_rate_at(batch.step, batches.steps_per_epoch))
        if train.ema_decay:
            engine.update_average(train.ema_decay_at(batch.step))
        steps += 1
        if time.perf_counter() - began > seconds:
            break
    loss = engine.pop_loss()  # waits for the device
    taken = time.perf_counter() - began
    return {"seconds": taken * batches.steps_per_epoch / steps, "steps": steps, "loss": loss}


def _parity(side: Side) -> Answer:
    """How far the device's results are from the CPU's, with the same weights."""
    n_items, train = side.engine.n_items, replace(side.config.train, device="cpu")
    weights, features = side.engine.weights(), side.engine.features
    plain = TorchEngine(side.config.model, n_items, train, ON_CPU, features)
    plain.load_weights(weights)
    served = create_engine(side.config.model, n_items, replace(train, engine="auto"), weights, features=features)
    engines: dict[str, Engine] = {"device": side.engine, "cpu": plain, f"as served ({served.name})": served}
    histories = side.split.valid.histories(side.split.sequences).take(slice(0, PARITY_USERS))
    encoded = {name: engine.encode(histories) for name, engine in engines.items()}
    lists = {name: index_for(e, e.item_table()).top_k(encoded[name], 10)[0] for name, e in engines.items()}
    largest = float(np.abs(encoded["cpu"]).max())
    return {
        "users": len(histories),
        "largest_feature": largest,
        "largest_difference": {n: float(np.abs(f - encoded["cpu"]).max()) for n, f in encoded.items() if n != "cpu"},
        "same_places_in_top_10": {n: float((top == lists["cpu"]).mean()) for n, top in lists.items() if n != "cpu"},
        "test": {name: _metrics(engine, side, "test", PARITY_USERS) for name, engine in engines.items()},
        "loss_of_a_step": _losses_of_a_step(side),
    }


def _losses_of_a_step(side: Side) -> Answer:
    """The loss of the first batch without dropout: on the CPU, and on the device in float32 and in bf16."""
    model, batch = replace(side.config.model, dropout=0.0), next(side.batches.epoch(0))
    on_cpu = replace(side.config.train, device="cpu")
    asked = {
        "cpu": (on_cpu, ON_CPU),
        "device, float32": (side.config.train, replace(ON_CUDA, bf16=False)),
        "device, bf16": (side.config.train, ON_CUDA),
    }
    return {name: _loss(TorchEngine(model, side.engine.n_items, *how), batch) for name, how in asked.items()}


def _loss(engine: TorchEngine, batch: Batch) -> float:
    engine.forward_backward(batch)
    return engine.pop_loss()


def _metrics(engine: Engine, side: Side, part: str, n_users: int) -> dict[str, float]:
    """NDCG@10 and HR@10 by the full protocol; 0 users = all."""
    config = replace(side.config.eval, protocol="full", valid_users=n_users, eval_users=n_users)
    scorer = ModelScorer(engine, side.config.model.max_seq_len)
    result = evaluate(scorer, side.split, part, config, baselines=False, lists=False)
    return {name: result.metrics[name]["value"] for name in ("ndcg@10", "hr@10")}


def _peer(bench: Bench, path: str, folder: Path) -> Iterator[Answer]:
    """An epoch of pmixer's code, or of as many steps as there is time for."""
    folder = folder / "python" if (folder / "python" / "model.py").is_file() else folder
    _, config = configure(load_log(path), "paper", bench.settings)
    setup = {
        "data": str(Path(path).resolve()),
        "source": str(folder.resolve()),
        "threads": bench.threads,
        "device": bench.device,
        "settings": {**to_dict(config.model), **to_dict(config.train)},
    }
    worker = Worker("pmixer", [sys.executable, str(HERE / "peers.py"), "pmixer"], setup, bench.threads)
    try:
        for _ in range(2):  # the second time without what is done once
            first = worker.ask("train", steps=PEER_WARM_UP)
        seconds = min(bench.left, PEER_SHARE * bench.seconds)
        steps = max(1, int(seconds / (first["seconds"] / first["steps"])))
        answer = worker.ask("train", steps=steps)
    finally:
        worker.close()
    scaled = answer["seconds"] * answer["steps_per_epoch"] / answer["steps"]
    yield {"name": "pmixer", **worker.about, **answer, "seconds": scaled}


def _quality(bench: Bench, path: str, ndcg: float) -> Iterator[Answer]:
    settings = {**bench.settings, "engine": "torch", "device": bench.device, "seed": 0}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "sasrec", "train", path, "--preset", "best", "--log-test", *flags]
    goal, metric = {"ndcg@10": ndcg}, settings.get("valid_metric", TrainConfig().valid_metric)
    answer = train_until(goal, command, metric, bench.threads, bench.left)
    yield {"goal": goal, "seconds": answer["value"], "epoch": answer["epoch"], "test": answer["metrics"]}


def _forget_peak(engine: TorchEngine) -> None:
    import torch

    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)


def _peak_mib(engine: TorchEngine) -> float | None:
    """The most memory of the device that tensors have taken; None on the CPU."""
    import torch

    return torch.cuda.max_memory_allocated(engine.device) / 2**20 if engine.device.type == "cuda" else None


if __name__ == "__main__":
    sys.exit(main())
