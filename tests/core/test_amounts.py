"""Amounts of memory in words."""

from __future__ import annotations

import pytest

from sasrec.core.amounts import bytes_in, resident_bytes, shown_bytes
from sasrec.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4GB", 4 * 10**9), ("512 mb", 512 * 10**6), ("4GiB", 2**32), ("1.5kib", 1536), ("1000", 1000), (77, 77)],
)
def test_amounts_are_bytes(text: str | int, n_bytes: int) -> None:
    assert bytes_in(text) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "4 gigs", "-1GB", "0", "0.0001B", "1e9", "4GB 3MB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"memory='.*' is not an amount of memory; write such as 4GB, 512MB or 2GiB"):
        bytes_in(text)


def test_amounts_are_shown_with_two_digits() -> None:
    assert [shown_bytes(n) for n in (3_240_000_000, 512e6, 12_000, 900)] == ["3.2 GB", "512 MB", "12 KB", "0.9 KB"]


def test_a_process_has_memory() -> None:
    assert 10**7 < resident_bytes() < 10**11
