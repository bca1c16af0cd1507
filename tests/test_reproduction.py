"""The page of results shows what was measured, what was published and what is missing, and makes nothing up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from made import make_line
from reproduction import reproduction_page

ROOT = Path(__file__).resolve().parents[1]


def line(**changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "split_method": "temporal", "n_users": 321, "seeds": [0, 1, 2], "best_epochs": [3, 5, 4],
        "metrics": {
            "ndcg@10": {"mean": 0.1234, "std": 0.0056, "users_stderr": 0.0111},
            "serendipity@10": {"mean": 0.0123, "std": 0.0004},
        },
        "baselines": {"popularity": {"ndcg@10": 0.0789}},
    }  # fmt: skip
    return make_line(**told | changes)


def page(folder: Path, *lines: dict[str, Any]) -> str:
    (folder / "made.jsonl").write_text("".join(json.dumps(told) + "\n" for told in lines))
    return reproduction_page(folder)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_committed_page_is_what_the_committed_results_say() -> None:
    assert (ROOT / "docs" / "reproduction.md").read_text().endswith(reproduction_page())


def test_a_result_stands_in_its_place_with_how_it_came_about(tmp_path: Path) -> None:
    text = section(page(tmp_path, line()), "ml-100k")
    assert "### Temporal, 321 users" in text
    assert "| paper | 0.1234 ± 0.0056 | - | - | - | 0.0111 | 3 | 3, 5, 4 |" in text
    assert "| popularity | 0.0789 | - | - | - |" in text
    assert "| paper | 0.0123 ± 0.0004 |" in text  # the lists
    assert "native (avx2), threads 2; a machine | sasrec 9.9 | `sasrec benchmark ml-100k` |" in text
    assert "0123abc" in text


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    text = page(tmp_path, line())
    assert "paper: not measured" in section(text, "ml-100k").split("### Temporal")[0]
    assert "paper: not measured" not in section(text, "ml-100k").split("### Temporal")[1]
    assert "paper: not measured" in section(text, "Beauty-5core")
    assert "How they were made" not in section(text, "ml-1m")


def test_every_figure_behind_the_worked_example_is_a_result_or_published(tmp_path: Path) -> None:
    import re

    from sasrec.report.published_figures import known_logs

    tables = page(tmp_path, line()).partition("\n## In short\n")[2]
    figures = {float(number) for number in re.findall(r"\d\.\d{4}", tables)}
    published = {value for log in known_logs().values() for f in log.figures for value in f.metrics.values()}
    assert figures == published | {0.1234, 0.0056, 0.0111, 0.0123, 0.0004, 0.0789}


def test_summary_sets_the_first_setting_of_a_preset_beside_what_was_published(tmp_path: Path) -> None:
    told = {"data": "ml-1m", "split_method": "leave_one_out"}
    first = line(**told, protocol="sampled", metrics={"ndcg@10": {"mean": 0.5432, "std": None}})
    later = line(**told, protocol="sampled", metrics={"ndcg@10": {"mean": 0.6, "std": None}}, seeds=[7])
    best = line(**told, preset="best", metrics={"ndcg@10": {"mean": 0.2, "std": 0.01}})
    text = section(page(tmp_path, first, later, best, line()), "In short")
    assert "| ml-1m | 0.5432 | 0.5905 | 0.2000 ± 0.0100 | 0.1857 |" in text
    assert "| Video | - | 0.5360 | - | 0.0620 |" in text
    assert "| ml-100k | - | - | - | - |" in text  # measured by a temporal split only


def test_published_figures_stand_in_the_column_of_their_protocol(tmp_path: Path) -> None:
    text = section(page(tmp_path, line()), "ml-1m")
    assert "| published: Kang & McAuley 2018, the paper |  |  | 0.5905 | 0.8245 |" in text
    assert "| published: gSASRec, gSASRec-pytorch | 0.1726 | 0.3003 |  |  |" in text
    assert "| published: HSTU" not in text
    assert "0.2164 / 0.3642 (ML-1M with 3,706 items, with times and the target's time)" in text
    assert "no timestamps, so there is no temporal split" in text


def test_valid_figures_are_left_out_and_unknown_logs_come_last(tmp_path: Path) -> None:
    text = page(tmp_path, line(split="valid", metrics={"ndcg@10": {"mean": 0.9999, "std": None}}), line(data="mine"))
    assert "0.9999" not in text
    assert text.index("## mine") > text.index("## ml-100k")
