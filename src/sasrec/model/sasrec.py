"""The SASRec network in torch, read from top to bottom: from item indices to features and scores.

Shape legend: B batch, L seq_len, D embedding_dim, H heads, T tokens of all groups of a batch, V n_items + 1.

Tokens lie flat, (T,), in groups: a group is `n_rows` histories of equal (padded) length `seq_len`, row after row.
Short rows are padded on the right. The causal mask lets a position see only itself and what is left of it, so no real
position ever sees padding. Only the published checkpoints differ (`padding="attended"`): their rows are padded on the
left, to max_seq_len, and their padding takes part in attention.

    group of 2 rows, seq_len 3:   items      4 8 6 | 5 0 0
                                  positions  7 8 9 | 9 0 0     (max_seq_len 10: the newest item has the last one)

Items that have features are folded into whole tables first (`ItemTables`), which everything else reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sasrec.core.arrays import Bool
from sasrec.core.config import ModelConfig
from sasrec.data.item_features import ItemFeatures
from sasrec.model.cold_rows import COLD_AT_ONCE, GUESS_PRIOR, GUESS_SQUARINGS, every_nth
from sasrec.model.weights import BLOCKS_WITHOUT_FINAL_NORM, initial_weights


@dataclass(frozen=True)
class Group:
    """Rows of one length. `last` (n_rows,) is the column of each row's last real position."""

    n_rows: int
    seq_len: int
    last: Tensor

    @property
    def n_tokens(self) -> int:
        """How many tokens of the flat layout are this group's."""
        return self.n_rows * self.seq_len


class Dropout(nn.Module):
    """Zero a share p of the values and scale the rest by 1 / (1 - p).

    On a CPU, 16-bit random integers from the step's own generator decide: a fifth of the time of torch's Bernoulli
    draws, and the masks follow from (seed, step) alone. p is rounded to the nearest 1/65536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.rng = np.random.Generator(np.random.SFC64(0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return F.dropout(x, self.p) if x.is_cuda else x * self._scaled_mask(x)

    def _scaled_mask(self, x: Tensor) -> Tensor:
        words = self.rng.integers(0, 2**64 - 1, -(-x.numel() // 4), dtype=np.uint64, endpoint=True)
        noise = torch.from_numpy(words.view(np.int16)[: x.numel()]).view(x.shape)
        dropped = round(self.p * 65536)
        kept = torch.ge(noise, dropped - 32768, out=torch.empty_like(x))
        return kept.mul_(65536 / (65536 - dropped))


class Attention(nn.Module):
    """Causal multi-head self-attention. Source: Kang & McAuley 2018, equations 2 and 3; torch.nn.MultiheadAttention.

    The published block takes its query from another input than its keys and values, so the two are separate.
    """

    causal: Tensor

    def __init__(self, config: ModelConfig, dropout: Dropout) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.n_heads, self.head_dim, self.dropout = config.n_heads, dim // config.n_heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim) if config.attention_output else nn.Identity()
        mask = torch.full((config.max_seq_len, config.max_seq_len), float("-inf")).triu(1)
        self.register_buffer("causal", mask, persistent=False)

    def forward(self, query_from: Tensor, context: Tensor, groups: Sequence[Group], last_only: bool) -> Tensor:
        query = self.query(query_from)  # (T, D), or (B, D) for the last positions only
        key, value = self.key_value(context).chunk(2, -1)  # (T, D) each
        tokens = [group.n_tokens for group in groups]
        queries = query.split([group.n_rows for group in groups] if last_only else tokens)
        parts = zip(queries, key.split(tokens), value.split(tokens), groups, strict=True)
        return self.output(torch.cat([self._attend(*part, last_only) for part in parts]))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, group: Group, last_only: bool) -> Tensor:
        mask = self.causal[: group.seq_len, : group.seq_len]  # (L, L)
        if last_only:
            mask = mask[group.last].repeat_interleave(self.n_heads, 0).unsqueeze(1)  # (B * H, 1, L)
        q, k, v = (self._heads(x, group.n_rows) for x in (query, key, value))  # (B * H, L, head_dim)
        scores = torch.baddbmm(mask.to(q.dtype), q, k.transpose(1, 2), alpha=self.head_dim**-0.5)
        mixed = torch.bmm(self.dropout(scores.softmax(-1)), v)  # (B * H, L, head_dim)
        if self.n_heads > 1:
            mixed = mixed.view(group.n_rows, self.n_heads, -1, self.head_dim).transpose(1, 2)  # (B, L, H, head_dim)
        return mixed.reshape(query.shape)

    def _heads(self, x: Tensor, n_rows: int) -> Tensor:
        if self.n_heads == 1:
            return x.reshape(n_rows, -1, self.head_dim)
        return x.reshape(n_rows, -1, self.n_heads, self.head_dim).transpose(1, 2).flatten(0, 1)


class FusedAttention(Attention):
    """The same in one call of torch, which makes no (L, L) matrix: for devices on which memory is the slow part.

    Rows padded on the right need no other mask than the causal one. Dropout's masks are drawn by torch.
    """

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, group: Group, last_only: bool) -> Tensor:
        q, k, v = (
            x.reshape(group.n_rows, -1, self.n_heads, self.head_dim).transpose(1, 2) for x in (query, key, value)
        )  # (B, H, L, head_dim); one query of each row for the last positions only
        mask = None
        if last_only:
            columns = torch.arange(group.seq_len, device=q.device)
            mask = (columns <= group.last.unsqueeze(-1)).view(group.n_rows, 1, 1, -1)  # (B, 1, 1, L)
        p = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=not last_only)  # (B, H, L, head_dim)
        return mixed.transpose(1, 2).reshape(query.shape)


class FeedForward(nn.Module):
    """Point-wise two-layer network. Source: Kang & McAuley 2018, equation 4 (its 1-D convolutions of width 1)."""

    def __init__(self, config: ModelConfig, dropout: Dropout) -> None:
        super().__init__()
        hidden = config.ffn_dim or config.embedding_dim
        self.up = nn.Linear(config.embedding_dim, hidden)
        self.down = nn.Linear(hidden, config.embedding_dim)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Identity()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.activation(self.dropout(self.up(x)))))


class SwiGLU(nn.Module):
    """Gated feed-forward, down(silu(gate(x)) * up(x)). Source: Shazeer 2020, equation 6."""

    def __init__(self, config: ModelConfig, dropout: Dropout) -> None:
        super().__init__()
        hidden = config.ffn_dim or config.embedding_dim
        self.gate = nn.Linear(config.embedding_dim, hidden)
        self.up = nn.Linear(config.embedding_dim, hidden)
        self.down = nn.Linear(hidden, config.embedding_dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.dropout(F.silu(self.gate(x)) * self.up(x))))


class Block(nn.Module):
    """What all blocks have: attention, feed-forward and two norms. A block is how they are wired together.

    `rows` picks the tokens to compute: the last position of each history, or None for all.
    """

    def __init__(self, config: ModelConfig, dropout: Dropout, attention: type[Attention]) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.attention = attention(config, dropout)
        self.ffn_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.ffn: nn.Module = FeedForward(config, dropout)

    def attend(self, query_from: Tensor, context: Tensor, groups: Sequence[Group], rows: Tensor | None) -> Tensor:
        """Attention of some or all positions."""
        return self.attention(query_from, context, groups, rows is not None)


class SASRecBlock(Block):
    """As published: q = LN(x); x = q + attention(q, x, x); h = LN(x); x = h + FFN(h).

    Source: model.py of pmixer/SASRec.pytorch 33bc1d8, after kang205/SASRec.
    """

    def forward(self, x: Tensor, groups: Sequence[Group], rows: Tensor | None) -> Tensor:
        query = self.attention_norm(_pick(x, rows))
        h = self.ffn_norm(query + self.attend(query, x, groups, rows))
        return h + self.ffn(h)


class PostNormBlock(Block):
    """x = LN(x + attention(x, x, x)); x = LN(x + FFN(x)). Source: pmixer/SASRec.pytorch fde8a9c."""

    def forward(self, x: Tensor, groups: Sequence[Group], rows: Tensor | None) -> Tensor:
        query = _pick(x, rows)
        h = self.attention_norm(query + self.attend(query, x, groups, rows))
        return self.ffn_norm(h + self.ffn(h))


class PreNormBlock(Block):
    """h = LN(x); x = x + attention(h, h, h); x = x + FFN(LN(x)). Source: pmixer/SASRec.pytorch fde8a9c."""

    def forward(self, x: Tensor, groups: Sequence[Group], rows: Tensor | None) -> Tensor:
        h = self.attention_norm(x)
        x = _pick(x, rows) + self.attend(_pick(h, rows), h, groups, rows)
        return x + self.ffn(self.ffn_norm(x))


class LiGRBlock(Block):
    """Pre-norm with a sigmoid gate on each branch and SwiGLU. Source: LiGR, Borisyuk et al. 2025; eSASRec 2025."""

    def __init__(self, config: ModelConfig, dropout: Dropout, attention: type[Attention]) -> None:
        super().__init__(config, dropout, attention)
        self.ffn = SwiGLU(config, dropout)
        self.attention_gate = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.ffn_gate = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.dropout = dropout

    def forward(self, x: Tensor, groups: Sequence[Group], rows: Tensor | None) -> Tensor:
        h = self.attention_norm(x)
        x = _pick(x, rows)
        attended = self.dropout(self.attend(_pick(h, rows), h, groups, rows))
        x = x + torch.sigmoid(self.attention_gate(x)) * attended
        return x + torch.sigmoid(self.ffn_gate(x)) * self.ffn(self.ffn_norm(x))


BLOCKS: dict[str, type[Block]] = {
    "sasrec": SASRecBlock,
    "post_norm": PostNormBlock,
    "pre_norm": PreNormBlock,
    "ligr": LiGRBlock,
}


def _pick(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


@dataclass(frozen=True)
class ItemTables:
    """What items are as inputs and as what is scored, (V, D) each; row 0 is padding."""

    inputs: Tensor
    outputs: Tensor


class FeaturesPart(nn.Module):
    """What features and vectors add to each item's row: the mean of embeddings, and a projection."""

    values: Tensor
    offsets: Tensor
    vectors: Tensor | None

    def __init__(self, features: ItemFeatures) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(features.values.values, dtype=torch.long), persistent=False)
        self.register_buffer("offsets", torch.tensor(features.values.offsets), persistent=False)
        vectors = None if features.vectors is None else torch.tensor(features.vectors)
        self.register_buffer("vectors", vectors, persistent=False)

    def forward(self, feature_embedding: nn.Embedding | None, vector_projection: nn.Linear | None) -> Tensor:
        parts = []
        if feature_embedding is not None:
            table = feature_embedding.weight
            parts.append(F.embedding_bag(self.values, table, self.offsets, mode="mean", include_last_offset=True))
        if vector_projection is not None:
            parts.append(vector_projection(self.vectors))
        return torch.stack(parts).sum(0)  # (V, D)


class SASRec(nn.Module):
    """Embeddings, blocks, final norm; scores are dot products with the item table.

    Args:
        config: the shape.
        n_items: items are 1..n_items; row 0 of the tables is padding, zero, and gets no gradient.
        rng: initialises the weights; the same generator gives the same weights.
        features: of all items, where the configuration has any.
        trained: (V,) which items there is anything to learn of; None = all (see `initial_weights`).
        attention: written out, or fused.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_items: int,
        rng: np.random.Generator,
        features: ItemFeatures | None = None,
        trained: Bool | None = None,
        attention: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.item_embedding = nn.Embedding(n_items + 1, dim, padding_idx=0)
        padding_position = 0 if config.padding == "attended" else None
        self.position_embedding = nn.Embedding(config.n_positions, dim, padding_idx=padding_position)
        block = BLOCKS[config.block]
        self.blocks = nn.ModuleList(block(config, self.dropout, attention) for _ in range(config.n_blocks))
        final_norm = config.block not in BLOCKS_WITHOUT_FINAL_NORM
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if final_norm else nn.Identity()
        self.output_embedding = self.item_embedding if config.tied else nn.Embedding(n_items + 1, dim, padding_idx=0)
        self.features_part = None if features is None else FeaturesPart(features)
        self.feature_embedding = nn.Embedding(config.n_features, dim) if config.n_features else None
        self.vector_projection = nn.Linear(config.vector_dim, dim, bias=False) if config.vector_dim else None
        with torch.no_grad():
            parameters = dict(self.named_parameters())
            for name, value in initial_weights(config, n_items, rng, trained).items():
                parameters[name].copy_(torch.from_numpy(value))

    def tables(self, ids_kept: Tensor | None = None, cold_scale: float = 0.0) -> ItemTables:
        """The item tables, features folded in.

        Args:
            ids_kept: (V,) bool, which items have their own embedding; None = all.
            cold_scale: how long rows without own embedding are (see cold_rows.py); 0 = as they come, for training.
        """
        inputs, outputs = self.item_embedding.weight, self.output_embedding.weight
        if self.features_part is None:
            return ItemTables(inputs, outputs)
        with torch.autocast(inputs.device.type, enabled=False):
            told = self.features_part(self.feature_embedding, self.vector_projection)  # (V, D)

            def folded(ids: Tensor) -> Tensor:
                rows = told + (ids if ids_kept is None else ids * ids_kept.unsqueeze(-1))
                return _place_cold(rows, ids, told, cold_scale) if cold_scale else rows

            table = folded(inputs)
            return ItemTables(table, table if self.config.tied else folded(outputs))

    def forward(
        self,
        items: Tensor,
        positions: Tensor,
        groups: Sequence[Group],
        rows: Tensor | None = None,
        tables: ItemTables | None = None,
    ) -> Tensor:
        """Features of all tokens, or of the tokens `rows`: one, the last, of each history, in order.

        Args:
            items: (T,) int64 item indices, 0 where padded.
            positions: (T,) int64 rows of the position table.
            groups: the rectangles that the T tokens form.
            rows: (B,) int64 tokens to return; the last block computes only these.
            tables: the item tables, where they have been made already.

        Returns:
            (T, D) or (B, D) float32.
        """
        embedded = F.embedding(items, (tables or self.tables()).inputs, padding_idx=0)
        x = embedded * self.config.embedding_dim**0.5 + self.position_embedding(positions)  # (T, D)
        keep_mask = (items != 0).unsqueeze(-1) if self.config.padding == "zeroed" else None  # (T, 1)
        x = _zero_padding(self.dropout(x), keep_mask)
        for i, block in enumerate(self.blocks):
            picked = rows if i == len(self.blocks) - 1 else None
            x = _zero_padding(block(x, groups, picked), None if keep_mask is None else _pick(keep_mask, picked))
        if not self.blocks:
            x = _pick(x, rows)
        return self.norm(x)

    def scores(self, features: Tensor, items: Tensor, tables: ItemTables | None = None) -> Tensor:
        """Dot products of features (T, D) with items (T,) or (T, N): (T,) or (T, N)."""
        rows = F.embedding(items, (tables or self.tables()).outputs, padding_idx=0)  # (T, D) or (T, N, D)
        if items.dim() == 1:
            return (features * rows).sum(-1)
        return torch.bmm(rows, features.unsqueeze(-1)).squeeze(-1)


def _zero_padding(x: Tensor, keep_mask: Tensor | None) -> Tensor:
    return x if keep_mask is None else x * keep_mask


@torch.no_grad()
def _place_cold(rows: Tensor, own: Tensor, told: Tensor, cold_scale: float) -> Tensor:
    """Rows (V, D) with those of cold items as `cold_rows` has it."""
    lengths, cold = told.norm(dim=-1), (own == 0).all(-1)
    warm, some_cold = (~cold & (lengths > 0)).nonzero()[:, 0], (cold & (lengths > 0)).nonzero()[:, 0]
    if not len(warm) or not len(some_cold):
        return rows
    placed, usual, mean = rows.clone(), lengths[warm].mean(), own[warm].mean(dim=0)
    seen = warm[:: every_nth(len(warm))]
    directions, parts = told[seen] / lengths[seen, None], own[seen] - mean
    for some in some_cold.split(COLD_AT_ONCE):
        weights = (told[some] / lengths[some, None] @ directions.T).clamp_(min=0)
        for _ in range(GUESS_SQUARINGS):
            weights *= weights
        whole = told[some] + weights @ parts / (GUESS_PRIOR + weights.sum(-1, keepdim=True))
        length = whole.norm(dim=-1, keepdim=True)
        placed[some] = torch.where(length > 0, whole * cold_scale * (usual / length).sqrt(), whole)
    return placed
