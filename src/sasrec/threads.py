"""How many CPU threads to use: one setting for torch, NumPy's BLAS and the compiled core."""

from __future__ import annotations

import os
import sys


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> int:
    """Limit torch, if it is loaded, and every BLAS to this number; 0 = all CPUs of this process. Returns the number."""
    from threadpoolctl import threadpool_limits

    threads = threads or usable_cpus()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    threadpool_limits(threads)
    return threads
