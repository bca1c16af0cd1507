"""Reading and refusing published checkpoints."""

import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.published import LAYOUTS, dump_published, read_published

CONFIG = ModelConfig(embedding_dim=8, max_seq_len=5, padding="attended")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small checkpoint of layout pmixer-2021."""
    engine = TorchEngine(CONFIG, 9, TrainConfig(threads=1))
    path = tmp_path / "model.head=2.pth"
    path.write_bytes(dump_published(CONFIG, engine.weights(), "pmixer-2021"))
    return path


@pytest.mark.parametrize("layout", [None, "pmixer", "2021"])
def test_layout_is_never_guessed(checkpoint: Path, layout: str | None) -> None:
    with pytest.raises(ConfigError, match="choose one of pmixer-2020, pmixer-2021, pmixer-2025, "):
        read_published(checkpoint, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shape_follows_from_the_file_and_the_layout(checkpoint: Path, layout: str) -> None:
    published = read_published(checkpoint, layout, dropout=0.4)
    config = published.config
    assert (published.n_items, config.embedding_dim, config.n_blocks, config.dropout) == (9, 8, 2, 0.4)
    assert config.max_seq_len == (6 if layout == "pmixer-2020" else 5)
    assert config.block == LAYOUTS[layout]["block"]


def test_heads_come_from_the_file_name_or_the_caller(checkpoint: Path) -> None:
    assert read_published(checkpoint, "pmixer-2021").config.n_heads == 2
    assert read_published(checkpoint, "pmixer-2021", n_heads=4).config.n_heads == 4
    plain = checkpoint.rename(checkpoint.with_name("model.pth"))
    assert read_published(plain, "pmixer-2021").config.n_heads == 1
    with pytest.raises(ConfigError, match="n_heads=3 does not divide embedding_dim=8"):
        read_published(plain, "pmixer-2021", n_heads=3)


def test_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "owned"),))

    torch.save({"item_emb.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="holds more than plain tensors"):
            read_published(tmp_path / name, "pmixer-2021")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"hello"])
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        read_published(tmp_path / "x.pth", "pmixer-2021")


def test_truncated_or_missing_checkpoint_is_refused(checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    for n_bytes in (10, len(data) // 4, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:n_bytes])
        with pytest.raises(CheckpointError, match=r"model\.head=2\.pth (is not a readable|holds more than)"):
            read_published(checkpoint, "pmixer-2021")
    with pytest.raises(CheckpointError, match="there is no checkpoint file"):
        read_published(checkpoint.with_name("none.pth"), "pmixer-2021")


def test_other_models_and_wrong_shapes_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="does not hold a state dict"):
        read_published(tmp_path / "list.pth", "pmixer-2021")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing .* unexpected \['fc.weight'\]"):
        read_published(tmp_path / "other.pth", "pmixer-2021")


@pytest.mark.parametrize(
    ("name", "shape", "needed"),
    [
        ("last_layernorm.bias", (3,), (8,)),
        ("item_emb.weight", (3,), (3, 8)),
        ("item_emb.weight", (), (2, 8)),
        ("item_emb.weight", (1, 8), (2, 8)),
        ("item_emb.weight", (10, 9), (10, 8)),
        ("pos_emb.weight", (2, 3, 4), (2, 8)),
        ("pos_emb.weight", (0, 8), (2, 8)),
        ("attention_layers.1.in_proj_weight", (8, 24), (24, 8)),
        ("attention_layers.0.out_proj.weight", (8, 9), (8, 8)),
        ("forward_layers.1.conv2.weight", (8, 8), (8, 8, 1)),
    ],
)
def test_tensor_of_the_wrong_shape_is_refused_by_name(
    checkpoint: Path, name: str, shape: tuple[int, ...], needed: tuple[int, ...]
) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    torch.save({**tensors, name: torch.zeros(shape)}, checkpoint)
    message = f"{checkpoint}: {name} has shape {shape}, and {needed} is needed"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        read_published(checkpoint, "pmixer-2021")


@pytest.mark.parametrize("n_blocks", [0, 1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_models_of_any_depth_are_written_and_read_back_bit_by_bit(tmp_path: Path, layout: str, n_blocks: int) -> None:
    config = ModelConfig(**LAYOUTS[layout], embedding_dim=8, max_seq_len=5, n_blocks=n_blocks, dropout=0.2)
    weights = TorchEngine(config, 9, TrainConfig(threads=1)).weights()
    (tmp_path / "model.pth").write_bytes(dump_published(config, weights, layout))
    again = read_published(tmp_path / "model.pth", layout)
    assert again.config == config
    assert {name: w.tobytes() for name, w in again.weights.items()} == {n: w.tobytes() for n, w in weights.items()}


def test_old_and_half_precision_files_are_read_too(checkpoint: Path, tmp_path: Path) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old, new = read_published(tmp_path / "old.pth", "pmixer-2021"), read_published(checkpoint, "pmixer-2021")
    assert all(np.array_equal(old.weights[name], weight) for name, weight in new.weights.items())
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "half.pth")
    half = read_published(tmp_path / "half.pth", "pmixer-2021").weights
    for name, weight in new.weights.items():
        assert half[name].dtype == np.float32
        np.testing.assert_allclose(half[name], weight, rtol=2**-8)


def test_model_trained_on_real_positions_gets_a_zero_padding_row() -> None:
    config = ModelConfig(embedding_dim=8, max_seq_len=5)
    weights = TorchEngine(config, 9, TrainConfig(threads=1)).weights()
    written = io.BytesIO(dump_published(config, weights, "pmixer-2021"))
    positions = torch.load(written, weights_only=True)["pos_emb.weight"].numpy()
    assert positions.shape == (6, 8)
    assert (positions[0] == 0).all()
    np.testing.assert_array_equal(positions[1:], weights["position_embedding.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "pre_norm"}, "needs block=sasrec, and this model has pre_norm"),
        ({"tied": False}, "needs tied=True"),
        ({"attention_output": False}, "needs attention_output=True"),
        ({"ffn_dim": 16}, "needs ffn_dim equal to embedding_dim"),
    ],
)
def test_model_that_a_layout_cannot_hold_is_not_written(settings: dict[str, object], message: str) -> None:
    config = ModelConfig(embedding_dim=8, max_seq_len=5, **settings)
    weights = TorchEngine(config, 9, TrainConfig(threads=1)).weights()
    with pytest.raises(ConfigError, match=message):
        dump_published(config, weights, "pmixer-2021")


@pytest.mark.parametrize(
    ("layout", "padding"),
    [("pmixer-2020", "attended"), ("pmixer-2021", "zeroed"), ("pmixer-2025", "zeroed")],
)
def test_model_with_the_padding_of_another_layout_is_not_written(layout: str, padding: str) -> None:
    settings = {**LAYOUTS[layout], "padding": padding}
    config = ModelConfig(**settings, embedding_dim=8, max_seq_len=5)
    weights = TorchEngine(config, 9, TrainConfig(threads=1)).weights()
    with pytest.raises(ConfigError, match=f"layout {layout} needs padding=none or .*, and this model has {padding}"):
        dump_published(config, weights, layout)


def test_layout_is_never_guessed_when_writing_either() -> None:
    weights = TorchEngine(CONFIG, 9, TrainConfig(threads=1)).weights()
    with pytest.raises(ConfigError, match=r"no layout is given; .* choose one of"):
        dump_published(CONFIG, weights, None)
