"""API keys: kept as hashes in a file, one line each, `name scopes sha256`.

A key is 256 random bits. There is nothing to guess, so one plain SHA-256 protects it: the slow,
salted hashes that passwords need would only cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOK = 1.0  # seconds
PREFIX = "foveal_"  # so that scanners of leaked secrets know one
SCOPES = ("read", "write")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LINE = "name scopes sha256, such as `alice read,write 9f86d0…`; make one with `foveal key`"

logger = logging.getLogger(__name__)


class KeysError(Exception):
    """The keys file cannot be used."""


@dataclass(frozen=True, slots=True)
class Key:
    """One API key.

    Attributes:
        name: Whose it is, for the log and the rate limit.
        scopes: `read`: ask for vectors, maps and neighbours. `write`: change collections and
            models.
        sha256: Of the key's bytes.
    """

    name: str
    scopes: frozenset[str]
    sha256: bytes

    @classmethod
    def parse(cls, line: str) -> Key:
        """Read a line of the keys file.

        Raises:
            ValueError: It is none.
        """
        name, scopes, digest = line.split()
        key = cls(name, frozenset(scopes.split(",")), bytes.fromhex(digest))
        if not NAME.fullmatch(name) or not key.scopes <= set(SCOPES) or len(key.sha256) != 32:
            raise ValueError(line)
        return key

    def line(self) -> str:
        """Write the line of the keys file."""
        return f"{self.name} {','.join(sorted(self.scopes))} {self.sha256.hex()}"


def make(name: str, scopes: str) -> tuple[str, Key]:
    """Make a key: its secret, which is nowhere else, and what the file keeps of it.

    Raises:
        ValueError: The name or a scope is none.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Key.parse(f"{name} {scopes} {_hash(secret.encode()).hex()}")


class KeyRing:
    """The keys of a file, and of what becomes of it.

    Whoever looks for a key looks at the file as well, at most once in `LOOK` seconds, and takes up
    what has changed. A file that has become unusable is told of once; the keys stay as they were.

    Args:
        path: The file; also a link that is made to point to another one, as Kubernetes does.
        clock: Seconds that never go backwards.

    Raises:
        KeysError: The file cannot be read, or a line of it is none.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = clock()
        # Before it is read: what changes meanwhile is then seen by the next look.
        self._version = _version(path)
        self._keys = _read(path)

    def find(self, secret: bytes) -> Key | None:
        """The key of this secret; equally long in coming whichever it is, or none."""
        if self._clock() - self._looked >= LOOK:
            self._look()
        digest = _hash(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _look(self) -> None:
        self._looked = self._clock()
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = _read(self._path)
        except KeysError as error:
            logger.error("%s. The keys from before stay in force", error)
        else:
            logger.info(
                "keys_file: %s has changed; it has %d keys now", self._path, len(self._keys)
            )


def _version(path: Path) -> tuple[int, ...] | None:
    """What is another after every change of the file; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    # Not mtime: a copy may keep that of its original, and leave to read changes only ctime.
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def _read(path: Path) -> list[Key]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"keys_file: {path} cannot be read: {error}") from error
    keys: list[Key] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = Key.parse(line)
        except ValueError:
            # The line itself is not shown: it may be a key put there by mistake.
            raise KeysError(f"keys_file: line {number} of {path} is not {LINE}") from None
        if any(key.name == other.name for other in keys):
            raise KeysError(f"keys_file: {path} has two keys of the name {key.name!r}")
        keys.append(key)
    if not keys:
        raise KeysError(f"keys_file: {path} has no key, so nobody could ask; add {LINE}")
    return keys


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
