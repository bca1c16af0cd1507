"""The compiled core: which variant of it this process uses. In: the CPU's features; out: its module, or none.

Each variant is a module of its own, `native_<name>.so` beside this file, compiled from the same sources (native/) for
one instruction set. Only the one that is chosen is loaded, so that a CPU never meets an instruction it lacks.
`SASREC_ISA=<name>` forces one; an installation without a compiler has none: NumPy ranks, and torch, an extra, trains.
CMake asks `fastest_here` what to build before anything is installed, so this file imports the standard library only.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sasrec.core.errors import ConfigError

AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
NEEDS: dict[str, frozenset[str]] = {  # the fastest first, but see fastest_first
    "amx": AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512": AVX512,
    "avx512_bf16": AVX512 | {"avx512_bf16"},
    "avx2": frozenset({"avx2", "fma", "f16c", "bmi2", "movbe"}),
    "portable": frozenset(),
}
SETTING = "SASREC_ISA"


@dataclass(frozen=True)
class Native:
    """The variant in use. `module` is None where there is none, and `why` says why in either case."""

    isa: str
    module: Any
    why: str


@functools.cache
def load_native() -> Native:
    """Load the fastest variant that was built and that this CPU runs, or the one SASREC_ISA names.

    Raises:
        ConfigError: SASREC_ISA names an unknown variant, one that was not built, or one that this CPU cannot run.
    """
    wanted = os.environ.get(SETTING, "")
    if wanted:
        return _forced(wanted)
    for isa in runnable():
        if _is_built(isa):
            module = _import(isa)
            if module.available():
                return Native(isa, module, "the fastest that this CPU has")
    return Native("", None, "the compiled core is not part of this installation: building it needs a C++20 compiler")


def load_float32() -> Native:
    """The variant in use, or the fastest that multiplies floats where that one multiplies bf16."""
    native = load_native()
    if native.module is None or not native.module.bf16:
        return native
    found = (isa for isa in NEEDS if _is_built(isa) and not _missing(isa) and not _import(isa).bf16)
    isa = next(found, native.isa)
    return Native(isa, _import(isa), "the fastest that multiplies floats")


def _forced(isa: str) -> Native:
    if isa not in NEEDS:
        raise ConfigError(f"{SETTING}={isa!r} is not one of {', '.join(NEEDS)}")
    if not _is_built(isa):
        raise ConfigError(f"{SETTING}={isa}: that variant is not part of this installation")
    missing = _missing(isa)
    if missing:
        raise ConfigError(f"{SETTING}={isa}: this CPU has no {', '.join(missing)}")
    module = _import(isa)
    if not module.available():
        raise ConfigError(f"{SETTING}={isa}: the operating system does not let this process use it")
    return Native(isa, module, f"{SETTING} asks for it")


def _import(isa: str) -> Any:
    return importlib.import_module(f"sasrec.native_{isa}")


def _is_built(isa: str) -> bool:
    return importlib.util.find_spec(f"sasrec.native_{isa}") is not None


def _missing(isa: str) -> list[str]:
    return sorted(NEEDS[isa] - cpu_features())


def runnable() -> list[str]:
    """The variants that this CPU runs, built or not, the fastest first."""
    return [isa for isa in fastest_first() if not _missing(isa)]


def fastest_here() -> list[str]:
    """The one variant to build for this CPU alone; with AMX two, since the operating system may refuse its tiles."""
    return runnable()[: 2 if runnable()[0] == "amx" else 1]


def fastest_first() -> list[str]:
    """The variants in the order in which they are tried.

    Without tiles, AMD's cores (from Zen 4 on) multiply bf16 twice as fast as float32; Intel's do not, and convert.
    """
    order = list(NEEDS)
    if cpu_vendor() == "AuthenticAMD":
        order.remove("avx512_bf16")
        order.insert(order.index("avx512"), "avx512_bf16")
    return order


def cpu_features() -> frozenset[str]:
    """Feature flags of an x86-64 CPU as Linux names them; empty elsewhere, where the portable variant serves."""
    return frozenset(_cpuinfo().get("flags", "").split())


def cpu_vendor() -> str:
    """Who made an x86-64 CPU, as it says itself; empty elsewhere."""
    return _cpuinfo().get("vendor_id", "")


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first CPU; empty elsewhere."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
