"""Exports a model as an ONNX graph that others serve without this package and without torch.

model.onnx    the graph (see onnx_graph.py)
items.jsonl   the vocabulary
export.json   which model it is, and how the check went

The graph is compared with the package before the folder is put in place.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Float32, Int32
from sasrec.core.errors import CheckpointError
from sasrec.core.extras import require
from sasrec.core.isa import load_float32, load_native
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import create_engine
from sasrec.export.folder import export_facts, new_folder, write_facts, write_vocabulary
from sasrec.export.onnx_graph import ModelGraph
from sasrec.model.folding import fold
from sasrec.recommender import Recommender

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)
TOLERANCE = 1e-4  # of a score, and of one above 1 relative to it
CHECKED_USERS = 500  # of the log
CHECK_ROWS = 50  # histories of different lengths in one batch
CHECK_SCORES = 2**24  # of a batch, which a graph has to keep at once
CHECK_K = 10
LOW_RECALL = 0.9  # below this the user is warned
GRAPH_BYTES = 2**30  # of weights within the graph: protobuf ends at 2 GiB
OUTPUTS = ["items", "scores", "features"]


@dataclass(frozen=True)
class Check:
    """How a graph compares with the package."""

    n_histories: int
    largest_difference: float  # of a score; of one above 1 relative to it
    recall: float  # share of the package's items that the graph lists too

    def to_dict(self) -> dict[str, Any]:
        """For export.json."""
        return {**asdict(self), "k": CHECK_K}


def export_onnx(
    recommender: Recommender,
    output: Path | str,
    *,
    int8: bool = False,
    overwrite: bool = False,
    checked_users: int = CHECKED_USERS,
    graph_bytes: int = GRAPH_BYTES,
) -> dict[str, Any]:
    """Write a graph that ranks items after padded histories, and its vocabulary, once it agrees with the package.

    Args:
        recommender: the model.
        output: the folder to write.
        int8: keep the item tables as bytes: a third of the size, and lists that differ now and then.
        overwrite: replace an export that is there.
        checked_users: of how many users of the log the lists are compared.
        graph_bytes: weights of more bytes lie in a file beside the graph.

    Returns:
        What export.json holds: model_version, inputs' defaults, how the check went.

    Raises:
        ConfigError: the output exists, or onnx or onnxruntime is not installed.
        DataError: the model's weights are not finite numbers.
        CheckpointError: the graph and the package disagree, or the folder cannot be written.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, "export to ONNX", extra="onnx")
    weights = fold(recommender.engine.weights(), recommender.engine.features, recommender.config.model)
    facts = {**export_facts(recommender, "onnx"), "int8": int8}
    counts = np.concatenate([[0.0], recommender.vocabulary.counts]).astype(np.float32)
    model = ModelGraph(recommender.config.model, weights, counts, int8=int8).build(
        {name: json.dumps(value) if isinstance(value, bool) else str(value) for name, value in facts.items()}
    )
    with new_folder(Path(output), overwrite=overwrite) as folder:
        _save_model(model, folder / "model.onnx", graph_bytes)
        facts["check"] = check(folder / "model.onnx", recommender, checked_users, exact=not int8).to_dict()
        write_vocabulary(recommender, folder)
        write_facts(folder, facts)
    return facts


def _save_model(model: Any, path: Path, graph_bytes: int) -> None:
    """The graph, checked by onnx; large weights in a file of their own beside it."""
    import onnx

    large = sum(len(array.raw_data) for array in model.graph.initializer) > graph_bytes
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


def check(path: Path, recommender: Recommender, n_users: int = CHECKED_USERS, *, exact: bool = True) -> Check:
    """Compare a graph with the package: the log's users, or made ones, with and without what they have seen.

    Args:
        path: model.onnx.
        recommender: the model it was made from.
        n_users: of the log, at most.
        exact: False for a graph in bytes, whose lists may differ.

    Raises:
        CheckpointError: exact, and a score differs by more than TOLERANCE.
    """
    recommender = _in_float32(recommender)
    session = open_session(path, recommender.engine.threads)
    histories = _histories_to_check(recommender, n_users)
    rng = np.random.default_rng(0)
    differences, shared, listed = [0.0], 0, 0
    step = max(1, min(CHECK_ROWS, CHECK_SCORES // len(recommender.vocabulary)))
    for start in range(0, len(histories), step):
        rows = histories.take(slice(start, start + step))
        for keep_seen in (True, False):
            wanted = recommender.top_indices(rows, CHECK_K, keep_seen=keep_seen)
            found = session.run(OUTPUTS, _request(padded(rows, rng), CHECK_K, hide_seen=not keep_seen))
            differences.append(_difference(recommender, rows, wanted, found))
            shared += sum(len(np.intersect1d(a[a > 0], b)) for a, b in zip(wanted[0], found[0], strict=True))
            listed += int((wanted[0] > 0).sum())
    result = Check(len(histories), max(differences), shared / max(listed, 1))
    if exact and not result.largest_difference <= TOLERANCE:
        raise CheckpointError(
            f"the graph's scores differ from the package's by up to {result.largest_difference:.2g}, more than "
            f"{TOLERANCE:g}, so nothing was written; please report this with your versions of onnx and onnxruntime"
        )
    if result.recall < LOW_RECALL:
        logger.warning("the graph lists only %.1f %% of the items that the package lists", 100 * result.recall)
    return result


def _in_float32(recommender: Recommender) -> Recommender:
    """The same recommender, multiplying floats as the graph does, also where its engine multiplies bf16."""
    if recommender.engine.name != "native" or load_float32() == load_native():
        return recommender
    config, vocabulary, own = recommender.config, recommender.vocabulary, recommender.engine
    engine = create_engine(
        config.model,
        len(vocabulary),
        own.train_config,  # a run that was trained on CUDA is in the compiled core here
        own.weights(),
        features=own.features,
        native=load_float32(),
    )
    return Recommender(engine, vocabulary, config, recommender.sequences)


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A graph in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _request(histories: NDArray[np.int64], k: int, *, hide_seen: bool) -> dict[str, NDArray[Any]]:
    return {"histories": histories, "k": np.array([k], np.int64), "hide_seen": np.array([hide_seen])}


def _histories_to_check(recommender: Recommender, n_users: int) -> Ragged:
    """Some of the log's users, short and long ones in turn, and one without any item; made ones without a log."""
    n_items, longest = len(recommender.vocabulary), recommender.config.model.max_seq_len
    rng = np.random.default_rng(0)
    if recommender.sequences is None:
        lengths = rng.integers(1, longest + 2, CHECK_ROWS)
        rows = [rng.integers(1, n_items + 1, n).astype(np.int32) for n in lengths]
    else:
        sequences = recommender.sequences
        users = np.linspace(0, len(sequences) - 1, min(len(sequences), n_users)).astype(np.int64)
        rows = [sequences.history(int(user)) for user in users]
    return Ragged.from_lists([np.zeros(0, np.int32), *rows])


def padded(rows: Ragged, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """(B, L) histories with zeros to their left; with a generator, zeros anywhere, and more of them."""
    width = int(rows.lengths.max(initial=1))
    width += 0 if rng is None else int(rng.integers(0, 5))
    out = np.zeros((len(rows), width), np.int64)
    for i in range(len(rows)):
        row = rows.row(i)
        columns = np.arange(width - len(row), width) if rng is None else _any_columns(rng, width, len(row))
        out[i, columns] = row
    return out


def _any_columns(rng: np.random.Generator, width: int, n: int) -> NDArray[np.int64]:
    return np.sort(rng.permutation(width)[:n])


def _difference(recommender: Recommender, rows: Ragged, wanted: tuple[Int32, Float32], found: list[Any]) -> float:
    """The largest difference: of features, of scores place by place, and of the package's own scores of those items.

    Together they say that items and order are the same, but for items whose scores are that close.
    """
    items, scores, features = found
    width = wanted[0].shape[1]
    if ((items[:, :width] > 0) != (wanted[0] > 0)).any() or items[:, width:].any():
        return float("inf")
    real = wanted[0] > 0
    known = np.flatnonzero(rows.lengths)
    encoded = recommender.engine.encode(rows.take(known))  # (b, D)
    own = np.einsum("bd,bkd->bk", encoded, recommender.engine.item_table()[items[known, :width]])
    pairs = [
        (features[known], encoded),
        (scores[:, :width][real], wanted[1][real]),
        (scores[known, :width][real[known]], own[real[known]]),
    ]
    return max(float((np.abs(a - b) / np.maximum(1, np.abs(b))).max(initial=0)) for a, b in pairs)
