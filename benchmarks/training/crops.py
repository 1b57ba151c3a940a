"""Milliseconds an image for 2 + 8 crops of a 500 x 375 JPEG: the loader beside Pillow.

    python -m benchmarks.training.crops [PHOTOS]

Both sides decode the same files and cut the same drawn crops, 224 and 96 px, one thread, in one
process. Pillow cuts and distorts one crop at a time. Rounds alternate; the result is the median of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.machine import describe
from tests.data import dataset
from tests.training.data import pillow
from training.data.crops import CropConfig
from training.data.loader import CropLoader
from training.data.sources import ImageFolder
from training.data.views import boxes, distortions

RESULT = Path(__file__).parents[1] / "results" / "crops.json"
CROPS = CropConfig()
BATCH = 48
ROUNDS = 9


def jpegs(photos: Path, folder: Path) -> None:
    """Photographs of a folder as JPEGs of 500 x 375, as most of ImageNet's are."""
    for path in sorted(p for p in photos.iterdir() if p.suffix in {".jpg", ".png"}):
        with Image.open(path) as photo:
            fitted = ImageOps.fit(photo.convert("RGB"), (500, 375), Image.Resampling.BICUBIC)
        fitted.save(folder / f"{path.stem}.jpg", quality=90)


def one_at_a_time(loader: CropLoader, epoch: int) -> list[np.ndarray]:
    """The crops of the loader's first batch, by Pillow."""
    plan, uniform = loader.plan, loader.plan.numbers(epoch, 0)
    crops = []
    for row, index in enumerate(plan.images(epoch)[0].tolist()):
        image = plan.source.image(index)
        drawn = boxes(plan.config, uniform[[row]], np.array([image.size]))[0]
        views = distortions(plan.config, uniform[row])
        for number, side in enumerate(plan.config.sides):
            crops.append(pillow.crop(image, drawn[number], views[number], side))
    return crops


def milliseconds(work: Callable[[], object]) -> float:
    """Of one image of a batch; the thread's own time, which other processes disturb little."""
    started = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - started) / BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?", help="folder; without it, the tests' own")
    photos = parser.parse_args().photos or dataset("photos")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        jpegs(photos, Path(folder))
        loader = CropLoader(ImageFolder.open(folder), CROPS, BATCH, seed=0, workers=0)
        rounds = []
        for epoch in range(ROUNDS + 1):
            ours = milliseconds(lambda epoch=epoch: next(loader.epoch(epoch)))
            theirs = milliseconds(lambda epoch=epoch: one_at_a_time(loader, epoch))
            if epoch:  # the first warms up
                rounds.append({"pillow": round(theirs, 2), "loader": round(ours, 2)})
                print(json.dumps(rounds[-1]), flush=True)
    ratios = [r["pillow"] / r["loader"] for r in rounds]
    result = {
        "what": "ms/image, 2 x 224 + 8 x 96 px crops of a 500 x 375 JPEG with decoding, one thread",
        "pillow": statistics.median(r["pillow"] for r in rounds),
        "loader": statistics.median(r["loader"] for r in rounds),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "rounds": rounds,
        "machine": describe("torch", "pillow", "numpy"),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"pillow / loader: {result['ratio']}")


if __name__ == "__main__":
    main()
