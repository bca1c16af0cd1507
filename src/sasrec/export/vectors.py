"""The vectors of all items, for a vector database that searches by inner product."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sasrec.export.folder import export_facts, new_folder, write_facts, write_vocabulary
from sasrec.recommender import Recommender

if TYPE_CHECKING:
    pass


def export_embeddings(recommender: Recommender, output: Path | str, *, overwrite: bool = False) -> dict[str, Any]:
    """Write the vectors of all items for a vector database that searches by inner product.

    A query is what the model makes of a history: `Recommender.features`, or `features` of the exported graph.

    Raises:
        ConfigError: the output exists.
        DataError: the model's weights are not finite numbers.
        CheckpointError: the folder cannot be written.
    """
    facts = {**export_facts(recommender, "embeddings"), "metric": "inner product"}
    table = recommender.engine.item_table()[1:]
    vocabulary = recommender.vocabulary
    with new_folder(Path(output), overwrite=overwrite) as folder:
        vectors = pl.Series("embedding", table, dtype=pl.Array(pl.Float32, table.shape[1]))
        vocabulary.to_frame().drop("count").with_columns(vectors).write_parquet(folder / "items.parquet")
        np.save(folder / "embeddings.npy", table)
        ids = vocabulary.item_ids
        np.save(folder / "item_ids.npy", ids.to_numpy() if vocabulary.has_integer_ids else np.array(ids.to_list(), str))
        write_vocabulary(recommender, folder)
        write_facts(folder, facts)
    return facts
