"""The files of the web page, read once, as replies: their types, ETags, and the policy that the browser enforces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files

from sasrec.serving.endpoints import Reply
from sasrec.serving.schemas import Header

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: list[Header] = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-cache"),
]
TYPES = {
    "html": b"text/html; charset=utf-8", "js": b"text/javascript; charset=utf-8", "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml", "png": b"image/png", "ico": b"image/x-icon",
}  # fmt: skip


class StaticFiles:
    """The files of web/ by name; they never change while the server runs."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, bytes]] = {}  # body, ETag
        for file in files("sasrec.serving").joinpath("web").iterdir():
            if file.is_file():
                body = file.read_bytes()
                self._files[file.name] = body, b'"%s"' % hashlib.sha256(body).hexdigest()[:16].encode()

    def reply(self, name: str, request_headers: Sequence[Header]) -> Reply | None:
        """A file, or 304 when the client has it already; None = there is no such file."""
        if name not in self._files:
            return None
        body, etag = self._files[name]
        headers = [*HEADERS, (b"etag", etag)]
        kind = TYPES.get(name.rpartition(".")[2], b"application/octet-stream")
        if (b"if-none-match", etag) in request_headers:
            return Reply(304, b"", kind, headers)
        return Reply(200, body, kind, headers)
