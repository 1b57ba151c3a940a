"""Parquet files with the bytes of images, as the Hugging Face hub has them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.sources.base import DataError, Source, classify, numbered
from training.data.sources.picture import Unreadable

ROWS = 256
"""Rows that are copied at a time."""


class Parquet(Source):
    """The column `image`, either bytes or a struct with `bytes`, and the class in `label`.

    Parquet cannot read one row alone, so the bytes are copied once, one file after the other, to a
    temporary file that every worker maps into memory. It takes the disk space that the images
    take; `TMPDIR` says where. Without `label` all images are of one class.

    Args:
        location: For messages.
        files: Addresses of the Parquet files.
        channels: Channels of the pixels.

    Raises:
        DataError: A file is not Parquet, has no such column, or there is no row in any.
    """

    def __init__(self, location: str, files: list[str], channels: int) -> None:
        self.name, self.channels = location, channels
        labels: list[int | str] = []
        schema = pa.schema([("image", pa.large_binary())])
        with tempfile.NamedTemporaryFile(prefix="foveal-", suffix=".arrow") as copy:
            with pa.ipc.new_file(copy, schema) as writer:
                for file in files:
                    for images, some in _batches(file):
                        writer.write_batch(pa.record_batch([images], schema))
                        labels += some
            copy.flush()
            # The mapping outlives the file's name.
            self._images = pa.ipc.open_file(pa.memory_map(copy.name)).read_all()["image"]
        if not labels:
            raise DataError(f"no row in the Parquet files of {location}")
        numbers = [label for label in labels if isinstance(label, int)]
        self.labels, self.classes = (
            numbered(numbers, location)
            if len(numbers) == len(labels)
            else classify([*map(str, labels)])
        )

    def title(self, index: int) -> str:
        """The row, counted through all files."""
        return f"{self.name}: row {index}"

    def encoded(self, index: int) -> bytes:
        """The row's bytes."""
        data: bytes | None = self._images[index].as_py()
        if data is None:
            raise Unreadable("the row holds no bytes")
        return data


def _batches(file: str) -> Iterator[tuple[pa.LargeBinaryArray, list[int | str]]]:
    """Images and labels of a file, some rows at a time."""
    try:
        with fsspec.open(file, "rb") as stream:
            table = pq.ParquetFile(stream)
            names = table.schema_arrow.names
            if "image" not in names:
                raise DataError(f"{file} has no column `image`, only {', '.join(names)}")
            columns = [name for name in ("image", "label") if name in names]
            for batch in table.iter_batches(ROWS, columns=columns):
                images = batch.column("image")
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                labels = batch.column("label").to_pylist() if "label" in names else [0] * len(batch)
                yield images.cast(pa.large_binary()), labels
    except pa.ArrowException as error:
        raise DataError(f"{file} is no Parquet file with images ({error})") from error
