import os

import pytest
import torch

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
