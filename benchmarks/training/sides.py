"""Steps by turns: each side in a process of its own, which waits while another steps."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import torch
from torch import Tensor

BATCH = 4
WARM_UP = 2
ROUNDS = 9


def random_crops(seed: int) -> list[Tensor]:
    """A batch of normalised crops: 2 of 224 and 8 of 96 pixels for each image."""
    generator = torch.Generator().manual_seed(seed)
    sides = (224,) * 2 + (96,) * 8
    return [torch.randn(BATCH, 3, side, side, generator=generator) for side in sides]


def serve(step: Callable[[list[Tensor]], object], turns: TextIO, answers: TextIO) -> None:
    """The child: one step for every line of `turns`, answered by its seconds; then the memory."""
    for number, _ in enumerate(turns):
        crops = random_crops(number)
        started = time.perf_counter()
        step(crops)
        answer(time.perf_counter() - started, answers)
    answer(peak_memory(), answers)


def answer(number: float, answers: TextIO) -> None:
    """Tell the parent."""
    print(number, file=answers, flush=True)


def peak_memory() -> float:
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Side:
    """The parent's view of a child.

    Args:
        name: What the side is called in the result.
        module: What `python -m` runs.
        arguments: Its arguments.
        python: Which interpreter.
    """

    def __init__(
        self, name: str, module: str, *arguments: str, python: str = sys.executable
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> float:
        """Have it take one step; its seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def finish(self) -> float:
        """End it; its peak memory in MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = self._answer()
        self.process.wait()
        return peak

    def _answer(self) -> float:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended early")
        return float(line)


def compare(sides: Sequence[Side], against: str) -> dict[str, Any]:
    """Have the sides step by turns, and print and return what it took.

    Args:
        sides: All of them, in the order of their turns.
        against: The one that the others' speed is given over.
    """
    for _ in range(WARM_UP):
        for side in sides:
            side.step()
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        rounds.append({side.name: round(side.step(), 4) for side in sides})
        print(json.dumps(rounds[-1]), flush=True)
    result: dict[str, Any] = {"sides": {}, "rounds": rounds}
    print(f"{'':20} {'seconds':>8} {'speed':>7} {'MiB':>6}")
    for side in sides:
        seconds = statistics.median(r[side.name] for r in rounds)
        speed = statistics.median(r[against] / r[side.name] for r in rounds)
        memory = side.finish()
        result["sides"][side.name] = {
            "seconds": round(seconds, 4),
            f"speed over {against}": round(speed, 3),
            "peak memory (MiB)": round(memory),
        }
        print(f"{side.name:20} {seconds:8.3f} {speed:6.2f}x {memory:6.0f}")
    return result
