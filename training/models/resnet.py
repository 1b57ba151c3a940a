"""ResNet as DINO trains it, and its small form for small images.

Parameter names are torchvision's, without the classifier, and so is the initialisation. The
bottleneck's stride is in its 3x3 convolution ("v1.5").

Source: He et al., "Deep Residual Learning for Image Recognition" (2016).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.backbone import Features, PooledBackbone

WIDTHS = (64, 128, 256, 512)
TINY = 1e-12


def convolution(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size but for its stride."""
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a short cut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = short_cut(channels, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """[batch, channels, rows, columns] -> [batch, width, rows / stride, columns / stride]."""
        out = F.relu(self.bn1(self.conv1(maps)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(maps))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, and a short cut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = short_cut(channels, 4 * width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """[batch, channels, rows, columns] -> [batch, 4 width, rows / stride, columns / stride]."""
        out = F.relu(self.bn1(self.conv1(maps)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(maps))


def short_cut(channels: int, out: int, stride: int) -> nn.Module:
    """The identity, or a projection where size or width change."""
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(convolution(channels, out, 1, stride), nn.BatchNorm2d(out))


class ResNet(PooledBackbone):
    """A residual network for any image size.

    Args:
        block: What the network is made of.
        depths: Blocks of each of the four layers.
        cifar_stem: Start with a 3x3 convolution of stride 1 and no pooling, for images of some
            32 pixels (Chen et al., "A Simple Framework for Contrastive Learning", 2020, B.9).
        channels: Number of colour channels.
    """

    heads = 1

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        cifar_stem: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.patch_size = 8 if cifar_stem else 32
        self.dim = WIDTHS[-1] * block.expansion
        self.depth = sum(depths)
        self.channels = channels
        self.conv1 = convolution(channels, 64, 3) if cifar_stem else convolution(channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = layer(block, 64, WIDTHS[0], depths[0], stride=1)
        self.layer2 = layer(block, WIDTHS[0] * block.expansion, WIDTHS[1], depths[1], stride=2)
        self.layer3 = layer(block, WIDTHS[1] * block.expansion, WIDTHS[2], depths[2], stride=2)
        self.layer4 = layer(block, WIDTHS[2] * block.expansion, WIDTHS[3], depths[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def patches(self, images: Tensor) -> Tensor:
        """Normalised images, [batch, channels, height, width] -> the last layer's map.

        It is [batch, rows, columns, dim].
        """
        maps = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        positions: Tensor = maps.permute(0, 2, 3, 1)
        return positions

    def features(self, images: Tensor) -> Features:
        """Normalised images, [batch, channels, height, width] -> all that the model says.

        The attention is each position's share in the embedding's squared length, its dot product
        with the embedding. No share is negative, as the last layer ends in a ReLU, and all sum to
        one, or to zero where the embedding is zero. It is the class activation map (Zhou et al.,
        "Learning Deep Features for Discriminative Localization", 2016) with the embedding for the
        class, or the decomposition of Stylianou et al., "Visualizing Deep Similarity Networks"
        (2019), of an image's similarity to itself.
        """
        patches = self.patches(images)
        embedding = patches.mean(dim=(1, 2))
        shares = (patches * embedding[:, None, None]).sum(dim=3)
        total = shares.sum(dim=(1, 2), keepdim=True).clamp_min(TINY)
        return Features(
            embedding=embedding,
            patches=patches,
            attention=(shares / total).unsqueeze(1),
        )


def layer(
    block: type[BasicBlock | Bottleneck], channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """Blocks of one width, the first of which may halve the map."""
    out = width * block.expansion
    first = block(channels, width, stride)
    return nn.Sequential(first, *(block(out, width, 1) for _ in range(depth - 1)))


def resnet(architecture: str, channels: int = 3) -> ResNet:
    """Build `resnet50`, or `resnet18`, which has the stem for small images."""
    if architecture == "resnet18":
        return ResNet(BasicBlock, (2, 2, 2, 2), cifar_stem=True, channels=channels)
    return ResNet(Bottleneck, (3, 4, 6, 3), channels=channels)
