"""Where the peers live: an environment of their own, made by `python -m benchmarks.serving peers`.

Their versions of shared packages would otherwise have to be the gateway's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".cache" / "peers"
PYTHON = FOLDER / "bin" / "python"
REQUIREMENTS = HERE / "requirements-peers.txt"


def create() -> None:
    """Make the environment and install what `requirements-peers.txt` names."""
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)


def versions(*packages: str) -> dict[str, str]:
    """What is installed there."""
    code = (
        "import sys; from importlib.metadata import version; "
        "print(*map(version, sys.argv[1:]), sep='\\n')"
    )
    done = subprocess.run(
        [PYTHON, "-c", code, *packages], check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(zip(packages, done.stdout.split(), strict=True))
