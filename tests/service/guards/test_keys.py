import hashlib
from pathlib import Path

import pytest

from service.guards.keys import KeyRing, KeysError, make


def ring(path: Path, *lines: str) -> KeyRing:
    path.write_text("\n".join(lines) + "\n")
    return KeyRing(path)


def test_a_made_key_is_256_random_bits_of_which_the_file_keeps_a_hash(tmp_path: Path) -> None:
    secrets = [make("alice", "read")[0] for _ in range(100)]
    assert len(set(secrets)) == 100
    assert all(len(secret) == len("foveal_") + 43 for secret in secrets)  # 256 bits in base64
    secret, key = make("alice", "write,read")
    assert key.line() == f"alice read,write {hashlib.sha256(secret.encode()).hexdigest()}"
    found = ring(tmp_path / "keys", "# ours", "", key.line()).find(secret.encode())
    assert found == key


def test_each_key_is_found_by_its_secret_alone(tmp_path: Path) -> None:
    made = [make(f"user{n}", "read") for n in range(5)]
    keys = ring(tmp_path / "keys", *(key.line() for _, key in made))
    for secret, key in made:
        assert keys.find(secret.encode()) == key
        assert keys.find(secret.encode()[:-1]) is None
        assert keys.find(key.sha256.hex().encode()) is None
    assert keys.find(b"") is None
    assert keys.find(b"\xff\x00") is None


@pytest.mark.parametrize(
    "line",
    [
        "bob read",
        f"alice all {'0' * 64}",
        f"alice read {'0' * 63}",
        f"alice read {'g' * 64}",
        f"al/ce read {'0' * 64}",
        "foveal_a-secret-put-here-by-mistake",
    ],
)
def test_a_line_that_is_none_is_told_without_showing_it(tmp_path: Path, line: str) -> None:
    with pytest.raises(KeysError, match=r"line 2 of .* is not name scopes sha256") as raised:
        ring(tmp_path / "keys", "# comment", line)
    assert line not in str(raised.value)


def test_a_file_that_is_missing_empty_or_names_one_twice_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        KeyRing(tmp_path / "none")
    with pytest.raises(KeysError, match="has no key"):
        ring(tmp_path / "keys", "# nothing")
    lines = [make("alice", "read")[1].line() for _ in range(2)]
    with pytest.raises(KeysError, match="two keys of the name 'alice'"):
        ring(tmp_path / "keys", *lines)
