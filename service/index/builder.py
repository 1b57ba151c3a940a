"""Lays collections anew in a thread of its own, while the one that owns them goes on."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, ThreadPoolExecutor

from service.index.vectors import Vectors

logger = logging.getLogger(__name__)


class Builder:
    """Takes one collection after another through `Vectors.advance`.

    Args:
        owner: The one thread in which all collections are read and written.
    """

    def __init__(self, owner: Executor) -> None:
        self._owner = owner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index-build")

    def tend(self, vectors: Vectors) -> None:
        """Lay them anew in time, if that is due; only their owner calls this."""
        if vectors.begin():
            self._thread.submit(self._build, vectors)

    def close(self) -> None:
        """Wait for the step under way; all collections have been abandoned."""
        self._thread.shutdown(cancel_futures=True)

    def _build(self, vectors: Vectors) -> None:
        try:
            while step := self._owner.submit(vectors.advance).result():
                step()
        except Exception:
            logger.exception("A collection could not be laid anew; it is searched as it was")
            self._owner.submit(vectors.abandon)
