"""The benchmark: presets by split methods, each over several seeds, with result lines and a table.

Every cell of the grid trains its own models: a model trained leave-one-out has seen events after a temporal cut, so it
cannot be measured there.

DIR/benchmark.json              the grid and the last command
DIR/PRESET-SPLIT_METHOD/ ...    a study each
DIR/results.jsonl               one line per cell, split and protocol, in the form of benchmarks/results/*.jsonl
DIR/summary.md                  the table
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from sasrec.core.config import Protocol, SplitMethod
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.files import atomic_write
from sasrec.core.presets import PRESETS
from sasrec.core.tables import markdown_table, plain_table
from sasrec.data.logs import Log
from sasrec.experiments.seeds import Watch, is_study, open_marked_folder, result_lines, run_study
from sasrec.fitting import FitOptions, configure
from sasrec.report.text import PROTOCOLS_NOTE, headline_metrics

logger = logging.getLogger(__name__)

MARKER = "benchmark.json"
Line = Mapping[str, Any]  # of benchmarks/results/*.jsonl


@dataclass(frozen=True)
class Grid:
    """What is measured; checked when it is created.

    Args:
        presets: names of PRESETS.
        split_methods: each is trained and measured on its own.
        protocols: of the test results; the valid result has the protocol that chose the epoch.
        seeds: one run each.
    """

    presets: tuple[str, ...]
    split_methods: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        known = {"presets": PRESETS, "split_methods": get_args(SplitMethod), "protocols": get_args(Protocol)}
        for name, choices in known.items():
            values = getattr(self, name)
            unknown = [value for value in values if value not in choices]
            if unknown or not values or len(set(values)) < len(values):
                wrong = unknown[0] if unknown else ",".join(values)
                raise ConfigError(f"{name}={wrong!r} is not a list of different names from: {', '.join(choices)}")

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Presets and split methods, in the order of training."""
        return [(preset, method) for method in self.split_methods for preset in self.presets]


def run_benchmark(
    log: Log,
    grid: Grid,
    options: FitOptions,
    settings: Mapping[str, Any],
    *,
    command: str = "",
    results: Path | None = None,
    watch: Watch | None = None,
) -> bool:
    """Train and measure every cell, append its lines to the results when it ends, and write the table.

    Args:
        log: what to train on.
        grid: the cells.
        options: `output` is the benchmark's folder; `resume` keeps the cells that have ended. The preset is not read.
        settings: on top of every preset.
        command: the command line that starts it again; part of the lines.
        results: the file that lines are appended to; None = results.jsonl in the folder. No line is added twice.
        watch: is told about runs and their progress.

    Returns:
        Whether every cell has ended; False = interrupted, and `resume` goes on.

    Raises:
        ConfigError: the folder is not empty, or resume with other settings.
        DataError: a temporal split of a log without timestamps; before anything is trained.
    """
    for preset, method in grid.cells:  # before anything is trained
        configure(log, preset, {**settings, "split_method": method})
    folder = open_marked_folder(options, MARKER, "benchmark")
    atomic_write(folder / MARKER, json.dumps({**asdict(grid), "command": command}, indent=1))
    file = results or folder / "results.jsonl"
    for preset, method in grid.cells:
        cell = folder / _name((preset, method))
        logger.info("%s, %s", preset, method.replace("_", " "))
        cell_options = FitOptions(
            preset, cell, resume=is_study(cell), histories=options.histories, report=options.report
        )
        given = {**settings, "split_method": method}
        if not run_study(log, cell_options, given, grid.seeds, command, watch):
            return False
        _append(file, _lines_of_cell(cell, grid))
        atomic_write(folder / "summary.md", benchmark_page(log.name, lines_of(folder, grid)))
    return True


def lines_of(folder: Path, grid: Grid) -> list[dict[str, Any]]:
    """The lines of the cells that have ended: valid, and test by the protocols of the grid.

    Raises:
        CheckpointError: a cell is damaged.
    """
    return [line for cell in grid.cells for line in _lines_of_cell(folder / _name(cell), grid)]


def _lines_of_cell(cell: Path, grid: Grid) -> list[dict[str, Any]]:
    lines = result_lines(cell) if is_study(cell) else []
    return [line for line in lines if line["split"] == "valid" or line["protocol"] in grid.protocols]


def _name(cell: tuple[str, str]) -> str:
    return "-".join(cell)


def _append(file: Path, lines: Sequence[Line]) -> None:
    """Append the lines that the file does not have."""
    before = read_lines(file) if file.exists() else []
    new = [json.loads(json.dumps(line)) for line in lines]
    text = file.read_text() if file.exists() else ""
    text += "" if text.endswith("\n") or not text else "\n"
    atomic_write(file, text + "".join(json.dumps(line) + "\n" for line in new if line not in before))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a results file.

    Raises:
        DataError: it cannot be read, or a line is not one of these.
    """
    try:
        texts = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the results file {file}: {error}") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = dict(json.loads(text))
            lines.append({**line, "metrics": dict(line["metrics"])})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"line {number} of {file} is not a result of a benchmark: {error}") from error
    return lines


def overrides_of(line: Line) -> dict[str, Any]:
    """What was set on top of the preset; lines of benchmarks/quality.py have it only in their command."""
    if "overrides" in line:
        return dict(line["overrides"])
    words = line["command"].split()
    given = [after for word, after in pairwise(words) if word == "--set"]
    return dict(word.split("=", 1) for word in given)


def label(line: Line) -> str:
    """The preset, and what was set on top of it."""
    return ", ".join([line["preset"], *(f"{k}={_plain(v)}" for k, v in overrides_of(line).items())])


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def table_rows(lines: Sequence[Line]) -> list[list[str]]:
    """Test lines of one log and one split method as a table with both protocols side by side.

    A row a setting: mean over seeds ± standard deviation over seeds, and the standard error over users of the first
    metric. Then a row a baseline.
    """
    lines = [line for line in lines if line["split"] == "test"]
    protocols = sorted({line["protocol"] for line in lines})
    columns = [(p, name) for p in protocols for name in _headline(lines, p)]
    rows = [[label(run[0]), *run_cells(run, columns)] for run in runs_of(lines)]
    rows += [
        [name, *(baseline_cell(lines, name, p, metric) for p, metric in columns), "", "", "", ""]
        for name in (lines[0]["baselines"] if lines else [])
    ]
    return [["", *header_cells(columns)], *rows]


def header_cells(columns: Sequence[tuple[str, str]]) -> list[str]:
    """The header above `run_cells`, for columns of (protocol, metric)."""
    titles = [f"{protocol} {name.upper()}" for protocol, name in columns]
    return [*titles, f"users' error of {titles[0]}" if titles else "", "seeds", "best epochs", "training"]


def run_cells(lines: Sequence[Line], columns: Sequence[tuple[str, str]]) -> list[str]:
    """The figures of a run, the first one's standard error over users, seeds, best epochs, mean seconds of training."""
    first = lines[0]
    epochs = ", ".join(map(str, first["best_epochs"]))
    of_users = [_users_error(lines, *columns[0]) if columns else ""]
    told = [str(len(first["seeds"])), epochs, f"{first['train_seconds']:,.0f} s"]
    return [*(figure_cell(lines, *column) for column in columns), *of_users, *told]


def _users_error(lines: Sequence[Line], protocol: str, name: str) -> str:
    found = [line["metrics"].get(name, {}).get("users_stderr") for line in lines if line["protocol"] == protocol]
    return f"{found[0]:.4f}" if found and found[0] is not None else "-"


def runs_of(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines grouped by the training they come from."""
    runs: dict[str, list[Line]] = {}
    for line in lines:
        key = json.dumps([label(line), line["seeds"], line["train_seconds"], line["best_epochs"], line["commit"]])
        runs.setdefault(key, []).append(line)
    return list(runs.values())


def _headline(lines: Sequence[Line], protocol: str) -> list[str]:
    return headline_metrics(next(line for line in lines if line["protocol"] == protocol))


def figure_cell(lines: Sequence[Line], protocol: str, name: str) -> str:
    """A metric of a run's lines: mean over seeds ± their standard deviation; a dash where it was not measured."""
    found = [line["metrics"][name] for line in lines if line["protocol"] == protocol and name in line["metrics"]]
    if not found:
        return "-"
    spread = "" if found[0]["std"] is None else f" ± {found[0]['std']:.4f}"
    return f"{found[0]['mean']:.4f}{spread}"


def baseline_cell(lines: Sequence[Line], baseline: str, protocol: str, name: str) -> str:
    """A baseline's metric; it does not depend on the run."""
    found = [line["baselines"].get(baseline, {}) for line in lines if line["protocol"] == protocol]
    return f"{found[0][name]:.4f}" if found and name in found[0] else "-"


def benchmark_text(lines: Sequence[Line]) -> str:
    """The tables for a terminal."""
    parts = [f"{title}\n{plain_table(table_rows(part))}" for title, part in _parts(lines)]
    return "\n\n".join([*parts, _note(lines)])


def benchmark_page(name: str, lines: Sequence[Line]) -> str:
    """The tables as Markdown."""
    parts = [f"## {title}\n\n{markdown_table(table_rows(part))}\n" for title, part in _parts(lines)]
    return "\n".join([f"# {name}\n", *parts, _note(lines) + "\n"])


def _parts(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """A part for each split method, with the title of its table."""
    methods = dict.fromkeys(line["split_method"] for line in lines)
    tested = [line for line in lines if line["split"] == "test"]
    told = [(m, [line for line in tested if line["split_method"] == m]) for m in methods]
    return [(f"test, {m.replace('_', ' ')}, {part[0]['n_users']:,} users", part) for m, part in told]


def _note(lines: Sequence[Line]) -> str:
    both = {line["protocol"] for line in lines if line["split"] == "test"} == {"full", "sampled"}
    return "±: spread over training seeds; users' error: standard error from the sample of users." + (
        f" {PROTOCOLS_NOTE}" if both else ""
    )
