from functools import partial

import numpy as np
import pytest
import torch

from tests.data import dataset
from training.attention_over_time import AttentionMaps
from training.data.pixels import MEAN, STD, normalise
from training.data.sources import open_source
from training.models.vit import vit

SIDE = 32
imagenet = partial(normalise, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def photographs():
    source = open_source(str(dataset("photos")))
    images = [source.image(i % len(source)).resize((SIDE, SIDE)) for i in range(10)]
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return vit("vit_tiny", 16, SIDE, 0.5).train()


def test_a_map_is_the_models_attention_to_its_photograph(tmp_path, photographs, backbone):
    path = AttentionMaps(tmp_path, photographs[:3]).record(backbone, 7, imagenet)
    assert path == tmp_path / "attention/7.npz"
    maps = np.load(path)["maps"]
    assert maps.dtype == np.float32
    assert maps.shape == (3, 3, 2, 2)
    # Normalised by hand, in evaluation mode.
    pixels = (photographs[:3] / 255 - np.array(MEAN)) / np.array(STD)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    expected = backbone.eval().features(images).attention
    np.testing.assert_allclose(maps, expected.detach().numpy(), atol=1e-5)


def test_the_photographs_are_kept_as_they_are_and_eight_at_most(tmp_path, photographs, backbone):
    attention = AttentionMaps(tmp_path, photographs)
    kept = np.load(tmp_path / "attention/photographs.npz")["images"]
    assert np.array_equal(kept, photographs[:8])
    assert len(np.load(attention.record(backbone, 0, imagenet))["maps"]) == 8


def test_looking_changes_nothing_in_the_run(tmp_path, photographs, backbone):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    random = torch.get_rng_state()
    AttentionMaps(tmp_path, photographs[:2]).record(backbone, 0, imagenet)
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_another_evaluation_of_an_epoch_replaces_the_first(tmp_path, photographs, backbone):
    attention = AttentionMaps(tmp_path, photographs[:1])
    attention.record(backbone, 2, imagenet)
    with torch.no_grad():
        backbone.blocks[-1].attn.qkv.weight.mul_(30.0)
    second = attention.record(backbone, 2, imagenet)
    assert sorted(path.name for path in second.parent.iterdir()) == ["2.npz", "photographs.npz"]
    maps = torch.from_numpy(np.load(second)["maps"])
    pixels = imagenet(torch.from_numpy(photographs[:1]))
    torch.testing.assert_close(maps, backbone.eval().features(pixels).attention.detach())
