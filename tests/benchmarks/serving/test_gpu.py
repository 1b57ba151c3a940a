import pytest
import torch

from benchmarks.serving import gpu
from tests.benchmarks.rehearsal import rehearsed


def test_the_figures_of_a_gpu_can_be_rehearsed_on_a_processor(tmp_path):
    result = rehearsed("serving", tmp_path)
    assert result["device"] == "cpu"
    assert [(row["model"], row["by"].split()[0]) for row in result["rows"]] == [
        ("ViT-S/16", "torch,"),
        ("ViT-S/16", "ONNX"),
    ]
    for row in result["rows"]:
        assert row["rates"].keys() == {"1", "2"}
        assert min(row["rates"].values()) > 0
    assert (tmp_path / "serving_gpu.md").read_text() == gpu.table(result)


def test_a_rate_counts_images_of_whole_rounds(monkeypatch):
    clock = {"now": 0.0, "runs": 0}
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock["now"])

    def embed():
        clock["runs"] += 1

    def wait():
        """What was started takes a hundredth of a second each, all of it while waiting."""
        clock["now"] += 0.01 * clock["runs"]
        clock["runs"] = 0

    assert gpu.rate(embed, 8, wait, seconds=0.5) == pytest.approx(800)


def test_batches_end_with_the_first_that_does_not_fit():
    def build(batch):
        if batch > 2:
            raise torch.OutOfMemoryError
        return lambda: None

    assert list(gpu.sweep(build, [1, 2, 4, 8], lambda: None, 1e-4)) == [1, 2]


def test_the_table_sets_the_best_batch_beside_the_paper():
    rows = [{"model": "ViT-B/16", "by": "torch, fp16", "rates": {1: 300, 2: 624.4}}]
    lines = gpu.table({"side": 224, "device": "H200", "rows": rows}).splitlines()
    assert lines[0] == "Images a second, 224 px, H200."
    assert lines[-1] == "| ViT-B/16 | torch, fp16 | 300 | 624 | 624 | 312 | 2.0 |"
