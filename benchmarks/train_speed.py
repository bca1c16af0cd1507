"""Seconds of a training epoch, ours and each peer's in turn.

An epoch is what each side calls one: all users with two train items or more, once. Batches, negatives, forward,
backward and Adam count; validation and saving do not. Bounded runs (--steps, --peer-steps) are scaled to an epoch, and
the line says from how many steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import harness
from harness import Answer, Worker

WARM_UP_STEPS = 3


def main(argv: Sequence[str] | None = None) -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--steps", type=int, default=None, help="time only so many of our steps, scaled to an epoch")
    flags.add_argument("--peer-steps", type=int, default=None, help="the same for peers")
    arguments = flags.parse_args(argv)

    def ask(worker: Worker, steps: int | None = None) -> Answer:
        steps = steps or (arguments.peer_steps if worker.is_peer else arguments.steps)
        answer = worker.ask("train", steps=steps)
        if "unsupported" in answer:
            return answer
        return {"value": answer["seconds"] * answer["steps_per_epoch"] / answer["steps"], **answer}

    with harness.Session(arguments) as session:
        session.compare("training epoch", "s", ask, warm_up=lambda worker: ask(worker, WARM_UP_STEPS))


if __name__ == "__main__":
    harness.run(main)
