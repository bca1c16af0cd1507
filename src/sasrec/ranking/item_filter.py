"""The one rule for `allow`, `deny` and `where`: which items they leave together.

Lists of your own ids become item indices; unknown ids are skipped and listed.

What to do about unknown ids is the caller's: the library warns, and fails where no id is known; the server lists them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sasrec.core.arrays import Int32
from sasrec.core.errors import UnknownItemError
from sasrec.data.histories import list_of_ids
from sasrec.data.vocabulary import Vocabulary
from sasrec.ranking.next_items import Mask

logger = logging.getLogger(__name__)
NOBODY = np.zeros(0, np.int32)


@dataclass(frozen=True)
class ItemFilter:
    """An allow and a deny list in item indices, and the items that an expression leaves."""

    n_items: int
    allowed: Int32 | None  # the only items to recommend; None = all
    denied: Int32  # items that are never recommended
    unknown_allow: list[Any]  # ids of the allow list that the model does not know
    unknown_deny: list[Any]  # the same of the deny list
    where: Mask | None = None  # (V,) the items that fulfil the expression; None = there is none

    @classmethod
    def of(
        cls,
        vocabulary: Vocabulary,
        allow: Iterable[Any] | None,
        deny: Iterable[Any] | None,
        where: Mask | None = None,
    ) -> ItemFilter:
        """The lists in the indices of this vocabulary; None = no such list, and no expression.

        Raises:
            DataError: one of them is not a list of ids.
        """
        allowed, unknown_allow = (None, []) if allow is None else vocabulary.split_known(list_of_ids(allow, "allow"))
        denied, unknown_deny = (NOBODY, []) if deny is None else vocabulary.split_known(list_of_ids(deny, "deny"))
        return cls(len(vocabulary), allowed, denied, unknown_allow, unknown_deny, where)

    def warn_of_unknown(self) -> None:
        """Warn of the unknown ids of each list, and of an expression that no item fulfils.

        Raises:
            UnknownItemError: a list is not empty, and none of its ids is known.
        """
        _check_known("allow", self.unknown_allow, n_known=0 if self.allowed is None else len(self.allowed))
        _check_known("deny", self.unknown_deny, n_known=len(self.denied))
        if self.where is not None and not self.where.any():
            logger.warning("no item fulfils where, so there is nothing to recommend")

    def allow_mask(self) -> Mask | None:
        """(V,) the items of the allow list that fulfil the expression; None = all items. Not to be written to."""
        if self.allowed is None:
            return self.where
        mask = np.zeros(self.n_items + 1, bool)
        mask[self.allowed] = True
        return mask if self.where is None else mask & self.where

    def mask(self) -> Mask | None:
        """As `allow_mask`, without the items of the deny list."""
        mask = self.allow_mask()
        if len(self.denied):
            mask = np.ones(self.n_items + 1, bool) if mask is None else mask.copy()
            mask[self.denied] = mask[0] = False
        return mask


def _check_known(name: str, unknown: list[Any], n_known: int) -> None:
    """Warn of unknown ids of a list; fail when it has no other."""
    if not unknown:
        return
    told = f"{len(unknown)} of the {len(unknown) + n_known} items of {name} are unknown, such as {unknown[0]!r}"
    if not n_known:
        raise UnknownItemError(f"{told}: none is in the log this model was trained on, so the list would mean nothing")
    logger.warning("%s; they are skipped", told)
