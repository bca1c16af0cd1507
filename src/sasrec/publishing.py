"""Push a run to the Hugging Face Hub: what of it leaves this machine, the card and the digests that go with it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sasrec.core.digests import BOOK, digest_of, note
from sasrec.core.errors import ConfigError
from sasrec.core.files import atomic_write, disk_errors
from sasrec.data.prepared import ITEM_FEATURES, ITEMS, SEQUENCES
from sasrec.data.sequences import FILES
from sasrec.report.hub_card import Told, hub_card
from sasrec.report.model_card import Place
from sasrec.report.pages import write_report
from sasrec.report.run_facts import RunFacts
from sasrec.reporting import facts_of_run
from sasrec.runs.digests import verify
from sasrec.runs.folder import CONFIG, HISTORY, METRICS, RunFolder
from sasrec.runs.hub import Address, address_of, is_address, send
from sasrec.runs.lock import WEIGHTS

logger = logging.getLogger(__name__)

MODEL_FILES = (CONFIG, WEIGHTS, ITEMS, ITEM_FEATURES, HISTORY, METRICS)  # none tells of a user
USERS_FILES = tuple(f"{SEQUENCES}/{name}" for name in FILES)
CARD = "README.md"
PAGES = (CARD, "report.html", "curve.png")  # written anew, without examples
KNOWN = (*MODEL_FILES, *USERS_FILES, *PAGES, BOOK)


class Saved(Protocol):
    """A Recommender, as far as it is written to disk."""

    def save(self, path: Path | str) -> None:
        """Write a run folder."""


def push_model(model: Saved, repo: str, **asked: Any) -> str:
    """As `push`, for a model in memory; its address as a text."""
    with tempfile.TemporaryDirectory(prefix="sasrec-run-") as folder:
        model.save(Path(folder) / "run")
        return str(push(RunFolder.open(Path(folder) / "run"), repo, **asked))


def push(
    run: RunFolder,
    repo: str,
    *,
    private: bool = True,
    with_histories: bool = False,
    license: str | None = None,  # noqa: A002 - the Hub's word
    datasets: Sequence[str] = (),
) -> Address:
    """Send a run folder to the Hub, and say before what of it leaves this machine.

    Args:
        run: is read from end to end first.
        repo: user/model, or hf://user/model.
        private: whether only the owner, and those that the owner lets, can read it.
        with_histories: send the ids and histories of users, too.
        license: for the card, as the Hub names it; None = none is told.
        datasets: for the card, as the Hub names them.

    Returns:
        The address of the commit, which loads this model whatever is pushed later.

    Raises:
        ConfigError: no such name, no huggingface_hub, a public repository in place of a private one, or histories are
            asked for and the run has none.
        CheckpointError: the run is damaged, or the Hub refuses it or cannot be reached.
    """
    address = address_of(repo if is_address(repo) else f"hf://{repo}")
    if address.revision:
        raise ConfigError(f"{address} names a revision, and a push makes a new one; give hf://{address.repo}")
    verify(run)
    if with_histories and not (run.path / SEQUENCES).is_dir():
        raise ConfigError(f"{run.path} was saved without histories, so none can be pushed; leave out --with-histories")
    facts, told = facts_of_run(run), Told(license, datasets)
    with tempfile.TemporaryDirectory(prefix="sasrec-push-") as folder:
        names = _stage(run, Path(folder), with_histories)
        place = Place(str(address), with_histories, has_curve=bool(facts.history))
        names += _write_pages(Path(folder), facts, told, place)
        _tell(address, names, facts, private=private, with_histories=with_histories)
        return send(Path(folder), names, KNOWN, address.repo, private=private)


def _stage(run: RunFolder, folder: Path, with_histories: bool) -> list[str]:
    """Copy what is sent, and note its digests; the names of the files."""
    wanted = MODEL_FILES + (USERS_FILES if with_histories else ())
    names = [name for name in wanted if (run.path / name).is_file()]
    with disk_errors(folder):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run.path / name, folder / name)
    note(folder, {name: digest_of(folder / name) for name in names}, begin=True)
    return [*names, BOOK]


def _write_pages(folder: Path, facts: RunFacts, told: Told, place: Place) -> list[str]:
    """The card and, of a model that was trained, report and curve, all without users; the names of the files."""
    if facts.history:
        write_report(folder, facts)
    atomic_write(folder / CARD, hub_card(facts, told, place))
    return [name for name in PAGES if (folder / name).is_file()]


def _tell(address: Address, names: Sequence[str], facts: RunFacts, *, private: bool, with_histories: bool) -> None:
    readers = "for those that you let read it" if private else "for everybody to read"
    logger.info("to %s, %s: %s", address, readers, ", ".join(names))
    known = facts.vocabulary
    assert known is not None
    more = [*(["titles"] if known.n_titled else []), *([] if known.attributes is None else known.attributes.columns)]
    columns = f", and their {', '.join(more)}" if more else ""
    logger.info("with it go the ids and counts of %s items%s", f"{len(known):,}", columns)
    if with_histories:
        logger.warning("with it go the ids and the histories of all %s users", f"{facts.config.data.n_users:,}")
    else:
        logger.info("no id and no history of a user goes with it; those who load it give histories of their own")
