"""A model for others to serve. In: a Recommender; out: a folder that needs neither this package nor torch.

onnx          model.onnx (see graph.py), items.jsonl
embeddings    items.parquet (with an embedding a row), embeddings.npy, item_ids.npy, items.jsonl
both          export.json: which model it is, how it was checked

A folder is written beside its place, checked there, and only then put in place.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec import __version__
from sasrec.checkpoint import disk_errors
from sasrec.engine import create_engine
from sasrec.errors import CheckpointError, ConfigError, DataError
from sasrec.graph import ModelGraph
from sasrec.recommender import Recommender
from sasrec.sequences import Float32, Int32, Ragged
from sasrec.variants import load_float32, load_native

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

FORMAT = 1
TOLERANCE = 1e-4  # of a score, and of one above 1 relative to it
CHECKED_USERS = 500
CHECK_ROWS = 50  # histories of different lengths in one batch
CHECK_SCORES = 2**24  # of a batch, which a graph has to keep at once
CHECK_K = 10
LOW_RECALL = 0.9  # below this the user is warned
PROTOBUF_BYTES = 2**30  # weights above this lie in a file beside the graph: protobuf ends at 2 GiB
OUTPUTS = ["items", "scores", "features"]
NEEDED = "pip install 'sasrec[onnx]'"


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
    recommender: Recommender, output: Path | str, *, int8: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write a graph that ranks items after padded histories, and its vocabulary, once it agrees with the package.

    Args:
        recommender: the model.
        output: the folder to write.
        int8: keep the item tables as bytes: a third of the size, and lists that differ now and then.
        overwrite: replace an export that is there.

    Returns:
        What export.json holds: model_version, inputs' defaults, how the check went.

    Raises:
        ConfigError: the output exists, or onnx or onnxruntime is not installed.
        DataError: the model's weights are not finite numbers.
        CheckpointError: the graph and the package disagree, or the folder cannot be written.
    """
    _require_onnx()
    weights = recommender.engine.weights()
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise DataError(f"weight {name} has values that are not finite numbers: the training has diverged")
    facts = {**_facts(recommender, "onnx"), "int8": int8}
    counts = np.concatenate([[0.0], recommender.vocabulary.counts]).astype(np.float32)
    model = ModelGraph(recommender.config.model, weights, counts, int8=int8).build(
        {name: json.dumps(value) if isinstance(value, bool) else str(value) for name, value in facts.items()}
    )
    with new_folder(Path(output), overwrite=overwrite) as folder:
        _save_model(model, folder / "model.onnx")
        facts["check"] = check(folder / "model.onnx", recommender, exact=not int8).to_dict()
        _write_vocabulary(recommender, folder)
        _write_facts(folder, facts)
    return facts


def export_embeddings(recommender: Recommender, output: Path | str, *, overwrite: bool = False) -> dict[str, Any]:
    """Write the vectors of all items for a vector database that searches by inner product.

    A query is what the model makes of a history: `Recommender.features`, or `features` of the exported graph.

    Raises:
        ConfigError: the output exists.
        CheckpointError: the folder cannot be written.
    """
    facts = {**_facts(recommender, "embeddings"), "metric": "inner product"}
    table = recommender.engine.item_table()[1:]
    vocabulary = recommender.vocabulary
    with new_folder(Path(output), overwrite=overwrite) as folder:
        vectors = pl.Series("embedding", table, dtype=pl.Array(pl.Float32, table.shape[1]))
        vocabulary.to_frame().drop("count").with_columns(vectors).write_parquet(folder / "items.parquet")
        np.save(folder / "embeddings.npy", table)
        ids = vocabulary.item_ids
        np.save(folder / "item_ids.npy", ids.to_numpy() if vocabulary.has_integer_ids else np.array(ids.to_list(), str))
        _write_vocabulary(recommender, folder)
        _write_facts(folder, facts)
    return facts


def _facts(recommender: Recommender, kind: str) -> dict[str, Any]:
    model = recommender.config.model
    return {
        "format": FORMAT,
        "kind": kind,
        "model_version": recommender.model_version,
        "sasrec": __version__,
        "data": recommender.config.data_name,
        "block": model.block,
        "n_items": len(recommender.vocabulary),
        "embedding_dim": model.embedding_dim,
        "max_seq_len": model.max_seq_len,
        "hide_seen": recommender.hides_seen,
    }


def _write_vocabulary(recommender: Recommender, folder: Path) -> None:
    """items.jsonl: item_index, item_id and, when known, title; a line an item, in ascending order of index."""
    recommender.vocabulary.to_frame().drop("count").write_ndjson(folder / "items.jsonl")


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n")


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when nothing went wrong.

    Raises:
        ConfigError: there is something at `path`, and it is no export or overwrite is not set.
        CheckpointError: the disk is full or the folder cannot be written; what was at `path` is untouched.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        if not overwrite:
            raise ConfigError(f"output {path} exists and is not empty; use --overwrite or another folder")
        if not (path / "export.json").is_file():
            raise ConfigError(f"output {path} is not an export, so --overwrite does not delete it")
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        with disk_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"export to ONNX needs {error.name}; install it: {NEEDED}") from error


def _save_model(model: Any, path: Path) -> None:
    """The graph, checked by onnx; large weights in a file of their own beside it."""
    import onnx

    large = sum(len(array.raw_data) for array in model.graph.initializer) > PROTOBUF_BYTES
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


def check(path: Path, recommender: Recommender, *, exact: bool = True) -> Check:
    """Compare a graph with the package: the log's users, or made ones, with and without what they have seen.

    Args:
        path: model.onnx.
        recommender: the model it was made from.
        exact: False for a graph in bytes, whose lists may differ.

    Raises:
        CheckpointError: exact, and a score differs by more than TOLERANCE.
    """
    recommender = _in_float32(recommender)
    session = open_session(path, recommender.engine.threads)
    histories = _histories_to_check(recommender)
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
    config, n_items = recommender.config, len(recommender.vocabulary)
    exact = copy.copy(recommender)
    exact.engine = create_engine(config.model, n_items, config.train, recommender.engine.weights(), float32=True)
    return exact


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A graph in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _request(histories: NDArray[np.int64], k: int, *, hide_seen: bool) -> dict[str, NDArray[Any]]:
    return {"histories": histories, "k": np.array([k], np.int64), "hide_seen": np.array([hide_seen])}


def _histories_to_check(recommender: Recommender) -> Ragged:
    """Some of the log's users, short and long ones in turn, and one without any item; made ones without a log."""
    n_items, longest = len(recommender.vocabulary), recommender.config.model.max_seq_len
    rng = np.random.default_rng(0)
    if recommender.sequences is None:
        lengths = rng.integers(1, longest + 2, CHECK_ROWS)
        rows = [rng.integers(1, n_items + 1, n).astype(np.int32) for n in lengths]
    else:
        sequences = recommender.sequences
        users = np.linspace(0, len(sequences) - 1, min(len(sequences), CHECKED_USERS)).astype(np.int64)
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
