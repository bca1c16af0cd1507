"""The plain engine, on torch: any device, every configuration; the compiled core is checked against it.

Shape legend: B rows, T tokens, L seq_len, D embedding_dim, V n_items + 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Float32
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.forks import needs_threads_of
from sasrec.core.threads import threads_of
from sasrec.data.batches import Batch, checked_weight
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import DROPOUT, WEIGHTS, generator
from sasrec.engine.batch_tensors import BatchTensors, for_full_loss, for_sampled_loss
from sasrec.engine.device import Way, device_of, name_of, seed_device, to_device, way_on
from sasrec.engine.id_dropout import ids_kept, step_key
from sasrec.engine.layout import TokenLayout, chunks_of_rows, full_length, lay_out
from sasrec.engine.orthogonal import take_orthogonal_step
from sasrec.model.folding import check_features
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE, LateArrays, Weights, check_weights, is_block_matrix

if TYPE_CHECKING:
    import torch

    from sasrec.model.sasrec import ItemTables

MATRICES, ORTHOGONAL, OTHERS = "matrices", "orthogonal", "others"  # groups of weights with steps of one kind


def _read_late(tensors: Mapping[str, torch.Tensor]) -> LateArrays:
    """On a CPU without a copy."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return LateArrays(shapes, lambda name: tensors[name].detach().cpu().numpy())


class TorchEngine:
    """The plain implementation, for any device and every configuration.

    On a CPU, rows are grouped by length, so that little padding is computed. On CUDA a batch is one padded rectangle,
    attention is fused, matrix products of training multiply bf16, and batches are made ahead (see `device.Way`).

    Args:
        model: the shape.
        n_items: items are 1..n_items.
        train: loss, optimizer, seed, device, threads.
        way: how to work; None = as the device is best used.
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
        way: Way | None = None,
        features: ItemFeatures | None = None,
        trained: Bool | None = None,
    ) -> None:
        import torch

        from sasrec.model.sasrec import Attention, FusedAttention, SASRec

        _say_that_it_computes()
        check_features(model, n_items, features)
        self.features = features
        self.config, self.train_config, self.n_items = model, train, n_items
        self.threads = threads_of(train.threads)
        self.device = device_of(train.device)
        self.way, self.isa = way or way_on(self.device), name_of(self.device)
        self.index_device = str(self.device) if self.way.ranks else ""
        attention = FusedAttention if self.way.fused_attention else Attention
        rng = generator(train.seed, WEIGHTS)
        self.model = SASRec(model, n_items, rng, features, trained, attention).to(self.device)
        is_full = train.loss == "cross_entropy"
        self._head, self._read = (self._full_loss, for_full_loss) if is_full else (self._sampled_loss, for_sampled_loss)
        self._next: tuple[Batch, BatchTensors] | None = None
        self._answering: ItemTables | None = None  # made once after each change of the weights
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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.way.bf16):
            loss = self._loss(batch)
        self._loss_sum += loss.detach().double() * total_weight
        self._total_weight += total_weight
        if batch.share is not None:
            loss = loss * (total_weight / batch.share.weight)
        if self.train_config.l2_embedding and batch.counts_penalty:
            loss = loss + self.train_config.l2_embedding * self.model.item_embedding.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]

    def take(self, batch: Batch, tensors: BatchTensors) -> None:
        """Keep what `tensors_of` has made of the next batch."""
        self._next = batch, tensors

    def tensors_of(self, batch: Batch) -> BatchTensors:
        """A batch on the device; another thread may make it meanwhile."""
        return self._read(batch, self.n_items, self._layout(batch.inputs), self._ids_kept(batch.step), self._tensor)

    def _loss(self, batch: Batch) -> torch.Tensor:
        of, tensors = self._next or (None, None)
        self._next = None
        given = tensors if tensors is not None and of is batch else self.tensors_of(batch)
        layout, tables = given.layout, self.model.tables(given.ids_kept)
        tokens = self.model(layout.items, layout.positions, layout.groups, tables=tables)  # (T, D)
        return self._head(tokens.index_select(0, layout.real), tables, batch, given)

    def _ids_kept(self, step: int) -> torch.Tensor | None:
        """Which items have their own embedding in a step; None = all."""
        train = self.train_config
        if self.features is None or not train.feature_dropout:
            return None
        return self._tensor(ids_kept(self.features, train.feature_dropout, step_key(train.seed, step)))

    def _sampled_loss(
        self, features: torch.Tensor, tables: ItemTables, batch: Batch, given: BatchTensors
    ) -> torch.Tensor:
        """Leaves out negatives that are the target, and shared negatives that the user has had."""
        import torch

        from sasrec.model.losses import sampled_loss

        targets, negatives, corrections = given.targets, given.negatives, given.corrections
        assert negatives is not None
        assert corrections is not None
        if negatives.ndim == 1:
            negative = features @ torch.nn.functional.embedding(negatives, tables.outputs, padding_idx=0).T  # (T, N)
        else:
            negative = self.model.scores(features, negatives, tables)
        hits = negatives == targets.unsqueeze(-1)
        if given.left_out is not None:
            hits[given.left_out.positions, given.left_out.columns] = True
        loss = sampled_loss(self.train_config, batch.n_candidates(self.n_items))
        positive = self.model.scores(features, targets, tables)
        return loss(positive, negative.masked_fill(hits, -math.inf), corrections[negatives], given.weights)

    def _full_loss(self, features: torch.Tensor, tables: ItemTables, batch: Batch, given: BatchTensors) -> torch.Tensor:
        """Cross-entropy over all items, some positions at a time; the backward pass computes their scores again.

        Items that the user has had are left out where the batch says so, and items that are no candidates everywhere.
        """
        from torch.utils.checkpoint import checkpoint

        from sasrec.model.losses import cross_entropy

        items = tables.outputs[1:] if given.candidates is None else tables.outputs[given.candidates]
        weights = np.ones(len(batch.targets), np.float32) if batch.weights is None else batch.weights

        def share(start: int, part: torch.Tensor) -> torch.Tensor:
            end = start + len(part)
            scores = part @ items.T
            if given.left_out is not None:
                scores[given.left_out.part(start, end)] = -math.inf
            counted = None if given.weights is None else given.weights[start:end]
            loss = cross_entropy(scores, given.targets[start:end], counted)
            return loss * (float(weights[start:end].sum(dtype=np.float64)) / batch.total_weight)

        n = max(1, self.way.full_scores // len(items))
        loss = features.new_zeros(())
        for start in range(0, len(weights), n):
            part = features[start : start + n]
            if not weights[start : start + n].any():
                continue
            loss = loss + checkpoint(share, start, part, use_reentrant=False, preserve_rng_state=False)
        return loss

    def _seed_dropout(self, batch: Batch) -> None:
        rank = () if batch.share is None or not batch.share.rank else (batch.share.rank,)
        rng = generator(self.train_config.seed, DROPOUT, batch.step, *rank)
        self.model.dropout.rng = rng
        if self.way.fused_attention:
            seed_device(self.device, int(rng.integers(2**63)))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The blocks' matrices, with weight decay; tables with steps of their own, if any; all other weights."""
        tables = (ITEM_TABLE, OUTPUT_TABLE) if self.train_config.orthogonal_steps else ()
        groups: dict[str, list[torch.nn.Parameter]] = {MATRICES: [], ORTHOGONAL: [], OTHERS: []}
        for name, parameter in self.model.named_parameters():
            group = ORTHOGONAL if name in tables else MATRICES if is_block_matrix(name) else OTHERS
            groups[group].append(parameter)
        decay = self.train_config.weight_decay
        return [
            {"params": parameters, "weight_decay": decay if name == MATRICES else 0.0, "name": name}
            for name, parameters in groups.items()
        ]

    def optimizer_step(self, learning_rate: float) -> None:
        import torch

        if self.train_config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train_config.clip_norm)
        tables: list[torch.nn.Parameter] = []  # Adam moves their moments only
        for group in self.optimizer.param_groups:
            is_orthogonal = group["name"] == ORTHOGONAL
            group["lr"] = 0.0 if is_orthogonal else learning_rate
            tables += group["params"] if is_orthogonal else []
        self.optimizer.step()
        for table in tables:
            take_orthogonal_step(table, self.optimizer.state[table], self.optimizer.defaults, learning_rate)
        self._answering = None

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
        self._answering = None

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
            tables = self._answer_tables()
            for rows in chunks_of_rows(recent.lengths, full_length(self.config), self.way.encode_tokens):
                layout = self._layout(recent.take(rows))
                encoded = self.model(layout.items, layout.positions, layout.groups, layout.last, tables)
                features[rows[layout.order]] = encoded.float().cpu().numpy()
        return features

    def item_table(self) -> Float32:
        return self._answer_tables().outputs.detach().cpu().numpy()

    def _answer_tables(self) -> ItemTables:
        import torch

        if self._answering is None:
            with torch.inference_mode():
                self._answering = self.model.tables(cold_scale=self.config.cold_scale)
        return self._answering

    def weights(self) -> Weights:
        return {name: p.detach().cpu().numpy().copy() for name, p in self.model.named_parameters()}

    def load_weights(self, weights: Mapping[str, Float32]) -> None:
        parameters = dict(self.model.named_parameters())
        check_weights(weights, {name: tuple(p.shape) for name, p in parameters.items()})
        for name, parameter in parameters.items():
            parameter.data.copy_(self._tensor(weights[name]))
        self._answering = None

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

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return to_device(array, self.device)

    def _layout(self, histories: Ragged) -> TokenLayout:
        return lay_out(histories, self.config, self.way.group_overhead, self._tensor)


def _say_that_it_computes() -> None:
    """With one thread torch starts no others, so a fork takes nothing from it."""
    import torch

    if torch.get_num_threads() > 1:
        needs_threads_of("torch")
