"""Lines of results: a result over seeds with all of how it came about, as benchmarks/results/*.jsonl keeps them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sasrec.core.config import EvalConfig, to_dict
from sasrec.core.errors import DataError
from sasrec.core.files import atomic_write
from sasrec.evaluation.results import Result
from sasrec.experiments.seeds import load_study, read_runs
from sasrec.experiments.summary import Baselines, Spread, over_seeds

Told = TypeVar("Told")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How the runs behind a line came about; what differs between them is told in words, all of it."""

    data: str  # the log's name
    seeds: list[int]
    train_seconds: float  # the mean of the runs
    best_epochs: list[int]
    preset: str
    overrides: dict[str, Any] | None = None  # on top of the preset; None: an early line, whose command has them
    settings: dict[str, Any]  # all of them
    fingerprint: str = ""  # of the log; early lines have none
    engine: str
    isa: str
    threads: int | str
    machine: str
    versions: dict[str, str] | str
    commit: str
    command: str


@dataclass(frozen=True)
class ResultLine:
    """A result over seeds, and how it came about."""

    split: str
    split_method: str
    protocol: str
    candidates: str
    excluded: str
    ties: str
    n_users: int
    metrics: dict[str, Spread]
    baselines: Baselines
    origin: Origin

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: one flat object."""
        values = asdict(self)
        origin = values.pop("origin")
        return {**values, **origin}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResultLine:
        """Read back what `to_dict` gave.

        Raises:
            msgspec.ValidationError: a key is missing, or a value is not of its type.
        """
        return msgspec.convert({**values, "origin": values}, cls)


def line_of(results: Sequence[Result], origin: Origin) -> ResultLine:
    """One line of results that differ in their seed only."""
    result = over_seeds(results)
    first = result.first
    return ResultLine(
        split=first.split,
        split_method=first.split_method,
        protocol=first.protocol,
        candidates=first.candidates,
        excluded=first.excluded,
        ties=first.ties,
        n_users=first.n_users,
        metrics=result.metrics,
        baselines=result.baselines,
        origin=origin,
    )


def result_lines(folder: Path) -> list[ResultLine]:
    """The lines of a study: one for each split and protocol.

    None before all of its runs have ended. What they say comes from the folder alone, so it is the same each time.

    Raises:
        CheckpointError: not a study, or a run is damaged.
    """
    study, runs = load_study(folder), read_runs(folder)
    if len(runs) < len(study.seeds):
        return []
    config = runs[0].config
    origin = Origin(
        data=config.data_name,
        seeds=[run.seed for run in runs],
        train_seconds=statistics.fmean(run.training.seconds for run in runs),
        best_epochs=[run.training.best_epoch for run in runs],
        preset=config.preset,
        overrides=study.settings,
        settings={**to_dict(config.model), **to_dict(config.train), "k": list(config.eval.k), **_targets(config.eval)},
        fingerprint=config.data.fingerprint,
        engine=_told([run.training.engine for run in runs]),
        isa=_told([run.training.isa for run in runs]),
        threads=_told([run.training.threads for run in runs]),
        machine=_told([run.training.machine for run in runs]),
        versions=_told([run.training.versions for run in runs]),
        commit=_told([run.training.commit for run in runs]),
        command=study.command,
    )
    return [line_of(results, origin) for results in zip(*(run.results for run in runs), strict=True)]


def _targets(config: EvalConfig) -> dict[str, Any]:
    """Which events are targets and how the log was cut, where that is not as usual."""
    told: dict[str, Any] = {"target_events": config.target_events} if config.target_events else {}
    if config.split_method == "temporal_by_user":
        names = ("test_fraction", "test_cut", "temporal_targets", "n_validating_users", "eval_seed")
        told |= {name: getattr(config, name) for name in names}
    return told


def _told(found: Sequence[Told]) -> Told | str:
    """What the runs say of themselves; where they differ, as after a resume elsewhere, all of it in words."""
    distinct = [value for i, value in enumerate(found) if value not in found[:i]]
    return distinct[0] if len(distinct) == 1 else "; ".join(map(str, distinct))


def read_lines(file: Path) -> list[ResultLine]:
    """The lines of a results file.

    Raises:
        DataError: it cannot be read, or a line is not one of these.
    """
    try:
        texts = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the results file {file}: {error}") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(ResultLine.from_dict(json.loads(text)))
        except (ValueError, TypeError, msgspec.ValidationError) as error:
            raise DataError(f"line {number} of {file} is not a result of a benchmark: {error}") from error
    return lines


def append_lines(file: Path, lines: Sequence[ResultLine]) -> None:
    """Add the lines that the file has not got."""
    before = read_lines(file) if file.exists() else []
    text = file.read_text() if file.exists() else ""
    text += "" if text.endswith("\n") or not text else "\n"
    new = [line for line in lines if line not in before]
    atomic_write(file, text + "".join(json.dumps(line.to_dict()) + "\n" for line in new))


def overrides_of(line: ResultLine) -> dict[str, Any]:
    """What was set on top of the preset; earlier lines of benchmarks/quality.py tell it in their command only."""
    if line.origin.overrides is not None:
        return line.origin.overrides
    given = [after for word, after in pairwise(line.origin.command.split()) if word == "--set"]
    return dict(word.split("=", 1) for word in given)


def label(line: ResultLine) -> str:
    """The preset, and what was set on top of it."""
    return ", ".join([line.origin.preset, *(f"{k}={_plain(v)}" for k, v in overrides_of(line).items())])


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
