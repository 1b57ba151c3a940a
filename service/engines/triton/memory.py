"""System shared memory: how pixels reach a Triton server on the same machine without a copy by TCP.

Only the pixels: what comes back is small beside them, and a run that was given up may still be
reading its region when the next takes it over. That run's answer is wanted by nobody; had it
written there, it would be into the answer of another.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from pathlib import Path
from uuid import uuid4

import numpy as np

from service.engines.base import Images

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
PREFIX = "foveal-"


class Region:
    """A piece of shared memory, which holds the pixels of one run.

    Args:
        size: In bytes.

    Attributes:
        name: By which a server knows it.
        size: In bytes.

    Raises:
        OSError: There is no room.
    """

    def __init__(self, size: int) -> None:
        self.name = PREFIX + uuid4().hex
        self.size = size
        self._path = FOLDER / self.name
        self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Held as long as this process lives, see `sweep`, which may be trying it just now.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            # Taken at once: writing to what was merely promised kills a process without room.
            os.posix_fallocate(self._file, 0, size)
            self._memory = mmap.mmap(self._file, size)
        except OSError:
            os.close(self._file)
            self._path.unlink()
            raise

    @property
    def key(self) -> str:
        """By which the operating system knows it."""
        return f"/{self.name}"

    def write(self, images: Images) -> None:
        """Put a batch at its beginning."""
        target = np.frombuffer(self._memory, np.uint8, images.size)
        target.reshape(images.shape)[...] = images

    def close(self) -> None:
        """Give the memory back."""
        self._path.unlink(missing_ok=True)
        self._memory.close()
        os.close(self._file)


class Regions:
    """A bounded pool of regions; the pixels of a run that finds none go by TCP.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: list[Region] = []
        self._free: list[Region] = []

    def take(self, size: int, usual: int) -> Region | None:
        """A region for a run, or None: all are taken, or the run is too large.

        Args:
            size: Of the run's pixels, in bytes.
            usual: Size to make a new region of; no run above it gets one.
        """
        if size > usual:
            return None
        if not self._free and len(self._all) < self._most:
            self._add(usual)
        fitting = [region for region in self._free if region.size >= size]
        if not fitting:
            return None
        self._free.remove(fitting[0])
        return fitting[0]

    def give(self, region: Region) -> None:
        """Take a region back."""
        self._free.append(region)

    def close(self) -> None:
        """Give the memory of all regions back; no run may hold one."""
        for region in self._all:
            region.close()
        self._all, self._free = [], []

    def _add(self, size: int) -> None:
        try:
            region = Region(size)
        except OSError as error:
            self._most = len(self._all)
            logger.warning(
                "%s has no room for %d bytes (%s): %d runs at once share memory with Triton, "
                "others travel by TCP; give it more, in a container by shm_size",
                FOLDER,
                size,
                error.strerror,
                self._most,
            )
            return
        self._all.append(region)
        self._free.append(region)


def sweep() -> None:
    """Remove the regions of gateways that were killed: those that nobody has locked."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        try:
            file = os.open(path, os.O_RDWR)
        except OSError:  # of another user, or gone just now
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_size:  # one that is being made has none before it is locked
                path.unlink(missing_ok=True)
        except OSError:  # of a gateway that lives
            continue
        finally:
            os.close(file)
