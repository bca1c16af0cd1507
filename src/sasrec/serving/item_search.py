"""Finds items by title and id. In: what somebody has typed; out: item indices."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import polars as pl

from sasrec.core.arrays import Int32
from sasrec.data.vocabulary import Vocabulary


class ItemSearch:
    """The titles and ids of a catalogue, without case and accents.

    Args:
        vocabulary: ids, titles and counts.
        popular: (n_items,) all items, the most popular first.
    """

    def __init__(self, vocabulary: Vocabulary, popular: Int32) -> None:
        self.popular, self.counts = popular, vocabulary.counts
        titles = [None] * len(vocabulary) if vocabulary.titles is None else vocabulary.titles.to_list()
        pairs = zip(vocabulary.ids, titles, strict=True)
        texts = [_folded(str(i) if title is None else f"{title} {i}") for i, title in pairs]
        self._texts = pl.Series(texts, dtype=pl.String)  # (n_items,)

    def find(self, text: str, k: int) -> Int32:
        """The first k items whose title or id has all of the words.

        Those that begin with the words come first, then those in which a word begins with the first one; of equal
        ones the more popular. Without any word, the most popular items.
        """
        words = _folded(text).split()
        if not words:
            return self.popular[:k]
        rows, candidates = np.arange(len(self._texts)), self._texts
        for word in told_apart(words):  # each looks only at what the ones before have left
            has_word = candidates.str.contains(word, literal=True)
            rows, candidates = rows[has_word.to_numpy()], candidates.filter(has_word)
        begins = candidates.str.starts_with(" ".join(words)).to_numpy()
        at_word = candidates.str.contains(" " + words[0], literal=True).to_numpy()
        order = np.lexsort((rows, -self.counts[rows], ~at_word, ~begins))
        return (rows[order[:k]] + 1).astype(np.int32)


def told_apart(words: Sequence[str]) -> list[str]:
    """The words that tell something, the longest first: one that is a part of another tells nothing."""
    told: list[str] = []
    for word in sorted(set(words), key=lambda word: (-len(word), word)):
        if not any(word in longer for longer in told):
            told.append(word)
    return told


def _folded(text: str) -> str:
    """Without case and accents."""
    text = text.casefold()
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
