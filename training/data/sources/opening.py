"""Which kind of source a location is."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath

import fsspec

from training.data.sources.arrays import Arrays
from training.data.sources.base import SUFFIXES, DataError, Source
from training.data.sources.folder import ImageFolder
from training.data.sources.parquet import Parquet
from training.data.sources.shards import TarShards

KINDS = "a folder of images, .tar shards, .parquet files, or FILE.npz#SPLIT"


def open_source(location: str | Path, channels: int = 3) -> Source:
    """Open images by what lies at a location.

    Args:
        location: A path, or an address that fsspec knows (`s3://`, `gs://`, `memory://`): a folder
            of images, of .tar or of .parquet files; one such file; a pattern of them
            (`train-*.tar`); or `FILE.npz#SPLIT`.
        channels: Channels that images are brought to: 1 or 3, or the arrays' own.

    Raises:
        DataError: There is nothing of the kind at the location, or more than one kind.
    """
    location = str(location)
    if location.partition("#")[0].endswith(".npz"):
        return Arrays(location, channels)
    if channels not in (1, 3):
        raise DataError(f"{location}: encoded images have 1 or 3 channels, not {channels}")
    system, path = fsspec.url_to_fs(location)
    if "*" in path:
        found = system.glob(path)
    elif system.isdir(path):
        found = system.find(path)
    else:
        found = [path] if system.exists(path) else []
    if not found:
        raise DataError(f"there is nothing at {location}; it must be {KINDS}")
    parquet, tar, images = (_of(found, some) for some in ({".parquet"}, {".tar"}, SUFFIXES))
    if len(kinds := [files[0] for files in (images, tar, parquet) if files]) > 1:
        raise DataError(
            f"{location} holds {' as well as '.join(kinds)}, which are different kinds of data; "
            "move one kind elsewhere, or name shards by a pattern such as FOLDER/*.tar"
        )
    if parquet:
        return Parquet(location, [*map(system.unstrip_protocol, parquet)], channels)
    if tar:
        return TarShards(location, [*map(system.unstrip_protocol, tar)], channels)
    if not system.isdir(path):
        raise DataError(f"{location} is none of the kinds of data: {KINDS}")
    return ImageFolder.open(location, channels)


def _of(found: list[str], suffixes: AbstractSet[str]) -> list[str]:
    """Those files that end in one of the suffixes, sorted."""
    return sorted(file for file in found if PurePosixPath(file).suffix.lower() in suffixes)


def open_field(field: str, location: str | Path, channels: int) -> Source:
    """Open the images that a field of a recipe names, as `open_source` does.

    Raises:
        DataError: There is nothing of the kind; the message begins with the field.
    """
    try:
        return open_source(location, channels)
    except DataError as error:
        raise DataError(f"{field}: {error}") from error
