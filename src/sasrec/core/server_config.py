"""Settings of the server, as those of the other configs are made: see config.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sasrec.core.errors import ConfigError
from sasrec.core.settings import MAX_INT, setting, validate


@dataclass(frozen=True)
class ServerConfig:
    """How a model is served: addresses, limits and times. Only `challenger` changes an answer."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 = all addresses of this machine")
    port: int = setting(8000, "port to listen on; 0 = any free port, which the log names", low=0, high=65535)
    workers: int = setting(1, "worker processes that share the port; each holds the model in memory", low=1, high=1024)
    threads: int = setting(1, "CPU threads per worker; 0 = all", low=0, high=4096)
    batch_size: int = setting(32, "most histories computed together", low=1, high=65536)
    batch_window_ms: float = setting(
        0.0,
        "milliseconds to wait for more requests before computing; 0 = compute what waits at once",
        low=0.0,
        high=1000.0,
    )
    queue_size: int = setting(
        512, "most histories that may wait; further ones are answered with 503", low=1, high=1_000_000
    )
    max_k: int = setting(1000, "longest list that a request may ask for", low=1, high=MAX_INT)
    max_history: int = setting(10_000, "most items in a history", low=1, high=MAX_INT)
    max_filter: int = setting(10_000, "most items in each of allow and deny", low=1, high=MAX_INT)
    max_requests: int = setting(128, "most histories in one request body", low=1, high=1_000_000)
    max_body_bytes: int = setting(2**20, "most bytes in a request body", low=1, high=MAX_INT)
    max_connections: int = setting(
        4096, "most open connections per worker; further ones are closed", low=1, high=1_000_000
    )
    request_timeout: float = setting(
        5.0, "seconds that a request may wait; then it is answered with 503", low=0.01, high=3600
    )
    max_held_bytes: int = setting(
        2**25,
        "most bytes of bodies on their way and of answers not read yet, per worker; beyond it the answer is 503",
        low=2**16,
        high=MAX_INT,
    )
    read_timeout: float = setting(10.0, "seconds within which a request must arrive completely", low=0.1, high=3600)
    write_timeout: float = setting(10.0, "seconds within which a client must read an answer", low=0.1, high=3600)
    keep_alive: float = setting(75.0, "seconds after which an idle connection is closed", low=0.0, high=86400)
    drain_seconds: float = setting(30.0, "seconds that running requests have to end after SIGTERM", low=0.0, high=86400)
    reload_seconds: float = setting(
        5.0,
        "seconds between checks whether RUN, a link, leads to another folder, which is then loaded; 0 = only on SIGHUP",
        low=0.0,
        high=86400,
    )
    access_log: bool = setting(True, "write a JSON line to stdout for each request")
    api_key_file: str = setting("", "file with one API key per line (or set SASREC_API_KEY); clients send X-API-Key")
    allowed_hosts: str = setting(
        "", "host names that requests may name, separated by commas, without ports; empty = any"
    )
    trusted_proxies: str = setting("", "proxies whose X-Forwarded-For is believed: addresses, separated by commas")
    events: str = setting(
        "", "SQLite file of events from POST /v1/events, which continue users' histories; empty = off"
    )
    max_events: int = setting(1_000_000, "most events kept in that file", low=1, high=2**53)
    max_user_events: int = setting(1000, "newest events kept per user", low=1, high=1_000_000)
    feedback: str = setting(
        "",
        "SQLite file of what was shown and what came of it (POST /v1/feedback); answers then have a "
        "recommendation_id; empty = off",
    )
    max_exposures: int = setting(
        1_000_000, "most lists kept in that file; the oldest go first, with their feedback", low=1, high=2**53
    )
    max_feedback_bytes: int = setting(
        2**30, "most bytes that this file holds; the oldest lists go first", low=2**18, high=2**53
    )
    challenger: str = setting(
        "",
        "RUN2:SHARE, such as runs/new:0.1: another run that answers this share of the users, always the same ones; "
        "needs feedback; empty = off",
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.max_requests > self.queue_size:
            raise ConfigError(
                f"max_requests={self.max_requests} is more than queue_size={self.queue_size}, so such a body could "
                "never be answered; use a longer queue"
            )
        if self.challenger:
            read_run_share(self.challenger)
            if not self.feedback:
                raise ConfigError("challenger needs feedback, a file that keeps who gets which model; give --feedback")
        if self.feedback and self.feedback == self.events:
            raise ConfigError(f"events and feedback are both {self.events}; give two files")


def read_run_share(text: str) -> tuple[str, float]:
    """Split "runs/new:0.1" into path and share.

    Raises:
        ConfigError: there is no path, or no share between 0 and 1.
    """
    path, _, share = text.rpartition(":")
    try:
        found = float(share)
    except ValueError:
        found = math.nan
    if not path or not 0 < found < 1:
        raise ConfigError(f"challenger={text!r} is no run folder with a share between 0 and 1, such as runs/new:0.1")
    return path, found
