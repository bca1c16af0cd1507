"""Seconds of evaluation and of single requests, ours and each peer's in turn.

sampled   the target among 100 drawn negatives, draws and metrics included, per user
full      the target among all items, per user; ours also measures the lists (coverage, popularity, novelty)
score     one user's 101 candidates scored; median of single calls
top 10    one user's best 10 of all items; median of single calls
A side that lacks one of them has no line for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import harness
from harness import Answer, Ask, Worker

WARM_UP_USERS = 64
TRAINED_STEPS = 3


def main(argv: Sequence[str] | None = None) -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--users", type=int, default=None, help="evaluate only our first users")
    flags.add_argument("--peer-users", type=int, default=None, help="the same for peers")
    flags.add_argument("--requests", type=int, default=200, help="single users to time")
    arguments = flags.parse_args(argv)

    def evaluation(protocol: str, users: int | None = None) -> Ask:
        def ask(worker: Worker) -> Answer:
            wanted = users or (arguments.peer_users if worker.is_peer else arguments.users)
            answer = worker.ask("evaluate", protocol=protocol, users=wanted)
            return (
                answer if "unsupported" in answer else {"value": 1e3 * answer["seconds"] / answer["n_users"], **answer}
            )

        return ask

    def single(do: str) -> Ask:
        def ask(worker: Worker) -> Answer:
            answer = worker.ask(do, n=arguments.requests)
            if "unsupported" in answer:
                return answer
            return {"value": 1e3 * answer["seconds"], "p99": 1e3 * answer["p99"], "requests": arguments.requests}

        return ask

    with harness.Session(arguments) as session:
        for worker in session.workers:
            worker.ask("train", steps=TRAINED_STEPS)  # some peers score only with a fitted model
        for protocol in ("sampled", "full"):
            session.compare(
                f"evaluation, {protocol}",
                "ms per user",
                evaluation(protocol),
                warm_up=evaluation(protocol, WARM_UP_USERS),
            )
        session.compare("score 101 items for one user", "ms", single("score_user"))
        session.compare("top 10 for one user", "ms", single("recommend_user"))


if __name__ == "__main__":
    harness.run(main)
