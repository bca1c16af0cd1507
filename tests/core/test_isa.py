"""Which variant of the compiled core a process gets: by the CPU, by what was built, by SASREC_ISA."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import variants

from sasrec.core import isa as isa_module
from sasrec.core.errors import ConfigError
from sasrec.core.isa import (
    BF16,
    NEEDS,
    Cpu,
    Variants,
    built_variants,
    choose,
    fastest_here,
    load_float32,
    load_native,
    read_cpuinfo,
    this_cpu,
)

EVERYTHING = Cpu("GenuineIntel", frozenset().union(*NEEDS.values()))


@dataclass
class Module:
    """What the choice asks of a compiled module."""

    isa: str
    allowed: bool = True

    def available(self) -> bool:
        return self.allowed


def built(*names: str, forbidden: tuple[str, ...] = ()) -> Variants:
    return {isa: lambda isa=isa: Module(isa, isa not in forbidden) for isa in names or NEEDS}


def without(cpu: Cpu, *features: str) -> Cpu:
    return replace(cpu, features=cpu.features - set(features))


@pytest.mark.parametrize(
    ("vendor", "lacks", "isa"),
    [
        ("AuthenticAMD", ["amx_bf16"], "avx512_bf16"),
        ("GenuineIntel", ["amx_bf16"], "avx512"),
        ("AuthenticAMD", ["amx_bf16", "avx512_bf16"], "avx512"),
        ("GenuineIntel", ["amx_bf16", "avx512f"], "avx2"),
        ("AuthenticAMD", [], "amx"),
    ],
)
def test_bf16_without_tiles_is_taken_before_float32_on_amd_only(vendor: str, lacks: list[str], isa: str) -> None:
    native = choose("", without(replace(EVERYTHING, vendor=vendor), *lacks), built())
    assert native.isa == native.module.isa == isa
    assert native.why == "the fastest that this CPU has"


def test_a_cpu_of_which_nothing_is_known_gets_the_portable_variant() -> None:
    assert choose("", Cpu(), built()).isa == "portable"


@pytest.mark.parametrize(
    ("vendor", "needs", "isa"),
    [
        ("GenuineIntel", "portable", ["portable"]),
        ("GenuineIntel", "avx2", ["avx2"]),
        ("GenuineIntel", "avx512", ["avx512"]),
        ("GenuineIntel", "avx512_bf16", ["avx512"]),
        ("AuthenticAMD", "avx512_bf16", ["avx512_bf16", "avx512"]),
        ("GenuineIntel", "amx", ["amx", "avx512"]),
    ],
)
def test_the_fastest_variant_is_built_and_where_it_multiplies_bf16_one_that_multiplies_floats(
    vendor: str, needs: str, isa: list[str]
) -> None:
    features = frozenset() if needs == "portable" else NEEDS["avx2"] | NEEDS[needs]
    assert fastest_here(Cpu(vendor, features)) == isa


@pytest.mark.parametrize("isa", variants())
def test_what_multiplies_bf16_is_known_before_it_is_built(isa: str) -> None:
    assert built_variants()[isa]().bf16 == (isa in BF16)


def test_a_build_can_ask_before_anything_is_installed() -> None:
    source = Path(isa_module.__file__).parents[2]
    program = f"import sys; sys.path.insert(0, {str(source)!r}); from sasrec.core.isa import fastest_here as here"
    command = [sys.executable, "-I", "-S", "-c", f"{program}; print(*here(), sep=';')"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert told == ";".join(fastest_here())


def test_variants_that_were_not_built_or_are_not_allowed_are_passed_over() -> None:
    assert choose("", EVERYTHING, built("avx2", "portable")).isa == "avx2"
    assert choose("", EVERYTHING, built(forbidden=("amx",))).isa == "avx512"


def test_an_installation_without_variants_says_why_there_is_none() -> None:
    native = choose("", EVERYTHING, {})
    assert (native.isa, native.module) == ("", None)
    assert native.why.startswith("the compiled core is not part of this installation")


@pytest.mark.parametrize("isa", NEEDS)
def test_any_variant_that_the_cpu_runs_can_be_forced(isa: str) -> None:
    native = choose(isa, EVERYTHING, built())
    assert native.isa == native.module.isa == isa
    assert native.why == "SASREC_ISA asks for it"


@pytest.mark.parametrize(
    ("wanted", "cpu", "variants", "message"),
    [
        ("sse9", EVERYTHING, built(), r"SASREC_ISA='sse9' is not one of amx, avx512, .*, portable"),
        ("amx", EVERYTHING, built("avx2"), r"SASREC_ISA=amx: that variant is not part of this installation"),
        ("avx2", Cpu("", frozenset({"f16c", "movbe"})), built(), r"SASREC_ISA=avx2: this CPU has no avx2, bmi2, fma"),
        ("amx", EVERYTHING, built(forbidden=("amx",)), "the operating system does not let this process use it"),
    ],
)
def test_a_wish_that_cannot_be_had_is_refused(wanted: str, cpu: Cpu, variants: Variants, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(wanted, cpu, variants)


def test_the_environment_says_which_variant_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASREC_ISA", "sse9")
    load_native.cache_clear()
    try:
        with pytest.raises(ConfigError, match="SASREC_ISA='sse9' is not one of"):
            load_native()
    finally:
        monkeypatch.undo()
        load_native.cache_clear()


def test_what_multiplies_floats_is_the_variant_in_use_or_another_beside_it(isa: str) -> None:
    native, exact = load_native(), load_float32()
    assert native.isa == isa
    assert not exact.module.bf16
    assert (exact == native) == (not native.module.bf16)


def test_vendor_and_features_are_those_of_the_first_cpu() -> None:
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n\n"
    assert read_cpuinfo(text) == Cpu("AuthenticAMD", frozenset({"fpu", "avx2", "fma"}))
    assert read_cpuinfo("processor\t: 0\nFeatures\t: fp asimd\n") == Cpu()


def test_the_variant_in_use_lacks_nothing_on_this_cpu(isa: str) -> None:
    assert this_cpu().lacks(isa) == []
