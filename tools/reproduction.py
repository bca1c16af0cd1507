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
from sasrec.report.published_figures import KnownLog, PublishedFigure, known_logs
from sasrec.report.text import PROTOCOLS_NOTE

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
METHODS = ("leave_one_out", "temporal", "temporal_by_user")
COLUMNS = [("full", "ndcg@10"), ("full", "hr@10"), ("sampled", "ndcg@10"), ("sampled", "hr@10")]
LISTS = ("coverage@10", "gini@10", "popularity_lift@10", "novelty@10", "serendipity@10")
INTRODUCTION = """# Reproduction

This page sets the accuracy of this package on known logs beside figures that were published for the same files. Every
figure has its command, seeds, commit and machine.

To reproduce one, train with the same settings and evaluate with the same protocol. Here is the preset `paper` on
MovieLens 100K, whose mean over three seeds stands [below](#ml-100k); this is seed 0 on a CPU with AMX:

```
$ sasrec train ml-100k --preset paper --output runs/paper
$ sasrec evaluate runs/paper --protocol sampled
test (leave one out), sampled protocol: the target and 100 items drawn uniformly with replacement, excluding the user's
train items; ties expected, seed 42; 943 users, 0.318 % of targets never in train; ± is a 95 % interval
            ndcg@10         hr@10           mrr@10
model       0.4527 ±0.0223  0.7434 ±0.0279  0.3623 ±0.0231
popularity  0.2252 ±0.0208  0.3987 ±0.0313  0.1730 ±0.0196
last_item   0.3185 ±0.0237  0.5037 ±0.0319  0.2611 ±0.0230
```
"""
CONCLUSIONS = """## In short

- The preset `paper` has the settings of Kang & McAuley 2018. By the paper's sampled protocol it reaches the paper's
  figures within one standard error over users.
- By full ranking, the preset `best` is above the highest published figure of ml-1m and Video. On Beauty-5core it is
  above all figures but one, which BSARec's own log has with a single seed. The two differ by less than a standard
  error.
- By full ranking, the published loss (`bce`) is little better than co-occurrence with the last item (`last_item`) on
  ml-1m, and worse on Video.

Test, leave-one-out; the sections of the logs have all runs and sources.
"""
READING = f"""## How to read the tables

- A row is one setting: the mean over its seeds ± the standard deviation over training seeds, on test. Valid chose the
  epoch.
- `full` ranks all items that the user has not had. `sampled` ranks the target among 100 drawn items, as the paper does.
  Ties count by their expected rank.
- Users' error is the standard error of the first column from the sample of users. The lines of `benchmarks/results/`
  have it for all figures.
- Published figures are printed as in their source. Sources differ in details: ties, drawn items, how the epoch was
  chosen, size of the model.
- A temporal split cuts all users at the same time. Its figures are not comparable with those of leave-one-out, and
  those of `temporal` not with those of `temporal_by_user` ([splits](evaluation.md#splits)).

{PROTOCOLS_NOTE}

## Measure again

These commands add lines to `benchmarks/results/` and write this page again. MovieLens 100K is fetched by its name; the
other data sets come from their publishers. `--resume` continues a benchmark that was cut off.

```
sasrec benchmark ml-1m.txt --presets {",".join(PRESETS)} --seeds 3 \\
  --output runs/ml-1m --results benchmarks/results/ml-1m.jsonl
sasrec benchmark ml-100k --presets {",".join(PRESETS)} --split-methods leave_one_out,temporal --seeds 3 \\
  --output runs/ml-100k --results benchmarks/results/ml-100k.jsonl
python tools/generate_docs.py
```

Time to Split (Gusak et al., RecSys 2025) reports figures by a split of its own. Its Beauty is the file of the reviews'
users, items and times, already 5-core and without repeats; where a log is not, add `--repeats consecutive_again
--k-core 5`. The first command has the settings that its grid chose on valid (point 86: width 256, one block, two heads,
dropout 0.5), the second is our preset on the same events:

```
sasrec benchmark Beauty-5core.raw.tsv --presets paper --split-methods temporal_by_user --temporal-targets last \\
  --embedding-dim 256 --n-blocks 1 --n-heads 2 --dropout 0.5 --max-seq-len 128 --loss cross_entropy --batch-size 256 \\
  --adam-beta2 0.999 --max-epochs 300 --patience 10 --valid-protocol full --protocols full --seeds 3 \\
  --output runs/time-to-split --results benchmarks/results/Beauty-5core.jsonl
sasrec benchmark Beauty-5core.raw.tsv --presets best --split-methods temporal_by_user --temporal-targets last \\
  --protocols full --seeds 3 --output runs/by-user-best --results benchmarks/results/Beauty-5core.jsonl
```

Two things differ from its code: other users validate, because they are drawn by another generator, and a target that
the user had before stays a candidate (there are none on Beauty). The cut, the 6,110 test users and their targets
are the same.
"""


def reproduction_page(results: Path = RESULTS) -> str:
    """The page of the result files in a folder."""
    lines = [line for file in sorted(results.glob("*.jsonl")) for line in read_lines(file)]
    names = [*known_logs(), *sorted({line.origin.data for line in lines} - set(known_logs()))]
    parts = [_log(name, [line for line in lines if line.origin.data == name]) for name in names]
    return "\n".join([INTRODUCTION, CONCLUSIONS, _summary(lines), READING, *parts])


def _summary(lines: Sequence[ResultLine]) -> str:
    """A row a known log: `paper` beside the paper by its protocol, `best` beside the highest figure by full ranking."""
    header = ["", "paper, sampled NDCG@10", "as published", "best, full NDCG@10", "highest published"]
    rows = [header]
    for name, known in known_logs().items():
        of_log = [line for line in lines if line.origin.data == name and line.split_method == "leave_one_out"]
        tested = [line for line in of_log if line.split == "test"]
        figures = [f for f in known.figures if not f.differs and f.split_method == "leave_one_out"]
        by_paper = [f.metrics["ndcg@10"] for f in figures if f.source.startswith("Kang & McAuley 2018")]
        by_full = [f.metrics["ndcg@10"] for f in figures if f.protocol == "full"]
        cells = [_first_run(tested, "paper", "sampled"), _text(by_paper), _first_run(tested, "best", "full")]
        rows.append([name, *cells, _text(by_full)])
    return markdown_table(rows) + "\n"


def _first_run(lines: Sequence[ResultLine], preset: str, protocol: str) -> str:
    """NDCG@10 of a preset's first setting; a dash where there is none."""
    runs = [run for run in _in_order(lines) if run[0].origin.preset == preset]
    return figure_cell(runs[0], protocol, "ndcg@10") if runs else "-"


def _text(figures: Sequence[float]) -> str:
    return f"{max(figures):.4f}" if figures else "-"


def _log(name: str, lines: Sequence[ResultLine]) -> str:
    known = known_logs().get(name)
    parts = [f"## {name}\n"]
    if known:
        size = f"{known.n_events:,} events of {known.n_users:,} users on {known.n_items:,} items"
        parts.append(f"{known.about}: {size}.\n")
    for method in METHODS:
        of_method = [line for line in lines if line.split_method == method]
        published = [figure for figure in known.figures if figure.split_method == method] if known else []
        if of_method or method == "leave_one_out" or _belongs(method, known, published, lines):
            parts.append(_method(method, of_method, published))
        elif method == "temporal" and not (known and known.has_timestamps):
            parts.append("The file has no timestamps, so there is no temporal split.\n")
        elif published:
            parts.append(f"### {_title(method)}\n\n{_not_comparable(published)}")
    if lines:
        parts.append(_made(lines))
    return "\n".join(parts)


def _belongs(
    method: str, known: KnownLog | None, published: Sequence[PublishedFigure], lines: Sequence[ResultLine]
) -> bool:
    """Whether a log, measured or not, has a section for a split method of which nothing is measured."""
    if method == "temporal_by_user":
        return any(not figure.differs for figure in published)
    return known is not None and known.has_timestamps and len(lines) > 0


def _title(method: str) -> str:
    return method.replace("_", " ").capitalize()


def _not_comparable(published: Sequence[PublishedFigure]) -> str:
    """Figures of other versions of a log, in a sentence."""
    other = [f"{f.source}: {_figures(f)} ({f.differs})" for f in published if f.differs]
    return f"Not comparable, full NDCG@10 or NDCG@10 / HR@10: {'; '.join(other)}.\n" if other else ""


def _figures(figure: PublishedFigure) -> str:
    return " / ".join(f"{value:.4f}" for value in figure.metrics.values())


def _method(method: str, lines: Sequence[ResultLine], published: Sequence[PublishedFigure]) -> str:
    """The tables of one split method."""
    tested = [line for line in lines if line.split == "test"]
    runs = _in_order(tested)
    users = f", {tested[0].n_users:,} users" if tested else ""
    parts = [f"### {_title(method)}{users}\n"]
    blank = [""] * 3
    rows = [
        ["", *header_cells(COLUMNS)[:-1]],  # without seconds of training: other work may have shared the machine
        *([label(run[0]), *run_cells(run, COLUMNS)[:-1]] for run in runs),
        *([f"{preset}: not measured", *[""] * len(COLUMNS), *blank] for preset in _missing(runs)),
        *([b, *(baseline_cell(tested, b, *column) for column in COLUMNS), *blank] for b in _baselines(tested)),
        *([*_published(figure), *blank] for figure in published if not figure.differs),
    ]
    parts += [markdown_table(rows) + "\n", _lists(runs, tested)]
    parts.append(_not_comparable(published))
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
    title = "What the top-10 lists are like ([metrics](evaluation.md#metrics)):"
    return f"{title}\n\n{markdown_table([['', *names], *rows])}\n"


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
