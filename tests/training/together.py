"""Each process of a torchrun: does the steps and the runs whose recipes are in a folder.

`steps/NAME.yaml` leaves what the trainer reported in `steps/NAME.pt`. `runs/NAME.yaml` leaves the
run in `runs/NAME`; where the name ends in `stops`, the first process is sent a SIGTERM after two
steps, and every process RANK writes what stopped it to `runs/NAME.RANK`.
"""

import sys
from pathlib import Path

import torch

from tests.training.runs import losses, run, sigterm
from training import distributed
from training.config import Recipe
from training.stopping import Stopped


def main(folder: Path) -> None:
    with distributed.processes(torch.device("cpu")):
        for path in sorted(folder.glob("steps/*.yaml")):
            seen = losses(Recipe.load(str(path)), steps=5)
            if distributed.rank() == 0:
                torch.save(seen, path.with_suffix(".pt"))
        for path in sorted(folder.glob("runs/*.yaml")):
            recipe, out = Recipe.load(str(path)), path.with_suffix("")
            if not path.stem.endswith("stops"):
                run(recipe, out)
                continue
            try:
                sigterm(recipe, out, after=2, save_every=100)
            except Stopped as stopped:
                path.with_suffix(f".{distributed.rank()}").write_text(str(stopped))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
