"""The documents as a web site: it is built without warnings, everything is on it, and its links lead somewhere."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright

import sasrec

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.slow
DOCS = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and (href := values.get("href")):
            self.links.append(href)
        if address := values.get("src") or (values.get("href") if tag == "link" else None):
            self.loaded.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "tools" / "build_site.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.mark.parametrize("name", DOCS)
def test_page_of_docs_stands_in_the_list_of_pages(name: str, pages: dict[Path, Page], site: Path) -> None:
    assert f"docs/{name}.html" in pages[site / "index.html"].links


def test_index_names_each_page_of_docs_in_its_place() -> None:
    index = (ROOT / "site" / "index.md").read_text()
    missing = [f"docs/{name}" for name in DOCS if f"\ndocs/{name}\n" not in index]
    assert not missing, f"add a line to a fitting toctree of site/index.md for each of: {', '.join(missing)}"


def test_every_public_name_is_on_a_page_of_the_api(pages: dict[Path, Page]) -> None:
    anchors = {anchor for path, page in pages.items() if path.parent.name == "api" for anchor in page.anchors}
    assert not [name for name in sasrec.__all__ if name != "__version__" and f"sasrec.{name}" not in anchors]


def test_every_link_leads_somewhere_on_the_site(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        for address in page.links + page.loaded:
            parts = urlsplit(address)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_relative_to(site.resolve()), f"{path.name}: {address}"
            assert target.exists(), f"{path.name}: {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {address}"


def test_no_page_loads_anything_from_another_host(pages: dict[Path, Page]) -> None:
    assert not [address for page in pages.values() for address in page.loaded if urlsplit(address).netloc]


@pytest.mark.parametrize("link", ["other.md", "index.md#no-such-heading"])
def test_broken_link_is_no_site(link: str, tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text(f"# A page\n\n## A heading\n\n[a link]({link})\n")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-q",
        "-c",
        str(ROOT / "site"),
        str(tmp_path),
        str(tmp_path / "html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode
    assert link.partition("#")[2] in done.stderr


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """A plain server of files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *values: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: make browser installs it")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


def test_no_page_is_wider_than_a_phone(browser: Browser, address: str, pages: dict[Path, Page], site: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wide = []
    for path in pages:
        page.goto(f"{address}/{path.relative_to(site)}")
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(str(path.relative_to(site)))
    page.close()
    assert not wide


def test_search_finds_words_and_public_names(browser: Browser, address: str) -> None:
    page = browser.new_page()
    for words, expected in (("patience", "docs/config.html"), ("similar_items", "api/recommending.html")):
        page.goto(f"{address}/search.html?q={words}")
        page.locator(f"#search-results a[href*='{expected}']").first.wait_for(timeout=10_000)
    page.close()
