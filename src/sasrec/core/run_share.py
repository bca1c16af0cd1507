"""Reads RUN:SHARE, a run folder that answers a share of the users."""

from __future__ import annotations

import math

from sasrec.core.errors import ConfigError


def read_run_share(text: str) -> tuple[str, float]:
    """Split "runs/new:0.1" into path and share.

    Raises:
        ConfigError: there is no path, or no share between 0 and 1.
    """
    path, _, share = text.rpartition(":")
    try:
        found = float(share)
    except ValueError:
        found = math.nan
    if not path or not 0 < found < 1:
        raise ConfigError(f"challenger={text!r} is no run folder with a share between 0 and 1, such as runs/new:0.1")
    return path, found
