"""Amounts of memory: what "4GB" means, how an amount is shown, and how much this process has."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

from sasrec.core.errors import ConfigError

UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def bytes_in(amount: str | int) -> int:
    """The bytes of an amount such as 4GB, 512MB, 2GiB, or a plain number of bytes.

    Raises:
        ConfigError: it is no amount above 0.
    """
    found = AMOUNT.fullmatch(str(amount))
    unit = UNITS.get(found[2].lower()) if found else None
    n_bytes = 0 if found is None or unit is None else int(float(found[1]) * unit)
    if n_bytes < 1:
        raise ConfigError(f"memory={str(amount)!r} is not an amount of memory; write such as 4GB, 512MB or 2GiB")
    return n_bytes


def shown_bytes(n_bytes: float) -> str:
    """An amount for people, such as 3.2 GB."""
    unit = next((unit for unit in ("tb", "gb", "mb", "kb") if n_bytes >= UNITS[unit]), "kb")
    value = n_bytes / UNITS[unit]
    return f"{value:.1f} {unit.upper()}" if value < 10 else f"{value:.0f} {unit.upper()}"


def resident_bytes() -> int:
    """The memory that this process has now, mapped pages included; where the system does not tell, its peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
