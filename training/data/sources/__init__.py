"""Where images come from: a folder, tar shards, Parquet or arrays, local or remote."""

from training.data.sources.base import DataError, Source
from training.data.sources.folder import ImageFolder
from training.data.sources.opening import open_field, open_source
from training.data.sources.picture import Unreadable

__all__ = ["DataError", "ImageFolder", "Source", "Unreadable", "open_field", "open_source"]
