"""Choose the variant of the compiled core that this CPU runs, and load it.

Each variant is a module of its own, `sasrec/native_<name>.so`, compiled from the same sources (native/) for one
instruction set. Only the chosen one is loaded, so the CPU never meets an instruction that it lacks.
`SASREC_ISA=<name>` forces a variant. An installation that was built without a compiler has none; then NumPy ranks, and
torch, an extra, trains. CMake asks `fastest_here` what to build before anything is installed, so this file imports
nothing beyond the standard library and the errors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sasrec.core.errors import ConfigError
from sasrec.core.suggestions import suggestion

AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
NEEDS: dict[str, frozenset[str]] = {  # the fastest first, but see fastest_first
    "amx": AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512": AVX512,
    "avx512_bf16": AVX512 | {"avx512_bf16"},
    "avx2": frozenset({"avx2", "fma", "f16c", "bmi2", "movbe"}),
    "portable": frozenset(),
}
BF16 = {"amx", "avx512_bf16"}  # what multiplies bf16; the others multiply floats
SETTING = "SASREC_ISA"

Variants = Mapping[str, Callable[[], Any]]  # by name, what loads the module


@dataclass(frozen=True)
class Native:
    """The variant in use. `module` is None where there is none, and `why` says why in either case."""

    isa: str
    module: Any
    why: str


@dataclass(frozen=True)
class Cpu:
    """What an x86-64 CPU says of itself; any other says nothing, and the portable variant serves it."""

    vendor: str = ""
    features: frozenset[str] = frozenset()  # as Linux names them

    def lacks(self, isa: str) -> list[str]:
        """Features that a variant needs and this CPU does not have."""
        return sorted(NEEDS[isa] - self.features)


@functools.cache
def load_native() -> Native:
    """Load the variant of this process: `choose`, once.

    Raises:
        ConfigError: as `choose`.
    """
    return choose(os.environ.get(SETTING, ""), this_cpu(), built_variants())


def load_float32() -> Native:
    """The variant in use, or the fastest that multiplies floats where that one multiplies bf16."""
    native = load_native()
    if native.module is None or not native.module.bf16:
        return native
    for isa, load in built_variants().items():
        if not this_cpu().lacks(isa) and not load().bf16:
            return Native(isa, load(), "the fastest that multiplies floats")
    return native


def choose(wanted: str, cpu: Cpu, built: Variants) -> Native:
    """The variant that is asked for, or the fastest that was built and that the CPU runs.

    Args:
        wanted: its name; "" = the fastest.
        cpu: what it has to run on.
        built: the variants of this installation.

    Raises:
        ConfigError: `wanted` is an unknown variant, one that was not built, or one that the CPU cannot run.
    """
    if wanted:
        return _forced(wanted, cpu, built)
    for isa in runnable(cpu):
        if isa in built:
            module = built[isa]()
            if module.available():
                return Native(isa, module, "the fastest that this CPU has")
    return Native("", None, "the compiled core is not part of this installation: building it needs a C++20 compiler")


def _forced(isa: str, cpu: Cpu, built: Variants) -> Native:
    if isa not in NEEDS:
        raise ConfigError(f"{SETTING}={isa!r} is not one of {', '.join(NEEDS)}{suggestion(isa, NEEDS)}")
    if isa not in built:
        raise ConfigError(f"{SETTING}={isa}: that variant is not part of this installation")
    if cpu.lacks(isa):
        raise ConfigError(f"{SETTING}={isa}: this CPU has no {', '.join(cpu.lacks(isa))}")
    module = built[isa]()
    if not module.available():
        raise ConfigError(f"{SETTING}={isa}: the operating system does not let this process use it")
    return Native(isa, module, f"{SETTING} asks for it")


@functools.cache
def built_variants() -> Variants:
    """The variants of this installation, in the order of NEEDS."""
    names = {isa: f"sasrec.native_{isa}" for isa in NEEDS}
    return {
        isa: functools.partial(importlib.import_module, name)
        for isa, name in names.items()
        if importlib.util.find_spec(name)
    }


def runnable(cpu: Cpu) -> list[str]:
    """The variants that a CPU runs, built or not, the fastest first."""
    return [isa for isa in fastest_first(cpu.vendor) if not cpu.lacks(isa)]


def fastest_here(cpu: Cpu | None = None) -> list[str]:
    """What to build for one CPU, by default this one: its fastest variant, and the fastest that multiplies floats.

    Where the fastest multiplies bf16, exports are compared in floats, and the system may refuse AMX its tiles.
    """
    found = runnable(cpu or this_cpu())
    return list(dict.fromkeys([found[0], next(isa for isa in found if isa not in BF16)]))


def fastest_first(vendor: str) -> list[str]:
    """The variants in the order in which they are tried on a vendor's CPUs.

    Without tiles, AMD's cores (from Zen 4 on) multiply bf16 twice as fast as float32; Intel's do not, and convert.
    """
    order = list(NEEDS)
    if vendor == "AuthenticAMD":
        order.remove("avx512_bf16")
        order.insert(order.index("avx512"), "avx512_bf16")
    return order


@functools.cache
def this_cpu() -> Cpu:
    """The CPU of this machine, by what Linux says of the first one."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Cpu()
    try:
        return read_cpuinfo(Path("/proc/cpuinfo").read_text())
    except OSError:
        return Cpu()


def read_cpuinfo(text: str) -> Cpu:
    """The first CPU of a /proc/cpuinfo."""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    said = {name.strip(): value.strip() for name, _, value in pairs}
    return Cpu(said.get("vendor_id", ""), frozenset(said.get("flags", "").split()))
