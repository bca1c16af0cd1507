"""Which requests of browsers are refused: those that name a foreign host, and those that another site has made."""

from __future__ import annotations

from collections.abc import Iterable

from sasrec.serving.schemas import Header

FOREIGN_HOST = "this server does not answer to the host that the request names; --allowed-hosts says to which it does"
FOREIGN_SITE = "events are not taken from other sites' pages; send them from your server"
OWN = (b"same-origin", b"none")  # of Sec-Fetch-Site: our page, or nobody's


class AllowedHosts:
    """The names that the server answers to.

    Args:
        names: separated by commas, without ports; empty = any name.
    """

    def __init__(self, names: str) -> None:
        self._names = {name.strip().lower() for name in names.split(",") if name.strip()}

    def admit(self, headers: Iterable[Header]) -> bool:
        """Whether the request names one of them: a page of another site cannot read what it gets by its own name."""
        return not self._names or all(
            _without_port(value.decode("latin-1")) in self._names for name, value in headers if name == b"host"
        )


def _without_port(host: str) -> str:
    name, colon, port = host.strip().lower().rpartition(":")
    return name.strip("[]") if colon and port.isdigit() else host.strip().lower().strip("[]")


def is_cross_site(headers: Iterable[Header]) -> bool:
    """Whether a page of another site has made the request; programs that are no browsers never look so."""
    given = dict(headers)
    site, origin = given.get(b"sec-fetch-site"), given.get(b"origin")
    if site is not None:
        return site not in OWN
    return origin is not None and origin.rpartition(b"://")[2].lower() != given.get(b"host", b"").lower()
