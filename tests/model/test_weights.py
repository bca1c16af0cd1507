"""Which weights there are and how they start."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sasrec.core.config import ModelConfig
from sasrec.core.errors import CheckpointError
from sasrec.data.sampling import generator
from sasrec.model.sasrec import SASRec
from sasrec.model.weights import check_weights, initial_weights, weight_shapes

ROOT = Path(__file__).resolve().parents[2]


def test_names_of_weights_are_told_to_the_core_and_written_nowhere_in_it() -> None:
    sources = [*(ROOT / "native").glob("*.h"), *(ROOT / "native").glob("*.cpp")]
    assert len(sources) > 10
    lines = [line for path in sources for line in path.read_text().splitlines() if not line.startswith("#include")]
    strings = re.findall(r'"([^"\n]*)"', "\n".join(lines))
    features = {"n_features": 3, "vector_dim": 2}
    named = [weight_shapes(ModelConfig(block=block, tied=False, **features), 7) for block in ("sasrec", "ligr")]
    parts = {part for shapes in named for name in shapes for part in name.split(".") if not part.isdigit()}
    assert {"item_embedding", "key_value", "bias"} < parts
    assert "weight" in strings  # a kind of array, beside its gradient and moments
    assert not [text for text in strings if (parts - {"weight"}) & set(text.split("."))]


def test_weights_start_as_the_published_code_starts_them() -> None:
    config = ModelConfig(embedding_dim=64, max_seq_len=200)
    weights = initial_weights(config, 3000, generator(0))
    spreads = {
        "item_embedding.weight": (2 / (3001 + 64)) ** 0.5,
        "position_embedding.weight": (2 / (200 + 64)) ** 0.5,
        "blocks.0.attention.query.weight": (2 / (4 * 64)) ** 0.5,
        "blocks.0.attention.key_value.weight": (2 / (4 * 64)) ** 0.5,
        "blocks.1.attention.output.weight": (2 / (2 * 64)) ** 0.5,
        "blocks.1.ffn.up.weight": (2 / (2 * 64)) ** 0.5,
        "blocks.1.ffn.down.weight": (2 / (2 * 64)) ** 0.5,
    }
    for name, spread in spreads.items():
        assert weights[name].std() == pytest.approx(spread, rel=0.05), name
        assert abs(weights[name].mean()) < 5 * spread / weights[name].size ** 0.5, name
    assert not weights["item_embedding.weight"][0].any()
    for part in ("query", "key_value", "output"):
        assert not weights[f"blocks.0.attention.{part}.bias"].any()
    assert np.abs(weights["blocks.0.ffn.up.bias"]).max() == pytest.approx(1 / 8, rel=0.1)
    assert (weights["norm.weight"] == 1).all()


def test_the_same_generator_gives_the_same_weights_and_another_gives_others() -> None:
    config = ModelConfig(embedding_dim=8, max_seq_len=9)
    first, again, other = (initial_weights(config, 30, generator(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["item_embedding.weight"], other["item_embedding.weight"])


def test_separate_output_table_starts_apart_with_a_padding_row_and_gated_parts_start_like_the_rest() -> None:
    weights = initial_weights(ModelConfig(block="ligr", embedding_dim=64, tied=False), 3000, generator(0))
    assert not np.array_equal(weights["output_embedding.weight"], weights["item_embedding.weight"])
    assert weights["output_embedding.weight"].std() == pytest.approx((2 / 3065) ** 0.5, rel=0.05)
    assert not weights["output_embedding.weight"][0].any()
    assert weights["blocks.0.ffn.gate.weight"].std() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert weights["blocks.0.ffn_gate.weight"].std() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


@pytest.mark.parametrize("block", ["sasrec", "post_norm", "pre_norm", "ligr"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": False, "ffn_dim": 24},
        {"padding": "attended", "n_blocks": 0},
        {"n_features": 3},
        {"n_features": 3, "vector_dim": 2, "tied": False},
    ],
)
@pytest.mark.parametrize("attention_output", [True, False])
def test_weights_are_the_parameters_of_the_torch_model(
    block: str, settings: dict[str, object], attention_output: bool
) -> None:
    config = ModelConfig(
        block=block,
        embedding_dim=8,
        max_seq_len=5,
        attention_output=attention_output,
        **settings,
    )
    model = SASRec(config, 7, generator(3))
    weights = initial_weights(config, 7, generator(3))
    parameters = dict(model.named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items()} == weight_shapes(config, 7)
    assert all(torch.from_numpy(weights[name]).equal(parameters[name].detach()) for name in parameters)


def test_what_items_are_like_starts_beside_the_same_other_weights() -> None:
    plain = ModelConfig(embedding_dim=64, tied=False)
    weights = initial_weights(plain, 3000, generator(0))
    more = initial_weights(replace(plain, n_features=500, vector_dim=300), 3000, generator(0))
    assert list(more) == [*weights, "feature_embedding.weight", "vector_projection.weight"]
    assert all(np.array_equal(more[name], value) for name, value in weights.items())
    assert more["feature_embedding.weight"].std() == pytest.approx((2 / 564) ** 0.5, rel=0.05)
    vectors = np.random.default_rng(0).standard_normal((50, 300))
    projected = vectors @ more["vector_projection.weight"].T
    assert projected.std() == pytest.approx(weights["item_embedding.weight"].std(), rel=0.1)


def test_rows_of_items_that_are_not_trained_start_at_zero_where_features_stand_in() -> None:
    trained = np.arange(31) % 3 == 1
    plain = ModelConfig(embedding_dim=8, tied=False)
    for config, is_own in ((replace(plain, n_features=5), trained), (plain, np.arange(31) > 0)):
        weights = initial_weights(config, 30, generator(0), trained)
        for name in ("item_embedding.weight", "output_embedding.weight"):
            assert np.array_equal(weights[name].any(axis=1), is_own)


def test_weights_that_do_not_fit_are_named() -> None:
    expected = {"a": (2, 3), "b": (3,)}
    good = {name: np.zeros(shape, np.float32) for name, shape in expected.items()}
    check_weights(good, expected)
    with pytest.raises(CheckpointError, match=r"missing \['b'\], unexpected \['c'\]"):
        check_weights({"a": good["a"], "c": good["b"]}, expected)
    with pytest.raises(CheckpointError, match=r"weight b has shape \(2, 3\), and the configuration needs \(3,\)"):
        check_weights({"a": good["a"], "b": good["a"]}, expected)
