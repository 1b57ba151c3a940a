"""Images a second of DINO on ViT-S/16 and of EsViT on Swin-T, on one GPU.

    python -m benchmarks.training.gpu [--device cpu --tiny]

2 x 224 + 8 x 96 crops, 65,536 prototypes. `step` is the training step on crops that lie on the
device; `whole` decodes 500 x 375 JPEGs, cuts and distorts too, with a worker process a core. Ours
runs in bf16, with and without torch.compile. Beside it run the published steps (`published.py`,
`published_esvit.py`) in TF32 and in fp16, where their loss scaling is left out, in their favour;
their crops are cut by Pillow, one at a time, in as many workers. Every side has the GPU to itself,
one after the other, with the largest power of two of images that it fits: a figure is the median of
the rounds. Writes training_gpu.json to $OUT, or benchmarks/results, after every side.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import describe
from benchmarks.training import published, published_esvit
from tests.training.data import pillow
from training.config import Recipe
from training.data.crops import CropConfig
from training.data.device_loader import DeviceLoader
from training.data.pixels import normalise
from training.data.plan import Plan
from training.data.sources import ImageFolder
from training.data.views import boxes, distortions
from training.trainer import Trainer

RESULTS = Path(__file__).parents[1] / "results"
FILES, TIMES = 512, 16
FIRST, MOST = 64, 1024
ROUNDS, STEPS = 3, 4
OURS = {
    "ViT-S/16, DINO": {"model": {"architecture": "vit_small"}},
    "Swin-T, EsViT": {"model": {"architecture": "swin_tiny"}, "objective": {"name": "esvit"}},
}
THEIRS = {"ViT-S/16, DINO": published.vit_small, "Swin-T, EsViT": published_esvit.swin_tiny}
Step = Callable[[list[Tensor]], object]


def photographs(folder: Path, count: int) -> None:
    """JPEGs of 500 x 375 of about 100 kB, smooth and rough."""
    random = np.random.default_rng(0)
    for number in range(count):
        smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        pixels = np.asarray(smooth.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        pixels = pixels + random.integers(-16, 17, pixels.shape, np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


class ByPillow(Dataset[list[np.ndarray]]):
    """The crops of one image by its place in an epoch, as the published loader makes them."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.images = plan, plan.images(0).ravel().tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> list[np.ndarray]:
        plan, image = self.plan, self.plan.source.image(self.images[place])
        uniform = np.random.default_rng(place).random((1, len(plan.config.sides), 36))
        box, views = boxes(plan.config, uniform, np.array([image.size]))[0], uniform[0]
        drawn = distortions(plan.config, views)
        sides = plan.config.sides
        crops = [pillow.crop(image, box[i], drawn[i], side) for i, side in enumerate(sides)]
        return [np.array(crop) for crop in crops]


class Bench:
    """Runs sides one after the other on a device.

    Args:
        device: Where.
        config: The crops.
        source: The images.
        prototypes: Outputs of every head.
        most: Images in a batch at most.
        rounds: How often each figure is taken.
        steps: Of a round.
    """

    def __init__(
        self,
        device: torch.device,
        config: CropConfig,
        source: ImageFolder,
        prototypes: int,
        most: int,
        rounds: int,
        steps: int,
    ) -> None:
        self.device, self.config, self.source = device, config, source
        self.prototypes, self.most = prototypes, most
        self.rounds, self.steps = rounds, steps
        self.workers = len(os.sched_getaffinity(0))

    def ours(self, values: dict[str, Any], batch: int, compiled: bool) -> Step:
        """The package's step."""
        recipe = {
            **values,
            "name": "benchmark",
            "data": "none",
            "batch_size": batch,
            "precision": "bf16",
            "compile": compiled,
            "crops": self.config.model_dump(),
            "head": {"prototypes": self.prototypes},
            "optimizer": {"freeze_last_layer": 0},
        }
        return Trainer(Recipe.model_validate(recipe), 1000, self.device).train_step

    def theirs(
        self, published_step: Callable[[int, str], published.Step], batch: int, fp16: bool
    ) -> Step:
        """A published step."""
        step = published_step(self.prototypes, str(self.device))
        # A rehearsal on a processor, which is slow in fp16, need not wait for it.
        half = torch.bfloat16 if self.device.type == "cpu" else torch.float16

        def run(crops: list[Tensor]) -> float:
            with torch.autocast(self.device.type, half, enabled=fp16):
                return step(crops, lr=1e-5, weight_decay=0.04, momentum=0.996)

        return run

    def our_batches(self, batch: int) -> Iterator[list[Tensor]]:
        """Crops that the device cuts, without end."""
        loader = DeviceLoader(self.source, self.config, batch, 0, self.workers, self.device)
        while True:
            yield from loader.epoch(0)

    def their_batches(self, batch: int) -> Iterator[list[Tensor]]:
        """Crops that Pillow cuts, without end."""
        loader = DataLoader(
            ByPillow(Plan(self.source, self.config, batch, 0, 0, 1)),
            batch_size=batch,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        while True:
            yield from loader

    def random(self, batch: int) -> Iterator[list[Tensor]]:
        """One batch of noise on the device, without end."""
        crops = [
            torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=self.device)
            for side in self.config.sides
        ]
        while True:
            yield crops

    def measure(
        self, build: Callable[[int], Step], batches: Callable[[int], Iterator[list[Tensor]]]
    ) -> dict[str, Any]:
        """The largest batch, and images a second of the step alone and of the whole."""
        batch = largest(lambda size: self.rates(build(size), batches(size), size, 1), self.most)
        step = build(batch)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rates = {
            "step": self.rates(step, self.random(batch), batch, self.rounds),
            "whole": self.rates(step, batches(batch), batch, self.rounds),
        }
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        return {
            "batch": batch,
            **{f"{name}, images/s": statistics.median(found) for name, found in rates.items()},
            "rounds": rates,
            "peak memory (MiB)": peak // 2**20,
        }

    def rates(
        self, step: Step, batches: Iterator[list[Tensor]], batch: int, rounds: int
    ) -> list[float]:
        """Images a second of each round; one before them warms up."""
        found = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            for _ in range(self.steps):
                step([normalise(crop.to(self.device, non_blocking=True)) for crop in next(batches)])
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            found.append(round(self.steps * batch / (time.perf_counter() - started), 1))
        return found[1:]


def largest(attempt: Callable[[int], object], most: int) -> int:
    """The largest power of two of images for which `attempt` fits in memory."""
    batch = min(FIRST, most)
    while batch <= most:
        try:
            attempt(batch)
        except torch.OutOfMemoryError:
            break
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        batch *= 2
    return batch // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small crops and batches: a rehearsal")
    arguments = parser.parse_args()
    device, tiny = torch.device(arguments.device), arguments.tiny
    # What torch did unasked when the published code was written.
    torch.set_float32_matmul_precision("high")
    config = CropConfig(global_size=32, local_size=16, local_count=1) if tiny else CropConfig()
    out = Path(os.environ.get("OUT", RESULTS)) / "training_gpu.json"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    result: dict[str, Any] = {
        "what": "2x224 + 8x96, 65536 prototypes, images a second",
        "device": name,
        "machine": describe("torch", "pillow", "numpy"),
        "sides": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), 4 if tiny else FILES)
        once = ImageFolder.open(folder)
        source = ImageFolder(once.name, once.files * TIMES)
        sizes = (64, 2, 1, 1) if tiny else (65536, MOST, ROUNDS, STEPS)
        bench = Bench(device, config, source, *sizes)
        sides: dict[str, tuple[Callable[[int], Step], Callable[[int], Iterator[list[Tensor]]]]] = {
            f"{model}, published, {precision}": (
                partial(bench.theirs, published_step, fp16=precision == "fp16"),
                bench.their_batches,
            )
            for model, published_step in THEIRS.items()
            for precision in ("TF32", "fp16")
        }
        # Compiling takes minutes, so it comes last.
        for compiled in (False,) if tiny else (False, True):
            for model, values in OURS.items():
                side = f"{model}, ours, bf16" + ", compiled" * compiled
                build = partial(bench.ours, values, compiled=compiled)
                sides[side] = (build, bench.our_batches)
        for side, (build, batches) in sides.items():
            torch.compiler.reset()
            result["sides"][side] = bench.measure(build, batches)
            print(side, json.dumps(result["sides"][side]), flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
