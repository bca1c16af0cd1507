"""Writes an ONNX graph that ranks items after padded histories, from the weights of a model.

The graph is written node by node, in the order of model/sasrec.py and from the same weights. So it needs no torch and
holds only the model. `onnx` is imported when a graph is built.

    inputs   histories   (B, L) int64  item indices, oldest first; 0 and below are skipped wherever they stand
             k           (1,) int64    how many items
             hide_seen   (1,) bool     leave out the items of the history
    outputs  items       (B, K) int64  item indices, best first; K = min(k, n_items); a short row ends in 0
             scores      (B, K) float  theirs; -inf for item 0
             features    (B, D) float  what was multiplied with the item table

The graph first moves the items of each row to the right, the newest into the last column, and drops those beyond
max_seq_len. So neither the place nor the amount of padding matters:

    histories  0 4 8 0 6   ->   4 8 6        the positions of the columns are the last rows of the position table
               5 0 0 0 0        0 0 5

A row without any item gets popular items, as in the package: their counts are the scores.
Shape legend: B batch, L columns that came in, W columns kept, D embedding_dim, H heads, V n_items + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Float32
from sasrec.core.config import ModelConfig
from sasrec.model.weights import BLOCKS_WITHOUT_FINAL_NORM, Weights

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # as old as that opset; every onnxruntime since 1.13 reads it
UNSEEN = np.float32(-1e30)  # added to the attention of hidden positions: exp() makes it 0, and it cannot overflow
BYTE_STEPS = np.float32(127)  # each way from
BYTE_MIDDLE = 128
FLOAT, UINT8, INT64, BOOL = 1, 2, 7, 9  # onnx.TensorProto's numbers of types

Value = str  # the name of what a node made


class Nodes:
    """A graph under construction: nodes in the order of computation, and the constants they read."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: dict[Value, Any] = {}

    def add(self, operator: str, *inputs: Value, **attributes: Any) -> Value:
        """A node with one output."""
        return self.add_many(operator, 1, *inputs, **attributes)[0]

    def add_many(self, operator: str, n_outputs: int, *inputs: Value, **attributes: Any) -> list[Value]:
        """A node with several outputs."""
        outputs = [f"{operator}_{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(self._helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def output(self, name: str, value: Value) -> None:
        """Make a value an output of the graph."""
        self.nodes.append(self._helper.make_node("Identity", [value], [name]))

    def array(self, name: Value, value: NDArray[Any]) -> Value:
        """A named constant; the first one of a name stays."""
        if name not in self.constants:
            self.constants[name] = self._numpy.from_array(np.asarray(value, order="C"), name)
        return name

    def integers(self, *values: int) -> Value:
        """A constant (n,) int64."""
        return self.array("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: Any) -> Value:
        """A constant without dimensions."""
        return self.array(f"{value.dtype}_{value}", value)

    def slice(self, value: Value, start: Value, end: Value, axis: int) -> Value:
        """value[start:end] along an axis."""
        return self.add("Slice", value, start, end, self.integers(axis))


@dataclass(frozen=True)
class Placement:
    """Histories moved to the right, and where their items stand."""

    items: Value  # (B, W) int64, 0 where there is none
    positions: Value  # (W, D) or (B, W, D) rows of the position table
    visible: Value  # (W, W) or (B, 1, W, W) bool: row i may look at column j
    keep: Value | None  # (B, W, 1) float: 0 where padding is set to zero, after each block; None = left alone


@dataclass(frozen=True)
class Table:
    """A table of items as a graph holds it."""

    rows: Callable[[Value], Value]  # indices (B, W) -> (B, W, D)
    scores: Callable[[Value], Value]  # features (B, D) -> (B, V)


class ModelGraph:
    """Builds the graph of one model.

    Args:
        config: the shape.
        weights: by the names of weights.py.
        counts: (V,) events of each item, the scores of a row without items; 0 for padding.
        int8: keep the item tables as bytes, with a scale for each item.
    """

    def __init__(self, config: ModelConfig, weights: Weights, counts: Float32, *, int8: bool = False) -> None:
        self.config, self.weights, self.counts = config, weights, counts
        self.nodes = Nodes()
        make = self._byte_table if int8 else self._float_table
        self.items = make("item_embedding.weight")
        self.outputs = self.items if config.tied else make("output_embedding.weight")

    def build(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The whole model, with metadata that a runtime can read."""
        from onnx import TensorProto, helper

        n = self.nodes
        taken = n.add("Max", "histories", n.scalar(np.int64(0)))  # (B, L)
        lengths, columns = self._columns(taken)
        features = self._features(PLACEMENTS[self.config.padding](self, taken, lengths, columns))  # (B, D)
        self._rank(taken, lengths, features)
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            n.nodes,
            "sasrec",
            [
                info("histories", TensorProto.INT64, ["batch", "length"]),
                info("k", TensorProto.INT64, [1]),
                info("hide_seen", TensorProto.BOOL, [1]),
            ],
            [
                info("items", TensorProto.INT64, ["batch", "k_found"]),
                info("scores", TensorProto.FLOAT, ["batch", "k_found"]),
                info("features", TensorProto.FLOAT, ["batch", self.config.embedding_dim]),
            ],
            list(n.constants.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="sasrec"
        )
        helper.set_model_props(model, metadata)
        return model

    def _columns(self, taken: Value) -> tuple[Value, Value]:
        """(B, 1) items of each row, and (B, L) the place of each from the right: 1 for the newest."""
        n = self.nodes
        real = n.add("Cast", n.add("Greater", taken, n.scalar(np.int64(0))), to=INT64)
        lengths = n.add("ReduceSum", real, n.integers(1), keepdims=1)
        before = n.add("CumSum", real, n.scalar(np.int64(1)), exclusive=1)
        return lengths, n.add(
            "Where", n.add("Cast", real, to=BOOL), n.add("Sub", lengths, before), n.scalar(np.int64(0))
        )

    def moved_right(self, taken: Value, places: Value, width: Value) -> Value:
        """(B, W) the items of each row at its right end. width (1,)."""
        n = self.nodes
        kept = n.add(
            "And",
            n.add("Greater", places, n.scalar(np.int64(0))),
            n.add("LessOrEqual", places, width),
        )
        column = n.add("Where", kept, n.add("Sub", width, places), width)  # dropped items go one column beyond
        rows = n.add("Shape", taken, start=0, end=1)
        shape = n.add("Concat", rows, n.add("Add", width, n.integers(1)), axis=0)
        empty = n.add("Expand", n.scalar(np.int64(0)), shape)  # (B, W + 1)
        filled = n.add("ScatterElements", empty, column, taken, axis=1)
        return n.slice(filled, n.integers(0), width, 1)

    def causal(self, width: Value) -> Value:
        """(W, W) whether row i may look at column j <= i."""
        n = self.nodes
        steps = n.add("Range", n.scalar(np.int64(0)), n.add("Squeeze", width), n.scalar(np.int64(1)))  # (W,)
        return n.add(
            "GreaterOrEqual", n.add("Unsqueeze", steps, n.integers(1)), n.add("Unsqueeze", steps, n.integers(0))
        )

    def _features(self, placement: Placement) -> Value:
        n, config = self.nodes, self.config
        scale = n.scalar(np.float32(config.embedding_dim**0.5))
        x = n.add("Add", n.add("Mul", self.items.rows(placement.items), scale), placement.positions)  # (B, W, D)
        x = self._kept(x, placement)
        hidden = n.add("Where", placement.visible, n.scalar(np.float32(0)), n.scalar(UNSEEN))
        for i in range(config.n_blocks):
            last_only = i == config.n_blocks - 1
            x = BLOCKS[config.block](self, f"blocks.{i}", x, hidden, last_only)
            if not last_only:
                x = self._kept(x, placement)
        if not config.n_blocks:
            x = self.last(x)
        features = n.add("Squeeze", x, n.integers(1))  # (B, D)
        return features if config.block in BLOCKS_WITHOUT_FINAL_NORM else self.norm("norm", features)

    def _kept(self, x: Value, placement: Placement) -> Value:
        return x if placement.keep is None else self.nodes.add("Mul", x, placement.keep)

    def last(self, x: Value, axis: int = 1) -> Value:
        """The newest position only."""
        n = self.nodes
        return n.slice(x, n.integers(-1), n.integers(2**62), axis)

    def pick(self, x: Value, last_only: bool) -> Value:
        """(B, 1, D) the newest position, or (B, W, D) all."""
        return self.last(x) if last_only else x

    def _weight(self, name: str) -> Value:
        return self.nodes.array(name, self.weights[name])

    def norm(self, name: str, x: Value) -> Value:
        """LayerNorm."""
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self.nodes.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.config.norm_eps)

    def linear(self, name: str, x: Value) -> Value:
        """Matrix and bias: x (B, W, in) -> (B, W, out)."""
        n = self.nodes
        matrix = n.array(f"{name}.weight.T", self.weights[f"{name}.weight"].T)  # (in, out)
        return n.add("Add", n.add("MatMul", x, matrix), self._weight(f"{name}.bias"))

    def attention(self, name: str, query_from: Value, context: Value, hidden: Value, last_only: bool) -> Value:
        """Causal multi-head attention; hidden (..., W, W) is added to the scores."""
        n, dim, n_heads = self.nodes, self.config.embedding_dim, self.config.n_heads
        width = dim // n_heads
        key, value = n.add_many("Split", 2, self.linear(f"{name}.key_value", context), axis=-1)
        query = self._heads(self.linear(f"{name}.query", query_from), (0, 2, 1, 3))  # (B, H, W, D / H)
        scores = n.add("MatMul", query, self._heads(key, (0, 2, 3, 1)))  # (B, H, W, W)
        scores = n.add("Mul", scores, n.scalar(np.float32(width**-0.5)))
        scores = n.add("Add", scores, self.last(hidden, -2) if last_only else hidden)
        mixed = n.add("MatMul", n.add("Softmax", scores, axis=-1), self._heads(value, (0, 2, 1, 3)))
        mixed = n.add("Reshape", n.add("Transpose", mixed, perm=(0, 2, 1, 3)), n.integers(0, 0, dim))  # (B, W, D)
        return self.linear(f"{name}.output", mixed) if self.config.attention_output else mixed

    def _heads(self, x: Value, order: tuple[int, ...]) -> Value:
        """(B, W, D) -> (B, W, H, D / H), its axes in another order."""
        n, n_heads = self.nodes, self.config.n_heads
        parts = n.integers(0, 0, n_heads, self.config.embedding_dim // n_heads)  # 0 = as before; -1 fails for B = 0
        return n.add("Transpose", n.add("Reshape", x, parts), perm=order)

    def ffn(self, name: str, x: Value) -> Value:
        """The point-wise network of the three published blocks."""
        hidden = self.linear(f"{name}.up", x)
        return self.linear(
            f"{name}.down", self.nodes.add("Relu", hidden) if self.config.activation == "relu" else hidden
        )

    def swiglu(self, name: str, x: Value) -> Value:
        """down(silu(gate(x)) * up(x))."""
        n = self.nodes
        gate = self.linear(f"{name}.gate", x)
        hidden = n.add("Mul", n.add("Mul", gate, n.add("Sigmoid", gate)), self.linear(f"{name}.up", x))
        return self.linear(f"{name}.down", hidden)

    def _float_table(self, name: str) -> Table:
        n, table = self.nodes, self._weight(name)
        return Table(
            lambda items: n.add("Gather", table, items),
            lambda features: n.add("Gemm", features, table, transB=1),
        )

    def _byte_table(self, name: str) -> Table:
        """Each item in steps of its largest value / 127; features are rounded in the same way, each row by itself.

        So a row's result does not depend on the other rows. Both sides are unsigned with zero in the middle, because
        that product is exact everywhere. A product of unsigned and signed bytes saturates on x86 without VNNI, and one
        of signed bytes is slow. The table lies as the product reads it, (D, V).
        """
        n, middle = self.nodes, np.uint8(BYTE_MIDDLE)
        steps, scale = byte_table(self.weights[name])
        table, scales = n.array(f"{name}.uint8.T", steps.T), n.array(f"{name}.scale", scale)  # (D, V), (V,)

        def rows(items: Value) -> Value:
            taken = n.add("Transpose", n.add("Gather", table, items, axis=1), perm=(1, 2, 0))  # (B, W, D)
            centred = n.add("Sub", n.add("Cast", taken, to=FLOAT), n.scalar(np.float32(middle)))
            sizes = n.add("Unsqueeze", n.add("Gather", scales, items), n.integers(2))  # (B, W, 1)
            return n.add("Mul", centred, sizes)

        def scores(features: Value) -> Value:
            largest = n.add("ReduceMax", n.add("Abs", features), axes=[1], keepdims=1)
            step = n.add("Max", n.add("Div", largest, n.scalar(BYTE_STEPS)), n.scalar(np.float32(1e-30)))  # (B, 1)
            rounded = n.add("Add", n.add("Round", n.add("Div", features, step)), n.scalar(np.float32(middle)))
            zero = n.scalar(middle)
            products = n.add("MatMulInteger", n.add("Cast", rounded, to=UINT8), table, zero, zero)  # (B, V) int32
            return n.add("Mul", n.add("Mul", n.add("Cast", products, to=FLOAT), scales), step)

        return Table(rows, scores)

    def _rank(self, taken: Value, lengths: Value, features: Value) -> None:
        """The outputs: the best items of each row, without padding and, if wanted, the row's own."""
        n = self.nodes
        nothing = n.scalar(np.float32(-np.inf))
        is_empty = n.add("Equal", lengths, n.scalar(np.int64(0)))  # (B, 1)
        scores = n.add("Where", is_empty, n.array("counts", self.counts), self.outputs.scores(features))  # (B, V)
        own = n.add("Where", "hide_seen", nothing, n.add("GatherElements", scores, taken, axis=1))  # (B, L)
        scores = n.add("ScatterElements", scores, taken, own, axis=1)
        is_padding = n.array("is_padding", np.arange(len(self.counts)) == 0)
        scores = n.add("Where", is_padding, nothing, scores)
        k = n.add("Max", n.integers(0), n.add("Min", "k", n.integers(len(self.counts) - 1)))
        values, indices = n.add_many("TopK", 2, scores, k, axis=1)
        n.output("items", n.add("Where", n.add("Greater", values, nothing), indices, n.scalar(np.int64(0))))
        n.output("scores", values)
        n.output("features", features)


def byte_table(table: Float32) -> tuple[NDArray[np.uint8], Float32]:
    """(V, D) a table in whole steps, BYTE_MIDDLE for zero, and (V,) the size of each row's step."""
    scale = np.abs(table).max(axis=1) / BYTE_STEPS
    steps = np.rint(table / np.maximum(scale, np.finfo(np.float32).tiny)[:, None])
    return (steps + BYTE_MIDDLE).astype(np.uint8), scale.astype(np.float32)


def _ragged(graph: ModelGraph, taken: Value, lengths: Value, places: Value) -> Placement:
    """As the package does: W is the length of the longest row, and no position attends to padding."""
    n, config = graph.nodes, graph.config
    at_least_one = n.add("Concat", lengths, n.array("one", np.ones((1, 1), np.int64)), axis=0)  # also of no rows
    longest = n.add("ReduceMax", at_least_one, axes=[0, 1], keepdims=0)
    width = n.add("Reshape", n.add("Min", longest, n.scalar(np.int64(config.max_seq_len))), n.integers(1))
    items = graph.moved_right(taken, places, width)
    table = n.array("position_embedding.weight", graph.weights["position_embedding.weight"])
    positions = n.slice(table, n.add("Neg", width), n.integers(2**62), 0)
    real = n.add("Unsqueeze", n.add("Greater", items, n.scalar(np.int64(0))), n.integers(1, 2))  # (B, 1, 1, W)
    return Placement(items, positions, n.add("And", graph.causal(width), real), None)


def _published(graph: ModelGraph, taken: Value, places: Value) -> tuple[Value, Value, Value]:
    """Histories in max_seq_len columns, where they hold an item (B, W, 1), and the causal mask, padding included."""
    n, width = graph.nodes, graph.config.max_seq_len
    items = graph.moved_right(taken, places, n.integers(width))
    real = n.add("Unsqueeze", n.add("Greater", items, n.scalar(np.int64(0))), n.integers(2))
    return items, real, n.array("causal", np.tri(width, dtype=np.bool_))


def _attended(graph: ModelGraph, taken: Value, lengths: Value, places: Value) -> Placement:
    """As published since 2021: padding is attended to; row 0 of the position table belongs to it."""
    n, table = graph.nodes, graph.weights["position_embedding.weight"]
    items, real, causal = _published(graph, taken, places)
    positions = n.add("Where", real, n.array("positions", table[1:]), n.array("padding_position", table[0]))
    return Placement(items, positions, causal, None)


def _zeroed(graph: ModelGraph, taken: Value, lengths: Value, places: Value) -> Placement:
    """As published in 2020: padding is attended to, but set to zero before each block."""
    n = graph.nodes
    items, real, causal = _published(graph, taken, places)
    positions = n.array("position_embedding.weight", graph.weights["position_embedding.weight"])
    return Placement(items, positions, causal, n.add("Cast", real, to=FLOAT))


PLACEMENTS: dict[str, Callable[[ModelGraph, Value, Value, Value], Placement]] = {
    "none": _ragged,
    "attended": _attended,
    "zeroed": _zeroed,
}


def _sasrec(graph: ModelGraph, name: str, x: Value, hidden: Value, last_only: bool) -> Value:
    """As SASRecBlock of model/sasrec.py; the others follow their classes there."""
    n = graph.nodes
    query = graph.norm(f"{name}.attention_norm", graph.pick(x, last_only))
    h = n.add("Add", query, graph.attention(f"{name}.attention", query, x, hidden, last_only))
    h = graph.norm(f"{name}.ffn_norm", h)
    return n.add("Add", h, graph.ffn(f"{name}.ffn", h))


def _post_norm(graph: ModelGraph, name: str, x: Value, hidden: Value, last_only: bool) -> Value:
    n, query = graph.nodes, graph.pick(x, last_only)
    h = n.add("Add", query, graph.attention(f"{name}.attention", query, x, hidden, last_only))
    h = graph.norm(f"{name}.attention_norm", h)
    return graph.norm(f"{name}.ffn_norm", n.add("Add", h, graph.ffn(f"{name}.ffn", h)))


def _pre_norm(graph: ModelGraph, name: str, x: Value, hidden: Value, last_only: bool) -> Value:
    n, h = graph.nodes, graph.norm(f"{name}.attention_norm", x)
    attended = graph.attention(f"{name}.attention", graph.pick(h, last_only), h, hidden, last_only)
    x = n.add("Add", graph.pick(x, last_only), attended)
    return n.add("Add", x, graph.ffn(f"{name}.ffn", graph.norm(f"{name}.ffn_norm", x)))


def _ligr(graph: ModelGraph, name: str, x: Value, hidden: Value, last_only: bool) -> Value:
    n, h = graph.nodes, graph.norm(f"{name}.attention_norm", x)
    attended = graph.attention(f"{name}.attention", graph.pick(h, last_only), h, hidden, last_only)
    x = graph.pick(x, last_only)
    gate = n.add("Sigmoid", graph.linear(f"{name}.attention_gate", x))
    x = n.add("Add", x, n.add("Mul", gate, attended))
    gate = n.add("Sigmoid", graph.linear(f"{name}.ffn_gate", x))
    return n.add("Add", x, n.add("Mul", gate, graph.swiglu(f"{name}.ffn", graph.norm(f"{name}.ffn_norm", x))))


BLOCKS: dict[str, Callable[[ModelGraph, str, Value, Value, bool], Value]] = {
    "sasrec": _sasrec,
    "post_norm": _post_norm,
    "pre_norm": _pre_norm,
    "ligr": _ligr,
}
