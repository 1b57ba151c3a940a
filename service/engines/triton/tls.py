"""TLS to Triton servers: who vouches for them, and as whom they know this gateway."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from service.engines.base import EngineUnavailable


@dataclass(frozen=True, slots=True)
class Pem:
    """What the files held when they were read."""

    ca: bytes
    certificate: bytes | None
    key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files by which Triton servers and this gateway know each other.

    Attributes:
        ca: Certificates of the authorities that vouch for the servers.
        certificate: The gateway's own, with those between it and the servers' authority.
        key: Of `certificate`; both or neither.
    """

    ca: Path
    certificate: Path | None
    key: Path | None

    def read(self) -> Pem:
        """Read the files as they are now: whoever issues certificates also renews them.

        Raises:
            EngineUnavailable: One of them cannot be used.
        """
        ca = _certificates("triton_ca", self.ca)
        if self.certificate is None or self.key is None:
            return Pem(ca, None, None)
        certificate = _certificates("triton_certificate", self.certificate)
        key = _bytes("triton_key", self.key)
        try:
            # Without a password that of an encrypted key would be asked for at the terminal.
            _context().load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError:
            raise EngineUnavailable(
                f"triton_key: {self.key} is not the private key of triton_certificate, "
                f"{self.certificate}; name the one that belongs to it, as PEM without a password"
            ) from None
        return Pem(ca, certificate, key)


def _certificates(setting: str, path: Path) -> bytes:
    pem = _bytes(setting, path)
    try:
        # What stands between certificates may be in any language.
        _context().load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):  # the latter where nothing is left
        raise EngineUnavailable(
            f"{setting}: {path} holds no certificate; name a file of PEM, which begins with "
            "-----BEGIN CERTIFICATE-----"
        ) from None
    return pem


def _bytes(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineUnavailable(
            f"{setting}: {path} cannot be read: {error.strerror}; name a file that this process "
            "may read"
        ) from None


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
