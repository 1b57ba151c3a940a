"""Published weights: a name or an address in, a checked file out.

A transfer goes to `FILE.part`, with the server's word for its version in `FILE.part.version`, so
that one which broke off goes on where it stopped unless the file has changed since. The file gets
its own name when it is whole and its sha256 is right. That sum is kept in `FILE.sha256`, in the
form that `sha256sum --check` reads: what is fetched again later must still be the same.
"""

from __future__ import annotations

import email.message
import http
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.bundle import sha256

BASE = "https://dl.fbaipublicfiles.com/dino"
FOLDERS = {
    "dino_vits16": "dino_deitsmall16_pretrain",
    "dino_vits8": "dino_deitsmall8_pretrain",
    "dino_vitb16": "dino_vitbase16_pretrain",
    "dino_vitb8": "dino_vitbase8_pretrain",
    "dino_resnet50": "dino_resnet50_pretrain",
}
PUBLISHED = {name: f"{BASE}/{folder}/{folder}.pth" for name, folder in FOLDERS.items()} | {
    f"{name}_full": f"{BASE}/{folder}/{folder}_full_checkpoint.pth"
    for name, folder in FOLDERS.items()
}
CHUNK = 1 << 20
TIMEOUT = 30.0
LIMIT = 8 << 30
# Eight digits without a letter are a date.
HASH_IN_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.[^-]*$")


class DownloadError(Exception):
    """The file could not be had, or is not the one that was asked for; the message says why."""


class _Broken(Exception):
    """The connection ended before the file did."""


def fetch(
    source: str,
    folder: Path,
    *,
    expected: str | None = None,
    limit: int = LIMIT,
    report: Callable[[int, int | None], None] = lambda done, total: None,
) -> Path:
    """Bring a published file into a folder, or find it there from an earlier time.

    Its sha256 is held against `expected`, against the one recorded when it was first fetched, and
    against the 8 or more hex digits at the end of a name such as `model-8a2b3c4d.pth`.

    Args:
        source: A name in `PUBLISHED`, or an http or https address.
        folder: Where files are kept, by host and path: many are called `model.safetensors`.
        expected: The file's sha256, where it is known.
        limit: Most bytes that are taken.
        report: Told of the bytes that are there and of all there will be, if the server says.

    Returns:
        The file's path; its sha256 stands beside it in `FILE.sha256`.

    Raises:
        DownloadError: The source is unknown or gone, the file is too long or not the right one,
            or the connection broke again and again; what came so far is kept for the next call.
    """
    url = PUBLISHED.get(source, source)
    path = folder.joinpath(*_place(source))
    if expected is not None:
        _check_form(expected)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            digest = _check(path, path, expected)
        else:
            part = path.with_name(f"{path.name}.part")
            _transfer(url, part, limit, report)
            try:
                digest = _check(part, path, expected)
            except DownloadError:
                _discard(part)
                raise
            _version(part).unlink(missing_ok=True)
            part.replace(path)
        _record(path).write_text(f"{digest}  {path.name}\n")
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {error}") from error
    return path


def require_known(source: str) -> None:
    """Refuse what `obtain` would, before more is asked about it.

    Raises:
        DownloadError: It is no path, no name in `PUBLISHED` and no address.
    """
    if not Path(source).exists():
        _place(source)


def obtain(
    source: str,
    folder: Path,
    *,
    expected: str | None = None,
    report: Callable[[int, int | None], None] = lambda done, total: None,
) -> Path:
    """A file or folder of this machine as it stands, and everything else by `fetch`.

    Args:
        source: A path that exists, a name in `PUBLISHED`, or an http or https address.
        folder: Where fetched files are kept.
        expected: The file's sha256, where it is known.
        report: Told of the bytes that are there and of all there will be, if the server says.

    Raises:
        DownloadError: As `fetch` does; or the file is not the right one, or a folder, of which
            there is no sha256.
    """
    path = Path(source)
    if not path.exists():
        return fetch(source, folder, expected=expected, report=report)
    if expected is not None:
        if path.is_dir():
            raise DownloadError(f"{path} is a folder and has no sha256; name the file in it")
        _check_form(expected)
        _hold_against(path, sha256(path), "you expect", expected)
    return path


def recorded(path: Path) -> str | None:
    """The sha256 that a fetched file had, or None if it was never fetched."""
    record = _record(path)
    return record.read_text().split()[0] if record.exists() else None


def _place(source: str) -> list[str]:
    """Host and path of a name in `PUBLISHED` or of an address."""
    parts = urlsplit(PUBLISHED.get(source, source))
    place = [parts.hostname or "", *unquote(parts.path).split("/")[1:]]
    if parts.scheme not in ("http", "https") or len(place) == 1 or {"", ".", ".."} & {*place}:
        known = ", ".join(PUBLISHED)
        raise DownloadError(f"{source!r} is no file, no address of one and no name; known: {known}")
    return place


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _version(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version(part).unlink(missing_ok=True)


def _check(file: Path, path: Path, expected: str | None) -> str:
    """The sha256 of what is, or is to be, at `path`, held against all that is known of it."""
    digest = sha256(file)
    in_name = HASH_IN_NAME.search(path.name)
    for who, digits in (
        ("you expect", expected),
        ("its name says", in_name and in_name[1]),
        ("when it was first fetched it was", recorded(path)),
    ):
        if digits is not None:
            _hold_against(path, digest, who, digits)
    return digest


def _check_form(expected: str) -> None:
    if not re.fullmatch("[0-9a-fA-F]{64}", expected):
        raise DownloadError(f"{expected!r} is no sha256: that is 64 hex digits")


def _hold_against(path: Path, digest: str, who: str, digits: str) -> None:
    if not digest.startswith(digits.lower()):
        raise DownloadError(f"{path}: the sha256 is {digest}, but {who} {digits}")


def _transfer(url: str, part: Path, limit: int, report: Callable[[int, int | None], None]) -> None:
    """Ask for what is missing until all is there, as long as every answer brings something."""
    while True:
        before = _size(part)
        try:
            return _receive(url, part, limit, report)
        except _Broken as error:
            if _size(part) <= before:
                raise DownloadError(
                    f"{url}: the connection broke at {_size(part)} bytes ({error}); "
                    "the next try goes on from there"
                ) from None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(url: str, part: Path, limit: int, report: Callable[[int, int | None], None]) -> None:
    """One request for the rest of a file, from its start if its version is unknown.

    Raises:
        _Broken: The answer ended early.
    """
    done = _size(part) if _version(part).exists() else 0
    headers = {"User-Agent": "foveal"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": _version(part).read_text()}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (fetch checks the scheme)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if done and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers["Content-Range"] == f"bytes */{done}":
                return  # it was whole already
            _discard(part)
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
            _discard(part)
            _keep_version(part, response.headers)
        elif not (response.headers["Content-Range"] or "").startswith(f"bytes {done}-"):
            raise DownloadError(f"{url}: the server sent another part than bytes {done} onwards")
        length = response.headers["Content-Length"]
        total = done + int(length) if length else None
        with part.open("ab") as file:
            while (total or done) <= limit and (chunk := _read(response)):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    if max(done, total or 0) > limit:
        _discard(part)
        raise DownloadError(f"{url}: longer than the limit of {limit} bytes")
    if total is not None and done < total:
        raise _Broken(f"{total} were announced")


def _keep_version(part: Path, headers: email.message.Message) -> None:
    """Keep what `If-Range` may carry: a strong ETag, or the date."""
    etag, date = headers["ETag"], headers["Last-Modified"]
    version = etag if etag and not etag.startswith("W/") else date
    if version:
        _version(part).write_text(version)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(error) from error
