from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.data import ROOT
from training.anomaly.pretrained import from_bundle, from_run
from training.checkpoint import CheckpointError
from training.data.pixels import normalise
from training.models.vit import vit

BUNDLE = ROOT / "service" / "bundles" / "imagenette-vitt8"


def test_the_weights_of_the_bundle_say_what_its_graph_says():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    graph = onnxruntime.InferenceSession(BUNDLE / "model.onnx").run(None, {"images": images})
    with torch.inference_mode():
        features = from_bundle(BUNDLE).eval().features(normalise(torch.from_numpy(images)))
    for ours, theirs in zip(features, graph, strict=True):
        assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_a_run_gives_its_teacher(tmp_path: Path):
    teacher = vit("vit_tiny", 8, image_size=32)
    weights = {f"teacher.network.backbone.{k}": v for k, v in teacher.state_dict().items()}
    weights |= {"student.backbone.norm.bias": torch.ones(192), "targets.center": torch.ones(4)}
    recipe = {"model": {"architecture": "vit_tiny", "patch_size": 8}}
    torch.save({"recipe": recipe, "objective": weights}, tmp_path / "last.pt")
    read = from_run(tmp_path / "last.pt").state_dict()
    assert all(torch.equal(read[name], value) for name, value in teacher.state_dict().items())


def test_other_networks_are_refused_by_name(tmp_path: Path):
    recipe = {"model": {"architecture": "swin_tiny", "patch_size": 4}}
    torch.save({"recipe": recipe, "objective": {}}, tmp_path / "swin.pt")
    with pytest.raises(CheckpointError, match="'swin_tiny'; this needs one of"):
        from_run(tmp_path / "swin.pt")
    recipe = {"model": {"architecture": "vit_tiny", "patch_size": 8}}
    torch.save(
        {"recipe": recipe, "objective": {"student.x": torch.ones(1)}}, tmp_path / "student.pt"
    )
    with pytest.raises(CheckpointError, match="holds no teacher"):
        from_run(tmp_path / "student.pt")
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not written by foveal-train run"):
        from_run(tmp_path / "other.pt")
