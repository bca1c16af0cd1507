"""SASRec in NumPy, written from the paper's equations and the published layouts: an oracle, one user at a time.

Names of weights are those of sasrec.model.sasrec; nothing else of the package is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-8) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class Reference:
    """Features of one history at all its positions.

    Args:
        weights: by the names of sasrec.model.sasrec, cast to float64.
        block: sasrec, post_norm, pre_norm or ligr.
        n_heads: heads of width D / n_heads.
        relu: False for pmixer-2020.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[np.float32]], block: str, n_heads: int = 1, relu: bool = True
    ) -> None:
        self.w = {name: weight.astype(np.float64) for name, weight in weights.items()}
        self.block, self.n_heads, self.relu = block, n_heads, relu
        self.n_blocks = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        return layer_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def attention(self, name: str, query_from: Array, context: Array) -> Array:
        """Equations 2 and 3, position i looking at positions 0..i."""
        q = self.linear(f"{name}.query", query_from)
        k, v = np.split(self.linear(f"{name}.key_value", context), 2, axis=-1)
        length, dim = q.shape
        width = dim // self.n_heads
        heads = []
        for h in range(self.n_heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[:, part] @ k[:, part].T / np.sqrt(width)
            scores[np.triu_indices(length, 1)] = -np.inf
            heads.append(softmax(scores) @ v[:, part])
        mixed = np.concatenate(heads, -1)
        return self.linear(f"{name}.output", mixed) if f"{name}.output.weight" in self.w else mixed

    def ffn(self, name: str, x: Array) -> Array:
        if f"{name}.gate.weight" in self.w:
            gate = self.linear(f"{name}.gate", x)
            return self.linear(f"{name}.down", gate * sigmoid(gate) * self.linear(f"{name}.up", x))
        hidden = self.linear(f"{name}.up", x)
        return self.linear(f"{name}.down", np.maximum(hidden, 0) if self.relu else hidden)

    def one_block(self, i: int, x: Array) -> Array:
        name = f"blocks.{i}"
        attention, ffn = f"{name}.attention", f"{name}.ffn"
        if self.block == "sasrec":
            q = self.norm(f"{name}.attention_norm", x)
            h = self.norm(f"{name}.ffn_norm", q + self.attention(attention, q, x))
            return h + self.ffn(ffn, h)
        if self.block == "post_norm":
            h = self.norm(f"{name}.attention_norm", x + self.attention(attention, x, x))
            return self.norm(f"{name}.ffn_norm", h + self.ffn(ffn, h))
        h = self.norm(f"{name}.attention_norm", x)
        attended = self.attention(attention, h, h)
        if self.block == "pre_norm":
            x = x + attended
            return x + self.ffn(ffn, self.norm(f"{name}.ffn_norm", x))
        x = x + sigmoid(self.linear(f"{name}.attention_gate", x)) * attended
        return x + sigmoid(self.linear(f"{name}.ffn_gate", x)) * self.ffn(ffn, self.norm(f"{name}.ffn_norm", x))

    def features(self, items: NDArray[np.integer], positions: NDArray[np.integer], zero: bool = False) -> Array:
        """(L, D) features.

        Args:
            items: (L,) item indices, 0 = padding that is attended to.
            positions: (L,) rows of the position table.
            zero: set padded positions to zero after the embedding and after each block (pmixer-2020).
        """
        keep = (items != 0)[:, None] if zero else 1.0
        dim = self.w["item_embedding.weight"].shape[1]
        x = (
            self.w["item_embedding.weight"][items] * np.sqrt(dim) + self.w["position_embedding.weight"][positions]
        ) * keep
        for i in range(self.n_blocks):
            x = self.one_block(i, x) * keep
        return x if self.block == "ligr" else self.norm("norm", x)
