"""Benchmarks of a GPU, tried on a processor."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.data import ROOT


def rehearsed(benchmark: str, out: Path) -> dict[str, Any]:
    """Run `benchmarks.BENCHMARK.gpu` on tiny things; gives the result that it wrote into `out`."""
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}.gpu", "--device", "cpu", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "OUT": str(out), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=3600,
    )
    return json.loads((out / f"{benchmark}_gpu.json").read_text())
