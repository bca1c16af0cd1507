"""What types of events mean for training: which events are targets, and how much each position counts.

A position's weight is that of the event it predicts: its type's weight times its own, where the log has one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sasrec.core.arrays import Bool, Float32
from sasrec.core.errors import ConfigError
from sasrec.core.event_types import weights_in
from sasrec.core.suggestions import suggestion
from sasrec.data.sequences import Sequences


def are_of_types(sequences: Sequences, types: Sequence[str]) -> Bool | None:
    """(n_events,) whether each event is of one of these types; None = all are, as no type is named.

    Raises:
        ConfigError: the log has no types, or lacks one of these.
    """
    if not types:
        return None
    _check_known(sequences, "target_events", types)
    assert sequences.types is not None
    wanted = np.isin(list(sequences.facts.event_types), types)  # (number of types,)
    found: Bool = wanted[sequences.types]
    return found


def event_weights(sequences: Sequences, text: str, target_types: Sequence[str]) -> Float32 | None:
    """(n_events,) how much each event counts as a target of training; None = all count 1.

    Args:
        sequences: the log.
        text: weights of types, as TrainConfig.event_weights has them.
        target_types: the types to predict; () = all. Others have weight 0 unless `text` says more.

    Raises:
        ConfigError: the log has no types, or lacks one that is named, or all of its types have weight 0.
    """
    given = weights_in(text)
    _check_known(sequences, "event_weights", list(given))
    _check_known(sequences, "target_events", target_types)
    if sequences.types is None:
        return None if sequences.weights is None else np.asarray(sequences.weights)
    base = {name: float(name in target_types or not target_types) for name in sequences.facts.event_types}
    by_type = np.array(list((base | given).values()), np.float32)
    if not by_type.any():
        raise ConfigError(
            f"event_weights={text} leaves every type of event the weight 0, so nothing would train; the log has "
            f"{types_in_words(sequences.facts.event_types)}"
        )
    if sequences.weights is None:
        return None if (by_type == 1).all() else by_type[sequences.types]
    weights: Float32 = by_type[sequences.types] * sequences.weights
    return weights


def _check_known(sequences: Sequences, option: str, types: Sequence[str]) -> None:
    """Refuse names of types that the log has not."""
    there = sequences.facts.event_types
    unknown = [name for name in types if name not in there]
    if unknown and not there:
        raise ConfigError(
            f"{option} names {unknown[0]!r}, and this log was read without types of events; name their column "
            "(--event-column)"
        )
    if unknown:
        meant = suggestion(unknown[0], there)
        raise ConfigError(
            f"{option} names {unknown[0]!r}, which no event is{meant}; the log has {types_in_words(there)}"
        )


def types_in_words(counts: dict[str, int]) -> str:
    """Types with how many events each has, the most frequent first."""
    in_order = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} ({n:,})" for name, n in in_order)
