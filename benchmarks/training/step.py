"""Seconds and memory of one DINO step: the package's own beside the published one.

    python -m benchmarks.training.step

ViT-S/16, 2 x 224 + 8 x 96 crops, batch 4, 65,536 prototypes, on the processor, in an epoch in
which the prototypes move. Each side lives in a process of its own and steps when it is its turn; a
side's memory is the peak of its process. The published side is `published.py`. A speed is the
median over the rounds of the published step's seconds over the side's in the same round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.training import published
from benchmarks.training.sides import BATCH, Side, compare, serve
from training.config import Recipe
from training.trainer import Trainer

RESULT = Path(__file__).parents[1] / "results" / "training_step.json"
STEPS_PER_EPOCH = 1000
SIDES = ("published", "fp32", "bf16")


def stepper(side: str) -> Callable[[list[Tensor]], object]:
    """One step of `published`, or of the package in `fp32` or `bf16`, as a function of crops."""
    if side == "published":
        torch.manual_seed(0)
        step = published.vit_small()
        return lambda crops: step(crops, lr=1e-5, weight_decay=0.04, momentum=0.996)
    values = {
        "name": "benchmark",
        "data": "none",
        "batch_size": BATCH,
        "precision": side,
        "optimizer": {"freeze_last_layer": 0},
    }
    return Trainer(Recipe.model_validate(values), STEPS_PER_EPOCH).train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="?", choices=SIDES, help="be this one; without it, compare")
    side = parser.parse_args().side
    if side:
        serve(stepper(side), sys.stdin, sys.stdout)
    else:
        measure()


def measure() -> None:
    sides = [Side(name, "benchmarks.training.step", name) for name in SIDES]
    result = {
        "what": "one DINO step, ViT-S/16, 2x224 + 8x96, batch 4, 65536 prototypes, processor",
        **compare(sides, against="published"),
        "machine": describe("torch"),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
