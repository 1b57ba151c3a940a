"""The published EsViT step, written plainly: what the package's own is measured against.

Stands in for the authors' code (Li et al., 2022) as `published.py` does for DINO's, with which it
shares the manner, the head and the step: window attention as an explicit map with the bias of
relative positions looked up in every block, padding and the masks of shifted windows made anew in
every block, the loss of views and regions pair by pair. The parameters have the package's names.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.published import (
    EPS,
    GLOBAL_CROPS,
    MLP,
    DropPath,
    Head,
    Step,
    initialise,
    moved,
)

PATCH = 4


class WindowAttention(nn.Module):
    """Attention between the tokens of a window, biased by where they are to each other."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table = torch.zeros((2 * window - 1) * (2 * window - 1), heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        sides = torch.arange(window)
        places = torch.stack(torch.meshgrid(sides, sides, indexing="ij")).flatten(1)
        offsets = (places[:, :, None] - places[:, None, :]).permute(1, 2, 0) + window - 1
        index = offsets[:, :, 0] * (2 * window - 1) + offsets[:, :, 1]
        self.register_buffer("relative_position_index", index)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """[batch * windows, n, dim], with a mask of [windows, n, n] -> the same shape."""
        count, n, dim = windows.shape
        qkv = self.qkv(windows).reshape(count, n, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attention = (query * (dim // self.heads) ** -0.5) @ key.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        attention = attention + bias.view(n, n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            shape = (count // len(mask), len(mask), self.heads, n, n)
            attention = attention.view(shape) + mask.unsqueeze(1).unsqueeze(0)
            attention = attention.view(-1, self.heads, n, n)
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ value).transpose(1, 2).reshape(count, n, dim))


class Block(nn.Module):
    """A pre-norm block that attends in windows, shifted or not."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = WindowAttention(dim, heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, 4 * dim)

    def mask(self, height: int, width: int) -> Tensor:
        """-100 between tokens that a shift has brought together, [windows, n, n]."""
        window, shift = self.window, self.shift
        parts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        regions = torch.zeros(1, height, width, 1)
        number = 0
        for rows in parts:
            for columns in parts:
                regions[:, rows, columns, :] = number
                number += 1
        region = to_windows(regions, window).squeeze(-1)
        difference = region.unsqueeze(1) - region.unsqueeze(2)
        return difference.masked_fill(difference != 0, -100.0)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[batch, height * width, dim] -> the same shape."""
        batch, _, dim = tokens.shape
        x = self.norm1(tokens).view(batch, height, width, dim)
        right, bottom = -width % self.window, -height % self.window
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
        mask = None
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
            mask = self.mask(height + bottom, width + right).to(x.device)
        x = self.attn(to_windows(x, self.window), mask)
        x = from_windows(x, self.window, height + bottom, width + right)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        x = x[:, :height, :width].contiguous().view(batch, height * width, dim)
        tokens = tokens + self.drop_path(x)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[batch, height * width, dim] -> [batch, a quarter, rounded up, 2 dim]."""
        x = tokens.view(len(tokens), height, width, -1)
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        neighbours = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1).flatten(1, 2)))


class Stage(nn.Module):
    """Blocks at one resolution and the step down to the next."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, drop_path: list[float], last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, shift if number % 2 else 0, rate)
            for number, rate in enumerate(drop_path)
        )
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
        """Tokens and their map's sides -> the next stage's."""
        for block in self.blocks:
            tokens = block(tokens, height, width)
        if self.downsample is None:
            return tokens, height, width
        return self.downsample(tokens, height, width), (height + 1) // 2, (width + 1) // 2


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a normed token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        """[batch, 3, height, width] -> [batch, patches, dim] and their map's sides."""
        patches = self.proj(images)
        return self.norm(patches.flatten(2).transpose(1, 2)), *patches.shape[2:]


class SwinTransformer(nn.Module):
    """Images -> the mean of the normed tokens, [batch, dim], and these, [batch, n, dim]."""

    def __init__(
        self,
        dim: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        image_size: int = 224,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        rates = torch.linspace(0.0, drop_path, sum(depths)).split(depths)
        self.layers = nn.ModuleList()
        side = image_size // PATCH
        for number, own in enumerate(rates):
            self.layers.append(
                Stage(
                    dim * 2**number,
                    heads[number],
                    min(window, side),
                    window // 2 if window < side else 0,
                    own.tolist(),
                    last=number == len(depths) - 1,
                )
            )
            side = (side + 1) // 2
        self.norm = nn.LayerNorm(dim * 2 ** (len(depths) - 1), eps=EPS)
        self.apply(initialise)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, 3, height, width] -> the view and its regions."""
        tokens, height, width = self.patch_embed(images)
        for stage in self.layers:
            tokens, height, width = stage(tokens, height, width)
        tokens = self.norm(tokens)
        return tokens.transpose(1, 2).mean(dim=-1), tokens


class Views(NamedTuple):
    """Logits of crops, [crops * batch, K], and of each crop's regions, with what they are made of.

    Attributes:
        logits: [crops * batch, K].
        tokens: Of each crop, [batch, n, dim].
        regions: Logits of each crop's tokens, [batch, n, K].
    """

    logits: Tensor
    tokens: list[Tensor]
    regions: list[Tensor]


class Network(nn.Module):
    """A backbone, a head for views and one for regions; crops of one size run as one batch."""

    def __init__(self, backbone: nn.Module, head: Head, region_head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.region_head = region_head

    def forward(self, crops: list[Tensor]) -> Views:
        """Batches of crops -> what the losses compare."""
        embeddings, tokens, shapes = [], [], []
        start = 0
        while start < len(crops):
            end = start
            while end < len(crops) and crops[end].shape[-1] == crops[start].shape[-1]:
                end += 1
            embedding, token = self.backbone(torch.cat(crops[start:end]))
            embeddings.append(embedding)
            tokens.append(token.flatten(0, 1))
            shapes += [(len(crops[start]), token.shape[1])] * (end - start)
            start = end
        flat = torch.cat(tokens)
        rows = [batch * count for batch, count in shapes]

        def by_crop(all_rows: Tensor) -> list[Tensor]:
            parts = all_rows.split(rows)
            return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

        regions = by_crop(self.region_head(flat))
        return Views(self.head(torch.cat(embeddings)), by_crop(flat), regions)


class Loss(nn.Module):
    """Half the views' cross-entropy and half the best-matching regions', pair by pair."""

    center: Tensor
    region_center: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, prototypes))
        self.register_buffer("region_center", torch.zeros(1, prototypes))

    def forward(self, student: Views, teacher: Views, views: int, temperature: float) -> Tensor:
        """What both say of the crops -> the mean over pairs, in nats."""
        student_views = (student.logits / 0.1).chunk(views)
        student_regions = [regions / 0.1 for regions in student.regions]
        targets = F.softmax((teacher.logits - self.center) / temperature, dim=-1)
        region_targets = [
            F.softmax((regions - self.region_center) / temperature, dim=-1)
            for regions in teacher.regions
        ]
        total, pairs = torch.zeros((), device=student.logits.device), 0
        for own, target in enumerate(targets.detach().chunk(GLOBAL_CROPS)):
            for view in range(views):
                if view == own:
                    continue
                log_student = F.log_softmax(student_views[view], dim=-1)
                loss = 0.5 * torch.sum(-target * log_student, dim=-1)
                matched = self.matched(
                    student.tokens[view], teacher.tokens[own], region_targets[own]
                )
                log_student = F.log_softmax(student_regions[view], dim=-1)
                loss = loss + 0.5 * torch.sum(-matched * log_student, dim=-1).mean(dim=-1)
                total = total + loss.mean()
                pairs += 1
        self.center = moved(self.center, teacher.logits)
        self.region_center = moved(
            self.region_center, torch.cat([regions.flatten(0, 1) for regions in teacher.regions])
        )
        return total / pairs

    @torch.no_grad()
    def matched(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """For each of a student's tokens the target of the teacher's most similar one."""
        similarity = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).transpose(1, 2)
        best = similarity.max(dim=2)[1]
        return torch.gather(targets, 1, best.unsqueeze(2).expand(-1, -1, targets.shape[2]))


def to_windows(maps: Tensor, window: int) -> Tensor:
    """[batch, height, width, dim] -> [batch * windows, window * window, dim]."""
    batch, height, width, dim = maps.shape
    tiles = maps.view(batch, height // window, window, width // window, window, dim)
    return tiles.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, dim)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    down, across, dim = height // window, width // window, windows.shape[-1]
    tiles = windows.view(-1, down, across, window, window, dim)
    return tiles.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, dim)


def swin_tiny(prototypes: int = 65536, device: str = "cpu") -> Step:
    """The step of Swin-T with windows of 7 as published: two heads, paths dropped up to 0.1."""

    def network(drop_path: float) -> Network:
        backbone = SwinTransformer(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, drop_path=drop_path)
        return Network(backbone, Head(768, prototypes), Head(768, prototypes)).to(device)

    return Step(network(0.1), network(0.0), Loss(prototypes))
