"""Fetch a bundle and unpack it if its checksum is right: `download.py URL SHA256 FOLDER`.

The archive lies beside FOLDER while it comes, and FOLDER appears whole or not at all.
"""

import hashlib
import shutil
import sys
import tarfile
import tempfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

CHUNK = 1 << 20


def main(url: str, sha256: str, folder: Path) -> None:
    """Leave the bundle in `folder`, or end with one line that says why not."""
    if folder.exists():  # an earlier start of this pod was here
        shutil.rmtree(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive, unpacked = Path(scratch, "archive"), Path(scratch, "bundle")
        found = _fetch(url, archive)
        if found != sha256.lower():
            sys.exit(f"{url} has the sha256 {found} and not {sha256}; nothing was unpacked")
        try:
            with tarfile.open(archive) as opened:
                opened.extractall(unpacked, filter="data")
        except tarfile.TarError:
            sys.exit(f"{url} is no tar archive, or one with names outside its folder")
        unpacked.rename(folder)
    print(f"{url} is in {folder}")


def _fetch(url: str, archive: Path) -> str:
    digest = hashlib.sha256()
    try:
        with urlopen(url, timeout=60) as answer, archive.open("wb") as file:  # noqa: S310
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, ValueError, HTTPException) as error:
        sys.exit(f"{url} cannot be fetched: {error}")
    return digest.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
