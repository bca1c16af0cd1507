"""Packages that only some uses need: imported when they are needed, else an error names the extra that has them."""

from __future__ import annotations

from importlib import import_module

from sasrec.core.errors import ConfigError


def require(package: str, what: str, *, extra: str, instead: str = "") -> None:
    """Import a package of an extra, or say how to get it.

    Args:
        package: what is imported.
        what: needs it; the subject of the sentence.
        extra: of this package, which installs it.
        instead: what else would help, if anything.

    Raises:
        ConfigError: the package cannot be imported.
    """
    try:
        import_module(package)
    except ImportError as error:
        other = f", or {instead}" if instead else ""
        raise ConfigError(f"{what} needs {package} ({error}): pip install 'sasrec[{extra}]'{other}") from error
