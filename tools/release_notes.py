"""What may be released: version, changelog and tag say the same. Its notes are a section of CHANGELOG.md.

`python tools/release_notes.py [--tag TAG]` prints them, or says in one sentence why this checkout is no release.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)
UNRELEASED = "Unreleased"


class ReleaseError(Exception):
    """Something that keeps a release from being made; one sentence."""


def version_of(root: Path) -> str:
    """The version that the package names."""
    found = VERSION.search((root / "src" / "sasrec" / "__init__.py").read_text())
    if found is None:
        raise ReleaseError(f'{root}/src/sasrec/__init__.py has no line __version__ = "..."')
    return found[1]


def sections(changelog: str) -> dict[str, str]:
    """The changelog's sections by their headings, in the order of the file; a date behind a version is left out."""
    parts = HEADING.split(changelog)[1:]
    return {heading.split()[0].strip("[]"): text.strip() for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def notes_of(changelog: str, version: str) -> str:
    """The section of a version, which must be the newest.

    Raises:
        ReleaseError: there is none, it is empty, or something newer stands above it.
    """
    found = sections(changelog)
    first = next(iter(found), None)
    if found.get(UNRELEASED):
        raise ReleaseError(
            f"CHANGELOG.md has changes under {UNRELEASED}; give that section the name of the version to release, now "
            f"{version}, or raise __version__ in src/sasrec/__init__.py as well"
        )
    if version not in found:
        raise ReleaseError(f"CHANGELOG.md has no section '## {version}', and that is the version; its first is {first}")
    newest = next(name for name in found if name != UNRELEASED)
    if newest != version:
        raise ReleaseError(f"CHANGELOG.md begins with {newest}, and the version is {version}; make them the same")
    if not found[version]:
        raise ReleaseError(f"the section '## {version}' of CHANGELOG.md is empty; say what changed")
    return found[version]


def check_tags(version: str, here: list[str], everywhere: list[str]) -> None:
    """Refuse another version's tag on this commit, and a version that another commit has been released as.

    Args:
        version: what is to be released.
        here: tags of this commit.
        everywhere: all tags.
    """
    wanted = f"v{version}"
    others = [tag for tag in here if re.fullmatch(r"v\d.*", tag) and tag != wanted]
    if others:
        raise ReleaseError(f"this commit has the tag {others[0]}, and the version is {version}; make them the same")
    if wanted in everywhere and wanted not in here:
        raise ReleaseError(f"another commit has the tag {wanted}: {version} is released already; raise the version")


def check_tree(root: Path) -> None:
    """Refuse what is not committed: nobody could find what was released."""
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        raise ReleaseError(f"{len(changed)} files are not committed, such as {changed[0][3:]}; commit or remove them")


def release_notes(root: Path, tag: str | None = None) -> str:
    """The notes of the release that this checkout is.

    Args:
        root: the checkout.
        tag: one that this commit has beside those that git knows, as a CI tells it.

    Raises:
        ReleaseError: version, changelog and tag differ, or something is not committed.
    """
    version = version_of(root)
    notes = notes_of((root / "CHANGELOG.md").read_text(), version)
    here = git(root, "tag", "--points-at", "HEAD").split() + ([tag] if tag else [])
    check_tags(version, here, git(root, "tag").split())
    check_tree(root)
    return notes


def draft_notes(root: Path) -> str:
    """What there is to tell so far, for files that are not released."""
    found = sections((root / "CHANGELOG.md").read_text())
    return next((text for text in found.values() if text), "nothing yet")


def git(root: Path, *words: str) -> str:
    """What git says of a checkout."""
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    """Print the notes."""
    parser = argparse.ArgumentParser(description="Print the notes of the release that this checkout is.")
    parser.add_argument("--tag", help="a tag of this commit beside those that git knows")
    try:
        print(release_notes(ROOT, parser.parse_args().tag))
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
