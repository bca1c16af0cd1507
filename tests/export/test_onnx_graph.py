"""The ONNX graph: the engine's numbers for every shape, whatever the padding."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import spread_weights
from reference import Reference

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import create_engine
from sasrec.export.onnx_graph import ModelGraph, byte_table
from sasrec.model.weights import Weights
from sasrec.ranking.order import top_k

pytestmark = pytest.mark.usefixtures("float32_core")  # as the graph multiplies
BLOCKS = ["sasrec", "post_norm", "pre_norm", "ligr"]
N_ITEMS, MAX_SEQ_LEN = 40, 12
LENGTHS = [1, 2, 12, 5, 13, 30, 7]  # also longer than the model looks back


def config_of(**settings: Any) -> ModelConfig:
    return ModelConfig(**{"embedding_dim": 16, "max_seq_len": MAX_SEQ_LEN, **settings})


def counts_of(n_items: int) -> np.ndarray:
    return np.concatenate([[0], np.random.default_rng(3).permutation(n_items) + 1]).astype(np.float32)


def session_of(config: ModelConfig, weights: Weights, n_items: int = N_ITEMS, **settings: Any) -> Any:
    model = ModelGraph(config, weights, counts_of(n_items), **settings).build({"model_version": "abc"})
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ask(session: Any, histories: Any, k: int = 10, hide_seen: bool = False) -> list[Any]:
    given = {"histories": np.array(histories, np.int64), "k": np.array([k]), "hide_seen": np.array([hide_seen])}
    return session.run(["items", "scores", "features"], given)


def histories(lengths: Sequence[int] = LENGTHS, n_items: int = N_ITEMS, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, n_items + 1, n).astype(np.int32) for n in lengths]


def spread(rows: Sequence[np.ndarray], width: int, seed: int = 0) -> np.ndarray:
    """Rows of `width` columns with zeros at places of their own, between the items too."""
    rng = np.random.default_rng(seed)
    out = np.zeros((len(rows), width), np.int64)
    for place, row in zip(out, rows, strict=True):
        place[np.sort(rng.permutation(width)[: len(row)])] = row
    return out


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("n_heads", "norm_eps"), [(1, 1e-8), (4, 0.1)])
def test_features_and_lists_are_the_engine_s(block: str, tied: bool, n_heads: int, norm_eps: float) -> None:
    config = config_of(block=block, tied=tied, n_heads=n_heads, norm_eps=norm_eps)
    weights, rows = spread_weights(config, N_ITEMS), histories()
    engine = create_engine(config, N_ITEMS, TrainConfig(threads=1), weights)
    ragged = Ragged.from_lists(rows)
    wanted = engine.encode(ragged)
    session = session_of(config, weights)
    for hide_seen in (True, False):
        items, scores, features = ask(session, spread(rows, 33), 10, hide_seen)
        np.testing.assert_allclose(features, wanted, atol=1e-5)
        hidden = ragged if hide_seen else None
        best, values = top_k(wanted @ engine.item_table().T, 10, hidden=hidden)
        np.testing.assert_array_equal(items, best)
        np.testing.assert_allclose(scores, values, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"ffn_dim": 24}, {"n_blocks": 0}, {"n_blocks": 1}, {"n_blocks": 3}, {"activation": "identity"},
        {"attention_output": False}, {"max_seq_len": 1},
    ],
    ids=str,
)  # fmt: skip
def test_features_agree_with_the_equations_for_other_shapes(settings: dict[str, Any]) -> None:
    config = config_of(**settings)
    weights, rows = spread_weights(config, N_ITEMS), histories()
    oracle = Reference(weights, config.block, relu=config.activation == "relu")
    features = ask(session_of(config, weights), spread(rows, 31))[2]
    for row, found in zip(rows, features, strict=True):
        recent = row[-config.max_seq_len :]
        positions = np.arange(config.max_seq_len - len(recent), config.max_seq_len)
        np.testing.assert_allclose(found, oracle.features(recent, positions)[-1], atol=1e-5)


@pytest.mark.parametrize("padding", ["attended", "zeroed"])
@pytest.mark.parametrize("block", ["sasrec", "post_norm"])
def test_published_paddings_are_attended_to_as_published(padding: str, block: str) -> None:
    config = config_of(padding=padding, block=block)
    weights, rows = spread_weights(config, N_ITEMS), histories()
    wanted = create_engine(config, N_ITEMS, TrainConfig(engine="torch", threads=1), weights).encode(
        Ragged.from_lists(rows)
    )
    session = session_of(config, weights)
    for width in (30, 41):
        np.testing.assert_allclose(ask(session, spread(rows, width))[2], wanted, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, N_ITEMS), max_size=40), st.integers(1, N_ITEMS))
def test_zeros_change_nothing_wherever_they_stand(items: list[int], newest: int) -> None:
    session, with_zeros = any_session(), [*items, newest, 0]
    plain = ask(session, [[i for i in with_zeros if i]], hide_seen=True)
    other = ask(session, [with_zeros], hide_seen=True)
    np.testing.assert_allclose(other[2], plain[2], atol=2e-6)
    np.testing.assert_allclose(other[1], plain[1], atol=2e-6)
    if np.diff(plain[1]).max() < -1e-5:  # no two scores are as good as equal
        np.testing.assert_array_equal(other[0], plain[0])


@functools.cache
def any_session() -> Any:
    config = config_of(block="ligr", n_heads=2)
    return session_of(config, spread_weights(config, N_ITEMS))


@pytest.mark.parametrize("int8", [False, True])
def test_a_batch_gives_what_its_rows_give_alone(int8: bool) -> None:
    config = config_of()
    session = session_of(config, spread_weights(config, N_ITEMS), int8=int8)
    rows = [*histories(), np.zeros(0, np.int32)]
    together = ask(session, spread(rows, 35), 5, True)
    for i, row in enumerate(rows):
        items, scores, _ = ask(session, [row.tolist() or [0]], 5, True)
        np.testing.assert_array_equal(items[0], together[0][i])
        np.testing.assert_allclose(scores[0], together[1][i], rtol=1e-5, atol=1e-5)


def test_a_row_without_items_gets_popular_ones() -> None:
    counts = counts_of(N_ITEMS)
    items, scores, _ = ask(any_session(), [[0, 0], [0, -3], [7, 0]], 4, True)
    for row in (0, 1):
        assert items[row].tolist() == np.argsort(-counts, kind="stable")[:4].tolist()
        assert scores[row].tolist() == sorted(counts, reverse=True)[:4]
    assert items[2].tolist() == ask(any_session(), [[7]], 4, True)[0][0].tolist()


def test_equal_scores_come_in_order_of_index() -> None:
    config = config_of()
    weights = spread_weights(config, N_ITEMS)
    weights["item_embedding.weight"][1:] = weights["item_embedding.weight"][1]
    assert ask(session_of(config, weights), [[3]], 6)[0][0].tolist() == [1, 2, 3, 4, 5, 6]


def test_lists_end_in_zero_where_all_other_items_were_seen() -> None:
    config = config_of(max_seq_len=50)
    session = session_of(config, spread_weights(config, 5), 5)
    items, scores, _ = ask(session, [[1, 2, 3, 1], [5, 0, 0, 0]], 9, True)
    assert items.shape == (2, 5)
    assert set(items[0, :2].tolist()) == {4, 5}
    assert items[0, 2:].tolist() == [0, 0, 0]
    assert np.isneginf(scores[0, 2:]).all()
    assert set(items[1].tolist()) == {1, 2, 3, 4, 0}
    assert set(ask(session, [[1, 2, 3, 1]], 9, False)[0][0].tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("k", "width"), [(-1, 0), (0, 0), (1, 1), (40, 40), (10**6, 40)])
def test_k_is_cut_to_what_there_is(k: int, width: int) -> None:
    items, scores, _ = ask(any_session(), [[1, 2]], k)
    assert items.shape == scores.shape == (1, width)
    assert items.all()


def test_an_index_beyond_the_table_is_an_error() -> None:
    with pytest.raises(Exception, match=r"idx=41|out of|bounds"):
        ask(any_session(), [[N_ITEMS + 1]])


def test_metadata_can_be_read_by_a_runtime() -> None:
    assert any_session().get_modelmeta().custom_metadata_map == {"model_version": "abc"}


def test_bytes_are_within_half_a_step_and_keep_rows_of_zeros() -> None:
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((30, 8)) * rng.uniform(1e-3, 1e3, (30, 1))).astype(np.float32)
    table[0] = 0
    steps, scale = byte_table(table)
    assert steps.dtype == np.uint8
    centred = steps.astype(np.float32) - 128
    assert (np.abs(centred).max(axis=1)[1:] == 127).all()
    assert (np.abs(centred * scale[:, None] - table) <= 0.5001 * scale[:, None]).all()
    assert not centred[0].any()


@pytest.mark.parametrize("tied", [True, False])
def test_int8_scores_are_close_and_the_graph_is_smaller(tied: bool) -> None:
    config = config_of(embedding_dim=64, tied=tied)
    weights, rows = spread_weights(config, 2000), histories(n_items=2000)
    models = [ModelGraph(config, weights, counts_of(2000), int8=int8).build({}) for int8 in (False, True)]
    tables = 2000 * 64 * (1 if tied else 2)
    assert models[0].ByteSize() - models[1].ByteSize() > 0.7 * 4 * tables
    full, small = (
        ask(session_of(config, weights, 2000, int8=int8), spread(rows, 30), 2000)[:2] for int8 in (False, True)
    )
    for row in range(len(rows)):
        scores = [dict(zip(i[row].tolist(), s[row].tolist(), strict=True)) for i, s in (full, small)]
        differences = [abs(scores[0][i] - scores[1][i]) for i in scores[0]]
        assert max(differences) < 0.05 * np.std(list(scores[0].values()))
