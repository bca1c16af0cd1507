"""The API keys that a server admits: where they are read from, and how one that came is compared with them."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from sasrec.core.config import ServerConfig
from sasrec.core.errors import ConfigError

KEY_VARIABLE = "SASREC_API_KEY"


class Keys:
    """API keys, kept as digests.

    Args:
        keys: any of which admits; none = everybody is admitted.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admits(self, key: bytes | None) -> bool:
        """Whether the key is one of ours, in a time that does not depend on how much of it is right."""
        if not self._digests:
            return True
        digest = hashlib.sha256(key or b"").digest()
        admitted = False
        for own in self._digests:  # all of them, whichever fits
            admitted |= hmac.compare_digest(digest, own)
        return admitted


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
