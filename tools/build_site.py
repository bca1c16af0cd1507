"""Build the documents as a web site: build_site.py [FOLDER]. Out: FOLDER/html, or build/site/html.

The repository's own pages are gathered as they are, so that their links lead to the same places. Pages of the API are
made of `sasrec.__all__`: a new public name appears by itself. A page in docs/ that site/index.md does not name stands
at the end. Notebooks are shown as their sources; with their outputs where run_notebooks.py has run them before. Any
warning is an error. Nothing is fetched.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import sys
from pathlib import Path

from notebook_pages import page_of as notebook_page
from sphinx.cmd.build import build_main

import sasrec

ROOT = Path(__file__).resolve().parents[1]
GATHERED = ("*.md", "docs/*", "benchmarks/*.md", "examples/**/*")  # examples are files to download
ROOMS = {  # a page of the API for the names of some rooms
    "training": ("Training", ("fitting", "converting", "experiments", "tracking")),
    "recommending": ("Recommending", ("recommender", "ranking")),
    "measuring": ("Measuring", ("evaluation",)),
    "reading": ("Reading data", ("reading", "data")),
    "settings": ("Settings", ("core.config",)),
    "errors": ("Errors", ("core.errors",)),
}
MORE = ("more", "Further names")  # of rooms that no page names
NO_MEMBERS = ("core.config",)  # docs/config.md has their fields


def gather(folder: Path) -> None:
    """Copy the pages and what they show, with their times, so that Sphinx reads again only what has changed."""
    shutil.rmtree(folder, ignore_errors=True)
    files = {path for pattern in GATHERED for path in ROOT.glob(pattern) if path.is_file()}
    for path in sorted(path for path in files if "__pycache__" not in path.parts):
        place = folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)


def index_page(pages: set[str]) -> str:
    """site/index.md, with a list at the end of the pages that it does not name."""
    text = (ROOT / "site" / "index.md").read_text()
    others = sorted(pages - set(re.findall(r"^(?:.+<)?([\w./-]+)>?$", text, re.MULTILINE)))
    listed = ["", "```{toctree}", ":caption: More", ":hidden:", *others, "```", ""] if others else []
    return text + "\n".join(listed)


def page_of(home: str) -> str:
    """The page of the API for the names of a module."""
    for page, (_, rooms) in ROOMS.items():
        if home.startswith(rooms):
            return page
    return MORE[0]


def api_pages() -> dict[str, str]:
    """Each page of the API as reStructuredText, by its name; the first is their list."""
    names: dict[str, list[str]] = {page: [] for page in (*ROOMS, MORE[0])}
    for name in sasrec.__all__:
        if name in sasrec._HOME_OF:
            names[page_of(sasrec._HOME_OF[name])].append(name)
    titles = {page: title for page, (title, _) in ROOMS.items()} | dict([MORE])
    pages = {page: _page(titles[page], names[page]) for page in names if names[page]}
    listed = "\n".join(f"   {page}" for page in pages)
    told = "\n".join(
        f"- :doc:`{titles[page]} <{page}>`: {', '.join(f':py:obj:`~sasrec.{name}`' for name in names[page])}"
        for page in pages
    )
    text = "Every public name, imported from ``sasrec``. Whatever is not listed here may change without notice."
    index = f"{_heading('Python', '=')}\n{text}\n\n{told}\n\n.. toctree::\n   :hidden:\n\n{listed}\n"
    return {"index": index, **pages}


def _page(title: str, names: list[str]) -> str:
    parts = [_heading(title, "="), ".. py:currentmodule:: sasrec\n"]
    for name in names:
        directive = "autoclass" if isinstance(getattr(sasrec, name), type) else "autofunction"
        parts += [_heading(name, "-"), f".. {directive}:: sasrec.{name}"]
        if sasrec._HOME_OF[name] in NO_MEMBERS:
            parts += ["   :no-members:\n", "Its fields, with types, defaults and meanings: :doc:`/docs/config`."]
        elif dataclasses.is_dataclass(getattr(sasrec, name)):
            parts += ["", *(f"   - ``{field}``: {told}" for field, told in fields_of(getattr(sasrec, name)))]
        parts.append("")
    return "\n".join(parts)


def fields_of(cls: type) -> list[tuple[str, str]]:
    """The fields of a dataclass, and what the comments beside them say."""
    lines = re.findall(r"^    (\w+): (.+)$", inspect.getsource(cls), re.MULTILINE)
    names = {field.name for field in dataclasses.fields(cls)}
    told = [(name, text.partition("  # ")[2] or f"``{text}``") for name, text in lines if name in names]
    return [(name, re.sub(r"([*|_])(?=\s|$)", r"\\\1", text)) for name, text in told]


def _heading(title: str, line: str) -> str:
    return f"{title}\n{line * len(title)}\n"


def build(folder: Path) -> int:
    """Gather, and build; the exit code of Sphinx."""
    source = folder / "source"
    gather(source)
    for path in sorted((source / "examples" / "notebooks").glob("*.py")):
        path.with_suffix(".md").write_text(notebook_page(path, ROOT / "build" / "notebooks" / f"{path.stem}.ipynb"))
    for path in source.glob("*.md"):
        path.write_text(re.sub(r"\]\((examples/notebooks/\w+)\.py\)", r"](\1.md)", path.read_text()))
    pages = {str(path.relative_to(source).with_suffix("")) for path in source.rglob("*.md")}
    (source / "index.md").write_text(index_page(pages))
    (source / "api").mkdir()
    for name, text in api_pages().items():
        (source / "api" / f"{name}.rst").write_text(text)
    options = ["-b", "html", "-c", str(ROOT / "site"), "-d", str(folder / "doctrees"), "-W", "--keep-going", "-n", "-q"]
    return build_main([*options, str(source), str(folder / "html")])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    code = build(target.resolve())
    if not code:
        print(f"{target / 'html' / 'index.html'}: python -m http.server --directory {target / 'html'}")
    raise SystemExit(code)
