"""The notebooks run from top to bottom, show what they make, and tell nothing that they should not."""

import re
from pathlib import Path
from typing import Any

import pytest
from run_notebooks import SOURCES, run

pytestmark = pytest.mark.slow


def outputs(notebook: Any, form: str) -> list[str]:
    """What cells show in a form, such as text/html."""
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return ["".join(output.data[form]) for output in shown if form in output.get("data", {})]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # Jupyter's packages have their own
def test_notebook_runs_and_shows_its_models(source: Path) -> None:
    notebook = run(source)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    html = outputs(notebook, "text/html")
    assert any('class="sasrec"' in text for text in html)
    bars = [text for text in html if "<progress" in text]
    assert len(bars) == source.read_text().count("progress=True"), "a training shows one bar, which changes"
    errors = [o.text for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"]
    assert not [text for text in errors if re.search(r"Warning|Traceback", text)]


def test_notebooks_link_to_what_there_is() -> None:
    for source in SOURCES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", source.read_text()):
            assert (source.parent / link).exists(), f"{source.name} links to {link}"
