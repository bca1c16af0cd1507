"""Write the generated pages: docs/cli.md of --help-all, docs/config.md of configs, docs/reproduction.md of results.

And the table of shell completions, which is made of the same commands.

With `--check` it writes nothing, and fails when a page differs from what it would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from reproduction import reproduction_page
from typer.testing import CliRunner

from sasrec.cli.main import COMMANDS, app
from sasrec.core.config import CONFIGS
from sasrec.core.presets import PRESETS, LogStatistics
from sasrec.core.server_config import ServerConfig
from sasrec.core.settings import MAX_INT

DOCS = Path(__file__).resolve().parents[1] / "docs"
TERMINAL = {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
CLI_TEXT = """\
Every command with all of its options, as `sasrec COMMAND --help-all` shows them; `--help` shows those that most users
need. For example:

```
$ sasrec -q recommend runs/ml-100k --history 50,172 -k 3
user_id  item_id  score   rank  title
0        210      7.7401  1     Indiana Jones and the Last Crusade (1989)
0        181      7.6372  2     Return of the Jedi (1983)
0        174      7.2444  3     Raiders of the Lost Ark (1981)
```

- Results go to stdout, with `--json` as JSON. Progress and messages go to stderr.
- The exit code is 0 for success, 1 for a failure and 2 for wrong usage, such as an unknown setting. An error is one
  sentence; `sasrec --debug COMMAND ...` shows the traceback too.
- `--debug`, `--quiet` and `--version` stand before the command.
- `sasrec --install-completion` sets up Tab in bash, zsh or fish, for commands, options, presets, data sets and choices;
  `--show-completion` prints the script. It works for the installed `sasrec`, not for `python -m sasrec`.
- A misspelt name is told the nearest: `preset 'bset' is not known (did you mean 'best'?)`.
- Flags that set a field of the configs are explained in [settings](config.md).
"""
CONFIG_TEXT = """\
Every setting with its type, default, range and meaning, and what each preset sets. A setting has the same name
everywhere: it is a key of the YAML file for `--config`, a flag of `sasrec train` (with dashes for underscores) and a
keyword of `sasrec.fit`. For example, with this `settings.yaml`:

```yaml
embedding_dim: 64
dropout: 0.3
k: [5, 10]
```

```
sasrec train ml-100k --output runs/mine --preset fast --config settings.yaml --max-epochs 10
```

```
sasrec.fit("events.csv", preset="fast", embedding_dim=64, dropout=0.3, k=[5, 10], max_epochs=10)
```

A value means in the file what it means as a flag, written as on this page. The file is YAML 1.2, flat and in UTF-8:
`1e-3` is a number, only `true` and `false` are booleans, and `yes`, `no`, `on` and `off` are words. A name that stands
twice, an alias (`*name`), a tag (`!!int`) or a section below a name is an error that names the line.

Flags win over the file, the file wins over the preset, and the preset wins over the defaults below. An unknown name or
a value out of range is an error:

```
error: dropout=3.0 is too large; the most is 0.99
```
"""
SERVER_TEXT = """\
These are flags of `sasrec serve` and keys of its `--config` file. [Serving](serving.md) explains the operation.
"""
PRESETS_TEXT = """\
Use `best`, the default, for the most accurate model; `fast` for a first look; `paper` to compare with publications.

A preset chooses settings by the sizes of the log's train part: users, items, events, and the mean number of train
events per user. The tables show its choice for two logs of 20,000 users and 10,000 items: `long` has 100 train events
per user, `short` has 8. An empty cell means the default above.

For short histories, `best` and `fast` set `max_seq_len` to four times the mean length, at least 50 and at most 200, and
use batches of 64 where there are fewer than 10,000 users. Logs with few users get a longer `patience` from all presets,
and more epochs from `best` and `fast`.
"""
NOTICE = "<!-- made by tools/generate_docs.py; edit the source, not this page -->\n"


def cli_page() -> str:
    """Every command's --help-all."""
    parts = [NOTICE, "# Command line\n", CLI_TEXT, "## sasrec\n", _help("--help")]
    for command in COMMANDS:
        parts += [f"## sasrec {command}\n", _help(command, "--help-all")]
    return "\n".join(parts)


def _help(*words: str) -> str:
    """What a command says of itself on a terminal of this width; in this process, since each start takes a second."""
    said = CliRunner().invoke(app, words, prog_name="sasrec", env=TERMINAL)
    if said.exit_code:
        raise RuntimeError(f"sasrec {' '.join(words)}: {said.output}")
    return "```text\n" + "\n".join(line.rstrip() for line in said.output.splitlines()).strip() + "\n```\n"


def config_page() -> str:
    """Every setting, and what each preset sets."""
    parts = [NOTICE, "# Settings\n", CONFIG_TEXT]
    for cls in (*CONFIGS.values(), ServerConfig):
        parts += [f"## {cls.__name__}\n", f"{cls.__doc__}\n"]
        parts += [SERVER_TEXT] if cls is ServerConfig else []
        parts += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        hints = get_type_hints(cls)
        parts += [_row(field, hints[field.name]) for field in dataclasses.fields(cls)]
        parts.append("")
    parts += ["## Presets\n", PRESETS_TEXT]
    for name, preset in PRESETS.items():
        long, short = (preset(LogStatistics(20_000, 10_000, 20_000 * n, float(n))) for n in (100, 8))
        parts += [f"### {name}\n", f"{inspect.getdoc(preset)}\n", "| setting | long | short |", "|---|---|---|"]
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
    limits = _limits(field.metadata["low"], field.metadata["high"])
    default = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f"| `{field.name}` | {type_text} | {default} | {field.metadata['help']}{limits} |"


def _limits(low: float | None, high: float) -> str:
    if low is None:
        return ""
    return f"; at least {low:g}" if high >= MAX_INT else f"; {low:g} to {high:,.10g}"


def completions() -> str:
    """The table from which Tab is answered: the program's commands, their options, and what values these take."""
    program: Any = typer.main.get_command(app)
    with program.make_context("sasrec", [], resilient_parsing=True) as context:
        commands = {name: program.get_command(context, name) for name in program.list_commands(context)}
        table = {
            "options": _options(program, context),
            "commands": {
                name: {
                    "help": _plain(command.get_short_help_str(70)),
                    "arguments": [_choices(p, context) for p in command.params if p.param_type_name == "argument"],
                    "options": _options(command, context),
                }
                for name, command in commands.items()
            },
        }
    text = json.dumps(table, indent=1)
    return re.sub(r"{[^{}]*}", lambda option: " ".join(option[0].split()), text) + "\n"  # a line an option


def _options(command: Any, context: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for param in command.get_params(context):
        choices = _choices(param, context)
        told = {"help": _plain(param.help or "")} | ({"flag": True} if getattr(param, "is_flag", False) else {})
        for flag in (*param.opts, *param.secondary_opts) if param.param_type_name == "option" else ():
            found[flag] = told | ({"choices": choices} if choices else {})
    return found


def _choices(param: Any, context: Any) -> list[str]:
    return [one.value for one in param.shell_complete(context, "") if one.value]


def _plain(text: str) -> str:
    """The beginning of a help text, without signs that mean something to a shell."""
    return " ".join(re.sub(r"[^\w .,;=/+%-]", " ", text).split())[:70].rstrip()


PAGES = {
    "cli.md": cli_page,
    "config.md": config_page,
    "reproduction.md": lambda: NOTICE + "\n" + reproduction_page(),
    "../src/sasrec/cli/completions.json": completions,
}


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
