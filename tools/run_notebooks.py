"""Run the notebooks of examples/notebooks from their sources: run_notebooks.py [FOLDER]. Out: FOLDER/NAME.ipynb.

Each runs in a kernel of its own, with an empty working folder. The first cell that fails ends it, with its error.
`jupytext --to notebook SOURCE` makes one without running it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "examples" / "notebooks").glob("*.py"))
CELL_SECONDS = 120


def run(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, with the outputs of its cells.

    Raises:
        CellExecutionError: a cell fails.
    """
    notebook = jupytext.read(source)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=place).execute()
    return notebook


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    for path in SOURCES:
        nbformat.write(run(path), target / f"{path.stem}.ipynb")
        print(target / f"{path.stem}.ipynb")
