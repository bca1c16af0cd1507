"""Read and write checkpoints (.pth) of pmixer/SASRec.pytorch.

The same 28 tensor names fit different models, and the file does not say which. So the caller names the layout:

| layout                 | revisions          | block           | positions               | padding              |
|------------------------|--------------------|-----------------|-------------------------|----------------------|
| pmixer-2020            | 094fcb5            | sasrec, no ReLU | 0..L-1 by slot          | attended to, zeroed  |
| pmixer-2021            | 33bc1d8 .. 9f6a02b | sasrec          | 1..L by slot, 0 padding | attended to          |
| pmixer-2025            | fde8a9c            | post_norm       | 1..L by slot, 0 padding | attended to          |
| pmixer-2025-norm-first | fde8a9c            | pre_norm        | 1..L by slot, 0 padding | attended to          |
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sasrec.core.arrays import Float32
from sasrec.core.config import ModelConfig
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.extras import require
from sasrec.core.suggestions import suggestion
from sasrec.model.weights import Weights

if TYPE_CHECKING:
    import torch

LAYOUTS: dict[str, dict[str, Any]] = {
    "pmixer-2020": {"block": "sasrec", "activation": "identity", "padding": "zeroed"},
    "pmixer-2021": {"block": "sasrec", "activation": "relu", "padding": "attended"},
    "pmixer-2025": {"block": "post_norm", "activation": "relu", "padding": "attended"},
    "pmixer-2025-norm-first": {"block": "pre_norm", "activation": "relu", "padding": "attended"},
}

_TOP = {
    "item_emb.weight": "item_embedding.weight",
    "pos_emb.weight": "position_embedding.weight",
    "last_layernorm.weight": "norm.weight",
    "last_layernorm.bias": "norm.bias",
}
_BLOCK = {
    "attention_layernorms.{i}": "blocks.{i}.attention_norm",
    "attention_layers.{i}.out_proj": "blocks.{i}.attention.output",
    "forward_layernorms.{i}": "blocks.{i}.ffn_norm",
    "forward_layers.{i}.conv1": "blocks.{i}.ffn.up",
    "forward_layers.{i}.conv2": "blocks.{i}.ffn.down",
}
_KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Published:
    """What a published checkpoint holds, in our terms."""

    config: ModelConfig
    weights: Weights
    n_items: int


def read_published(path: Path, layout: str | None, *, n_heads: int | None = None, dropout: float = 0.2) -> Published:
    """Read a state dict of the published code.

    Args:
        path: the .pth file; it is never unpickled beyond plain tensors.
        layout: one of LAYOUTS; None is refused, since a wrong guess gives wrong scores without a sign of it.
        n_heads: attention heads; None takes the "head=N" of the file name, as the published code writes it, else 1.
        dropout: not stored in the file; matters only when training goes on.

    Raises:
        ConfigError: no layout, or an unknown one; or torch is not installed.
        CheckpointError: the file is missing, damaged, holds code, or its tensors do not fit the layout.
    """
    shape = _layout_settings(layout)
    tensors = _read_state_dict(path)
    n_blocks = len({name.split(".")[1] for name in tensors if name.startswith("attention_layers.")})
    _check_tensor_names(path, tensors, n_blocks)
    dim = tensors["last_layernorm.weight"].size
    _check_shapes(path, tensors, n_blocks, dim)
    item_rows, position_rows = (len(tensors[name]) for name in ("item_emb.weight", "pos_emb.weight"))
    config = ModelConfig(
        **shape,
        embedding_dim=dim,
        n_blocks=n_blocks,
        n_heads=n_heads or _heads_in_name(path),
        max_seq_len=position_rows - (shape["padding"] == "attended"),
        dropout=dropout,
    )
    return Published(config, _to_ours(tensors, n_blocks), item_rows - 1)


def dump_published(config: ModelConfig, weights: Mapping[str, Float32], layout: str | None) -> bytes:
    """The contents of a .pth file, a state dict that the published code of that layout loads.

    A model trained on real positions only (padding="none") gets a zero row for the padding position; the published
    code will then attend to padding that the model never saw in training.

    Raises:
        ConfigError: the layout is not given, or cannot hold this model; or torch is not installed.
    """
    shape = _layout_settings(layout)
    needed = {"block": shape["block"], "activation": shape["activation"], "tied": True, "attention_output": True}
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConfigError(f"layout {layout} needs {name}={value}, and this model has {getattr(config, name)}")
    if config.padding not in ("none", shape["padding"]):
        raise ConfigError(
            f"layout {layout} needs padding=none or {shape['padding']}, and this model has {config.padding}"
        )
    if config.ffn_dim not in (0, config.embedding_dim):
        raise ConfigError(f"layout {layout} needs ffn_dim equal to embedding_dim, and this model has {config.ffn_dim}")
    tensors = _to_theirs(weights, config.n_blocks)
    if shape["padding"] == "attended" and config.padding != "attended":
        padding = np.zeros((1, config.embedding_dim), np.float32)
        tensors["pos_emb.weight"] = np.concatenate([padding, tensors["pos_emb.weight"]])
    return _to_bytes(tensors)


def _to_bytes(tensors: Mapping[str, Float32]) -> bytes:
    require("torch", "writing a .pth checkpoint", extra="torch")
    import torch

    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}, buffer)
    return buffer.getvalue()


def _layout_settings(layout: str | None) -> dict[str, Any]:
    if layout not in LAYOUTS:
        given = (
            "no layout is given" if layout is None else f"layout {layout!r} is not known{suggestion(layout, LAYOUTS)}"
        )
        raise ConfigError(
            f"{given}; the file does not tell which revision of the published code wrote it, so choose one of "
            f"{', '.join(LAYOUTS)}"
        )
    return LAYOUTS[layout]


def _read_state_dict(path: Path) -> dict[str, Float32]:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}")
    require("torch", "reading a .pth checkpoint", extra="torch")
    import torch

    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # about pickle protocols
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than plain tensors (pickled code?) and is not loaded") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable torch checkpoint; it may be truncated") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} does not hold a state dict of tensors; save model.state_dict()")
    return {str(name): _to_float32(tensor) for name, tensor in loaded.items()}


def _to_float32(tensor: torch.Tensor) -> Float32:
    array: Float32 = tensor.detach().float().numpy()
    return array


def _check_tensor_names(path: Path, tensors: Mapping[str, Float32], n_blocks: int) -> None:
    expected = set(_TOP) | {
        f"{theirs.format(i=i)}.{kind}" for theirs in _BLOCK for i in range(n_blocks) for kind in _KINDS
    }
    expected |= {f"attention_layers.{i}.in_proj_{kind}" for i in range(n_blocks) for kind in _KINDS}
    if set(tensors) != expected:
        missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        raise CheckpointError(
            f"{path} is not a checkpoint of pmixer/SASRec.pytorch: missing {missing[:3]}, unexpected {extra[:3]}"
        )


def _check_shapes(path: Path, tensors: Mapping[str, Float32], n_blocks: int, dim: int) -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(tensors, (dim,))
    for i in range(n_blocks):
        shapes[f"attention_layers.{i}.in_proj_weight"] = (3 * dim, dim)
        shapes[f"attention_layers.{i}.in_proj_bias"] = (3 * dim,)
        shapes[f"attention_layers.{i}.out_proj.weight"] = (dim, dim)
        for conv in ("conv1", "conv2"):
            shapes[f"forward_layers.{i}.{conv}.weight"] = (dim, dim, 1)
    for name in ("item_emb.weight", "pos_emb.weight"):
        shapes[name] = (max((2, *tensors[name].shape[:1])), dim)  # padding and one more at least
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise CheckpointError(f"{path}: {name} has shape {tensors[name].shape}, and {shape} is needed")


def _heads_in_name(path: Path) -> int:
    match = re.search(r"head=(\d+)", path.name)
    return int(match.group(1)) if match else 1


def _to_ours(tensors: Mapping[str, Float32], n_blocks: int) -> Weights:
    weights = {ours: tensors[theirs] for theirs, ours in _TOP.items()}
    for i in range(n_blocks):
        for theirs, ours in _BLOCK.items():
            for kind in _KINDS:
                tensor = tensors[f"{theirs.format(i=i)}.{kind}"]
                weights[f"{ours.format(i=i)}.{kind}"] = tensor[..., 0] if tensor.ndim == 3 else tensor
        for kind in _KINDS:
            projection = tensors[f"attention_layers.{i}.in_proj_{kind}"]
            query, key_value = np.split(projection, [len(projection) // 3])
            weights[f"blocks.{i}.attention.query.{kind}"] = query
            weights[f"blocks.{i}.attention.key_value.{kind}"] = key_value
    return weights


def _to_theirs(weights: Mapping[str, Float32], n_blocks: int) -> Weights:
    tensors = {theirs: weights[ours] for theirs, ours in _TOP.items()}
    for i in range(n_blocks):
        for theirs, ours in _BLOCK.items():
            for kind in _KINDS:
                tensor = weights[f"{ours.format(i=i)}.{kind}"]
                is_convolution = ".conv" in theirs and kind == "weight"
                tensors[f"{theirs.format(i=i)}.{kind}"] = tensor[..., None] if is_convolution else tensor
        for kind in _KINDS:
            parts = [weights[f"blocks.{i}.attention.{part}.{kind}"] for part in ("query", "key_value")]
            tensors[f"attention_layers.{i}.in_proj_{kind}"] = np.concatenate(parts)
    return tensors
