"""Seconds from a log file to what training reads, ours and each peer's in turn; and from a prepared folder, ours.

Both sides have read the file once when they started, so it lies in the page cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import harness
from harness import Answer, Worker


def main(argv: Sequence[str] | None = None) -> None:
    arguments = harness.parser(__doc__).parse_args(argv)

    def ask(worker: Worker, **source: str) -> Answer:
        answer = worker.ask("load", **source)
        return answer if "unsupported" in answer else {"value": answer["seconds"], **answer}

    with harness.Session(arguments) as session, tempfile.TemporaryDirectory() as temporary:
        session.compare("read a log", "s", ask)
        folder = str(Path(temporary) / session.data)
        session.ours.ask("prepare", folder=folder)
        session.compare(
            "map a prepared folder",
            "s",
            lambda worker: {"unsupported": "peers"} if worker.is_peer else ask(worker, source=folder),
        )


if __name__ == "__main__":
    harness.run(main)
