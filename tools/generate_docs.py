"""Write docs/cli.md from --help, docs/config.md from the config fields and docs/reproduction.md from measured results.

`--check` writes nothing and fails when a page is not what it would write.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

from reproduction import reproduction_page
from typer.testing import CliRunner

from sasrec.cli.main import app
from sasrec.core.config import CONFIGS, ServerConfig
from sasrec.core.presets import PRESETS, LogStatistics

DOCS = Path(__file__).resolve().parents[1] / "docs"
COMMANDS = [
    "prepare", "train", "benchmark", "evaluate", "compare", "recommend", "score", "similar", "explain", "serve",
    "convert", "export", "datasets", "info", "demo",
]  # fmt: skip
TERMINAL = {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
PRESETS_TEXT = """\
What a preset sets for a log of 20,000 users and 10,000 items with long and with short histories (mean 100 and 8).
Where few users make few steps, all have more patience, and `fast` and `best` more epochs and, of short histories of
fewer than 10,000 users, batches of 64. Of short histories they see four times the mean length, 50 to 200 items.
"""
NOTICE = "<!-- made by tools/generate_docs.py; edit the source, not this page -->\n"


def cli_page() -> str:
    """Every command's --help."""
    parts = [NOTICE, "# Command line\n", _help()]
    for command in COMMANDS:
        parts += [f"## sasrec {command}\n", _help(command)]
    return "\n".join(parts)


def _help(*command: str) -> str:
    """What a command says of itself on a terminal of this width; in this process, since each start takes a second."""
    said = CliRunner().invoke(app, [*command, "--help"], prog_name="sasrec", env=TERMINAL)
    if said.exit_code:
        raise RuntimeError(f"sasrec {' '.join(command)} --help: {said.output}")
    return "```text\n" + "\n".join(line.rstrip() for line in said.output.splitlines()).strip() + "\n```\n"


def config_page() -> str:
    """Every setting, and what each preset sets."""
    parts = [
        NOTICE,
        "# Settings\n",
        "Each is a flag of `sasrec train` (dashes for underscores), a keyword of `sasrec.fit` and a key of the YAML",
        "file given to `--config`. Flags win over the file, both win over the preset.\n",
    ]
    for name, cls in {**CONFIGS, "flags of `sasrec serve`": ServerConfig}.items():
        parts += [f"## {cls.__name__} ({name})\n", "| setting | type | default | meaning |", "|---|---|---|---|"]
        hints = get_type_hints(cls)
        parts += [_row(field, hints[field.name]) for field in dataclasses.fields(cls)]
        parts.append("")
    parts += ["## Presets\n", PRESETS_TEXT]
    for name, preset in PRESETS.items():
        long, short = (preset(LogStatistics(20_000, 10_000, 20_000 * n, float(n))) for n in (100, 8))
        parts += [f"### {name}\n", "| setting | long | short |", "|---|---|---|"]
        parts += [f"| `{key}` | {long.get(key, '')} | {short.get(key, '')} |" for key in {**long, **short}]
        parts.append("")
    return "\n".join(parts)


def _row(field: dataclasses.Field[Any], kind: Any) -> str:
    choices = get_args(kind)
    if choices == (int, ...):
        type_text = "integers"
    elif choices:
        type_text = " ".join(f"`{choice}`" for choice in choices)
    else:
        type_text = kind.__name__
    low, high = field.metadata["low"], field.metadata["high"]
    limits = "" if low is None else f"; from {low:g} to {high:g}"
    default = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f"| `{field.name}` | {type_text} | {default} | {field.metadata['help']}{limits} |"


PAGES = {"cli.md": cli_page, "config.md": config_page, "reproduction.md": lambda: NOTICE + "\n" + reproduction_page()}


def main() -> int:
    """Write the pages, or with --check compare them; returns the exit code."""
    stale = []
    for name, page in PAGES.items():
        text = page()
        if "--check" in sys.argv:
            if not (DOCS / name).exists() or (DOCS / name).read_text() != text:
                stale.append(name)
        else:
            (DOCS / name).write_text(text)
    if stale:
        print(f"stale: {', '.join(stale)}; run make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
