"""What the compiled core is not meant for ends in an exception of one sentence: no crash, no hang, nothing lost."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError, DataError
from sasrec.core.isa import load_native
from sasrec.data.batches import Batch
from sasrec.data.ragged import Ragged
from sasrec.engine.native import NativeEngine
from sasrec.model.weights import ITEM_TABLE
from sasrec.ranking.index import Exceptions, NativeIndex, NativeLevelIndex

pytestmark = pytest.mark.skipif(load_native().module is None, reason=load_native().why)

N_ITEMS, DIM = 40, 16
MODEL = ModelConfig(embedding_dim=DIM, max_seq_len=5)
HISTORIES = Ragged(np.array([1, 2, 3], np.int32), np.array([0, 2, 3]))
SETUP = """
import os, resource, sys, threading, time
import numpy as np
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.isa import load_native
from sasrec.data.ragged import Ragged
from sasrec.engine.native import NativeEngine
from sasrec.ranking.index import NativeIndex
engine = NativeEngine(ModelConfig(embedding_dim=16, max_seq_len=50), 40, TrainConfig(threads=3))
histories = Ragged.from_lists([np.arange(1, 40, dtype=np.int32)] * 500)
"""


def engine_of(threads: int = 2, **train: Any) -> NativeEngine:
    return NativeEngine(MODEL, N_ITEMS, TrainConfig(threads=threads, **train))


def batch_of(inputs: Ragged = HISTORIES) -> Batch:
    n = len(inputs.values)
    targets, negatives = np.ones(n, np.int32), np.full((n, 1), 2, np.int32)
    return Batch(np.arange(len(inputs)), inputs, targets, negatives, np.zeros(N_ITEMS + 1, np.float32), 0)


def long_histories(n_rows: int) -> Ragged:
    return Ragged.from_lists([np.arange(1, 6, dtype=np.int32)] * n_rows)


def run(code: str) -> str:
    """The output of a process of its own, which must end well and soon."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SETUP + code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the batch is empty"),
        ([[]], "row 0 is empty"),
        ([[1], []], "row 1 is empty"),
        ([[1], [1, 2, 3, 4, 5, 6]], "row 1 has 6 items, and the model sees 5"),
    ],
)
@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_a_batch_that_has_nothing_to_learn_from_is_refused(
    isa: str, rows: list[list[int]], message: str, loss: str
) -> None:
    engine = engine_of(loss=loss)
    with pytest.raises(ValueError, match=f"^{message}$"):
        engine.forward_backward(batch_of(Ragged.from_lists(rows)))
    engine.forward_backward(batch_of())
    assert engine.pop_loss() > 0


@pytest.mark.usefixtures("isa")
def test_no_histories_have_no_features_and_no_lists() -> None:
    nothing, index = Ragged.from_lists([]), NativeIndex(engine_of().item_table(), load_native().module, 2)
    features = engine_of().encode(nothing)
    assert features.shape == (0, DIM)
    assert index.top_k(features, 3)[0].shape == (0, 3)
    assert index.rank(features, np.zeros(0, np.int32), None, "expected", 3)[0].shape == (0,)
    assert index.rank_among(features, np.zeros((0, 5), np.int32), "expected").shape == (0,)


@pytest.mark.usefixtures("isa")
def test_a_list_longer_than_the_catalogue_ends_in_nothing() -> None:
    engine = engine_of()
    index, features = NativeIndex(engine.item_table(), load_native().module, 2), engine.encode(HISTORIES)
    _, lists = index.rank(features, np.array([1, 2], np.int32), None, "expected", N_ITEMS + 7)
    assert (np.sort(lists, axis=1) == np.r_[np.zeros(7), np.arange(1, N_ITEMS + 1)]).all()
    assert index.top_k(features, 10**12)[0].shape == (2, N_ITEMS)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((2, DIM)),
        np.zeros((2, DIM), np.float32, order="F"),
        np.zeros((2, 2 * DIM), np.float32)[:, ::2],
        read_only(np.zeros((2, DIM), np.float32)),
        np.zeros((2, DIM), ">f4"),
        [[0.0] * DIM] * 2,
    ],
    ids=["float64", "columns", "strided", "read-only", "big-endian", "list"],
)
def test_results_are_not_lost_in_a_copy_of_the_array_they_are_for(features: Any) -> None:
    with pytest.raises(TypeError, match=r"^features must be a writable array of float32 in C order$"):
        engine_of().core.encode(HISTORIES.values, HISTORIES.offsets, features)


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.float64, ">i4"])
def test_items_of_another_type_are_not_turned_into_other_items(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"^items must be an array of int32$"):
        engine_of().encode(Ragged(HISTORIES.values.astype(kind), HISTORIES.offsets))
    with pytest.raises(TypeError, match=r"^targets must be an array of int32$"):
        engine_of().forward_backward(replace(batch_of(), targets=np.ones(3, kind)))


def test_arrays_to_read_may_be_read_only_and_lie_anyhow() -> None:
    engine = engine_of()
    expected = engine.encode(HISTORIES)
    apart = Ragged(np.repeat(HISTORIES.values, 2)[::2], np.repeat(HISTORIES.offsets, 2)[::2])
    assert np.array_equal(engine.encode(apart), expected)
    fixed = Ragged(read_only(HISTORIES.values.copy()), read_only(HISTORIES.offsets.copy()))
    assert np.array_equal(engine.encode(fixed), expected)
    index = NativeIndex(engine.item_table(), load_native().module, 1)
    assert np.array_equal(index.top_k(np.asfortranarray(expected), 3)[0], index.top_k(expected, 3)[0])


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_items": 2**31 - 1}, {"n_items": 2**30}, {"embedding_dim": 2**30}, {"ffn_dim": 2**31 - 1},
        {"max_seq_len": 2**31 - 1}, {"n_blocks": 2**31 - 1}, {"threads": 2**31 - 1},
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_counted_are_refused(sizes: dict[str, int]) -> None:
    usual: dict[str, Any] = {
        "block": "sasrec", "n_items": 9, "embedding_dim": 8, "n_blocks": 1, "n_heads": 1, "ffn_dim": 8,
        "max_seq_len": 5, "dropout": 0.1, "norm_eps": 1e-8, "relu": True, "tied": True, "weights": [], "threads": 1,
        "lazy_adam": False,
    }  # fmt: skip
    make = load_native().module.Engine
    with pytest.raises(ValueError, match=r"^sizes are out of range$"):
        make(**usual | sizes)
    for dropout in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^dropout must be from 0 to below 1$"):
            make(**usual | {"dropout": dropout})
    with pytest.raises(ValueError, match=r"^orthogonal steps move every row, which lazy Adam does not$"):
        make(**usual | {"lazy_adam": True, "orthogonal_steps": True})


def test_draws_whose_number_overflows_are_refused() -> None:
    rows = {"starts": np.zeros(3, np.int64), "ends": np.zeros(3, np.int64), "items": np.zeros(0, np.int32)}
    counts = np.array([2**63 - 1, 2**63 - 1, 4], np.int64)  # their sum is 2 in 64 bits
    steps = {"seeds": np.ones((1, 3), np.uint64), "step_rows": np.array([3]), "n_items": 5, "rounds": 2}
    with pytest.raises(ValueError, match=r"^out must have room for all counts$"):
        load_native().module.draw_unseen(counts=counts, out=np.zeros(2, np.int32), **rows, **steps)
    with pytest.raises(ValueError, match=r"^step_rows must end with the last row$"):
        load_native().module.draw_unseen(
            counts=np.ones(3, np.int64), out=np.zeros(3, np.int32), **rows, **steps | {"step_rows": np.array([2])}
        )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_told_where_items_are_ranked(bad: float) -> None:
    engine = engine_of()
    engine.load_weights({name: np.full_like(value, bad) for name, value in engine.weights().items()})
    features = engine.encode(HISTORIES)
    assert not np.isfinite(features).any()
    for _ in range(2):
        engine.forward_backward(batch_of())
        engine.optimizer_step(0.001)
    assert not np.isfinite(engine.pop_loss())
    index = NativeIndex(engine.item_table(), load_native().module, 2)
    with pytest.raises(DataError, match="finite"):
        index.top_k(features, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_levels_that_are_not_finite_are_told(isa: str, bad: float) -> None:
    levels, targets = np.arange(2001, dtype=np.float32), np.array([7], np.int32)
    own = Exceptions.of_rows(Ragged.from_lists([[3]]), np.array([bad], np.float32))
    with pytest.raises(DataError, match="finite"):
        NativeLevelIndex(levels, load_native().module).rank(own, targets, None, "expected", 20)
    levels[1::2] = bad
    with pytest.raises(DataError, match="finite"):
        NativeLevelIndex(levels, load_native().module).rank(Exceptions.none(1), targets, None, "expected", 20)


@pytest.mark.usefixtures("isa")
def test_an_error_in_a_thread_of_the_pool_reaches_the_caller_and_the_pool_works_on() -> None:
    engine = engine_of(threads=3)
    index, features = NativeIndex(engine.item_table(), load_native().module, 3), engine.encode(long_histories(300))
    expected = index.top_k(features, 5)[0]
    hidden: list[list[int]] = [[] for _ in range(300)]
    hidden[299] = [N_ITEMS + 1]
    for _ in range(20):
        with pytest.raises(ValueError, match=rf"^a hidden item is not in 1\.\.{N_ITEMS}$"):
            index.top_k(features, 5, hidden=Ragged.from_lists(hidden))
    assert np.array_equal(index.top_k(features, 5)[0], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.swap_average(), "there is no average of the weights; update_average makes one"),
        (lambda e: e._read(ITEM_TABLE, "average"), "there is no average of the weights; update_average makes one"),
        (lambda e: e._read(ITEM_TABLE, "wings"), "kind 'wings' is not known"),
        (lambda e: e.core.write("wings", "weight", np.zeros(1, np.float32)), "there is no weight named 'wings'"),
        (lambda e: e.core.write(ITEM_TABLE, "gradient", e.item_table()), "gradients cannot be written"),
        (lambda e: e.core.write(ITEM_TABLE, "weight", np.zeros(3, np.float32)), f"the array for {ITEM_TABLE} has the"),
        (lambda e: e.load_optimizer_state({"step/x": np.float32(np.nan)}), "step_count must be in 0..2"),
        (lambda e: e.load_optimizer_state({"step/x": np.float32(-1)}), "step_count must be in 0..2"),
        (lambda e: e.load_optimizer_state({"step/x": np.float32(1e38)}), "step_count must be in 0..2"),
    ],
)  # fmt: skip
def test_weights_and_state_that_are_not_there_are_refused(call: Callable[[NativeEngine], Any], message: str) -> None:
    engine = engine_of()
    before = engine.weights()
    with pytest.raises(ValueError, match=message):
        call(engine)
    assert not engine.core.has_average
    assert all(np.array_equal(before[name], value) for name, value in engine.weights().items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({f"exp_avg/{ITEM_TABLE}": np.zeros((DIM, N_ITEMS + 1), np.float32)}, "has shape"),
        ({"exp_avg/wings": np.zeros(1, np.float32)}, "unexpected"),
    ],
)
def test_a_state_of_another_model_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        engine_of().load_optimizer_state(state)


def test_weights_that_are_read_while_another_thread_trains_are_those_of_training_alone() -> None:
    run("""
from sasrec.data.batches import Batch
inputs = Ragged.from_lists([np.arange(1, 40, dtype=np.int32)] * 60)
items, none = inputs.values, np.zeros(20_001, np.float32)
weights = None

def trained(together):
    global weights
    engine = NativeEngine(ModelConfig(embedding_dim=16, max_seq_len=50), 20_000, TrainConfig(threads=3), weights)
    weights = engine.weights()

    def train():  # it touches few rows, so that the others wait, and whoever reads them brings them up to date
        for step in range(40):
            engine.forward_backward(Batch(np.arange(60), inputs, items, items[:, None] + 50 * step + 1, none, step))
            engine.optimizer_step(0.01)

    def look():
        while thread.is_alive():
            assert engine.weights().keys() == weights.keys() and engine.core.step_count <= 40
            engine.optimizer_state(), engine.item_table()

    thread = threading.Thread(target=train)
    thread.start()
    if together:
        look()
    thread.join()
    assert engine.core.step_count == 40
    return engine.weights()

alone, together = trained(False), trained(True)
assert all(np.array_equal(alone[name], together[name]) for name in alone)
""")


@pytest.mark.usefixtures("isa")
def test_an_engine_that_is_let_go_while_it_works_ends_its_work() -> None:
    engine, histories, found = engine_of(), long_histories(20_000), []
    started = threading.Event()

    def work(mine: list[NativeEngine]) -> None:
        started.set()
        found.append(mine.pop().encode(histories))

    thread = threading.Thread(target=work, args=([engine],))
    thread.start()
    started.wait()
    del engine
    thread.join(60)
    assert found[0].shape == (20_000, DIM)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NPROC counts threads on Linux alone")
def test_a_thread_that_cannot_be_started_is_an_error_and_the_next_call_tries_again() -> None:
    printed = run("""
index = NativeIndex(engine.item_table(), load_native().module, 3)
features = np.ones((500, 16), np.float32)
if os.getuid() == 0:
    try:
        os.setresuid(65534, 65534, 65534)  # root may start any number of threads
    except OSError:
        print("root")
        sys.exit()
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
for call in (lambda: engine.encode(histories), lambda: index.top_k(features, 3)):
    for _ in range(2):
        try:
            call()
        except RuntimeError as error:
            print(error)
resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
print(engine.encode(histories).shape, index.top_k(features, 3)[0].shape)
""").splitlines()
    if printed == ["root"]:
        pytest.skip("root, who may start any number of threads, cannot become another user here")
    assert len(printed) == 5
    for line in printed[:4]:
        assert line.startswith("thread 2 of 3 could not be started (")
        assert line.endswith("); use fewer threads")
    assert printed[4] == "(500, 16) (500, 3)"


def test_a_process_ends_while_a_daemon_thread_works() -> None:
    run("""
def work():
    while True:
        engine.encode(histories)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("use", ["engine.encode(histories)", "pass"])
def test_a_fork_lets_go_of_an_engine_whose_threads_are_its_parents(use: str) -> None:
    run(f"""
engine.encode(histories)
time.sleep(0.05)  # its threads sleep by now
if (pid := os.fork()) == 0:
    {use}
    del engine
    os._exit(0)
for _ in range(200):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    time.sleep(0.05)
else:
    os.kill(pid, 9)
assert done and status == 0, "the child hangs"
engine.encode(histories)
""")


def test_ids_that_are_no_ids_are_refused() -> None:
    table, ids, none = load_native().module.IdTable(), np.array([3, 5, 9]), np.zeros(0, np.int64)
    with pytest.raises(TypeError, match="ids must be an array of int64"):
        table.count(ids.astype(np.int32), none)
    with pytest.raises(ValueError, match="one count for each id, or none"):
        table.count(ids, ids[:2])
    with pytest.raises(ValueError, match="counts must be positive"):
        table.count(ids, np.array([1, 0, 1]))
    table.count(ids, none)
    with pytest.raises(ValueError, match="one place for each id"):
        table.places(ids, np.zeros(2, np.int32))
    with pytest.raises(TypeError, match="places must be a writable array of int32"):
        table.places(ids, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="there must be room for all ids and no more"):
        table.take(np.zeros(2, np.int64), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="one number for each id"):
        table.take(np.zeros(3, np.int64), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="the table has ids already"):
        table.number(ids)
    with pytest.raises(ValueError, match="ids must be different"):
        load_native().module.IdTable().number(np.array([4, 4]))
    found = np.zeros(3, np.int64), np.zeros(3, np.int64)
    table.take(*found)
    assert [array.tolist() for array in found] == [[3, 5, 9], [1, 1, 1]]


@pytest.mark.parametrize("keys", [[0, 3], [-1, 0], [2**31 - 1, 0]])
def test_keys_beyond_their_number_are_refused(keys: list[int]) -> None:
    given = np.array(keys, np.int32)
    with pytest.raises(ValueError, match=r"keys must be in 0\.\.len\(counts\) - 1"):
        load_native().module.order_of(given, np.zeros(2, np.int64), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="one place for each key"):
        load_native().module.order_of(np.zeros(3, np.int32), np.zeros(2, np.int64), np.zeros(3, np.int64))
