"""Which items may be given. In: allow and deny lists of your own ids; out: item indices, and the ids that are unknown.

One rule wherever lists are asked for: unknown ids are skipped and listed, never an error by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sasrec.core.arrays import Int32
from sasrec.data.vocabulary import Vocabulary
from sasrec.ranking.next_items import Mask

NOBODY = np.zeros(0, np.int32)


@dataclass(frozen=True)
class ItemFilter:
    """An allow and a deny list in item indices."""

    n_items: int
    allowed: Int32 | None  # the only items to give; None = all
    denied: Int32  # never to be given
    unknown_allow: list[Any]  # ids of the allow list that the model does not know
    unknown_deny: list[Any]  # of the deny list

    @classmethod
    def of(cls, vocabulary: Vocabulary, allow: Iterable[Any] | None, deny: Iterable[Any] | None) -> ItemFilter:
        """The lists as a model with this vocabulary understands them; None = no such list."""
        allowed, unknown_allow = (None, []) if allow is None else vocabulary.split_known(list(allow))
        denied, unknown_deny = (NOBODY, []) if deny is None else vocabulary.split_known(list(deny))
        return cls(len(vocabulary), allowed, denied, unknown_allow, unknown_deny)

    def allow_mask(self) -> Mask | None:
        """(V,) what the allow list names; None = everything."""
        if self.allowed is None:
            return None
        mask = np.zeros(self.n_items + 1, bool)
        mask[self.allowed] = True
        return mask

    def mask(self) -> Mask | None:
        """(V,) what the allow list names less what the deny list names; None = everything."""
        mask = self.allow_mask()
        if len(self.denied):
            mask = np.ones(self.n_items + 1, bool) if mask is None else mask
            mask[self.denied] = mask[0] = False
        return mask
