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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from sasrec.core.config import Protocol, SplitMethod
from sasrec.core.errors import ConfigError
from sasrec.core.files import atomic_write
from sasrec.core.presets import PRESETS
from sasrec.core.suggestions import suggestion
from sasrec.data.logs import Log
from sasrec.experiments.grid_tables import benchmark_page
from sasrec.experiments.lines import ResultLine, append_lines, result_lines
from sasrec.experiments.seeds import Watch, is_study, marked_folder, run_study
from sasrec.fitting import FitOptions, configure

logger = logging.getLogger(__name__)

MARKER = "benchmark.json"


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
                meant = suggestion(unknown[0], choices) if unknown else ""
                raise ConfigError(
                    f"{name}={wrong!r} is not a list of different names from: {', '.join(choices)}{meant}"
                )

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
    with marked_folder(options, MARKER, "benchmark") as claimed:
        folder = claimed.path
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
            claimed.check()
            claimed.forget_replaced()
            append_lines(file, _lines_of_cell(cell, grid))
            atomic_write(folder / "summary.md", benchmark_page(log.name, lines_of(folder, grid)))
    return True


def lines_of(folder: Path, grid: Grid) -> list[ResultLine]:
    """The lines of the cells that have ended: valid, and test by the protocols of the grid.

    Raises:
        CheckpointError: a cell is damaged.
    """
    return [line for cell in grid.cells for line in _lines_of_cell(folder / _name(cell), grid)]


def _lines_of_cell(cell: Path, grid: Grid) -> list[ResultLine]:
    lines = result_lines(cell) if is_study(cell) else []
    return [line for line in lines if line.split == "valid" or line.protocol in grid.protocols]


def _name(cell: tuple[str, str]) -> str:
    return "-".join(cell)
