"""API keys: kept as hashes in a file, one line each, `name scopes sha256`.

A key is 256 random bits. There is nothing to guess, so one plain SHA-256 protects it: the slow,
salted hashes that passwords need would only cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "foveal_"  # so that scanners of leaked secrets know one
SCOPES = ("read", "write")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LINE = "name scopes sha256, such as `alice read,write 9f86d0…`; make one with `foveal key`"


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
    """The keys of a file.

    Raises:
        KeysError: The file cannot be read, or a line of it is none.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysError(f"keys_file: {path} cannot be read: {error}") from error
        self._keys: list[Key] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                key = Key.parse(line)
            except ValueError:
                # The line itself is not shown: it may be a key put there by mistake.
                raise KeysError(f"keys_file: line {number} of {path} is not {LINE}") from None
            if any(key.name == other.name for other in self._keys):
                raise KeysError(f"keys_file: {path} has two keys of the name {key.name!r}")
            self._keys.append(key)
        if not self._keys:
            raise KeysError(f"keys_file: {path} has no key, so nobody could ask; add {LINE}")

    def find(self, secret: bytes) -> Key | None:
        """The key of this secret; equally long in coming whichever it is, or none."""
        digest = _hash(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
