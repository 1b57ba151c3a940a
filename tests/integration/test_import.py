"""A published checkpoint becomes a bundle that the gateway serves with the same numbers."""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.app import create_app
from service.bundle import Bundle
from service.settings import Settings
from tests.commands import run
from tests.service.gateways import PNG, assert_problem, photograph, serving
from training.data.pixels import normalise
from training.export.imported import import_bundle
from training.models.resnet import Bottleneck, ResNet
from training.models.swin import SwinTransformer
from training.models.vit import VisionTransformer

FOVEAL_TRAIN = Path(sys.executable).with_name("foveal-train")


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(16, 192, 2, 3, image_size=64).eval()
    weights = {f"module.backbone.{name}": value for name, value in model.state_dict().items()}
    head = {"module.head.mlp.0.weight": torch.zeros(3, 3)}
    path = tmp_path / "Published.pth"
    torch.save({"teacher": weights | head, "epoch": 3}, path)
    return path


def foveal_train(*arguments):
    return run([FOVEAL_TRAIN, "import", *arguments], timeout=900)


def test_the_command_writes_a_bundle_and_names_what_is_left_over(checkpoint, tmp_path):
    options = ("--out", tmp_path / "bundle", "--licence", "Apache-2.0", "--size", 48)
    ended = foveal_train(checkpoint, *options)
    assert ended.returncode == 0, ended.stderr
    assert "left over, not needed: head.mlp.0.weight" in ended.stdout
    assert "3 heads, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)" in ended.stdout
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.manifest.name == "published"
    assert bundle.manifest.input.crop == 48
    assert bundle.digest in ended.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "licence"),
        (("--licence", "x", "--size", "50"), "multiple"),
        (("--licence", "x", "--checksum", "0" * 64), "sha256"),
        (("--licence", "x", "--name", "My model"), "name: "),
    ],
)
def test_what_is_missing_or_wrong_is_said(checkpoint, tmp_path, options, words):
    ended = foveal_train(checkpoint, "--out", tmp_path / "bundle", *options)
    assert ended.returncode != 0
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_checksum_of_a_folder_is_refused(checkpoint, tmp_path):
    options = ("--out", tmp_path / "bundle", "--licence", "x", "--checksum", "0" * 64)
    ended = foveal_train(checkpoint.parent, *options)
    assert ended.returncode == 1
    assert "is a folder and has no sha256" in ended.stderr


def swin():
    """A full EsViT checkpoint."""
    model = SwinTransformer(16, (1, 2), (1, 2), 7)
    teacher = {f"module.{name}": value for name, value in model.state_dict().items()}
    heads = {f"module.{head}.mlp.0.weight": torch.zeros(2, 2) for head in ("head", "head_dense")}
    return model, {"teacher": teacher | heads, "args": argparse.Namespace(arch="swin_tiny")}


def resnet():
    """DINO's ResNet under torchvision's names."""
    model = ResNet(Bottleneck, (1, 1, 1, 1))
    return model, model.state_dict()


@pytest.fixture(scope="module", params=[swin, resnet])
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    model, state = request.param()
    torch.save(state, folder / "weights.pth")
    bundle = import_bundle(
        folder / "weights.pth",
        folder / "bundle",
        name="imported",
        size=64,
        licence="Apache-2.0",
        source="weights.pth",
    )
    settings = Settings(model=bundle.path, data=folder / "data", threads=1)
    with serving(create_app(settings)) as client:
        yield model.eval(), client


def features(model, pixels):
    with torch.no_grad():
        return model.features(normalise(torch.from_numpy(pixels[None])))


def pixels(photo, width, height):
    """A photograph whose aspect the model's size has, as the gateway resizes it."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def test_the_gateway_embeds_with_the_models_numbers(served):
    model, client = served
    photo = photograph(size=(73, 73))  # the short side that the crop of 64 is taken from
    answer = client.post("/embed", content=photo, headers=PNG).json()
    assert answer["dim"] == model.dim
    expected = features(model, pixels(photo, 73, 73)[4:68, 4:68]).embedding[0]
    expected /= expected.norm()
    np.testing.assert_allclose(answer["embeddings"][0]["embedding"], expected, atol=1e-4)


@pytest.mark.parametrize(("query", "width", "height"), [("", 96, 64), ("size=96", 144, 96)])
def test_the_gateway_shows_the_models_attention(served, query, width, height):
    model, client = served
    photo = photograph(size=(64, 96))
    answer = client.post(f"/attention?{query}", content=photo, headers=PNG).json()
    (image,) = answer["images"]
    assert image["query"] == "mean"
    side = model.patch_size
    columns = round(width / side)
    assert image["grid"] == [height // side, columns]
    expected = features(model, pixels(photo, side * columns, height)).attention[0]
    np.testing.assert_allclose(image["attention"], expected, atol=1e-4)


def test_the_gateway_refuses_a_size_off_the_models_grid(served):
    model, client = served
    answer = client.post("/attention?size=50", content=photograph(), headers=PNG)
    assert_problem(answer, 422, "invalid_option", "50", str(model.patch_size))
