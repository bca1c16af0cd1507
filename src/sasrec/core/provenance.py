"""How a figure came about: machine, versions, commit and command, without the names of this machine's folders."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sasrec import __version__
from sasrec.core.threads import usable_cpus

PACKAGES = ("torch", "numpy", "polars")


def machine() -> str:
    """Processor, CPUs, memory and system, in words."""
    model = platform.processor() or platform.machine()
    names = (line for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    model = next(names, f": {model}").partition(":")[2].strip()
    memory = ""
    if hasattr(os, "sysconf"):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return f"{model}, {usable_cpus()} CPUs{memory}, {platform.system()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages whose version could change a figure."""
    found = {"sasrec": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that this package runs from; "+" marks changes that are not committed; "" outside its repository."""
    here = Path(__file__)
    if not _git("ls-files", here.name, folder=here.parent):  # installed, perhaps below a repository of something else
        return ""
    return _git("describe", "--always", "--abbrev=12", "--dirty=+", folder=here.parent)


def _git(*arguments: str, folder: Path) -> str:
    try:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def isa_of(engine: object) -> str:
    """The instruction set in use: the engine's own word, else torch's."""
    if hasattr(engine, "isa"):
        return str(engine.isa)
    return str(sys.modules["torch"].backends.cpu.get_cpu_capability()).lower() if "torch" in sys.modules else ""


def command_line(program: str) -> str:
    """The command of this process without the folders of this machine."""
    return " ".join([program, *map(_without_folder, sys.argv[1:])])


def _without_folder(word: str) -> str:
    head, equals, tail = word.rpartition("=")
    return f"{head}{equals}{Path(tail).name}" if Path(tail).is_absolute() or tail.startswith("..") else word
