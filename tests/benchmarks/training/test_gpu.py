import json
import os
import subprocess
import sys

import torch

from benchmarks.training.gpu import largest
from tests.data import ROOT


def test_the_comparison_on_a_gpu_can_be_rehearsed_on_a_processor(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "benchmarks.training.gpu", "--device", "cpu", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    result = json.loads((tmp_path / "training_gpu.json").read_text())
    assert result["device"] == "cpu"
    assert list(result["sides"]) == [
        "ViT-S/16, DINO, published, TF32",
        "ViT-S/16, DINO, published, fp16",
        "Swin-T, EsViT, published, TF32",
        "Swin-T, EsViT, published, fp16",
        "ViT-S/16, DINO, ours, bf16",
        "Swin-T, EsViT, ours, bf16",
    ]
    for side in result["sides"].values():
        assert side["batch"] == 2
        assert side["step, images/s"] > 0
        assert side["whole, images/s"] > 0


def test_the_largest_batch_is_the_last_that_fits():
    def attempt(batch):
        if batch > 100:
            raise torch.OutOfMemoryError

    assert largest(attempt, most=1024) == 64
    assert largest(attempt, most=16) == 16
