"""Seconds and memory of one DINO step: the package's own beside lightly-train's.

    python -m venv OTHER && OTHER/bin/pip install lightly-train timm
    python -m benchmarks.training.lightly_train OTHER/bin/python

lightly-train wants versions of its own, hence the other environment. Both train ViT-S/16 (theirs
is timm's) with paths dropped up to 0.1 and 65,536 prototypes on 2 x 224 + 8 x 96 crops, batch 4,
in float32 and in bfloat16. Speeds are over theirs in the same precision; `sides.py` says how.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.training.sides import Side, compare

RESULT = Path(__file__).parents[1] / "results" / "training_lightly.json"
VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("lightly-train", "timm", "torch")}))
"""


def main() -> None:
    other = sys.argv[1]
    result: dict[str, object] = {
        "what": "one DINO step, ViT-S/16, 2x224 + 8x96, batch 4, 65536 prototypes, processor"
    }
    for precision in ("fp32", "bf16"):
        theirs = Side("theirs", "benchmarks.training.lightly_side", precision, python=other)
        ours = Side("ours", "benchmarks.training.step", precision)
        result[precision] = compare([theirs, ours], against="theirs")
    versions = subprocess.run([other, "-c", VERSIONS], check=True, capture_output=True)
    result["theirs"] = json.loads(versions.stdout)
    result["machine"] = describe("torch")
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
