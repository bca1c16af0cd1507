"""The command that answers over HTTP; apart from others, since a server's start waits for what is loaded here."""

from __future__ import annotations

from typing import Any

from sasrec.cli.flags import ConfigFile, Run, settings_of, with_flags
from sasrec.core.config import from_dict
from sasrec.core.server_config import ServerConfig


@with_flags("server")
def serve(run: Run, config: ConfigFile = None, **given: Any) -> None:
    """Answer requests for recommendations over HTTP, with a web page at /. See docs/serving.md."""
    from sasrec.serving.supervisor import serve as serve_run_folder

    serve_run_folder(run, from_dict(ServerConfig, settings_of(given, config)))
