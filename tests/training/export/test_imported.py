"""Published checkpoints of every family as bundles."""

import argparse

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import ViTConfig, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from service.bundle import BundleError
from training.data.pixels import normalise
from training.export.imported import bundle_name, import_bundle, origin, usable_name
from training.models.resnet import Bottleneck, ResNet
from training.models.swin import SwinTransformer
from training.models.vit import VisionTransformer

# As published, but for width and depth.
SMALL = {
    "vit": lambda: VisionTransformer(16, 192, 1, 3, image_size=64),
    "swin": lambda: SwinTransformer(16, (1, 2), (1, 2), 7),
    "resnet": lambda: ResNet(Bottleneck, (1, 1, 1, 1)),
}


def seeded(family):
    torch.manual_seed(0)
    return SMALL[family]().eval()


def under(prefix, weights):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def full(weights, *heads):
    """The authors' full training checkpoint around a teacher."""
    teacher = weights | {f"{head}.mlp.0.weight": torch.zeros(2, 2) for head in heads}
    return {
        "student": under("module.", {name: torch.zeros_like(t) for name, t in weights.items()}),
        "teacher": teacher,
        "epoch": 300,
        "args": argparse.Namespace(arch="any"),
        "dino_loss": {"center": torch.zeros(1, 2), "center_grid": torch.zeros(1, 2)},
    }


@pytest.mark.parametrize(
    ("family", "wrap", "architecture", "prefix_tokens", "left_over"),
    [
        ("vit", lambda w: full(under("backbone.", w), "head"), "vit_192x1", 1, ["head"]),
        (
            "swin",
            lambda w: full(under("module.", w), "module.head", "module.head_dense"),
            "swin_16x3",
            0,
            ["head", "head_dense"],
        ),
        ("resnet", lambda w: w, "resnet14", 0, []),
        (
            "resnet",
            lambda w: full(under("backbone.backbone.", w), "backbone.head", "backbone.head_dense"),
            "resnet14",
            0,
            ["head", "head_dense"],
        ),
    ],
    ids=[
        "DINO ViT, full",
        "EsViT Swin, full",
        "DINO ResNet",
        "EsViT ResNet, full",
    ],
)
def test_a_checkpoint_becomes_a_bundle_with_its_numbers(
    tmp_path, family, wrap, architecture, prefix_tokens, left_over
):
    model = seeded(family)
    path = tmp_path / "Published.pth"
    torch.save(wrap(model.state_dict()), path)
    bundle = import_bundle(
        path, tmp_path / "bundle", name=None, size=64, licence="MIT", source=str(path)
    )
    card = bundle.manifest
    assert (card.name, card.architecture) == ("published", architecture)
    assert card.prefix_tokens == prefix_tokens
    assert card.attention.query == ("cls" if family == "vit" else "mean")
    assert card.training["source"] == "Published.pth"
    assert card.training["left_over"] == [f"{head}.mlp.0.weight" for head in left_over]
    assert str(tmp_path) not in (bundle.path / "bundle.json").read_text()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    outputs = ort.InferenceSession(bundle.graph).run(None, {"images": images})
    with torch.no_grad():
        expected = model.features(normalise(torch.from_numpy(images)))
    for output, truth in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, truth.numpy(), atol=1e-4, rtol=0)


HALF = (0.5, 0.5, 0.5)


def test_a_folder_of_hugging_faces_is_served_as_its_own_preprocessor_prepares(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=128,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=256,
        image_size=64,
        layer_norm_eps=1e-6,
    )
    theirs = ViTModel(config).eval()
    preprocessor = ViTImageProcessorPil(image_mean=[0.7, 0.6, 0.5], image_std=[0.2, 0.3, 0.4])
    for part in (theirs, preprocessor):
        part.save_pretrained(tmp_path / "hub")
    bundle = import_bundle(
        tmp_path / "hub", tmp_path / "bundle", name=None, size=64, licence="MIT", source="hub"
    )
    assert (bundle.manifest.heads, bundle.manifest.dim) == (4, 128)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    (embeddings,) = ort.InferenceSession(bundle.graph).run(["embedding"], {"images": images})
    pixels = preprocessor(list(images), do_resize=False, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(embeddings, expected.numpy(), atol=1e-4, rtol=0)


def test_a_named_normalisation_goes_before_the_files(tmp_path):
    torch.save(seeded("vit").state_dict(), tmp_path / "weights.pth")
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": false}')
    bundle = import_bundle(
        tmp_path / "weights.pth",
        tmp_path / "bundle",
        name=None,
        size=64,
        licence="MIT",
        source="weights.pth",
        normalisation=(HALF, (0.1, 0.2, 0.3)),
    )
    assert (bundle.manifest.input.mean, bundle.manifest.input.std) == (HALF, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("source", ["dino_vits16", "https://example.org/a/ViT-S.v2.pth?x=1"])
def test_a_card_keeps_a_published_name_or_an_address(source):
    assert origin(source) == source


def test_a_card_keeps_the_last_part_of_a_path(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    assert origin(str(tmp_path / "hub")) == "hub"
    monkeypatch.chdir(tmp_path / "hub")
    assert origin(".") == "hub"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("weights/My Model (1).safetensors", "my-model-1"),
        ("https://example.org/models/My%20ViT.pth?download=1", "my-20vit"),
        ("hub/dino-vits16/", "dino-vits16"),
        ("vit-v1.5", "vit-v1.5"),
        ("___.pth", "imported"),
        ("x" * 99, "x" * 64),
    ],
)
def test_a_bundle_is_called_as_its_source(source, name):
    assert bundle_name(source) == name


@pytest.mark.parametrize(
    ("name", "usable"),
    [("My_Run", "my_run"), ("a/b c.pt", "a-b-c.pt"), ("vit-v1.5", "vit-v1.5"), ("___", "")],
)
def test_a_name_becomes_one_that_a_bundle_may_have(name, usable):
    assert usable_name(name) == usable


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 50}, "size 50 is no positive multiple of 16"),
        ({"name": "A b"}, "name"),
        ({"normalisation": (HALF, (0.5, 0.0, 0.5))}, "std above 0"),
        ({"normalisation": ((0.5, float("nan"), 0.5), HALF)}, "must be finite"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(tmp_path, options, words):
    path = tmp_path / "weights.pth"
    torch.save(seeded("vit").state_dict(), path)
    wanted = {"name": None, "size": 64, "licence": "MIT", "source": str(path)} | options
    with pytest.raises(BundleError, match=words):
        import_bundle(path, tmp_path / "bundle", **wanted)
    assert not (tmp_path / "bundle").exists()
