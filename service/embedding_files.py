"""Embeddings on disk: Parquet, NumPy's npz or JSON lines, whole or not at all.

What is written lies beside its place, under `.part`, until the last embedding is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import numpy as np
import orjson

from service.client.results import Embedding, Vector

ROW_GROUP = 4096  # embeddings; 6 MB at 384 numbers each


class FileRefused(Exception):
    """The embeddings cannot be written; the message says why and what to do."""


class _Format(Protocol):
    """Writes one type of file."""

    def add(self, path: str, embedding: Embedding) -> None: ...

    def finish(self, model: str, digest: str) -> None: ...


class EmbeddingFile:
    """A file of paths and their embeddings, of one model.

    Used in a `with` statement; the file is there after it, unless an exception ended it or nothing
    was added.

    Args:
        out: Where to write: `.parquet` (columns `path`, and `embedding`, a list of fixed size; the
            model and its digest are in the schema's metadata), `.npz` (arrays `paths`,
            `embeddings` [images, dim], `model` and `digest`; held in memory until the end) or
            `.jsonl` (an object a line with `path`, `embedding`, `model` and `digest`).

    Attributes:
        path: Where the file will be.
        added: How many embeddings it has.

    Raises:
        FileRefused: The suffix is none of these, or the folder cannot be written to.
    """

    def __init__(self, out: Path) -> None:
        if out.suffix not in _FORMATS:
            known = ", ".join(_FORMATS)
            raise FileRefused(f"{out}: a file of embeddings ends with one of {known}")
        if out.suffix == ".parquet":
            _require_pyarrow()
        self.added = 0
        self.path = out
        self._part = out.with_name(f"{out.name}.part")
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise FileRefused(f"{self._part}: {error.strerror}") from None
        self._format: _Format = _FORMATS[out.suffix](self._file)
        self._model: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, path: str, embedding: Embedding) -> None:
        """Add one embedding.

        Raises:
            FileRefused: It is another model's than the one before.
        """
        model = (embedding.model, embedding.digest)
        if self._model not in (None, model):
            raise FileRefused(
                "the server took another model into use meanwhile, and its vectors do not compare "
                "with those before; start again"
            )
        self._model = model
        self._format.add(path, embedding)
        self.added += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._model is not None:
                self._format.finish(*self._model)
                self._file.close()
                self._part.replace(self.path)
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)


class _Parquet:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._paths: list[str] = []
        self._vectors: list[Vector] = []
        self._writer: Any = None

    def add(self, path: str, embedding: Embedding) -> None:
        self._paths.append(path)
        self._vectors.append(embedding.vector)
        if len(self._paths) == ROW_GROUP:
            self._flush()

    def finish(self, model: str, digest: str) -> None:
        self._flush()
        self._writer.add_key_value_metadata({"foveal.model": model, "foveal.digest": digest})
        self._writer.close()

    def _flush(self) -> None:
        if not self._paths:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        vectors = np.stack(self._vectors)
        columns = {
            "path": pa.array(self._paths, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        }
        table = pa.table(columns)
        self._writer = self._writer or pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)
        self._paths, self._vectors = [], []


class _Npz:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._paths: list[str] = []
        self._vectors: list[Vector] = []

    def add(self, path: str, embedding: Embedding) -> None:
        self._paths.append(path)
        self._vectors.append(embedding.vector)

    def finish(self, model: str, digest: str) -> None:
        np.savez(
            self._file,
            paths=np.array(self._paths),
            embeddings=np.stack(self._vectors),
            model=np.array(model),
            digest=np.array(digest),
        )


class _JsonLines:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, path: str, embedding: Embedding) -> None:
        line = {
            "path": path,
            "embedding": embedding.vector,
            "model": embedding.model,
            "digest": embedding.digest,
        }
        self._file.write(
            orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        )

    def finish(self, model: str, digest: str) -> None:
        pass


def _require_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise FileRefused(
            "Parquet needs pyarrow: in the checkout, pip install -e '.[parquet]'; or write .npz or "
            ".jsonl"
        )


_FORMATS: dict[str, Callable[[IO[bytes]], _Format]] = {
    ".parquet": _Parquet,
    ".npz": _Npz,
    ".jsonl": _JsonLines,
}
