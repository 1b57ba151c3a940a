"""A published checkpoint becomes a bundle that serves the same numbers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from service.bundle import Bundle
from training.data.pixels import normalise
from training.models.vit import VisionTransformer

FOVEAL_TRAIN = Path(sys.executable).with_name("foveal-train")


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(16, 128, 2, 2, image_size=64).eval()
    weights = {f"module.backbone.{name}": value for name, value in model.state_dict().items()}
    head = {"module.head.mlp.0.weight": torch.zeros(3, 3)}
    path = tmp_path / "Published.pth"
    torch.save({"teacher": weights | head, "epoch": 3}, path)
    return model, path


def foveal_train(*arguments):
    return subprocess.run(
        [FOVEAL_TRAIN, "import", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_full_checkpoint_becomes_a_bundle_with_its_numbers(checkpoint, tmp_path):
    model, path = checkpoint
    options = ("--out", tmp_path / "bundle", "--licence", "Apache-2.0", "--size", 48)
    run = foveal_train(path, *options)
    assert run.returncode == 0, run.stderr
    assert "left over, not needed: head.mlp.0.weight" in run.stdout
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.manifest.name == "published"
    assert bundle.manifest.input.crop == 48
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
    (embedding,) = ort.InferenceSession(bundle.graph).run(["embedding"], {"images": images})
    with torch.no_grad():
        expected = model(normalise(torch.from_numpy(images)))
    np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "licence"),
        (("--licence", "x", "--size", "50"), "multiple"),
        (("--licence", "x", "--checksum", "0" * 64), "sha256"),
    ],
)
def test_what_is_missing_or_wrong_is_said(checkpoint, tmp_path, options, words):
    run = foveal_train(checkpoint[1], "--out", tmp_path / "bundle", *options)
    assert run.returncode != 0
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "bundle").exists()
