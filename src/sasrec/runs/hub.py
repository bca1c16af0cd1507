"""Run folders at the Hugging Face Hub: fetched file by file, by name, and sent. Nothing of one is run or unpickled.

hf://user/model[@revision] is the address of a repository whose files are those of a run folder. Its digests.json says
which files there are; only names that the caller knows are fetched, each is compared with its digest, and all are of
one commit. They stay in the cache of huggingface_hub, by revision, and are taken from there without a network.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from sasrec.core.digests import BOOK, is_as_written, read_book
from sasrec.core.errors import CheckpointError, ConfigError, first_line
from sasrec.core.extras import require

logger = logging.getLogger(__name__)

ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>\S+))?")  # hf:/ is what Path makes of hf://
NETWORKS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}  # their errors pass huggingface_hub
LOG_IN = "log in (hf auth login) or set HF_TOKEN"


class Address(NamedTuple):
    """Where a run is at the Hub."""

    repo: str  # user/model
    revision: str | None = None  # a branch, a tag or a commit; None = the newest

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_address(path: Path | str) -> bool:
    """Whether a path means the Hub: hf://..., also as `Path` writes it."""
    return str(path).startswith("hf:/")


def address_of(path: Path | str) -> Address:
    """The address that a path is.

    Raises:
        ConfigError: it has another form.
    """
    found = ADDRESS.fullmatch(str(path))
    if found is None:
        raise ConfigError(f"{str(path)!r} is no address at the Hub; write hf://user/model or hf://user/model@revision")
    return Address(found["repo"], found["revision"])


def local_copy(path: Path, names: Collection[str]) -> Path:
    """The folder of a path: itself or, of an address at the Hub, the copy in the cache.

    Args:
        path: a folder, or hf://user/model[@revision].
        names: of the files to take, as far as they are there.

    Raises:
        ConfigError: the address has another form, or huggingface_hub is missing.
        CheckpointError: it is not there, may not be read, cannot be reached, or is damaged.
    """
    if not is_address(path):
        return path
    address = address_of(path)
    with _told(address):
        folder = Path(_download(address, BOOK)).parent
    there = Address(address.repo, folder.name)  # one commit, whatever is pushed meanwhile
    wanted = [name for name in names if name in (read_book(folder) or {})]
    for name in wanted:
        with _told(there, name):
            _download(there, name)
    damaged = [name for name in wanted if not is_as_written(folder, name, whole=True)]
    if damaged:
        raise CheckpointError(
            f"{there} is damaged: {', '.join(damaged)} is not as it was pushed; delete the copy {folder} and load it "
            "again, or push it again"
        )
    return folder


def _download(address: Address, name: str) -> str:
    path: str = _hub().hf_hub_download(address.repo, name, revision=address.revision)
    return path


def send(folder: Path, names: Sequence[str], known: Collection[str], repo: str, *, private: bool) -> Address:
    """Make a repository what a folder is, in one commit.

    Args:
        folder: has the files.
        names: of those that are sent.
        known: names that are removed from the repository where they are not sent.
        repo: user/model; made where there is none.
        private: whether it may be read by its owner alone; of one that is there it stays as it is.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: no such name, or huggingface_hub is missing, or the repository is public and was to be private.
        CheckpointError: it may not be written, or cannot be reached.
    """
    address = Address(repo)
    with _told(address):
        hub = _hub()
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        is_private = bool(api.model_info(repo).private)
        if not private and is_private:
            logger.warning("%s is there and is private, and stays so", address)
        if private and not is_private:
            raise ConfigError(f"{address} is there and is public; say private=False (--public), or take another name")
        stale = (set(api.list_repo_files(repo)) & set(known)) - set(names)
        operations = [hub.CommitOperationAdd(name, folder / name) for name in names]
        operations += [hub.CommitOperationDelete(name) for name in sorted(stale)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # items.parquet
            commit = api.create_commit(repo, operations, commit_message="Push a run of sasrec")
    return Address(repo, commit.oid)


def _hub() -> Any:
    require("huggingface_hub", "an address at the Hub (hf://)", extra="hub")
    return import_module("huggingface_hub")


@contextlib.contextmanager
def _told(address: Address, name: str = BOOK) -> Iterator[None]:
    """What the Hub, or the way there, answers instead of a file, as one sentence."""
    try:
        yield
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:
        homes = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if not homes & {"huggingface_hub", *NETWORKS} and not isinstance(error, OSError | RuntimeError):
            raise
        raise _sentence(error, address, name) from error


def _sentence(error: Exception, address: Address, name: str) -> CheckpointError | ConfigError:
    """The error as one of ours."""
    errors = import_module("huggingface_hub.errors")
    place = import_module("huggingface_hub.constants").ENDPOINT
    cause, inner = error, error.__cause__
    if isinstance(inner, errors.HfHubHTTPError) or (isinstance(error, RuntimeError) and isinstance(inner, Exception)):
        cause = inner  # why an upload failed, or why the cache was looked at
    if isinstance(cause, errors.HFValidationError):
        return ConfigError(f"{address.repo!r} is no name of a repository: {first_line(cause)}")
    if isinstance(cause, errors.GatedRepoError):
        return CheckpointError(f"{address} is gated: ask for access at {place}/{address.repo}, and {LOG_IN}")
    if isinstance(cause, errors.RepositoryNotFoundError):
        return CheckpointError(f"{address} is not there, or is private and not yours; check the name, or {LOG_IN}")
    if isinstance(cause, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{address} has no such revision; give a branch, a tag or a commit of hf://{address.repo}"
        )
    if isinstance(cause, errors.RemoteEntryNotFoundError):
        what = "and so is no run that sasrec pushed" if name == BOOK else f"which its {BOOK} names; push it again"
        return CheckpointError(f"{address} has no {name}, {what}")
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return CheckpointError(
            f"{place} refuses this of {address} ({status}): {_words_of(cause)}; {LOG_IN} with a token that may do it"
        )
    if status is not None:
        return CheckpointError(f"{place} could not do this of {address} ({status}): {_words_of(cause)}")
    if isinstance(cause, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return CheckpointError(
            f"{address} ({name}) is not in the cache of huggingface_hub, and {place} cannot be reached or is not to be "
            "asked (HF_HUB_OFFLINE); load it once with a network"
        )
    return CheckpointError(f"cannot reach {place} for {address}: {first_line(cause)}")


def _words_of(error: Exception) -> str:
    """The Hub's own words, without a point at the end."""
    return str(getattr(error, "server_message", None) or first_line(error)).strip().splitlines()[0].rstrip(".")
