"""The API keys that a server admits: where they are read from, and how one that came is compared with them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sasrec.core.errors import ConfigError
from sasrec.core.server_config import ServerConfig

COMMENT = re.compile(r"(^|\s)#.*")  # a whole line, or behind a key and a space
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
        ConfigError: the file cannot be read or holds no key, or the variable is set and holds none.
    """
    keys = []
    if KEY_VARIABLE in os.environ:
        keys = [os.environ[KEY_VARIABLE].strip()]
        if not keys[0]:
            raise ConfigError(f"{KEY_VARIABLE} is set and empty, which would admit everybody; give a key, or unset it")
    if not config.api_key_file:
        return keys
    try:
        text = Path(config.api_key_file).read_text(encoding="utf-8-sig")  # editors write a mark before the first key
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API keys in {config.api_key_file} cannot be read: {error}") from error
    found = [key for key in (COMMENT.sub("", line).strip() for line in text.splitlines()) if key]
    if not found:
        raise ConfigError(f"{config.api_key_file} holds no API key; write one a line")
    return keys + found
