"""A notebook of examples/notebooks as a page of the site: its source, with outputs where it has been run."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

Cell = tuple[bool, str]  # whether it is prose, and its text


def cells_of(source: str) -> list[Cell]:
    """The cells of a script in the percent format."""
    parts = re.split(r"^# %%(.*)$", source, flags=re.MULTILINE)[1:]
    cells = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        is_prose = "[markdown]" in mark
        prose = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        cells.append((is_prose, prose.strip() if is_prose else text.strip("\n")))
    return cells


def page_of(source: Path, executed: Path) -> str:
    """Markdown of a notebook.

    Args:
        source: the script.
        executed: the same after it has run; outputs are left out where there is none, or where it is of another source.
    """
    cells = cells_of(source.read_text())
    outputs = _outputs(executed, cells)
    name = source.name
    download = f"The notebook as a script: [{name}]({name}). `jupytext --to notebook {name}` makes a notebook of it."
    pages = {path.name for path in source.parent.glob("*.py")}
    parts = []
    for i, ((is_prose, text), shown) in enumerate(zip(cells, outputs, strict=True)):
        if is_prose:
            parts.append(re.sub(r"\]\((\w+)\.py\)", lambda m: f"]({m[1]}.md)" if f"{m[1]}.py" in pages else m[0], text))
        else:
            parts.append("```python\n" + text.replace("  # fmt: skip", "").strip("\n") + "\n```")
        parts += [download] if i == 0 else []
        parts += map(_output, shown)
    return "\n\n".join(part for part in parts if part) + "\n"


def _outputs(executed: Path, cells: list[Cell]) -> list[list[dict[str, Any]]]:
    """Of each cell what it showed."""
    nothing: list[list[dict[str, Any]]] = [[] for _ in cells]
    if not executed.exists():
        return nothing
    ran = json.loads(executed.read_text())["cells"]
    same = [(c["cell_type"] == "markdown", "".join(c["source"]).strip()) for c in ran]
    if same != [(is_prose, text.strip()) for is_prose, text in cells]:
        return nothing
    return [c.get("outputs", []) for c in ran]


def _output(output: dict[str, Any]) -> str:
    """An output as the page shows it: HTML as it is, else text; what was said on stderr is left out."""
    data = output.get("data", {})
    text = "".join(data["text/plain"] if "text/plain" in data else output.get("text", []))
    if output.get("name") == "stderr" or not text.strip():
        return ""
    shown = "".join(data["text/html"]) if "text/html" in data else f"<pre>{escape(text.rstrip())}</pre>"
    return f'`````{{raw}} html\n<div class="output">\n{shown}\n</div>\n`````'
