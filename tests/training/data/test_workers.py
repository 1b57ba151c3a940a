import os
import subprocess
import sys

import pytest
import torch

from tests.data import ROOT, dataset
from training.data.workers import MOST, usual_count

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "cores", "processes", "count"),
    [
        (CPU, 8, 1, 1),
        (GPU, 8, 1, 7),
        (GPU, 16, 4, 3),
        (GPU, 1, 1, 1),
        (GPU, 2, 4, 1),
        (GPU, 128, 1, MOST),
    ],
)
def test_a_gpus_processes_share_the_cores_for_their_workers(
    device, cores, processes, count, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert usual_count(device) == count


FAILING = """
import sys
from training.data.crops import CropConfig
from training.data.loader import CropLoader
from training.data.sources import open_source

loader = CropLoader(open_source(sys.argv[1]), CropConfig(global_size=32), 4, seed=0, workers=2)
batches = loader.epoch(0)
next(batches)
raise KeyError("a defect, whose traceback holds on to the loader")
"""


def test_workers_do_not_outlive_a_run_that_fails():
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(dataset("photos"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("KeyError: ")
