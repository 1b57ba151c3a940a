"""The exported graphs against torch, at sizes that they were not traced at."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from service.bundle import BundleError, InputSpec
from tests.training.export.bundles import seeded_bundle
from training.export.onnx import OUTPUTS, Graph, card_of, input_spec, write_bundle
from training.models.resnet import BasicBlock, ResNet
from training.models.swin import SwinTransformer
from training.models.vit import VisionTransformer

FAMILIES = {
    "vit": lambda: VisionTransformer(8, 64, 2, 2, image_size=64),
    "registers": lambda: VisionTransformer(
        8, 64, 2, 2, image_size=40, layer_scale=True, registers=4
    ),
    # Two stages of windows of 7, both shifted; of these sizes only 56 and 112 px need no padding.
    "swin": lambda: SwinTransformer(16, (2, 2), (1, 2), 7, image_size=112),
    "resnet": lambda: ResNet(BasicBlock, (1, 1, 1, 1), cifar_stem=True),
}
SIZES = [(64, 64), (112, 112), (224, 224), (96, 160), (48, 400), (56, 112), (8, 8)]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    model = FAMILIES[request.param]().eval()
    with torch.no_grad():  # no zero bias and no unit scale may hide a mistake
        for name, parameter in model.named_parameters():
            large = name.endswith(("bias_table", "ls1.gamma", "ls2.gamma"))
            parameter.add_((1.0 if large else 0.02) * torch.randn_like(parameter))
    bundle = seeded_bundle(tmp_path_factory.mktemp("bundle"), model, request.param)
    return model, bundle


@pytest.fixture(scope="module")
def session(exported):
    return ort.InferenceSession(exported[1].graph)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_one_graph_equals_torch_at_every_size(exported, session, batch, height, width):
    model, bundle = exported
    random = np.random.default_rng(height * width)
    images = random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    outputs = session.run(list(OUTPUTS), {"images": images})
    with torch.no_grad():
        expected = Graph(model, bundle.manifest.input).eval()(torch.from_numpy(images))
    rows, columns = height // 8, width // 8
    assert outputs[0].shape == (batch, model.dim)
    assert outputs[1].shape == (batch, rows, columns, model.dim)
    assert outputs[2].shape == (batch, model.heads, rows, columns)
    for output, truth in zip(outputs, expected, strict=True):
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, truth.numpy(), atol=1e-4, rtol=0)


def test_normalisation_is_inside_the_graph(exported, session):
    model, bundle = exported
    spec = bundle.manifest.input
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    by_hand = (image / 255 - np.array(spec.mean)) / np.array(spec.std)
    with torch.no_grad():
        expected = model(torch.from_numpy(by_hand).float().permute(0, 3, 1, 2))
    (embedding,) = session.run(["embedding"], {"images": image})
    np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-4, rtol=0)


def test_the_card_tells_what_the_graph_is(exported):
    _, bundle = exported
    card = bundle.manifest
    seen = (card.dim, card.heads, card.prefix_tokens, card.attention.query, card.attention.layer)
    assert (
        seen
        == {
            "vit": (64, 2, 1, "cls", 1),
            "registers": (64, 2, 5, "cls", 1),
            "swin": (32, 2, 0, "mean", 3),
            "resnet": (512, 1, 0, "mean", 3),
        }[card.architecture]
    )
    assert card.patch_size == card.input.multiple == 8
    assert (card.input.resize, card.input.crop) == (73, 64)
    assert sorted(p.name for p in bundle.path.iterdir()) == ["bundle.json", "model.onnx"]


@pytest.mark.parametrize("size", [0, -8, 60])
def test_a_size_off_the_patch_is_refused(size):
    with pytest.raises(BundleError, match=f"size {size} is no positive multiple of 8 px"):
        input_spec(FAMILIES["vit"](), size)


@pytest.mark.parametrize(
    ("channels", "changes", "words"),
    [
        (1, {}, "takes 1 channels, but a bundle serves RGB"),
        (3, {"name": "My model"}, "name"),
        (3, {"spec": InputSpec(resize=64, crop=60, multiple=4)}, "input.multiple is 4"),
        (3, {"spec": InputSpec(resize=64, crop=64, multiple=8, mean=(0.5,), std=(0.5,))}, "three"),
    ],
)
def test_what_no_bundle_can_say_is_refused_before_anything_is_written(
    tmp_path, channels, changes, words
):
    model = VisionTransformer(8, 64, 1, 2, image_size=64, channels=channels)
    fields = {
        "name": "seeded",
        "architecture": "vit_64x1",
        "spec": input_spec(model, 64),
        "training": {},
        "evaluation": (),
        "licence": "MIT",
    }
    with pytest.raises(BundleError, match=words):
        write_bundle(tmp_path / "bundle", model, card_of(model, **fields | changes))
    assert not (tmp_path / "bundle").exists()
