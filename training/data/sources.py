"""Where images come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class DataError(Exception):
    """The data cannot be used; the message says what was looked for and where."""


@dataclass(frozen=True)
class ImageFolder:
    """Images below a folder; a class is a sub-folder, in order of name.

    Attributes:
        root: The folder.
        paths: Its images, sorted.
        labels: Index of each image's class among `classes`.
        classes: Names of the sub-folders.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def open(cls, root: Path) -> ImageFolder:
        """List the images.

        Raises:
            DataError: There is no such folder, or it holds no image.
        """
        if not root.is_dir():
            raise DataError(f"the data folder {root} does not exist")
        paths = tuple(sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES))
        if not paths:
            raise DataError(f"no image below {root}; looked for {', '.join(sorted(SUFFIXES))}")
        names = [path.relative_to(root).parts[0] for path in paths]
        classes = tuple(sorted(set(names)))
        index = {name: i for i, name in enumerate(classes)}
        return cls(root, paths, tuple(index[name] for name in names), classes)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Decode one image to RGB."""
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")
