"""How many CPU threads to use: one setting for torch, NumPy's BLAS and the compiled core."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIPS = Path("/proc/self/cgroup")  # lines "number:controllers:path"; version 2 has "0::path"
CGROUPS = Path("/sys/fs/cgroup")
PERIOD = "100000"  # microseconds, where a quota stands without one


def usable_cpus(allowed: int | None = None, memberships: Path = MEMBERSHIPS, cgroups: Path = CGROUPS) -> int:
    """CPUs that this process may use: those it may run on, or fewer where its container has a quota of CPU time.

    Args:
        allowed: CPUs that it may run on; None = ask the system.
        memberships: lists the process's cgroups.
        cgroups: where these are mounted.
    """
    allowed = _allowed_cpus() if allowed is None else allowed
    return min([allowed, *_quotas(memberships, cgroups)])


def _allowed_cpus() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1  # the affinity, or PYTHON_CPU_COUNT
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(memberships: Path, cgroups: Path) -> Iterator[int]:
    """The quotas of the process's cgroups and of all around them, in whole CPUs, rounded up."""
    for line in _read(memberships).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = [part for part in path.split("/") if part not in ("", "..")]  # ".." is outside of a namespace
        for mount in (controllers, "cpu") if controllers else ("", "unified"):
            for depth in range(len(inside) + 1):
                quota = _quota(cgroups.joinpath(mount, *inside[:depth]))
                if quota is not None:
                    yield quota


def _quota(cgroup: Path) -> int | None:
    """A cgroup's quota in CPUs; None = it has none, or is not here."""
    version_1 = [_read(cgroup / "cpu.cfs_quota_us").strip() or "max", _read(cgroup / "cpu.cfs_period_us").strip()]
    quota, period, *_ = [*(_read(cgroup / "cpu.max").split() or version_1), PERIOD]
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return -(-int(quota) // int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


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
