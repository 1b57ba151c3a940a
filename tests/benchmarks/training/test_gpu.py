import torch

from benchmarks.training.gpu import largest
from tests.benchmarks.rehearsal import rehearsed


def test_the_comparison_on_a_gpu_can_be_rehearsed_on_a_processor(tmp_path):
    result = rehearsed("training", tmp_path)
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
