"""A GPU gives a CPU's features."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.build import build_backbone
from training.config import ModelConfig

pytestmark = pytest.mark.gpu

MODELS = {
    "vit": ModelConfig(architecture="vit_small", patch_size=16),
    "swin": ModelConfig(architecture="swin_tiny", window=7),
    "resnet": ModelConfig(architecture="resnet50"),
}
SIDES = (224, 96)  # the native grid, and one for which positions and windows change


def features(name: str, side: int, device: torch.device, bf16: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = build_backbone(MODELS[name], 224, 3).eval().to(device)
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        given = backbone.features(images.to(device))
    return {key: value.float().cpu() for key, value in given._asdict().items()}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_cpus(name, side, device):
    expected = features(name, side, torch.device("cpu"))
    for key, value in features(name, side, device).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", MODELS)
def test_bf16_keeps_the_directions(name, side, device):
    expected = features(name, side, torch.device("cpu"))
    given = features(name, side, device, bf16=True)
    for key in ("embedding", "patches"):
        assert F.cosine_similarity(given[key], expected[key], dim=-1).min() > 0.999, key
