"""Certificates of authorities of our own, made by openssl."""

import subprocess
from pathlib import Path
from typing import NamedTuple

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Certificate(NamedTuple):
    """Files of PEM."""

    certificate: Path
    key: Path


class Authority:
    """Vouches for whoever is asked for; `certificate` is its own."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "ca.crt"
        self._folder = folder
        self._key = folder / "ca.key"
        _make(Certificate(self.certificate, self._key), "-subj", f"/CN=authority {folder.name}")

    def issue(self, host: str) -> Certificate:
        """A certificate for `host`, and its key."""
        made = Certificate(self._folder / f"{host}.crt", self._folder / f"{host}.key")
        _make(
            made,
            *("-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return made


def _make(made: Certificate, *arguments: str) -> None:
    made.certificate.parent.mkdir(parents=True, exist_ok=True)
    files = ("-keyout", str(made.key), "-out", str(made.certificate))
    command = ["openssl", "req", "-x509", *CURVE, "-noenc", "-days", "2", *files, *arguments]
    subprocess.run(command, check=True, capture_output=True)
