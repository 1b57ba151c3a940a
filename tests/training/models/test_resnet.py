"""ResNet against an independent implementation with the same weights."""

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel

from training.models.resnet import BasicBlock, Bottleneck, ResNet, resnet

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet18": (2, 2, 2, 2)}
WIDTHS = (64, 128, 256, 512)


def seeded(name: str) -> ResNet:
    """Every parameter and running statistic away from its start, the scale of maps kept."""
    torch.manual_seed(0)
    model = resnet(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.3, 0.7)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def reference(model: ResNet, name: str) -> ResNetModel:
    """transformers' ResNet with our weights."""
    bottleneck = name == "resnet50"
    config = ResNetConfig(
        depths=list(DEPTHS[name]),
        hidden_sizes=[(4 if bottleneck else 1) * width for width in WIDTHS],
        layer_type="bottleneck" if bottleneck else "basic",
    )
    other = ResNetModel(config).eval()
    if not bottleneck:
        other.embedder.embedder.convolution = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        other.embedder.pooler = nn.Identity()
    theirs = {}

    def pair(convolution: str, normalization: str, their: str) -> None:
        for ours, part in ((convolution, "convolution"), (normalization, "normalization")):
            for key, value in model.get_submodule(ours).state_dict().items():
                theirs[f"{their}.{part}.{key}"] = value

    pair("conv1", "bn1", "embedder.embedder")
    for i, depth in enumerate(DEPTHS[name]):
        for j in range(depth):
            ours, their = f"layer{i + 1}.{j}", f"encoder.stages.{i}.layers.{j}"
            for k in range(3 if bottleneck else 2):
                pair(f"{ours}.conv{k + 1}", f"{ours}.bn{k + 1}", f"{their}.layer.{k}")
            if isinstance(model.get_submodule(f"{ours}.downsample"), nn.Sequential):
                pair(f"{ours}.downsample.0", f"{ours}.downsample.1", f"{their}.shortcut")
    other.load_state_dict(theirs)
    return other


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("resnet50", 224, 224), ("resnet50", 96, 150), ("resnet18", 32, 32), ("resnet18", 28, 45)],
)
def test_equals_transformers(name, height, width):
    model = seeded(name)
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        ours = model.features(images)
        theirs = reference(model, name)(images)
    maps = theirs.last_hidden_state.permute(0, 2, 3, 1)
    torch.testing.assert_close(ours.patches, maps, atol=1e-5, rtol=1e-5)
    embedding = theirs.pooler_output.flatten(1)
    torch.testing.assert_close(ours.embedding, embedding, atol=1e-5, rtol=1e-5)


def test_batch_statistics_in_training_equal_transformers():
    model = seeded("resnet18").train()
    other = reference(model, "resnet18").train()
    images = torch.randn(4, 3, 32, 32)
    expected = other(images).pooler_output.flatten(1)
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.bn1.running_mean, other.embedder.embedder.normalization.running_mean
    )


@pytest.mark.parametrize(
    ("name", "count"),
    # torchvision's 25,557,032 and 11,689,512 without the classifier's 2,049,000 and 513,000; the
    # stem for small images has 7,680 weights fewer.
    [("resnet50", 23_508_032), ("resnet18", 11_168_832)],
)
def test_has_the_published_number_of_parameters(name, count):
    assert sum(p.numel() for p in resnet(name).parameters()) == count


def test_parameters_are_named_and_shaped_as_torchvisions():
    with torch.device("meta"):
        state = ResNet(Bottleneck, DEPTHS["resnet50"]).state_dict()
    shapes = {
        name: tuple(value.shape)
        for name, value in state.items()
        if name.endswith("weight") and value.ndim == 4
    }
    expected = {"conv1.weight": (64, 3, 7, 7)}
    channels = 64
    for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS["resnet50"], strict=True)):
        for j in range(depth):
            block = f"layer{i + 1}.{j}"
            expected[f"{block}.conv1.weight"] = (width, channels, 1, 1)
            expected[f"{block}.conv2.weight"] = (width, width, 3, 3)
            expected[f"{block}.conv3.weight"] = (4 * width, width, 1, 1)
            if j == 0:
                expected[f"{block}.downsample.0.weight"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    assert shapes == expected
    norms = {name.rsplit(".", 1)[0] for name in state if name.endswith("running_var")}
    convolutions = {name.removesuffix(".weight") for name in expected}
    assert norms == {
        name.replace("conv", "bn").replace("downsample.0", "downsample.1") for name in convolutions
    }


def test_starts_as_torchvision_does():
    torch.manual_seed(0)
    model = resnet("resnet50")
    convolution = model.layer3[0].conv2
    fan_out = 256 * 3 * 3
    assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.01)
    assert all(
        torch.equal(module.weight, torch.ones_like(module.weight)) and not module.bias.any()
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    )


def test_embedding_and_regions_are_those_of_the_features():
    model = seeded("resnet18")
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        features = model.features(images)
        embedding, tokens = model.regions(images)
        assert torch.equal(model(images), features.embedding)
    assert features.patches.shape == (2, 32 // model.patch_size, 48 // model.patch_size, model.dim)
    assert torch.equal(tokens, features.patches.flatten(1, 2))
    torch.testing.assert_close(embedding, features.embedding)


def test_attention_is_each_positions_share_in_the_embeddings_length():
    model = seeded("resnet18")
    with torch.no_grad():
        embedding, patches, attention = model.features(torch.randn(2, 3, 32, 48))
    assert attention.shape == (2, 1, 4, 6)
    for i in range(2):
        length = embedding[i] @ embedding[i]
        for r in range(4):
            for c in range(6):
                share = (patches[i, r, c] @ embedding[i]) / (24 * length)
                torch.testing.assert_close(attention[i, 0, r, c], share)
    assert attention.min() >= 0
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 1))


def test_a_dead_map_has_no_attention():
    model = ResNet(BasicBlock, DEPTHS["resnet18"], cifar_stem=True).eval()
    nn.init.constant_(model.layer4[1].bn2.bias, -1e6)
    with torch.no_grad():
        embedding, _, attention = model.features(torch.randn(1, 3, 32, 32))
    assert not embedding.any()
    assert not attention.any()
