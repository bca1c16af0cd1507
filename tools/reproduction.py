"""docs/reproduction.md, made of benchmarks/results/*.jsonl and what has been published.

A preset without a result is shown as not measured; nothing is filled in. tools/generate_docs.py writes the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sasrec.core.presets import PRESETS
from sasrec.core.tables import markdown_table
from sasrec.experiments.grid_tables import baseline_cell, figure_cell, header_cells, run_cells, runs_of
from sasrec.experiments.lines import ResultLine, label, read_lines
from sasrec.report.published_figures import PublishedFigure, known_logs
from sasrec.report.text import PROTOCOLS_NOTE

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
METHODS = ("leave_one_out", "temporal")
COLUMNS = [("full", "ndcg@10"), ("full", "hr@10"), ("sampled", "ndcg@10"), ("sampled", "hr@10")]
LISTS = ("coverage@10", "gini@10", "popularity_lift@10", "novelty@10", "serendipity@10")
INTRODUCTION = f"""# Reproduction

What this package reaches on known logs, beside what has been published for the same files. A row is one setting: the
mean over its seeds ± the standard deviation over them, on test, with the epoch that valid chose. `full` ranks all items
that the user has not had; `sampled` ranks among 100 drawn items, as the paper. Ties count by their expected rank.
Published figures are as printed by their source; sources differ in details. A temporal split cuts all users at the same
time, so its figures are not comparable with leave-one-out. The users' error is the standard error of the first figure
from the sample of users; the lines of `benchmarks/results/` have it for all figures.

{PROTOCOLS_NOTE}

To measure again and add to `benchmarks/results/` (data sets have to be had from their publishers):

```
sasrec benchmark ml-1m.txt --presets {",".join(PRESETS)} --seeds 3 \\
  --output runs/ml-1m --results benchmarks/results/ml-1m.jsonl
sasrec benchmark ml-100k --presets {",".join(PRESETS)} --split-methods leave_one_out,temporal --seeds 3 \\
  --output runs/ml-100k --results benchmarks/results/ml-100k.jsonl
python tools/generate_docs.py
```

A benchmark that was cut off goes on with `--resume`.
"""


def reproduction_page(results: Path = RESULTS) -> str:
    """The page of the result files in a folder."""
    lines = [line for file in sorted(results.glob("*.jsonl")) for line in read_lines(file)]
    names = [*known_logs(), *sorted({line.origin.data for line in lines} - set(known_logs()))]
    parts = [_log(name, [line for line in lines if line.origin.data == name]) for name in names]
    return "\n".join([INTRODUCTION, *parts])


def _log(name: str, lines: Sequence[ResultLine]) -> str:
    known = known_logs().get(name)
    parts = [f"## {name}\n"]
    if known:
        size = f"{known.n_events:,} events of {known.n_users:,} users on {known.n_items:,} items"
        parts.append(f"{known.about}: {size}.\n")
    for method in METHODS:
        of_method = [line for line in lines if line.split_method == method]
        if of_method or method == "leave_one_out" or (known and known.has_timestamps):
            published = known.figures if known and method == "leave_one_out" else []
            parts.append(_method(method, of_method, published))
        else:
            parts.append("The file has no timestamps, so there is no temporal split.\n")
    if lines:
        parts.append(_made(lines))
    return "\n".join(parts)


def _method(method: str, lines: Sequence[ResultLine], published: Sequence[PublishedFigure]) -> str:
    """The tables of one split method."""
    tested = [line for line in lines if line.split == "test"]
    runs = _in_order(tested)
    users = f", {tested[0].n_users:,} users" if tested else ""
    parts = [f"### {method.replace('_', ' ').capitalize()}{users}\n"]
    blank = [""] * 4
    rows = [
        ["", *header_cells(COLUMNS)],
        *([label(run[0]), *run_cells(run, COLUMNS)] for run in runs),
        *([f"{preset}: not measured", *[""] * len(COLUMNS), *blank] for preset in _missing(runs)),
        *([b, *(baseline_cell(tested, b, *column) for column in COLUMNS), *blank] for b in _baselines(tested)),
        *([*_published(figure), *blank] for figure in published if not figure.differs),
    ]
    parts += [markdown_table(rows) + "\n", _lists(runs, tested)]
    other = [f"{f.source}: {f.metrics['ndcg@10']:.4f} ({f.differs})" for f in published if f.differs]
    parts.append(f"Not comparable, full NDCG@10: {'; '.join(other)}.\n" if other else "")
    return "\n".join(part for part in parts if part)


def _in_order(lines: Sequence[ResultLine]) -> list[list[ResultLine]]:
    """Runs by preset, in the order of presets; those of a preset in the order of the file."""
    places = {preset: i for i, preset in enumerate(PRESETS)}
    return sorted(runs_of(lines), key=lambda run: places.get(run[0].origin.preset, len(places)))


def _missing(runs: Sequence[Sequence[ResultLine]]) -> list[str]:
    measured = {run[0].origin.preset for run in runs}
    return [preset for preset in PRESETS if preset not in measured]


def _baselines(lines: Sequence[ResultLine]) -> list[str]:
    return list(lines[0].baselines) if lines else []


def _published(figure: PublishedFigure) -> list[str]:
    metrics = figure.metrics
    cells = [f"{metrics[name]:.4f}" if p == figure.protocol and name in metrics else "" for p, name in COLUMNS]
    return [f"published: {figure.source}", *cells]


def _lists(runs: Sequence[Sequence[ResultLine]], lines: Sequence[ResultLine]) -> str:
    """What the top-10 lists are like, where it was measured."""
    names = [n for n in LISTS if any(figure_cell(run, "full", n) != "-" for run in runs)]
    if not names:
        return ""
    rows = [[label(run[0]), *(figure_cell(run, "full", name) for name in names)] for run in runs]
    rows += [[b, *(baseline_cell(lines, b, "full", name) for name in names)] for b in _baselines(lines)]
    return f"The lists themselves ([metrics](evaluation.md#metrics)):\n\n{markdown_table([['', *names], *rows])}\n"


def _made(lines: Sequence[ResultLine]) -> str:
    """How each figure came about."""
    rows = [["setting", "split", "commit", "engine, machine", "versions", "command"]]
    for line, *_ in _in_order(lines):
        of = line.origin
        engine = f"{of.engine} ({of.isa}), threads {of.threads}; {of.machine}"
        method = line.split_method.replace("_", " ")
        rows.append([label(line), method, of.commit or "-", engine, _versions(of.versions), f"`{of.command}`"])
    marks = ["---"] * len(rows[0])
    table = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], marks, *rows[1:]])
    return f"### How they were made\n\n{table}\n"


def _versions(versions: dict[str, str] | str) -> str:
    return ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else str(versions)
