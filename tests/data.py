"""Real images for tests: found beside the checkout, unpacked once into a git-ignored folder."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = Path(os.environ.get("TEST_DATA", ROOT.parent / "shared" / "data"))
UNPACKED = ROOT / ".cache" / "data"
ARCHIVES = {
    "imagenette128": "imagenette128/imagenette128.tar.xz",
    "neu_det300": "neu_det300/neu_det300.tar.xz",
    "odd_public": "odd_images/odd_public.tar",
    "photos": "photos/photos.zip",
}


def dataset(name: str) -> Path:
    """The folder `name`, unpacked; a missing archive fails with the way to get it."""
    folder = UNPACKED / name
    if folder.is_dir():
        return folder
    archive = SOURCE / ARCHIVES[name]
    if not archive.is_file():
        raise FileNotFoundError(
            f"The test data {archive} is missing. docs/data.md says what it holds and where that "
            "comes from; put the archive there, or point TEST_DATA at the folder that holds it."
        )
    staging = UNPACKED / f".{name}.{os.getpid()}"
    shutil.unpack_archive(archive, staging, filter=None if archive.suffix == ".zip" else "data")
    try:
        (staging / name).rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    shutil.rmtree(staging)
    return folder
