"""How many CPU threads to use: one setting for torch, NumPy's BLAS and the compiled core."""

from __future__ import annotations

import os
import sys


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(setting: int) -> int:
    """The number of threads that a setting asks for; 0 = all CPUs of this process."""
    return setting or usable_cpus()


def set_threads(threads: int) -> None:
    """Limit torch, if it is loaded, and every BLAS of this process to this number.

    Called by what a user calls (`fit`, `load`, `convert`), never by an engine, and after the engine has been made: only
    then it is known whether torch is loaded.
    """
    from threadpoolctl import threadpool_limits

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    threadpool_limits(threads)
