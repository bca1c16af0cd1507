"""The API keys that a server admits: of a file, and of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from sasrec.core.config import ServerConfig
from sasrec.core.errors import ConfigError

KEY_VARIABLE = "SASREC_API_KEY"


def read_keys(config: ServerConfig) -> list[str]:
    """The API keys of the file and of the environment; none = everybody is admitted.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    keys = [key for key in [os.environ.get(KEY_VARIABLE, "").strip()] if key]
    if not config.api_key_file:
        return keys
    try:
        lines = Path(config.api_key_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API keys in {config.api_key_file} cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise ConfigError(f"{config.api_key_file} holds no API key; write one a line")
    return keys + found
