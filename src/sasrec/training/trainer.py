"""The training loop: goes over epochs, validates, and ends with the weights of the best epoch.

Selection and early stopping look at valid only. Everything random is keyed by (seed, step), so a run that was
killed at any moment and resumed ends in the same weights as one that never stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from sasrec.core.arrays import Int32
from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig, parse_metric
from sasrec.core.errors import CheckpointError, TrainingError
from sasrec.core.world import Pulse, World
from sasrec.data.batches import TrainBatches
from sasrec.data.splits import Split
from sasrec.engine.prefetch import batches_for
from sasrec.engine.protocol import Engine
from sasrec.engine.shared_steps import SharedSteps
from sasrec.evaluation.candidates import draw_candidates
from sasrec.evaluation.protocols import evaluate
from sasrec.model.weights import POSITION_TABLE, Weights, is_all_finite
from sasrec.ranking.scorers import ModelScorer
from sasrec.runs.folder import RunFolder
from sasrec.runs.record import EpochLine, State
from sasrec.training.callbacks import Callbacks
from sasrec.training.interrupts import StoppedError, interruptible
from sasrec.training.progress import Progress, seconds_left
from sasrec.training.result import TrainResult
from sasrec.training.steps import take_step
from sasrec.training.together import check_same_weights, share_state, with_run

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.5  # how often progress is reported inside an epoch
MEASURING = 6  # times a validation that the end takes: valid, test twice, baselines beside them, the report
MEASURED_SCORES = 5e8  # a second, where neither a validation nor a few targets have told the time
LONG_SCORES = 1e9  # of a validation, from which on a few targets are asked
FEW_TARGETS = 256
SAVE_SECONDS = 5.0  # epochs shorter than this do not each save the state to resume from


def train(
    engine: Engine,
    split: Split,
    model: ModelConfig,
    train_config: TrainConfig,
    eval_config: EvalConfig,
    *,
    run: RunFolder | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    spent: float = 0.0,
    world: World | None = None,
    callbacks: Callbacks | None = None,
) -> TrainResult:
    """Train until max_epochs, max_minutes, patience, a callback or an interrupt (Ctrl-C, SIGTERM) ends it.

    Args:
        engine: holds the weights; left with the best epoch's.
        split: a split without valid targets trains for max_epochs and keeps the last epoch.
        model: the shape the engine was made with.
        train_config: optimisation and stopping.
        eval_config: the protocol; valid_protocol of train_config replaces its protocol for choosing the epoch.
        run: where checkpoints and history go; None keeps the best weights in memory only.
        resume: go on from the state in `run`.
        progress: called about twice a second and at the end of each epoch.
        spent: seconds of max_minutes that had passed when training began: the log was read, say.
        world: processes that each train a share of every batch; only process 0 has a `run`. None = this one is alone.
        callbacks: are told of each epoch; of several processes only process 0 has some.

    Raises:
        DataError: no user has two events to train on.
        TrainingError: the loss or the weights are no longer numbers; the last good checkpoint is kept.
        CheckpointError: the run folder cannot be written or its state is damaged.
    """
    loop = _Loop(engine, split, model, train_config, eval_config, run, progress, Pulse(world), spent, callbacks)
    if resume:
        loop.restore()
    with interruptible() as loop.pulse.asked:
        stopped = loop.run_until_stopped()
    return loop.finish(stopped)


class _Loop:
    """One call of `train`: what it was given, and the state it changes."""

    def __init__(
        self,
        engine: Engine,
        split: Split,
        model: ModelConfig,
        train_config: TrainConfig,
        eval_config: EvalConfig,
        run: RunFolder | None,
        progress: Callable[[Progress], None] | None,
        pulse: Pulse | None = None,
        spent: float = 0.0,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.engine, self.model, self.config = engine, model, train_config
        self.pulse = pulse = pulse or Pulse()
        self.world, self.spent = pulse.world, pulse.of_first(spent)
        self.steps = engine if self.world is None else SharedSteps(engine, self.world, pulse)
        self.run, self.progress = run, progress
        self.batches = TrainBatches(split, model, train_config)
        cutoffs = tuple(sorted({*eval_config.k, parse_metric(train_config.valid_metric)[1]}))
        self.eval_config = replace(eval_config, k=cutoffs, protocol=train_config.valid_protocol)
        self.split = split.bounded("valid", self.eval_config).bounded("test", self.eval_config)  # once for all epochs
        self.n_scores = len(self.split.valid) * split.sequences.n_items  # of a validation
        self.candidates: dict[str, Int32 | None] = {}
        self.state = State()
        self.history: list[EpochLine] = []
        self.best_weights: Weights | None = None
        self.last_save = pulse.now()
        self.callbacks = callbacks or Callbacks()
        self.pending_positions: float = 0  # whose loss the engine still holds, by their weights

    def restore(self) -> None:
        """Take up the state saved in the run folder, if any."""
        with_run(self.world, self.run, self._restore_from)
        if self.world is not None:
            self.state, self.best_weights = share_state(self.world, self.engine, self.state, self.best_weights)

    def _restore_from(self, run: RunFolder) -> None:
        saved = run.load_state()
        if saved is None:
            if run.has_begun():
                raise CheckpointError(
                    f"{run.path} has a model and no training/state.safetensors to go on from; start again with "
                    "--overwrite, or train into another folder"
                )
            logger.info("nothing has been saved yet; training starts at the first epoch")
            run.rewind_history(0)
            return
        self.state = saved.state
        self.engine.load_weights(saved.weights)
        self.engine.load_optimizer_state(saved.optimizer)
        run.rewind_history(self.state.epoch)
        self.history = run.read_history()
        for line in self.history:
            self.callbacks.epoch(line)
        if self.state.best_epoch:
            self._restore_best(run, dict(saved.best))
        logger.info("resumed after epoch %d, step %d", self.state.epoch, self.state.step)

    def _restore_best(self, run: RunFolder, best: Weights) -> None:
        """The weights of the saved state's best epoch; a kill may have left those of a later one, or of a refit."""
        state = self.state
        if best:
            self.best_weights = best
            run.save_weights(best, state.best_epoch)
            return
        weights, epoch = run.load_weights()  # an earlier version kept them there alone
        if epoch == state.best_epoch:
            self.best_weights = weights
            return
        logger.warning("the weights of epoch %d are gone; the best epoch is chosen from here on", state.best_epoch)
        state.best_epoch, state.best_value, state.best_metrics = 0, State.best_value, {}

    def run_until_stopped(self) -> str:
        """Train epoch after epoch; returns what ended it."""
        while True:
            reason = ""
            if self.state.step < self.batches.steps_per_epoch:  # else the epoch is to be validated
                reason = self._reason_to_stop() or self._train_epoch()
            if not reason:
                reason = self._ask_callbacks() if self._end_epoch() else "interrupted"
            if reason:
                self._save_state()
                return reason
            self._save_if_due()

    def _ask_callbacks(self) -> str:
        """Tell them of the epoch that has ended; what they answer."""
        return "callback" if self.pulse.of_first(float(self.callbacks.epoch(self.history[-1]))) else ""

    def _save_if_due(self) -> None:
        if self.pulse.now() - self.last_save > SAVE_SECONDS:
            self._save_state()

    def _reason_to_stop(self) -> str:
        state, config = self.state, self.config
        if self.pulse.is_set():
            return "interrupted"
        if state.epoch >= config.max_epochs:
            return "max_epochs"
        if config.patience and state.best_epoch and state.epoch - state.best_epoch >= config.patience:
            return "patience"
        if config.max_steps and state.epoch * self.batches.steps_per_epoch + state.step >= config.max_steps:
            return "max_steps"
        passed = self.spent + state.seconds + state.epoch_seconds
        if config.max_minutes and passed + self._reserve >= 60 * config.max_minutes:
            return "max_minutes"
        return ""

    @property
    def _reserve(self) -> float:
        """Seconds of max_minutes that are kept for measuring: at most two thirds of them."""
        state = self.state
        if state.n_validations:
            needed = MEASURING * state.valid_seconds / state.n_validations
        else:
            needed = MEASURING * self.n_scores / self._scores_a_second
        return min(needed, 40 * self.config.max_minutes)

    @cached_property
    def _scores_a_second(self) -> float:
        """How fast targets are ranked, by a few of them where all take long; the same in all processes."""
        if self.n_scores < LONG_SCORES:
            return MEASURED_SCORES
        scorer, sequences = ModelScorer(self.engine, self.model.max_seq_len), self.split.sequences
        for n in (1, FEW_TARGETS):  # the first touches the table's memory
            targets = self.split.valid.take(np.arange(min(n, len(self.split.valid))))
            began = time.perf_counter()
            scorer.rank(targets.histories(sequences), targets.items(sequences), None, self.eval_config.ties, 0)
        return self.pulse.of_first(len(targets) * sequences.n_items / (time.perf_counter() - began))

    def _train_epoch(self) -> str:
        """The rest of the epoch under way; returns what cut it short, or nothing."""
        state, began, reported = self.state, self.pulse.now(), self.pulse.now()
        before = state.epoch_seconds
        for batch in batches_for(self.steps, self.batches.epoch(state.epoch, state.step)):
            take_step(self.engine, batch, self.config, self.batches.steps_per_epoch, self.steps)
            state.step += 1
            state.n_positions += batch.total_weight
            self.pending_positions += batch.total_weight
            now = self.pulse.now()
            state.epoch_seconds = before + now - began
            if now - reported > REPORT_SECONDS and state.step < self.batches.steps_per_epoch:
                reported = now
                self._collect_loss()
                self._report()
                if now - self.last_save > 60 * self.config.save_every_minutes > 0:
                    self._save_state()
            if self._reason_to_stop() and state.step < self.batches.steps_per_epoch:
                self._collect_loss()
                return self._reason_to_stop()
        self._collect_loss()
        return ""

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The engine holds the average of the weights, where there is one."""
        if not self.config.ema_decay or not self.engine.has_average:  # no step has counted yet
            yield
            return
        self.engine.swap_average()
        try:
            yield
        finally:
            self.engine.swap_average()

    def _collect_loss(self) -> None:
        loss = self.steps.pop_loss()
        if not math.isfinite(loss):
            self._fail(f"the loss became {loss}")
        self.state.loss_sum += loss * self.pending_positions
        self.pending_positions = 0

    def _fail(self, what: str) -> None:
        state = self.state
        kept = f"the model of epoch {state.best_epoch} is kept" if state.best_epoch else "no epoch had been completed"
        raise TrainingError(
            f"{what} in epoch {state.epoch + 1}, step {state.step}: the likely cause is a learning rate too high "
            f"(learning_rate={self.config.learning_rate:g}); lower it or set clip_norm=1; {kept}"
        )

    def _end_epoch(self) -> bool:
        """Validate, keep the best, write the epoch's line; False = interrupted, and this is to be done again."""
        state, began = self.state, self.pulse.now()
        steps = (state.epoch + 1) * self.batches.steps_per_epoch
        with self._averaged():
            is_finite = all(map(is_all_finite, self.engine.state()[0].values()))
            check_same_weights(self.world, self.engine, state.epoch + 1)
        if not is_finite:
            self._fail("a weight became infinite or not a number")
        if state.epoch == 0:
            self._save_state()  # so that no model is without a state to go on from
        else:
            self._save_if_due()  # validation may take long
        try:
            with self._averaged():
                valid, test = self._validate()
        except StoppedError:
            return False
        self.pulse.beat()
        state.seconds += state.epoch_seconds + self.pulse.now() - began
        line = EpochLine(
            epoch=state.epoch + 1,
            step=steps,
            train_loss=state.mean_loss,
            valid=valid,
            test=test,
            seconds=state.epoch_seconds,
            users_per_second=len(self.batches.users) / max(state.epoch_seconds, 1e-9),
            learning_rate=self.config.learning_rate_at(steps - 1, self.batches.steps_per_epoch),
            total_seconds=state.seconds,
        )
        self.history.append(line)
        if self.run:
            self.run.append_history(line)
        state.epoch, state.step = state.epoch + 1, 0
        self._report(line)
        state.loss_sum, state.n_positions, state.epoch_seconds = 0.0, 0, 0.0
        return True

    def _validate(self) -> tuple[dict[str, float] | None, dict[str, float] | None]:
        """Keep the weights if they are the best so far; the metrics of valid and of test, where they were taken."""
        state, config, epoch = self.state, self.config, self.state.epoch + 1
        if not len(self.split.valid):
            self._keep(epoch)
            return None, None
        if epoch % config.valid_every and epoch < config.max_epochs:
            return None, None
        began = self.pulse.now()
        valid = self._metrics("valid")
        test = self._metrics("test") if config.log_test else None
        state.valid_seconds += self.pulse.now() - began
        state.n_validations += 1
        if valid[config.valid_metric] > state.best_value:
            state.best_value, state.best_metrics = valid[config.valid_metric], valid
            self._keep(epoch)
        return valid, test

    def _metrics(self, part: str) -> dict[str, float]:
        config = self.eval_config
        reported = self.pulse.now()

        def show(done: int, total: int) -> None:
            nonlocal reported
            self.pulse.beat()
            if self.pulse.is_set():
                raise StoppedError
            if self.pulse.now() - reported > REPORT_SECONDS and done < total:
                reported = self.pulse.now()
                self._report(validated=(done, total))

        if part not in self.candidates:
            sampled = config.protocol == "sampled"
            self.candidates[part] = (
                draw_candidates(self.split, part, config.n_candidates, config.exclude, config.eval_seed)
                if sampled
                else None
            )
        scorer = ModelScorer(self.engine, self.model.max_seq_len)
        result = evaluate(
            scorer,
            self.split,
            part,
            config,
            candidates=self.candidates[part],
            baselines=False,
            lists=False,
            progress=show,
            world=self.world,
        )
        return {name: metric["value"] for name, metric in result.metrics.items()}

    def _keep(self, epoch: int) -> None:
        """Keep the weights that the engine holds."""
        self.best_weights = None  # so that no third copy exists
        best = self.best_weights = self.engine.weights()
        self.state.best_epoch = epoch
        with_run(self.world, self.run, lambda run: run.save_weights(best, epoch))

    def _save_state(self) -> None:
        self.last_save = self.pulse.now()
        if self.world is not None:  # rows that wait are moved when anything is read: on all processes alike
            self.engine.state()[0][POSITION_TABLE]
        best = self.best_weights if self.state.best_epoch else None
        with_run(self.world, self.run, lambda run: run.save_state(*self.engine.state(), self.state, best))

    def _report(self, line: EpochLine | None = None, validated: tuple[int, int] | None = None) -> None:
        """Tell `progress` how the epoch under way, or the one just ended, stands."""
        if self.progress is None:
            return
        state, batches = self.state, self.batches
        users = len(batches.users) if line else state.step * self.config.batch_size
        self.progress(
            Progress(
                epoch=state.epoch + (line is None),
                max_epochs=self.config.max_epochs,
                step=batches.steps_per_epoch if line else state.step,
                steps_per_epoch=batches.steps_per_epoch,
                train_loss=state.mean_loss,
                users_per_second=users / max(state.epoch_seconds, 1e-9),
                seconds=state.seconds + (0.0 if line else state.epoch_seconds),
                seconds_left=seconds_left(state, self.config, batches.steps_per_epoch, self.n_scores > 0, self.spent),
                best_epoch=state.best_epoch,
                valid=line.valid if line else None,
                validated=validated,
            )
        )

    def finish(self, stopped: str) -> TrainResult:
        """Leave the engine with the best weights and say how it went."""
        state = self.state
        if self.best_weights is None:
            with self._averaged() if state.epoch else contextlib.nullcontext():
                if stopped == "interrupted":  # no epoch has been chosen yet: there is a state to go on from, no model
                    self.best_weights = self.engine.weights()
                else:
                    self._keep(state.epoch)
        assert self.best_weights is not None
        self.engine.load_weights(self.best_weights)
        logger.info("training ended after epoch %d (%s); best epoch %d", state.epoch, stopped, state.best_epoch)
        return TrainResult(
            weights=self.best_weights,
            best_epoch=state.best_epoch,
            valid=state.best_metrics,
            epochs=state.epoch,
            seconds=state.seconds + state.epoch_seconds,
            stopped=stopped,
            history=self.history,
        )
