"""What several processes that train together share beside gradients: where training stands, and that they agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np

from sasrec import __version__
from sasrec.core.errors import TrainingError
from sasrec.core.provenance import isa_of
from sasrec.core.world import World, check_same, on_first
from sasrec.engine.protocol import Engine
from sasrec.model.weights import LateArrays, Weights
from sasrec.runs.folder import CONFIG, RunConfig, RunFolder
from sasrec.runs.record import State

DIGEST_BYTES = 6  # which a float64 holds exactly


def check_alike(world: World, config: RunConfig, engine: Engine) -> None:
    """Refuse processes of which one has another log, other settings or another engine.

    Raises:
        ConfigError: one has; the message says what.
    """
    settings = {**asdict(config.model), **asdict(config.train), **asdict(config.eval)}
    here = {"engine": engine.name, "instruction set": isa_of(engine), "threads": engine.threads}
    check_same(world, {"sasrec": __version__, "log fingerprint": config.data.fingerprint, **settings, **here})


def shared_config(world: World | None, config: RunConfig | None) -> RunConfig | None:
    """The settings that process 0 has read, on all processes."""
    if world is None:
        return config
    text = world.gather_text("" if config is None else config.to_json())[0]
    return RunConfig.from_json(text, Path(CONFIG)) if text else None


def with_run(world: World | None, run: RunFolder | None, work: Callable[[RunFolder], None]) -> None:
    """Do what a run folder is needed for, where there is one: of a world, on process 0, while the others wait."""
    on_first(world, lambda: None if run is None else work(run))


def share_state(world: World, engine: Engine, state: State, best: Weights | None) -> tuple[State, Weights | None]:
    """Everything that process 0 goes on from, on all processes: the engine's state, and what is returned.

    Args:
        world: the processes.
        engine: takes the weights and the optimizer's state of process 0.
        state: where training stands; only that of process 0 counts.
        best: the weights of the best epoch, likewise.
    """
    weights, optimizer = engine.state()
    here = LateArrays.together({"weights/": weights, "adam/": optimizer, "best/": best or {}})
    told = LateArrays.together({"": world.broadcast(here if world.rank == 0 else None)})
    text = world.gather_text(json.dumps(asdict(state)))[0]
    if world.rank:
        engine.load_weights(told.of("weights/"))
        engine.load_optimizer_state(told.of("adam/"))
    return msgspec.convert(json.loads(text), State), dict(told.of("best/")) or None


def check_same_weights(world: World | None, engine: Engine, epoch: int) -> None:
    """Refuse to go on with processes whose weights have drifted apart.

    Raises:
        TrainingError: they have, at the end of this epoch.
    """
    if world is None:
        return
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for array in engine.state()[0].values():
        digest.update(np.ascontiguousarray(array).data)
    told = world.gather(np.array([float(int.from_bytes(digest.digest()))]))[:, 0]
    differs = np.flatnonzero(told != told[0])
    if len(differs):
        raise TrainingError(
            f"process {differs[0]} has other weights than process 0 after epoch {epoch}, so their CPUs or libraries "
            "compute differently; train on machines that are alike, and begin from the state of the epoch before with "
            "--resume"
        )
