import hashlib
import logging
import os
from pathlib import Path

import pytest

from service.guards.keys import LOOK, Key, KeyRing, KeysError, make
from tests.clock import Clock


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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[str, Key]]:
    return {name: make(name, "read") for name in ("alice", "bob")}


def write(path: Path, *keys: tuple[str, Key]) -> None:
    path.write_text("".join(f"{key.line()}\n" for _, key in keys))


def knows(keys: KeyRing, *made: tuple[str, Key]) -> list[bool]:
    return [keys.find(secret.encode()) == key for secret, key in made]


def test_what_the_file_becomes_is_taken_up_within_a_look(
    tmp_path: Path, clock: Clock, made: dict[str, tuple[str, Key]]
) -> None:
    path, alice, bob = tmp_path / "keys", made["alice"], made["bob"]
    write(path, alice)
    keys = KeyRing(path, clock)
    write(path, alice, bob)
    assert knows(keys, alice, bob) == [True, False]
    clock.now += LOOK
    assert knows(keys, alice, bob) == [True, True]
    write(path, bob)
    clock.now += LOOK
    assert knows(keys, alice, bob) == [False, True]


def test_a_file_put_in_its_place_with_the_same_size_and_time_is_another(
    tmp_path: Path, clock: Clock
) -> None:
    path, other = tmp_path / "keys", tmp_path / "other"
    former, latter = make("alice", "read"), make("alice", "read")
    write(path, former)
    write(other, latter)
    for file in (path, other):
        os.utime(file, ns=(1, 1))
    keys = KeyRing(path, clock)
    other.replace(path)
    clock.now += LOOK
    assert knows(keys, former, latter) == [False, True]


def test_the_swapped_link_of_a_kubernetes_volume_is_noticed(
    tmp_path: Path, clock: Clock, made: dict[str, tuple[str, Key]]
) -> None:
    """keys -> ..data/keys, ..data -> the folder of a version, and ..data is replaced."""
    for version, key in (("..1", made["alice"]), ("..2", made["bob"])):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "keys", key)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = KeyRing(tmp_path / "keys", clock)
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    clock.now += LOOK
    assert knows(keys, made["alice"], made["bob"]) == [False, True]


def test_a_file_that_has_become_bad_leaves_the_keys_and_is_told_of_once(
    tmp_path: Path,
    clock: Clock,
    made: dict[str, tuple[str, Key]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, alice, bob = tmp_path / "keys", made["alice"], made["bob"]
    write(path, alice)
    keys = KeyRing(path, clock)

    def told() -> list[str]:
        """What is told by several looks."""
        caplog.clear()
        for _ in range(3):
            clock.now += LOOK
            assert knows(keys, alice, bob) == [True, False]
        return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]

    for content, fault in (
        (f"{bob[1].line()}\n{bob[0]}\n", "line 2"),
        ("# nobody\n", "has no key"),
        (b"\xff\n", "cannot be read"),
        (None, "cannot be read"),
    ):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (line,) = told()
        assert str(path) in line
        assert fault in line
        assert "stay in force" in line
        assert bob[0] not in line
    write(path, bob)
    clock.now += LOOK
    assert knows(keys, alice, bob) == [False, True]
