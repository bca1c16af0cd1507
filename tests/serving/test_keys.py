"""API keys: what a file and the environment give, and what is refused rather than admit everybody."""

from pathlib import Path

import pytest

from sasrec.core.errors import ConfigError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.keys import Keys, read_keys


def keys_in(path: Path, text: bytes) -> list[str]:
    path.write_bytes(text)
    return read_keys(ServerConfig(api_key_file=str(path)))


def test_comments_marks_and_spaces_are_no_part_of_a_key(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbfalpha\r\n  # revoked: old\n\nbeta # of the app\n\tgam#ma\t\n#delta\n"
    assert keys_in(tmp_path / "keys", text) == ["alpha", "beta", "gam#ma"]
    assert keys_in(tmp_path / "keys", b"\xef\xbb\xbf# only this is none\nalpha") == ["alpha"]
    for text in (b"", b"\n # none\n", b"\xef\xbb\xbf"):
        with pytest.raises(ConfigError, match="holds no API key"):
            keys_in(tmp_path / "keys", text)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_variable_is_refused_and_admits_nobody(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    assert read_keys(ServerConfig()) == []
    monkeypatch.setenv("SASREC_API_KEY", " alpha ")
    assert read_keys(ServerConfig()) == ["alpha"]
    monkeypatch.setenv("SASREC_API_KEY", empty)
    with pytest.raises(ConfigError, match="SASREC_API_KEY is set and empty"):
        read_keys(ServerConfig())


def test_a_key_is_admitted_when_it_is_one_of_them() -> None:
    keys = Keys(["alpha", "beta"])
    assert [keys.admits(key) for key in (b"alpha", b"beta", b"alph", b"", None)] == [True, True, False, False, False]
    assert Keys().admits(None)
