"""The plain engine, on torch: any device, every configuration; the compiled core is checked against it.

Shape legend: B rows, T tokens, L seq_len, D embedding_dim, V n_items + 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Float32, Int32, Int64
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.forks import needs_threads_of
from sasrec.core.threads import threads_of
from sasrec.data.batches import Batch, checked_weight, seen_candidates
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import DROPOUT, WEIGHTS, generator
from sasrec.engine.id_dropout import ids_kept, step_key
from sasrec.model.folding import check_features
from sasrec.model.weights import LateArrays, Weights, check_weights, is_block_matrix

if TYPE_CHECKING:
    import torch

    from sasrec.model.sasrec import Group, ItemTables

GROUP_OVERHEAD = 300.0  # what one more group of a batch costs, in tokens
ATTENTION_TOKENS = 75.0  # at this length attention costs as much as the rest of a block
MAX_LENGTHS = 24  # distinct lengths that the grouping looks at


@dataclass(frozen=True)
class Cuts:
    """How an engine cuts its work. Results depend on it to rounding only."""

    encode_tokens: int = 4096  # encoded at once: their activations stay in the cache
    full_scores: int = 1 << 22  # of cross_entropy that exist at once: 16 MiB
    group_overhead: float = GROUP_OVERHEAD


def _read_late(tensors: Mapping[str, torch.Tensor]) -> LateArrays:
    """On a CPU without a copy."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return LateArrays(shapes, lambda name: tensors[name].detach().cpu().numpy())


@dataclass(frozen=True)
class TokenLayout:
    """Histories as the flat, grouped tokens that the model takes (see model/sasrec.py)."""

    items: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64
    groups: list[Group]
    real: torch.Tensor  # (T_real,) token of each value of the histories, in the histories' order
    last: torch.Tensor  # (B,) token of the last value of each history, in layout order
    order: Int64  # (B,) history that each row of the layout is


class TorchEngine:
    """The plain implementation, for any device and every configuration.

    On a CPU, rows are grouped by length, so that little padding is computed. On CUDA a batch is one padded rectangle
    in bf16 autocast.

    Args:
        model: the shape.
        n_items: items are 1..n_items.
        train: loss, optimizer, seed, device, threads.
        cuts: how much is computed at once.
        features: of all items, where the configuration has any.
        trained: (V,) which items there is anything to learn of; None = all (see `initial_weights`).

    Raises:
        ConfigError: the device is not to be had, or the features are not those that the configuration is of.
    """

    name = "torch"

    def __init__(
        self,
        model: ModelConfig,
        n_items: int,
        train: TrainConfig,
        cuts: Cuts = Cuts(),
        features: ItemFeatures | None = None,
        trained: Bool | None = None,
    ) -> None:
        import torch

        from sasrec.model.sasrec import SASRec

        _say_that_it_computes()
        check_features(model, n_items, features)
        self.features = features
        self.config, self.train_config, self.n_items, self.cuts = model, train, n_items, cuts
        self.threads = threads_of(train.threads)
        self.device = _device(train.device)
        self.model = SASRec(model, n_items, generator(train.seed, WEIGHTS), features, trained).to(self.device)
        self._head = self._full_loss if train.loss == "cross_entropy" else self._sampled_loss
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), betas=(train.adam_beta1, train.adam_beta2), fused=True
        )
        self._average: dict[str, torch.Tensor] = {}
        self._loss_sum = torch.zeros((), device=self.device, dtype=torch.float64)
        self._total_weight = 0.0

    def forward_backward(self, batch: Batch) -> None:
        import torch

        _say_that_it_computes()
        total_weight = checked_weight(batch)
        if not self.model.training:  # switching visits all modules
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        self._seed_dropout(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self._loss(batch)
        self._loss_sum += loss.detach().double() * total_weight
        self._total_weight += total_weight
        if batch.share is not None:
            loss = loss * (total_weight / batch.share.weight)
        if self.train_config.l2_embedding and batch.counts_penalty:
            loss = loss + self.train_config.l2_embedding * self.model.item_embedding.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]

    def _loss(self, batch: Batch) -> torch.Tensor:
        layout, tables = self._layout(batch.inputs), self.model.tables(self._ids_kept(batch.step))
        tokens = self.model(layout.items, layout.positions, layout.groups, tables=tables)  # (T, D)
        return self._head(tokens.index_select(0, layout.real), tables, batch)

    def _ids_kept(self, step: int) -> torch.Tensor | None:
        """Which items have their own embedding in a step; None = all."""
        train = self.train_config
        if self.features is None or not train.feature_dropout:
            return None
        return self._tensor(ids_kept(self.features, train.feature_dropout, step_key(train.seed, step)))

    def _sampled_loss(self, features: torch.Tensor, tables: ItemTables, batch: Batch) -> torch.Tensor:
        """Leaves out negatives that are the target, and shared negatives that the user has had."""
        import torch

        from sasrec.model.losses import sampled_loss

        targets, negatives = self._tensor(batch.targets), self._tensor(batch.negatives)
        if batch.negatives.ndim == 1:
            negative = features @ torch.nn.functional.embedding(negatives, tables.outputs, padding_idx=0).T  # (T, N)
        else:
            negative = self.model.scores(features, negatives, tables)
        hits = negatives == targets.unsqueeze(-1)
        if batch.earlier is not None:
            positions, columns = seen_candidates(batch, batch.negatives)
            hits[self._tensor(positions), self._tensor(columns)] = True
        corrections = self._tensor(batch.corrections)[negatives]
        weights = None if batch.weights is None else self._tensor(batch.weights)
        loss = sampled_loss(self.train_config, batch.n_candidates(self.n_items))
        return loss(
            self.model.scores(features, targets, tables), negative.masked_fill(hits, -math.inf), corrections, weights
        )

    def _full_loss(self, features: torch.Tensor, tables: ItemTables, batch: Batch) -> torch.Tensor:
        """Cross-entropy over all items, some positions at a time; the backward pass computes their scores again.

        Items that the user has had are left out where the batch says so, and items that are no candidates everywhere.
        """
        from torch.utils.checkpoint import checkpoint

        from sasrec.model.losses import cross_entropy

        candidates, items = self._candidates(tables.outputs, batch)
        targets = self._tensor(np.searchsorted(candidates, batch.targets))
        weights = np.ones(len(targets), np.float32) if batch.weights is None else batch.weights

        positions, columns = np.zeros((2, 0), np.int64)
        if batch.earlier is not None:
            positions, columns = seen_candidates(batch, candidates)

        def share(start: int, part: torch.Tensor) -> torch.Tensor:
            end = start + len(part)
            first, last = np.searchsorted(positions, [start, end])
            scores = part @ items.T
            scores[self._tensor(positions[first:last] - start), self._tensor(columns[first:last])] = -math.inf
            counted = None if batch.weights is None else self._tensor(weights[start:end])
            loss = cross_entropy(scores, targets[start:end], counted)
            return loss * (float(weights[start:end].sum(dtype=np.float64)) / batch.total_weight)

        n = max(1, self.cuts.full_scores // len(candidates))
        loss = features.new_zeros(())
        for start in range(0, len(targets), n):
            part = features[start : start + n]
            if not weights[start : start + n].any():
                continue
            loss = loss + checkpoint(share, start, part, use_reentrant=False, preserve_rng_state=False)
        return loss

    def _candidates(self, table: torch.Tensor, batch: Batch) -> tuple[Int32, torch.Tensor]:
        """The items that compete with a target, and their rows; padding is none of them."""
        if batch.candidates is None:
            return np.arange(1, self.n_items + 1, dtype=np.int32), table[1:]
        return batch.candidates, table[self._tensor(batch.candidates)]

    def _seed_dropout(self, batch: Batch) -> None:
        rank = () if batch.share is None or not batch.share.rank else (batch.share.rank,)
        rng = generator(self.train_config.seed, DROPOUT, batch.step, *rank)
        self.model.dropout.rng = rng
        if self.device.type == "cuda":
            import torch

            torch.cuda.manual_seed(int(rng.integers(2**63)))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The blocks' matrices, with weight decay, and all other weights, without."""
        named = list(self.model.named_parameters())
        return [
            {"params": [p for n, p in named if is_block_matrix(n)], "weight_decay": self.train_config.weight_decay},
            {"params": [p for n, p in named if not is_block_matrix(n)], "weight_decay": 0.0},
        ]

    def optimizer_step(self, learning_rate: float) -> None:
        import torch

        if self.train_config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train_config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    @property
    def has_average(self) -> bool:
        return bool(self._average)

    def update_average(self, decay: float) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self._average:
                self._average[name].lerp_(parameter.detach(), 1 - decay)
            else:
                self._average[name] = parameter.detach().clone()

    def swap_average(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data, self._average[name] = self._average[name], parameter.data

    def pop_loss(self) -> float:
        loss = self._loss_sum.item() / self._total_weight if self._total_weight else 0.0
        self._loss_sum.zero_()
        self._total_weight = 0.0
        return loss

    def encode(self, histories: Ragged) -> Float32:
        import torch

        _say_that_it_computes()
        if self.model.training:
            self.model.eval()
        recent = histories.last(self.config.max_seq_len)
        features = np.empty((len(recent), self.config.embedding_dim), np.float32)
        with torch.inference_mode():
            tables = self.model.tables()
            for rows in _chunks(recent.lengths, self._full_length, self.cuts.encode_tokens):
                layout = self._layout(recent.take(rows))
                encoded = self.model(layout.items, layout.positions, layout.groups, layout.last, tables)
                features[rows[layout.order]] = encoded.float().cpu().numpy()
        return features

    def item_table(self) -> Float32:
        return self.model.tables().outputs.detach().cpu().numpy()

    def weights(self) -> Weights:
        return {name: p.detach().cpu().numpy().copy() for name, p in self.model.named_parameters()}

    def load_weights(self, weights: Mapping[str, Float32]) -> None:
        parameters = dict(self.model.named_parameters())
        check_weights(weights, {name: tuple(p.shape) for name, p in parameters.items()})
        for name, parameter in parameters.items():
            parameter.data.copy_(self._tensor(weights[name]))

    def optimizer_state(self) -> Weights:
        return {name: array.copy() for name, array in self.state()[1].items()}

    def state(self) -> tuple[LateArrays, LateArrays]:
        weights = dict(self.model.named_parameters())
        others = {
            f"{key}/{name}": value
            for name, parameter in weights.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        others |= {f"average/{name}": value for name, value in self._average.items()}
        return _read_late(weights), _read_late(others)

    def load_optimizer_state(self, state: Mapping[str, Float32]) -> None:
        import torch

        for name, parameter in self.model.named_parameters():
            mine = {k.partition("/")[0]: v for k, v in state.items() if k.partition("/")[2] == name}
            average = mine.pop("average", None)
            if average is not None:
                self._average[name] = torch.tensor(average, device=self.device)
            if mine:
                self.optimizer.state[parameter] = {k: torch.tensor(v, device=self.device) for k, v in mine.items()}

    @property
    def _full_length(self) -> int:
        """The length that every row is padded to; 0 = the longest row of its group."""
        return 0 if self.config.padding == "none" else self.config.max_seq_len

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return (tensor.long() if tensor.dtype == torch.int32 else tensor).to(self.device)

    def _layout(self, histories: Ragged) -> TokenLayout:
        """Rows sorted by length and padded on the right in groups; or all padded on the left, as published."""
        from sasrec.model.sasrec import Group

        lengths = histories.lengths
        order = np.argsort(lengths, kind="stable")
        by_length = lengths[order]
        if self._full_length:
            cuts = [(0, len(order), self._full_length)]
        elif self.device.type == "cpu":
            cuts = length_groups(by_length, self.cuts.group_overhead)
        else:
            cuts = [(0, len(order), int(by_length[-1]))]
        widths = np.repeat([width for _, _, width in cuts], [stop - start for start, stop, _ in cuts])
        first_token = np.concatenate([[0], np.cumsum(widths)])
        shift = widths - by_length if self._full_length else np.zeros_like(widths)
        row_start = np.empty(len(order), np.int64)
        row_start[order] = first_token[:-1] + shift
        column = np.arange(len(histories.values)) - histories.offsets[:-1].repeat(lengths)
        real = row_start.repeat(lengths) + column
        items, positions = np.zeros((2, first_token[-1]), np.int64)
        items[real] = histories.values
        positions[real] = self._positions(column, lengths)
        if self.config.padding == "zeroed":
            positions = np.arange(len(positions)) % self.config.max_seq_len
        last_column = shift + by_length - 1
        groups = [Group(stop - start, width, self._tensor(last_column[start:stop])) for start, stop, width in cuts]
        return TokenLayout(
            self._tensor(items),
            self._tensor(positions),
            groups,
            self._tensor(real),
            self._tensor(first_token[:-1] + last_column),
            order,
        )

    def _positions(self, column: Int64, lengths: Int64) -> Int64:
        """Position of the j-th of n items: max_seq_len - n + j, plus 1 where row 0 of the table is padding."""
        return self.config.n_positions - lengths.repeat(lengths) + column


def _say_that_it_computes() -> None:
    """With one thread torch starts no others, so a fork takes nothing from it."""
    import torch

    if torch.get_num_threads() > 1:
        needs_threads_of("torch")


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is not a device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: this torch sees no CUDA device; use device=cpu")
    return device


def _chunks(lengths: Int64, full_length: int, max_tokens: int) -> list[Int64]:
    """Rows sorted by length, cut so that no chunk has more than max_tokens padded tokens."""
    order = np.argsort(lengths, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        widths = lengths[order[start : start + max_tokens]]
        padded = (np.arange(len(widths)) + 1) * (full_length or widths)
        stop = start + max(1, int(np.searchsorted(padded, max_tokens, "right")))
        chunks.append(order[start:stop])
        start = stop
    return chunks


def length_groups(lengths: Int64, overhead: float = GROUP_OVERHEAD) -> list[tuple[int, int, int]]:
    """Cut rows, sorted by length, into groups padded to their longest row, at least cost.

    Dynamic programming over at most MAX_LENGTHS distinct lengths; a group of n rows of length l costs
    n * l * (1 + l / ATTENTION_TOKENS) + overhead.

    Returns:
        (start, stop, width) of each group.
    """
    values, first = np.unique(lengths, return_index=True)
    stops = np.append(first[1:], len(lengths))
    if len(values) > MAX_LENGTHS:
        kept = np.unique(np.linspace(0, len(values) - 1, MAX_LENGTHS).round().astype(int))
        values, stops = values[kept], stops[kept]
    starts = np.concatenate([[0], stops[:-1]])
    best, came_from = np.zeros(len(values) + 1), [0] * (len(values) + 1)
    for j in range(1, len(values) + 1):
        per_row = values[j - 1] * (1 + values[j - 1] / ATTENTION_TOKENS)
        costs = best[:j] + (stops[j - 1] - starts[:j]) * per_row + overhead
        came_from[j] = int(np.argmin(costs))
        best[j] = costs[came_from[j]]
    groups, j = [], len(values)
    while j:
        i = came_from[j]
        groups.append((int(starts[i]), int(stops[j - 1]), int(values[j - 1])))
        j = i
    return groups[::-1]
