"""The exported graph against torch, at sizes that it was not traced at."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from service.bundle import InputSpec
from training.export.onnx import OUTPUTS, Graph, write_bundle
from training.models.vit import vit

SPEC = InputSpec(resize=74, crop=64, multiple=8)
SIZES = [(64, 64), (128, 128), (224, 224), (96, 160), (48, 400), (8, 8)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = vit("vit_tiny", 8, image_size=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    bundle = write_bundle(
        tmp_path_factory.mktemp("bundle"),
        model,
        name="seeded",
        architecture="vit_tiny",
        spec=SPEC,
        training={},
        evaluation=(),
        licence="Apache-2.0",
    )
    return model, bundle


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_one_graph_equals_torch_at_every_size(exported, batch, height, width):
    model, bundle = exported
    random = np.random.default_rng(height * width)
    images = random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    outputs = ort.InferenceSession(bundle.graph).run(list(OUTPUTS), {"images": images})
    with torch.no_grad():
        expected = Graph(model, SPEC).eval()(torch.from_numpy(images))
    rows, columns = height // 8, width // 8
    assert outputs[0].shape == (batch, 192)
    assert outputs[1].shape == (batch, rows, columns, 192)
    assert outputs[2].shape == (batch, 3, rows, columns)
    for output, truth in zip(outputs, expected, strict=True):
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, truth.numpy(), atol=1e-4, rtol=0)


def test_normalisation_is_inside_the_graph(exported):
    model, bundle = exported
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    by_hand = (image / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    with torch.no_grad():
        expected = model(torch.from_numpy(by_hand).float().permute(0, 3, 1, 2))
    (embedding,) = ort.InferenceSession(bundle.graph).run(["embedding"], {"images": image})
    np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-4, rtol=0)


def test_the_card_tells_what_the_graph_is(exported):
    manifest = exported[1].manifest
    assert (manifest.dim, manifest.heads, manifest.patch_size) == (192, 3, 8)
    assert manifest.attention.query == "cls"
    assert manifest.attention.layer == 11
    assert manifest.prefix_tokens == 1
    assert sorted(p.name for p in exported[1].path.iterdir()) == ["bundle.json", "model.onnx"]
