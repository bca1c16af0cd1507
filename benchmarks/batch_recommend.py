"""Users a second who get their 10 best items of all, ours and each peer's, in turn: a nightly run over a whole log.

top 10 of many users   histories encoded, all items ranked, the user's own left out, answers in the log's own ids
the same as a file     ours only: `sasrec recommend --all-users` into Parquet; the seconds of writing stand beside it
A peer that has no batches is given some: what it calls is in peers.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import harness
from harness import Answer, Ask, Worker

WARM_UP_USERS = 512
TRAINED_STEPS = 3


def main(argv: Sequence[str] | None = None) -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--users", type=int, default=None, help="only our first users")
    flags.add_argument("--peer-users", type=int, default=None, help="the same for peers")
    arguments = flags.parse_args(argv)

    def lists(do: str, users: int | None = None) -> Ask:
        def ask(worker: Worker) -> Answer:
            wanted = users or (arguments.peer_users if worker.is_peer else arguments.users)
            answer = worker.ask(do, users=wanted)
            return answer if "unsupported" in answer else {"value": answer["n_users"] / answer["seconds"], **answer}

        return ask

    with harness.Session(arguments) as session:
        for worker in session.workers:
            worker.ask("train", steps=TRAINED_STEPS)  # some peers recommend only with a fitted model
        session.compare(
            "top 10 of many users",
            "users/s",
            lists("recommend_users"),
            warm_up=lists("recommend_users", WARM_UP_USERS),
            higher=True,
        )
        del session.workers[1:]
        session.compare("top 10 of all users as a file", "users/s", lists("recommend_all"), higher=True)


if __name__ == "__main__":
    harness.run(main)
