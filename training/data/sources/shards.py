"""Tar files in webdataset's form: KEY.jpg is an image, KEY.cls its class."""

from __future__ import annotations

import tarfile
from typing import NamedTuple

import fsspec

from training.data.sources.base import SUFFIXES, DataError, Source, classify, numbered, read


class Member(NamedTuple):
    """Where the bytes of an image lie in a shard."""

    shard: str
    key: str
    start: int
    stop: int


class TarShards(Source):
    """The images of uncompressed tar files, in order of shard and of place in it.

    One pass over the shards' headers finds where each image begins; it is then read alone. Without
    KEY.cls all images are of one class.

    Args:
        location: For messages.
        shards: Addresses of the tar files.
        channels: Channels of the pixels.

    Raises:
        DataError: A shard is no uncompressed tar file, or none holds an image.
    """

    def __init__(self, location: str, shards: list[str], channels: int) -> None:
        self.name, self.channels = location, channels
        self.members: list[Member] = []
        names: list[str] = []
        for shard in shards:
            members, classes = _index(shard)
            self.members += members
            names += [classes.get(member.key, "0") for member in members]
        if not self.members:
            raise DataError(f"no image in the {len(shards)} tar files of {location}")
        digits = all(name.isdecimal() for name in names)
        self.labels, self.classes = (
            numbered([int(name) for name in names], location) if digits else classify(names)
        )

    def title(self, index: int) -> str:
        """The shard and the key."""
        return f"{self.members[index].shard}: {self.members[index].key}"

    def encoded(self, index: int) -> bytes:
        """The member's bytes."""
        member = self.members[index]
        return read(member.shard, member.start, member.stop)


def _index(shard: str) -> tuple[list[Member], dict[str, str]]:
    """The images of a shard, and the class of each key that has one."""
    members: list[Member] = []
    classes: dict[str, str] = {}
    try:
        with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                folder, slash, base = entry.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = folder + slash + stem
                if f".{suffix.lower()}" in SUFFIXES:
                    start = entry.offset_data
                    members.append(Member(shard, key, start, start + entry.size))
                elif suffix == "cls" and (content := tar.extractfile(entry)) is not None:
                    classes[key] = content.read().decode().strip()
    except tarfile.TarError as error:
        raise DataError(f"{shard} is no uncompressed tar file ({error}); unpack it") from error
    return members, classes
