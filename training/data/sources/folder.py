"""A folder of images."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import fsspec

from training.data.sources.base import SUFFIXES, DataError, Source, classify, read


class ImageFolder(Source):
    """Images below a folder, sorted by path; a class is a sub-folder, in order of name.

    Attributes:
        files: The images' addresses, relative to the folder.
    """

    def __init__(self, location: str, files: list[str], channels: int = 3) -> None:
        """Take the images `files`, relative to the folder `location`."""
        self.name, self.files, self.channels = location, files, channels
        folders = [PurePosixPath(file).parts[:-1] for file in files]
        self.labels, self.classes = classify([parts[0] if parts else "" for parts in folders])

    @classmethod
    def open(cls, location: str | Path, channels: int = 3) -> ImageFolder:
        """List the images.

        Raises:
            DataError: There is no such folder, or it holds no image.
        """
        location = str(location)
        system, root = fsspec.url_to_fs(location)
        if not system.isdir(root):
            raise DataError(f"the data folder {location} does not exist")
        files = [path[len(root) :].lstrip("/") for path in system.find(root)]
        images = sorted(file for file in files if PurePosixPath(file).suffix.lower() in SUFFIXES)
        if not images:
            raise DataError(f"no image below {location}; looked for {', '.join(sorted(SUFFIXES))}")
        return cls(location.rstrip("/"), images, channels)

    def title(self, index: int) -> str:
        """The file's address."""
        return f"{self.name}/{self.files[index]}"

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        return read(self.title(index))
