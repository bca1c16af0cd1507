"""The run folder: all that a training run leaves on disk, each file written whole or not at all.

RUN/config.json          model, train and eval settings, preset, data facts, package version
RUN/model.safetensors    weights of the best epoch so far
RUN/items.parquet        item_index, item_id, count, title and attributes if known
RUN/item_features.json   how attributes become features (absent where the model knows items by id alone)
RUN/sequences/           users and their histories, memory-mapped (absent with --no-histories)
RUN/history.jsonl        a line an epoch
RUN/metrics.json         results, each with its protocol
RUN/training/            weights, Adam's moments and the position in the run: what resume needs
RUN/digests.json         the digest of each of these: readers refuse what is not as it was written
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from sasrec.core.arrays import Float32
from sasrec.core.config import OF_ANSWERS, EvalConfig, ModelConfig, TrainConfig, from_dict, to_dict
from sasrec.core.digests import BOOK, digest_of, forget_unplaced, is_as_written, note, noting, read_book
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import atomic_file, atomic_write, disk_errors
from sasrec.core.suggestions import suggested_path
from sasrec.data.prepared import (
    DATA_FILES,
    is_prepared,
    load_sequences,
    load_vocabulary,
    save_sequences,
    save_vocabulary,
)
from sasrec.data.sequences import LogFacts, Sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.evaluation.results import Result
from sasrec.model.weights import LateArrays, Weights
from sasrec.runs.hub import local_copy
from sasrec.runs.lock import STATE_FILE, WEIGHTS, Claim, claim, is_empty, replaced_by
from sasrec.runs.record import EpochLine, InitFacts, RunMetrics, SavedState, State, TrainingFacts
from sasrec.runs.tensors import open_tensors, write_tensors

logger = logging.getLogger(__name__)

FORMAT = 2
FORMATS = (1, 2)  # 1 has no digests
CONFIG, HISTORY, METRICS = "config.json", "history.jsonl", "metrics.json"
STATE = f"training/{STATE_FILE}"
EPOCH, REFIT = "epoch", "refit_epochs"  # what model.safetensors tells: chosen by valid, or trained again on all
WHAT_COUNTS = (CONFIG, WEIGHTS, HISTORY, METRICS, STATE, *DATA_FILES)  # the rest is for people
TO_LOAD = tuple(name for name in WHAT_COUNTS if name != STATE)
MAY_CHANGE_ON_RESUME = {
    "max_epochs", "max_minutes", "max_steps", "patience", "threads", "engine", "device", "save_every_minutes",
    "log_test",
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """What config.json holds: how this run came about."""

    model: ModelConfig
    train: TrainConfig
    eval: EvalConfig
    preset: str
    data_name: str
    data: LogFacts
    package_version: str
    layout: str | None = None  # of the published checkpoint it was converted from
    refit_epochs: int = 0  # when the saved model was trained again on all events, for how many epochs
    format: int = FORMAT  # of the folder
    init: InitFacts | None = None  # what training began from; None = initial weights
    processes: int = 1  # that trained it together, in the end

    def to_json(self) -> str:
        """The text of config.json."""
        parts = {name: to_dict(getattr(self, name)) for name in ("model", "train", "eval")}
        parts["data"] = self.data.to_dict()
        usual = {"init": None, "processes": 1}  # not told, as by versions before
        known = {name: value for name, value in asdict(self).items() if usual.get(name, parts) != value}
        return json.dumps({"format": self.format, **known, **parts}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: Path) -> RunConfig:
        """Read config.json.

        Raises:
            CheckpointError: not one of ours, or of a later format.
        """
        try:
            values = json.loads(text)
            found = values.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{where} is not the config.json of a run folder") from error
        if found not in FORMATS:
            raise CheckpointError(f"{where} has format {found}, and this version reads up to {FORMAT}; update sasrec")
        try:
            return cls(
                model=from_dict(ModelConfig, values.pop("model")),
                train=from_dict(TrainConfig, values.pop("train")),
                eval=from_dict(EvalConfig, values.pop("eval")),
                data=LogFacts.read(values.pop("data")),
                format=found,
                init=msgspec.convert(values.pop("init", None), InitFacts | None),
                **values,
            )
        except (KeyError, ValueError, TypeError, AttributeError, ConfigError, msgspec.ValidationError) as error:
            raise CheckpointError(f"{where} does not fit this version: {error}") from error


class RunFolder:
    """A folder that one training run writes and everything else reads.

    Args:
        path: the folder; `create` makes it, `open` checks it.
    """

    def __init__(self, path: Path, claimed: Claim | None = None) -> None:
        self.path, self.claimed = path, claimed

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[RunFolder]:
        """A folder that no other process writes meanwhile: empty or, to resume, as it is.

        What `overwrite` replaces is removed when the first model is saved, or by `forget_replaced`.

        Raises:
            ConfigError: another process writes it, or it is not empty and neither resume nor overwrite is set.
            CheckpointError: it cannot be made, or there is none to resume.
        """
        with claim(path, is_run_folder, resume=resume, overwrite=overwrite) as claimed:
            yield cls(path, claimed)

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunFolder:
        """An empty folder, which others may write, too.

        Raises:
            ConfigError: it exists and is not empty, and overwrite is not set.
            CheckpointError: it cannot be made.
        """
        with cls.claim(path, overwrite=overwrite) as run:
            run.forget_replaced()
        path.mkdir(exist_ok=True)
        return cls(path)

    def forget_replaced(self) -> None:
        """Remove what this folder replaces: it has something to keep now."""
        if self.claimed is not None:
            self.claimed.forget_replaced()

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder; of hf://user/model[@revision] the copy in the cache, fetched where it is not there.

        Raises:
            CheckpointError: there is none at this path.
        """
        path = local_copy(path, TO_LOAD)
        old = replaced_by(path)
        hint = f"; the run it was to replace is {old}, and comes back with the next training into {path}"
        hint = hint if old.is_dir() else ""
        if not path.is_dir():
            raise CheckpointError(f"there is no run folder {path}{suggested_path(path)}{hint}")
        if not (path / "config.json").is_file():
            inside = next((found.parent for found in sorted(path.glob("*/config.json"))), None)
            hint = f"; it holds run folders: give one of them, such as {inside}" if inside else hint
            raise CheckpointError(f"{path} is not a run folder: it has no config.json{hint}")
        return cls(path)

    def save_config(self, config: RunConfig) -> None:
        """Write config.json."""
        self._write(CONFIG, config.to_json())

    def _write(self, name: str, data: bytes | str) -> None:
        """Write a file whole or not at all, and note its digest."""
        self._check_place()
        atomic_write(self.path / name, data, noting(self.path, name))

    def _write_arrays(self, name: str, arrays: Mapping[str, Float32], metadata: Mapping[str, str]) -> None:
        """Likewise for arrays, which are asked for one by one."""
        self._check_place()
        with atomic_file(self.path / name, noting(self.path, name)) as temporary:
            write_tensors(temporary, arrays, metadata)

    def _check_place(self) -> None:
        if self.claimed is not None:
            self.claimed.check()

    def _check(self, name: str, end: str = ": it is not as it was written") -> None:
        if not is_as_written(self.path, name):
            raise CheckpointError(f"{self.path / name} is damaged{end}")

    def load_config(self) -> RunConfig:
        """Read config.json.

        Raises:
            CheckpointError: missing, damaged or of another version.
        """
        path = self.path / CONFIG
        config = RunConfig.from_json(_read_text(path), path)
        if config.format > 1 and read_book(self.path) is None:
            raise CheckpointError(
                f"there is no {self.path / BOOK} to tell whether files are whole; copy the folder again"
            )
        self._check(CONFIG)
        return config

    def save_data(self, vocabulary: Vocabulary, sequences: Sequences | None) -> None:
        """Write items.parquet and, when given, sequences/."""
        self._check_place()
        save_vocabulary(self.path, vocabulary)
        if sequences is not None:
            save_sequences(self.path, sequences)

    def load_vocabulary(self) -> Vocabulary:
        """Read items.parquet.

        Raises:
            CheckpointError: missing or damaged.
        """
        return load_vocabulary(self.path)

    def load_sequences(self) -> Sequences | None:
        """Map sequences/; None when the run was saved without histories.

        Raises:
            CheckpointError: damaged.
        """
        return load_sequences(self.path)

    def save_weights(self, weights: Mapping[str, Float32], epoch: int, *, refit: bool = False) -> None:
        """Write model.safetensors, with the epoch it comes from, and whether it was trained again on all events."""
        metadata = {REFIT if refit else EPOCH: str(epoch)}  # of two keys, the order in the file would be by chance
        self._write_arrays(WEIGHTS, weights, metadata)
        self.forget_replaced()

    def has_refit(self, config: RunConfig) -> bool:
        """Whether the saved model was trained again on all events, to the end.

        Raises:
            CheckpointError: damaged.
        """
        if not config.refit_epochs or not (self.path / WEIGHTS).exists():
            return False
        return config.format == 1 or REFIT in open_tensors(self.path / WEIGHTS)[1]

    def load_weights(self) -> tuple[Weights, int]:
        """The weights, and the epoch they come from.

        Raises:
            CheckpointError: missing or damaged.
        """
        path = self.path / WEIGHTS
        self._check(WEIGHTS)
        if read_book(self.path) is None:
            logger.info("%s is of format 1, which has no digests: damage of weights and titles goes unseen", self.path)
        arrays, metadata = open_tensors(path)
        epoch = metadata.get(EPOCH, metadata.get(REFIT, "0"))
        try:
            return dict(arrays), int(epoch)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: its epoch is {epoch!r}") from error

    def save_state(
        self,
        weights: Mapping[str, Float32],
        optimizer: Mapping[str, Float32],
        state: State,
        best: Mapping[str, Float32] | None = None,
    ) -> None:
        """Write training/state.safetensors: one file, so that it is always of one moment.

        Args:
            weights: of the last step.
            optimizer: Adam's moments and so on.
            state: the position.
            best: the weights of the best epoch that `state` tells of.
        """
        self._check_place()
        (self.path / "training").mkdir(exist_ok=True)
        parts = {"weights/": weights, "adam/": optimizer, "best/": best or {}}
        arrays = LateArrays.together(parts)
        self._write_arrays(STATE, arrays, {"state": json.dumps(asdict(state))})

    def has_begun(self) -> bool:
        """Whether training has saved anything."""
        return (self.path / STATE).exists() or (self.path / WEIGHTS).exists()

    def is_whole(self) -> bool:
        """Whether training and measuring have ended; true where nothing tells, as of a converted checkpoint."""
        return (self.path / METRICS).exists() or not self._state_path.exists()

    def is_empty(self) -> bool:
        """Whether the folder, which is claimed, holds nothing."""
        return is_empty(self.path)

    def load_state(self) -> SavedState | None:
        """Where training stood; None when nothing has been saved yet.

        Raises:
            CheckpointError: damaged.
        """
        if not self._state_path.exists():
            return None
        self._check(STATE, "; start again with --overwrite")
        arrays, metadata = open_tensors(self._state_path)
        try:
            state = msgspec.convert(json.loads(metadata["state"]), State)
        except (KeyError, ValueError, msgspec.ValidationError) as error:
            raise CheckpointError(f"{self._state_path} is damaged; start again with --overwrite") from error
        return SavedState(arrays.of("weights/"), arrays.of("adam/"), state, arrays.of("best/"))

    def begin_digests(self) -> None:
        """Note all files of a folder of format 1 as they are: from then on it is of format 2.

        Else forget the digests of files that a kill kept from their places: two kills would push out those that count.
        """
        if read_book(self.path) is None:
            found = [name for name in WHAT_COUNTS if (self.path / name).is_file()]
            note(self.path, {name: digest_of(self.path / name) for name in found}, begin=True)
        else:
            forget_unplaced(self.path)

    @property
    def _state_path(self) -> Path:
        return self.path / STATE

    def append_history(self, line: EpochLine) -> None:
        """Add an epoch to history.jsonl."""
        self._check_place()
        with disk_errors(self.path / HISTORY), (self.path / HISTORY).open("a") as file:
            file.write(_text_of(line))

    def read_history(self, last_epoch: int | None = None) -> list[EpochLine]:
        """The epochs written so far, up to last_epoch; a line cut off by a crash, or foreign, is left out."""
        path = self.path / HISTORY
        lines = []
        for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError, msgspec.ValidationError):
                lines.append(msgspec.convert(json.loads(text), EpochLine))
        return [line for line in lines if last_epoch is None or line.epoch <= last_epoch]

    def rewind_history(self, last_epoch: int) -> None:
        """Drop epochs after last_epoch: a resumed run writes them again."""
        lines = self.read_history(last_epoch)
        self._write(HISTORY, "".join(map(_text_of, lines)))

    def save_metrics(self, results: Sequence[Result], training: TrainingFacts | None = None) -> None:
        """Write metrics.json: results and, of a run that was trained here, how training went and on what."""
        told = {} if training is None else {"training": asdict(training)}
        values = {"results": [result.to_dict() for result in results], **told}
        if (self.path / HISTORY).exists():
            note(self.path, {HISTORY: digest_of(self.path / HISTORY)})
        self._write(METRICS, json.dumps(values, indent=1))

    def load_metrics(self) -> list[Result]:
        """The results in metrics.json, without figures per user; none when nothing has been evaluated.

        Raises:
            CheckpointError: damaged.
        """
        return self._read_metrics().results

    def forget_metrics(self) -> None:
        """Remove metrics.json: another model than its own takes its place."""
        self._check_place()
        (self.path / METRICS).unlink(missing_ok=True)

    def load_training(self) -> TrainingFacts | None:
        """How training went, as metrics.json tells; None when it has not ended.

        Raises:
            CheckpointError: damaged.
        """
        return self._read_metrics().training

    def _read_metrics(self) -> RunMetrics:
        path = self.path / METRICS
        if not path.exists():
            return RunMetrics([])
        self._check(METRICS, ": it is not as it was written; delete it and evaluate again")
        try:
            return msgspec.convert(json.loads(_read_text(path)), RunMetrics)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it and evaluate again") from error


def is_run_folder(path: Path) -> bool:
    """Whether a folder is a run, or the beginning of one, or a prepared log."""
    return is_prepared(path) or any((path / name).is_file() for name in (CONFIG, BOOK))


def check_resumable(saved: RunConfig, now: RunConfig, given: Collection[str] | None = None) -> None:
    """Refuse to resume another run than the one that was started.

    Args:
        saved: the run's settings.
        now: those that it is to go on with.
        given: names of the user's own among these; None = all.

    Raises:
        ConfigError: settings that shape the result have changed.
        CheckpointError: the log is another one.
    """
    if saved.data.fingerprint != now.data.fingerprint:
        raise CheckpointError(
            f"the log has changed since this run began ({saved.data.n_events:,} events then, {now.data.n_events:,} "
            "now, or in another order); train into another folder"
        )
    for part in ("model", "train", "eval"):
        before, after = asdict(getattr(saved, part)), asdict(getattr(now, part))
        fixed = {"max_epochs"} if before.get("schedule") == "cosine" else set()  # the learning rate is planned by it
        # A run of an earlier version has another default than the one that is now set where nothing is given.
        free = MAY_CHANGE_ON_RESUME - fixed | (set() if given is None else set(OF_ANSWERS) - set(given))
        if not saved.model.has_features:
            free |= {"feature_dropout"}  # earlier versions took it, and it did nothing
        changed = [k for k in before if before[k] != after[k] and k not in free]
        if changed:
            name = changed[0]
            raise ConfigError(
                f"cannot resume: {name} was {before[name]!r} and is now {after[name]!r}; "
                f"use the same settings, or train into another folder"
            )


def resumed_config(saved: RunConfig, now: RunConfig) -> RunConfig:
    """The saved run's settings with those of `now` that may change."""
    train = asdict(now.train)
    changed = replace(saved.train, **{k: train[k] for k in MAY_CHANGE_ON_RESUME})
    return replace(saved, train=changed, processes=now.processes)


def _text_of(line: EpochLine) -> str:
    return json.dumps(line.to_dict()) + "\n"


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is missing or not readable") from error
