"""Take the picture of the web page that the README shows. Out: docs/page.png.

The films, and who saw them, are invented here: users stay with a kind of film for a while and then go to another.
Needs chromium and the `test` extra; `python tools/take_screenshot.py`.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image
from playwright.sync_api import sync_playwright

import sasrec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "page.png"
KINDS = {
    "sea": "Harbour Lighthouse Tide Anchor Storm Island Captain Whaler Reef Mooring",
    "night": "Alley Witness Informant Alibi Detective Ledger Ransom Getaway Verdict Safe",
    "stars": "Orbit Comet Signal Colony Airlock Satellite Telescope Horizon Probe Aurora",
    "home": "Kitchen Wedding Neighbour Garden Sister Orchard Piano Letter Summer Tandem",
}
WORDS = "The Quiet {0}|{0} at Dawn|One {0} for Two|The Last {0}|Beyond the {0}|{0} No. 9"
N_USERS, LENGTH, STAY = 800, 30, 0.9
COLOURS = 96  # of the picture: it is a third as large, and nobody sees it


def invented_titles() -> pl.DataFrame:
    """Items with titles, kind after kind."""
    titles = [
        f"{pattern.format(noun)} ({1950 + 7 * (i + 3 * j) % 73})"
        for nouns in KINDS.values()
        for i, noun in enumerate(nouns.split())
        for j, pattern in enumerate(WORDS.split("|"))
    ]
    return pl.DataFrame({"item_id": range(1, len(titles) + 1), "title": titles})


def invented_log(seed: int = 0) -> pl.DataFrame:
    """Events of users who stay with a kind of film, popular ones first, and go from each to one of its neighbours."""
    rng = np.random.default_rng(seed)
    size = len(invented_titles()) // len(KINDS)
    rows = []
    for user in range(1, N_USERS + 1):
        kind, place, seen = int(rng.integers(len(KINDS))), int(rng.integers(size)), set[int]()
        while len(seen) < LENGTH:
            item = 1 + kind * size + place
            if item not in seen:
                rows.append((user, item))
            seen.add(item)
            if rng.random() > STAY:
                kind, place = int(rng.integers(len(KINDS))), int(size * rng.random() ** 2)
            else:
                place = (place + int(rng.integers(1, 9))) % size
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


@contextlib.contextmanager
def serving(run: Path, *flags: object) -> Iterator[str]:
    """A server of a run folder, on a port of its own; gives its address."""
    command = [sys.executable, "-m", "sasrec", "serve", str(run), "--port", "0", "--no-access-log", *map(str, flags)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if found := re.search(r"http://\S+:\d+", line):
                    yield found[0]
                    return
            raise RuntimeError("the server did not start")
        finally:
            server.terminate()


def main() -> None:
    """Train, serve, look."""
    with tempfile.TemporaryDirectory() as folder:
        log, run = Path(folder) / "films.csv", Path(folder) / "run"
        invented_log().write_csv(log)
        sasrec.fit(
            log, titles=invented_titles(), output=run, max_epochs=8, embedding_dim=32, max_seq_len=30,
            dropout=0.2, loss="cross_entropy", threads=1,
        )  # fmt: skip
        with serving(run) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 680}, color_scheme="light")
            page.goto(f"{address}/#h=63,68,75,121,127")
            page.locator("#results li:last-child .why:not(:empty)").wait_for()  # the last of the reasons
            picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
            browser.close()
    picture.convert("RGB").quantize(COLOURS).save(PAGE, optimize=True)


if __name__ == "__main__":
    main()
