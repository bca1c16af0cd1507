"""The pages of a run: complete, self-contained, legible in light and dark, and robust to odd runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made import ML_1M, SAMPLED, estimate, make_epoch, make_result

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError
from sasrec.data.sequences import LogFacts, build_sequences
from sasrec.reading.notes import Note
from sasrec.reading.readers import read_interactions
from sasrec.reading.understanding import Understanding
from sasrec.report.examples import Example, Recommended, ShownItem
from sasrec.report.model_card import model_card
from sasrec.report.pages import report_page, write_report
from sasrec.report.run_facts import RunFacts
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import EpochLine

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect"}
SMALL = LogFacts(60, 5, 12, 0.1, 0.0, 0, True, "0" * 32)


UNDRAWN: dict[str, Any] = {  # a run without anything to draw: its page takes no time
    "history": [], "lengths": np.zeros(0, np.int64), "item_counts": np.zeros(12, np.int64),
}  # fmt: skip


def items(*titles: str) -> list[ShownItem]:
    return [ShownItem(title, title) for title in titles]


def recommended(*items: ShownItem) -> list[Recommended]:
    return [Recommended(item, rank, 4.75 - 1.25 * rank) for rank, item in enumerate(items, 1)]


def make_example(**changes: Any) -> Example:
    listed = recommended(*items("Vertigo (1958)", "Fargo (1996)"))
    example = Example(7, items("Alien (1979)", "Heat (1995)"), items("Fargo (1996)")[0], listed)
    return replace(example, **changes)


def make_line(epoch: int, train_loss: float, valid: float | None = None, test: float | None = None) -> EpochLine:
    metrics = {"valid": valid, "test": test}
    measured = {part: {"ndcg@10": value} for part, value in metrics.items() if value is not None}
    return make_epoch(epoch, train_loss=train_loss, **measured)


def make_config(data: LogFacts = SMALL, **changes: Any) -> RunConfig:
    config = RunConfig(ModelConfig(), TrainConfig(max_epochs=3), EvalConfig(), "paper", "films", data, "0.1.0")
    return replace(config, **changes)


def make_facts(**changes: Any) -> RunFacts:
    """A small run of three epochs, the second the best."""
    facts = RunFacts(
        config=make_config(),
        lengths=np.array([5, 8, 10, 12, 25]),
        item_counts=np.arange(1, 13),
        history=[make_line(epoch, 2.0 / epoch, valid) for epoch, valid in ((1, 0.2), (2, 0.4), (3, 0.3))],
        results=[make_result()],
        examples=[make_example()],
        environment={"sasrec": "0.1.0", "machine": "x86_64", "cpus": 2},
        best_epoch=2,
        seconds=90.0,
        stopped="patience",
    )
    return replace(facts, **changes)


def text_of(**changes: Any) -> str:
    """What the page of a run says, its charts apart."""
    return Page(report_page(make_facts(**UNDRAWN, **changes))).text


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of a small run."""
    folder = tmp_path_factory.mktemp("pages")
    write_report(folder, make_facts(results=[make_result(warnings=("users are few",))]))
    return folder


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return (written / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, and visible text; fails on a tag that is not closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name]


def test_write_report_writes_three_files_and_nothing_else(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {"report.html", "curve.png", "README.md"}
    assert (written / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_write_report_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        write_report(tmp_path / "gone", make_facts(**UNDRAWN))


def test_report_is_the_same_each_time(written: Path, tmp_path: Path) -> None:
    write_report(tmp_path, make_facts(results=[make_result(warnings=("users are few",))]))
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_report_needs_no_other_host_file_or_script(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert "http" not in html
    assert not re.findall(r"@import|url\((?!#)", html)
    assert all(target.startswith("#") for name in ("href", "xlink:href") for target in page.attributes(name))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "src"]


def test_report_has_unique_ids_and_every_reference_lands(html: str) -> None:
    page = Page(html)
    ids = Counter(page.attributes("id"))
    assert max(ids.values()) == 1
    references = {target[1:] for name in ("href", "xlink:href") for target in page.attributes(name)}
    references |= set(re.findall(r"url\(#([^)]+)\)", html)) | set(page.attributes("aria-labelledby"))
    assert references <= set(ids)


def test_charts_take_their_colours_from_the_page_so_that_dark_stays_legible(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        assert not re.findall(r"#[0-9a-f]{6}", chart)
        assert all("fill: var(--" in text for text in re.findall(r"<text[^>]*>", chart))


def test_report_is_accessible(html: str) -> None:
    page = Page(html)
    assert ("html", {"lang": "en"}) in page.tags
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in page.tags if tag == "svg")
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_report_tells_results_curve_data_settings_and_protocol(html: str) -> None:
    text = Page(html).text
    for part in (
        "films", "test: users are few", "0.5000 ±0.0196", "0.7500", "popularity", "last_item", "all 12 items",
        "3 epochs in 1.5 minutes", "0.4000 at epoch 2", "2.0000 in epoch 1, 0.6667 in epoch 3",
        "60 events of 5 users on 12 items", "12.0 events a user on average, 10 at the median, at most 25",
        "max_seq_len", "learning_rate", "x86_64", "How it was measured",
    ):  # fmt: skip
        assert part in text


def test_a_warning_of_all_results_is_told_once_and_without_a_split() -> None:
    both = [make_result(warnings=("few", "cold")), make_result(split="valid", warnings=("few",))]
    assert make_facts(results=both).warnings == ["test: cold", "few"]


@pytest.mark.parametrize("counts", [[91, *[1] * 9], [91, 9], [80, 11, *[1] * 9]])
def test_popularity_is_told_as_the_share_of_the_top_tenth(counts: list[int]) -> None:
    facts = make_facts(**{**UNDRAWN, "item_counts": np.array(counts)})
    assert "tenth of the items has 91 % of the events" in Page(report_page(facts)).text


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.9, "above the best baseline, last_item"), (0.41, "overlaps with"), (0.1, "below the best baseline, last_item")],
)
def test_headline_compares_the_model_with_its_best_baseline(value: float, words: str) -> None:
    assert words in text_of(results=[make_result(metrics={"ndcg@10": estimate(value)})])


def test_headline_without_intervals_gives_no_verdict() -> None:
    text = text_of(results=[make_result(metrics={"ndcg@10": estimate(0.9, None)})])
    assert "no intervals to compare" in text
    assert "above the best baseline" not in text


def test_headline_takes_the_first_cutoff_when_ten_is_missing() -> None:
    metrics = {"ndcg@5": estimate(0.5), "ndcg@20": estimate(0.6)}
    assert "test NDCG@5" in text_of(results=[make_result(metrics=metrics)])


def test_hit_is_marked_and_a_miss_is_said(html: str) -> None:
    assert re.findall(r'<li value="(\d+)" class=hit>', html) == ["2"]
    missed = text_of(examples=[make_example(target=items("Ran (1985)")[0])])
    assert "It is not among these 2." in missed
    assert "✓" not in missed


def test_hit_is_told_by_item_id_where_titles_repeat() -> None:
    same = [ShownItem(item_id, "Hamlet") for item_id in (40, 41)]
    example = make_example(target=same[1], recommended=recommended(*same))
    page = report_page(make_facts(**UNDRAWN, examples=[example]))
    assert re.findall(r'<li value="(\d+)" class=hit>', page) == ["2"]


EVIL = "<script>alert('x')</script> & \"quoted\" | `code` [link](x) $name"


def test_foreign_text_cannot_become_markup() -> None:
    (evil,) = items(EVIL)
    example = make_example(user_id=EVIL, history=[evil], target=evil, recommended=recommended(evil))
    config, results = make_config(data_name=EVIL), [make_result(warnings=(EVIL,))]
    facts = make_facts(**UNDRAWN, config=config, examples=[example], results=results, environment={EVIL: EVIL})
    page = Page(report_page(facts))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert('x')</script> & \"quoted\"") >= 7
    card = model_card(facts)
    assert r"# \<script\>alert('x')\</script\> & " in card
    assert "<script>" not in card
    assert not re.findall(r"(?<!\\)\[link", card)


def read_as(**changes: Any) -> Understanding:
    """How a log was read, with a warning."""
    read = Understanding(
        source="/home/ann/shop/events.csv",
        form="a table with a header, separated by commas",
        columns={"user": "userId", "item": "movieId", "timestamp": "date"},
        left_alone=["device"],
        dates=True,
        unit="seconds",
        first_time=1_709_251_200,
        last_time=1_709_942_400,
        first_events=[["ben", "0113", 1_709_326_800]],
        notes=[Note("/home/ann/shop/events.csv: 2 % of the events have 'NA' as user", "--drop-missing")],
    )
    return replace(read, **changes)


def test_the_report_tells_how_the_log_was_read_without_its_folder() -> None:
    html = report_page(make_facts(**UNDRAWN, understanding=read_as()))
    read = Page(html).text.partition("The log as read")[2]
    for told in (
        "events.csv: a table with a header, separated by commas", "user = userId, item = movieId, timestamp = date",
        "device", "2024-03-01 to 2024-03-09; from dates, in seconds since 1970",
        "user ben, item 0113, time 2024-03-01 21:00:00", "2 % of the events have 'NA' as user; --drop-missing",
    ):  # fmt: skip
        assert told in read
    assert "/home/ann" not in html
    assert "The log as read" not in report_page(make_facts(**UNDRAWN))


def test_the_card_tells_form_columns_and_span_but_no_id_and_no_file() -> None:
    card = model_card(make_facts(**UNDRAWN, understanding=read_as()))
    assert (
        "It was read as a table with a header, separated by commas: user = userId, item = movieId, timestamp = date; "
        "2024-03-01 to 2024-03-09.\n" in card
    )
    assert not [word for word in ("ben", "0113", "events.csv", "NA", "device") if word in card]
    assert "read as" not in model_card(make_facts(**UNDRAWN))


def test_foreign_words_of_a_log_cannot_become_markup() -> None:
    names: dict[str, Any] = {"columns": {"user": EVIL, "item": EVIL}, "left_alone": [EVIL], "notes": [Note(EVIL, EVIL)]}
    read = read_as(source=EVIL, form=EVIL, first_events=[[EVIL, EVIL]], **names)
    facts = make_facts(**UNDRAWN, understanding=read)
    assert "script" not in {tag for tag, _ in Page(report_page(facts)).tags}
    assert "<script>" not in model_card(facts)


def test_unicode_line_breaks_and_broken_text_survive(tmp_path: Path) -> None:
    titles = ["千と千尋の神隠し", "Amélie\n(2001)", "قصة", "half \ud83d a pair"]
    write_report(
        tmp_path,
        make_facts(**UNDRAWN, examples=[make_example(history=items(*titles))], config=make_config(data_name=titles[3])),
    )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in ("千と千尋の神隠し", "Amélie (2001)", "قصة", "half ? a pair"):
        assert f"<li>{shown}</li>" in html


def test_long_titles_are_cut() -> None:
    html = report_page(make_facts(**UNDRAWN, examples=[make_example(history=items("word " * 200))]))
    assert "word…</li>" in html
    assert "word " * 40 not in html


def assert_without_nan(html: str, card: str) -> None:
    page = Page(html)
    for text in (page.text, *page.attributes("style"), *page.attributes("d"), *page.attributes("aria-label"), card):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


@pytest.mark.parametrize(
    "changes",
    [
        UNDRAWN,
        {"history": [make_line(1, 0.7, 0.1)], "best_epoch": 1},
        {"history": [make_line(1, 0.7)], "best_epoch": 1},
        {"history": [make_line(1, float("nan")), make_line(2, float("inf"))]},
        {"history": [make_line(1, 0.7, 0.1, test=0.1)]},
        {"lengths": np.array([3]), "item_counts": np.array([3])},
        {"lengths": np.array([1] * 1000 + [100_000]), "item_counts": np.array([1, 0, 0])},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_odd_runs_are_drawn_without_nan(changes: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, make_facts(**{**UNDRAWN, **changes}))
    html, card = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert_without_nan(html, card)


@pytest.mark.parametrize(
    "changes",
    [
        {"results": []},
        {"results": [make_result(baselines={})]},
        {"results": [make_result(metrics={"ndcg@10": estimate(0.0, 0.0)}, baselines={})]},
        {"results": [make_result(split="valid"), make_result(**SAMPLED)]},
        {"examples": []},
        {"examples": [make_example(history=[], recommended=[])]},
        {"environment": {}},
        {"config": make_config(refit_epochs=4, layout="pmixer-2021"), "stopped": "something else"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_odd_runs_are_told_without_nan(changes: dict[str, Any]) -> None:
    facts = make_facts(**UNDRAWN, **changes)
    assert_without_nan(report_page(facts), model_card(facts))


@pytest.mark.slow
def test_million_items_users_and_epochs_keep_the_report_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.random(20_001)
    history = [make_line(epoch, noise[epoch], noise[epoch]) for epoch in range(1, 20_001)]
    facts = make_facts(
        lengths=rng.geometric(0.02, 1_000_000), item_counts=rng.zipf(1.5, 1_000_000), history=history, best_epoch=20_000
    )
    write_report(tmp_path, facts)
    assert (tmp_path / "report.html").stat().st_size < 200_000


def test_refit_and_conversion_are_told() -> None:
    facts = make_facts(**UNDRAWN, config=make_config(refit_epochs=4, layout="pmixer-2021"))
    for text in (Page(report_page(facts)).text, model_card(facts)):
        assert "trained again on all events, for 4 epochs" in text
        assert "converted from a pmixer-2021 checkpoint" in text


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ["0.1259", "0.1857"]),
        (SAMPLED, ["0.5905", "0.5995"]),
        ({"filter_seen": False}, []),
        ({"split": "valid"}, []),
        ({"split_method": "temporal"}, []),
        (SAMPLED | {"candidates": "the target and 50 items drawn uniformly with replacement"}, []),
    ],
)
def test_published_figures_stand_only_beside_a_comparable_result(changes: dict[str, Any], shown: list[str]) -> None:
    facts = make_facts(**UNDRAWN, config=make_config(ML_1M), results=[make_result(**changes)])
    html, card = report_page(facts), model_card(facts)
    assert all(value in html and value in card for value in shown)
    assert ('class="published"' in html) == ("as published" in html) == ("published:" in card) == bool(shown)


def test_both_protocols_stand_side_by_side_with_the_reason_why_they_may_disagree() -> None:
    both = [make_result(), make_result(**SAMPLED)]
    facts = make_facts(**UNDRAWN, results=both)
    html, card = report_page(facts), model_card(facts)
    assert "Both protocols side by side" in Page(html).text
    for text in (Page(html).text, card):
        assert "Krichene & Rendle 2020" in text
        assert "full NDCG@10" in text
        assert "sampled HR@10" in text
    for results in (both[:1], [both[0], make_result(**SAMPLED, split="valid")]):
        facts = make_facts(**UNDRAWN, results=results)
        assert "side by side" not in report_page(facts) + model_card(facts)


def test_model_card_says_what_data_how_trained_how_good_and_how_to_load() -> None:
    card = model_card(make_facts(results=[make_result(warnings=("users are few",))]))
    for part in (
        "# films: a SASRec model", 'sasrec.load("path/to/this/folder")', "sasrec recommend", "## Intended use",
        "60 events of 5 users on 12 items, ordered by timestamp", "licence", "Epoch 2 of 3 was kept, by NDCG@10",
        "| model | 0.5000 ±0.0196 | 0.7500 ±0.0196 | 0.6250 |", "## Limits\n\n- test: users are few\n",
    ):  # fmt: skip
        assert part in card
    assert "$" not in card


@pytest.mark.slow
def test_drawing_leaves_pyplot_alone() -> None:
    program = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "from test_pages import make_facts\n"
        "from sasrec.report.pages import report_page\n"
        "assert 'matplotlib' not in sys.modules; report_page(make_facts())\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_report_of_ml_1m_shows_titles_and_published_figures(shared: Path, tmp_path: Path) -> None:
    sequences, vocabulary = build_sequences(read_interactions(shared / "data" / "ml-1m.txt"))
    titles = pl.read_csv(shared / "data" / "ml-1m.item_titles.tsv", separator="\t", quote_char=None)
    vocabulary = vocabulary.with_titles(titles.select(pl.col("sas_item_id").alias("item_id"), "title"))
    shown = vocabulary.titles_of(sequences.history(0)[-8:])
    facts = make_facts(
        config=make_config(sequences.facts, data_name="ml-1m"),
        lengths=np.diff(sequences.offsets),
        item_counts=vocabulary.counts,
        results=[make_result(), make_result(**SAMPLED)],
        examples=[make_example(user_id=1, history=items(*shown))],
    )
    write_report(tmp_path, facts)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert all(" ".join(title.split()) in text for title in shown)
    assert "26.1 % of users have more than max_seq_len" in text
    assert "Kang & McAuley 2018" in text
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 300_000
