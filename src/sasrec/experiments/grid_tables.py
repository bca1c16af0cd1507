"""Tables of result lines: settings and baselines in rows, metrics of both protocols side by side."""

from __future__ import annotations

from collections.abc import Sequence

from sasrec.core.tables import markdown_table, markdown_text, plain_table
from sasrec.experiments.lines import ResultLine, label
from sasrec.experiments.summary import Spread
from sasrec.report.text import PROTOCOLS_NOTE, headline_metrics


def table_rows(lines: Sequence[ResultLine]) -> list[list[str]]:
    """Test lines of one log and one split method as a table with both protocols side by side.

    A row a setting: mean over seeds ± standard deviation over seeds, and the standard error over users of the first
    metric. Then a row a baseline.
    """
    lines = [line for line in lines if line.split == "test"]
    protocols = sorted({line.protocol for line in lines})
    columns = [(p, name) for p in protocols for name in _headline(lines, p)]
    rows = [[label(run[0]), *run_cells(run, columns)] for run in runs_of(lines)]
    rows += [
        [name, *(baseline_cell(lines, name, p, metric) for p, metric in columns), "", "", "", ""]
        for name in (lines[0].baselines if lines else [])
    ]
    return [["", *header_cells(columns)], *rows]


def header_cells(columns: Sequence[tuple[str, str]]) -> list[str]:
    """What stands above the cells of a run, for columns of (protocol, metric)."""
    titles = [f"{protocol} {name.upper()}" for protocol, name in columns]
    return [*titles, f"users' error of {titles[0]}" if titles else "", "seeds", "best epochs", "training"]


def run_cells(lines: Sequence[ResultLine], columns: Sequence[tuple[str, str]]) -> list[str]:
    """The figures of a run, the users' standard error of the first, seeds, best epochs, mean seconds of training."""
    origin = lines[0].origin
    epochs = ", ".join(map(str, origin.best_epochs))
    of_users = [_users_error(lines, *columns[0]) if columns else ""]
    told = [str(len(origin.seeds)), epochs, f"{origin.train_seconds:,.0f} s"]
    return [*(figure_cell(lines, *column) for column in columns), *of_users, *told]


def _users_error(lines: Sequence[ResultLine], protocol: str, name: str) -> str:
    found = _spreads(lines, protocol, name)
    return f"{found[0].users_stderr:.4f}" if found and found[0].users_stderr is not None else "-"


def _spreads(lines: Sequence[ResultLine], protocol: str, name: str) -> list[Spread]:
    return [line.metrics[name] for line in lines if line.protocol == protocol and name in line.metrics]


def runs_of(lines: Sequence[ResultLine]) -> list[list[ResultLine]]:
    """The lines that come from the same training together."""
    runs: dict[tuple[object, ...], list[ResultLine]] = {}
    for line in lines:
        origin = line.origin
        key = (label(line), tuple(origin.seeds), origin.train_seconds, tuple(origin.best_epochs), origin.commit)
        runs.setdefault(key, []).append(line)
    return list(runs.values())


def _headline(lines: Sequence[ResultLine], protocol: str) -> list[str]:
    return headline_metrics(next(line.metrics for line in lines if line.protocol == protocol))


def figure_cell(lines: Sequence[ResultLine], protocol: str, name: str) -> str:
    """A metric of a run's lines: mean over seeds ± their standard deviation; a dash where it was not measured."""
    found = _spreads(lines, protocol, name)
    if not found:
        return "-"
    return f"{found[0].mean:.4f}" + ("" if found[0].std is None else f" ± {found[0].std:.4f}")


def baseline_cell(lines: Sequence[ResultLine], baseline: str, protocol: str, name: str) -> str:
    """A baseline's metric; it does not depend on the run."""
    found = [line.baselines.get(baseline, {}) for line in lines if line.protocol == protocol]
    return f"{found[0][name]:.4f}" if found and name in found[0] else "-"


def benchmark_text(lines: Sequence[ResultLine]) -> str:
    """The tables for a terminal."""
    parts = [f"{title}\n{plain_table(table_rows(part))}" for title, part in _parts(lines)]
    return "\n\n".join([*parts, _note(lines)])


def benchmark_page(name: str, lines: Sequence[ResultLine]) -> str:
    """The tables as Markdown."""
    tables = [(title, [[markdown_text(first), *rest] for first, *rest in table_rows(p)]) for title, p in _parts(lines)]
    parts = [f"## {markdown_text(title)}\n\n{markdown_table(rows)}\n" for title, rows in tables]
    return "\n".join([f"# {markdown_text(name)}\n", *parts, _note(lines) + "\n"])


def _parts(lines: Sequence[ResultLine]) -> list[tuple[str, list[ResultLine]]]:
    """A part for each split method, with the title of its table."""
    methods = dict.fromkeys(line.split_method for line in lines)
    tested = [line for line in lines if line.split == "test"]
    told = [(m, [line for line in tested if line.split_method == m]) for m in methods]
    return [(f"test, {m.replace('_', ' ')}, {part[0].n_users:,} users", part) for m, part in told]


def _note(lines: Sequence[ResultLine]) -> str:
    both = {line.protocol for line in lines if line.split == "test"} == {"full", "sampled"}
    text = "±: standard deviation over training seeds; users' error: standard error from the sample of users."
    return f"{text} {PROTOCOLS_NOTE}" if both else text
