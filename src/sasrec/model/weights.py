"""Names, shapes and first values of all weights, for both engines; and the digest that names a model.

Names, shapes and order are those of the parameters in sasrec.py: a matrix is (out, in), a table (rows, embedding_dim).
The compiled core is told them, and walks through the model in the same order.
Shape legend: D embedding_dim, F ffn_dim, V n_items + 1, P n_positions, W vector_dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sasrec.core.arrays import Bool, Float32
from sasrec.core.config import ModelConfig
from sasrec.core.errors import CheckpointError, SASRecError

Weights = dict[str, Float32]


class LateArrays(Mapping[str, Float32]):
    """Arrays that are made when they are asked for, each time anew: what is looked at one by one needs no copy of all.

    Args:
        shapes: by name.
        read: makes the array of a name. It is of the moment when it is asked for.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Float32]) -> None:
        self.shapes, self._read = dict(shapes), read

    def __getitem__(self, name: str) -> Float32:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def of(self, prefix: str) -> LateArrays:
        """Those whose names begin with a prefix, without it."""
        mine = {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return LateArrays(mine, lambda name: self[prefix + name])

    @classmethod
    def together(cls, parts: Mapping[str, Mapping[str, Float32]]) -> LateArrays:
        """The arrays of several mappings, whose names get a prefix."""
        shapes = {prefix + name: shape for prefix, part in parts.items() for name, shape in shapes_of(part).items()}
        owners = {prefix + name: (part, name) for prefix, part in parts.items() for name in part}

        def read(full: str) -> Float32:
            part, name = owners[full]
            return part[name]

        return cls(shapes, read)


def shapes_of(arrays: Mapping[str, Float32]) -> dict[str, tuple[int, ...]]:
    """The shape of each array, without reading those that would be made for it."""
    if isinstance(arrays, LateArrays):
        return arrays.shapes
    return {name: tuple(array.shape) for name, array in arrays.items()}


ITEM_TABLE = "item_embedding.weight"
OUTPUT_TABLE = "output_embedding.weight"  # untied models only
POSITION_TABLE = "position_embedding.weight"
FEATURE_TABLE = "feature_embedding.weight"  # (n_features, D), where items have features
PROJECTION = "vector_projection.weight"  # (D, W), where items have vectors
BLOCKS_WITHOUT_FINAL_NORM = {"ligr"}


def weight_shapes(config: ModelConfig, n_items: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a model, in the order in which `initial_weights` draws them."""
    dim, hidden = config.embedding_dim, config.ffn_dim or config.embedding_dim
    shapes: dict[str, tuple[int, ...]] = {
        ITEM_TABLE: (n_items + 1, dim),
        POSITION_TABLE: (config.n_positions, dim),
    }

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes.update({f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (dim,), f"{name}.bias": (dim,)})

    for block in (f"blocks.{i}" for i in range(config.n_blocks)):
        norm(f"{block}.attention_norm")
        linear(f"{block}.attention.query", dim, dim)
        linear(f"{block}.attention.key_value", dim, 2 * dim)
        if config.attention_output:
            linear(f"{block}.attention.output", dim, dim)
        norm(f"{block}.ffn_norm")
        if config.block == "ligr":
            linear(f"{block}.ffn.gate", dim, hidden)
        linear(f"{block}.ffn.up", dim, hidden)
        linear(f"{block}.ffn.down", hidden, dim)
        if config.block == "ligr":
            linear(f"{block}.attention_gate", dim, dim)
            linear(f"{block}.ffn_gate", dim, dim)
    if config.block not in BLOCKS_WITHOUT_FINAL_NORM:
        norm("norm")
    if not config.tied:
        shapes[OUTPUT_TABLE] = (n_items + 1, dim)
    if config.n_features:
        shapes[FEATURE_TABLE] = (config.n_features, dim)
    if config.vector_dim:
        shapes[PROJECTION] = (dim, config.vector_dim)
    return shapes


def is_block_matrix(name: str) -> bool:
    """Whether a weight is what weight decay shrinks: a matrix of a block, no embedding, norm or bias."""
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


def initial_weights(
    config: ModelConfig, n_items: int, rng: np.random.Generator, trained: Bool | None = None
) -> Weights:
    """Xavier normal for every matrix, zero attention biases and padding rows, as pmixer/SASRec.pytorch fde8a9c.

    Query, key and value are one (3D, D) matrix there, which sets their spread. Feed-forward biases are uniform in
    +- 1/sqrt(fan in), as torch initialises a convolution of width 1; LayerNorm starts at 1 and 0. The projection of
    items' vectors starts so small that a projected vector of standardised values is as long as a row of the item table.

    Args:
        config: the shape.
        n_items: items are 1..n_items.
        rng: the same generator gives the same weights.
        trained: (V,) which items there is anything to learn of. Where items have features, all others are nothing but
            their features: their own rows are 0. None = all.
    """
    shapes = weight_shapes(config, n_items)
    weights: Weights = {}
    for name, shape in shapes.items():
        owner, _, kind = name.rpartition(".")
        if owner.endswith("norm"):
            value = np.full(shape, float(kind == "weight"), np.float32)
        elif kind == "weight":
            fans = 4 * shape[1] if owner.endswith((".query", ".key_value")) else sum(shape)
            if name == PROJECTION:
                fans = sum(shapes[ITEM_TABLE]) * config.vector_dim
            value = rng.standard_normal(shape, np.float32)
            value *= np.float32((2 / fans) ** 0.5)
        elif ".attention." in name:
            value = np.zeros(shape, np.float32)
        else:
            bound = shapes[f"{owner}.weight"][1] ** -0.5
            value = rng.uniform(-bound, bound, shape).astype(np.float32)
        if name in (ITEM_TABLE, OUTPUT_TABLE) or (name == POSITION_TABLE and config.padding == "attended"):
            value[0] = 0
        if name in (ITEM_TABLE, OUTPUT_TABLE) and config.has_features and trained is not None:
            value[~trained] = 0
        weights[name] = value
    return weights


def with_more_items(weights: Mapping[str, Float32], n_items: int) -> Weights:
    """The weights of a model of more items: the own embeddings of those behind are 0, so features alone tell of them.

    Args:
        weights: of a model with features.
        n_items: how many items there are now.
    """
    more = dict(weights)
    for name in (ITEM_TABLE, OUTPUT_TABLE):
        if name in more:
            table = np.zeros((n_items + 1, more[name].shape[1]), np.float32)
            table[: len(more[name])] = more[name]
            more[name] = table
    return more


def check_weights(weights: Mapping[str, Float32], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the weights have the expected names and shapes."""
    missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or extra:
        raise CheckpointError(
            f"the weights do not fit the configuration: missing {missing[:3]}, unexpected {extra[:3]}"
        )
    found = shapes_of(weights)
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"weight {name} has shape {found[name]}, and the configuration needs {shape}")


def check_finite(weights: Mapping[str, Float32], error: type[SASRecError] = CheckpointError) -> None:
    """Raise an error if a weight is infinite or not a number: such a model answers wrongly, or not at all."""
    for name, array in weights.items():
        if not is_all_finite(array):
            raise error(f"weight {name} has values that are not finite numbers: the training has diverged")


def is_all_finite(array: Float32) -> bool:
    """Whether all values are finite numbers; takes no memory."""
    return bool(np.isfinite(array.sum(dtype=np.float64)))  # no sum of float32 overflows


def digest_of(weights: Mapping[str, Float32], item_ids: Sequence[object], more: bytes = b"") -> str:
    """Twelve characters that are equal for equal weights and item ids, wherever they are stored."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name]
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update("\n".join(map(str, item_ids)).encode())
    digest.update(more)
    return digest.hexdigest()[:12]
