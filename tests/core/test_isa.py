"""Which variants a CPU runs, and which are built for it alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from sasrec.core import isa
from sasrec.core.isa import NEEDS, fastest_here, runnable

SOURCES = Path(isa.__file__).parents[2]


@pytest.mark.parametrize(
    ("cpu", "built"),
    [
        ("portable", ["portable"]),
        ("avx2", ["avx2"]),
        ("avx512", ["avx512"]),
        ("amx", ["amx", "avx512"]),  # the operating system may refuse the tiles
    ],
)
def test_the_fastest_variant_is_built_and_another_where_it_may_be_refused(
    cpu: str, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isa, "cpu_features", lambda: NEEDS["avx2"] | NEEDS[cpu] if cpu != "portable" else frozenset())
    monkeypatch.setattr(isa, "cpu_vendor", lambda: "GenuineIntel")
    assert fastest_here() == built
    assert runnable()[-1] == "portable"


def test_amd_with_bf16_gets_that_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "cpu_features", lambda: NEEDS["avx2"] | NEEDS["avx512_bf16"])
    monkeypatch.setattr(isa, "cpu_vendor", lambda: "AuthenticAMD")
    assert fastest_here() == ["avx512_bf16"]


def test_a_build_can_ask_before_anything_is_installed() -> None:
    program = f"import sys; sys.path.insert(0, {str(SOURCES)!r}); from sasrec.core.isa import fastest_here as here"
    command = [sys.executable, "-I", "-S", "-c", f"{program}; print(*here(), sep=';')"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ";".join(
        fastest_here()
    )
