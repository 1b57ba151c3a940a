"""The published DINO step, written plainly: what the package's own step is measured against.

Stands in for the authors' code (Caron et al., 2021), whose mathematics and manner it keeps: eager,
float32, attention as an explicit N x N map in every block, dropped paths as multiplications by
zero, the loss pair by pair, and loops over the parameters for clipping, AdamW and the teacher. The
parameters have the published names, which are also the package's own, so that both sides can start
from one state.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GLOBAL_CROPS = 2
EPS = 1e-6


class DropPath(nn.Module):
    """Leaves the residual of some samples out while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, residual: Tensor) -> Tensor:
        """[batch, n, dim] -> the same shape."""
        if self.rate == 0.0 or not self.training:
            return residual
        keep = 1.0 - self.rate
        kept = keep + torch.rand(residual.shape[0], 1, 1, device=residual.device)
        return residual.div(keep) * kept.floor()


class Attention(nn.Module):
    """Every token's attention to every token, softmax as an operation of its own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, n, dim] -> the same shape."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-2, -1)) * (dim // self.heads) ** -0.5
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ value).transpose(1, 2).reshape(batch, count, dim))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, n, dim] -> the same shape."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, n, dim] -> the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, patches, dim]."""
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Images -> the normed CLS token, [batch, dim]."""

    def __init__(
        self,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        image_size: int = 224,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, dim))
        rates = torch.linspace(0.0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(Block(dim, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.apply(initialise)

    def positions(self, height: int, width: int) -> Tensor:
        """The position embedding at an image's own grid, [1, 1 + patches, dim]."""
        rows, columns = height // self.patch_size, width // self.patch_size
        if rows == columns == self.grid:
            return self.pos_embed
        native = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        patches = F.interpolate(native, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, dim]."""
        patches = self.patch_embed(images)
        cls = self.cls_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self.positions(*images.shape[2:])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


class Head(nn.Module):
    """Three linear layers, an L2 norm and weight-normed prototypes whose norms stay at one."""

    def __init__(
        self, dim: int, prototypes: int = 65536, hidden: int = 2048, bottleneck: int = 256
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.mlp.apply(initialise)
        with warnings.catch_warnings():
            # The newer form has other parameter names; both compute the same.
            warnings.simplefilter("ignore", FutureWarning)
            self.last_layer = nn.utils.weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
        self.last_layer.weight_g.data.fill_(1)
        self.last_layer.weight_g.requires_grad = False

    def forward(self, embedding: Tensor) -> Tensor:
        """[batch, dim] -> logits [batch, prototypes]."""
        return self.last_layer(F.normalize(self.mlp(embedding), dim=-1))


class Network(nn.Module):
    """A backbone and its head; crops of one size run as one batch."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Batches of crops -> logits, [crops * batch, prototypes]."""
        embeddings = torch.empty(0, device=crops[0].device)
        start = 0
        while start < len(crops):
            end = start
            while end < len(crops) and crops[end].shape[-1] == crops[start].shape[-1]:
                end += 1
            embeddings = torch.cat([embeddings, self.backbone(torch.cat(crops[start:end]))])
            start = end
        return self.head(embeddings)


class Loss(nn.Module):
    """The cross-entropy of every pair of a teacher's view and another of the student's."""

    center: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, prototypes))

    def forward(self, student: Tensor, teacher: Tensor, views: int, temperature: float) -> Tensor:
        """Logits, [views * batch, K] and [2 * batch, K] -> the mean over pairs, in nats."""
        student_views = (student / 0.1).chunk(views)
        targets = F.softmax((teacher - self.center) / temperature, dim=-1)
        total, pairs = torch.zeros((), device=student.device), 0
        for own, target in enumerate(targets.detach().chunk(GLOBAL_CROPS)):
            for view in range(views):
                if view == own:
                    continue
                log_student = F.log_softmax(student_views[view], dim=-1)
                total = total + torch.sum(-target * log_student, dim=-1).mean()
                pairs += 1
        self.center = moved(self.center, teacher)
        return total / pairs


class Step:
    """The published training step.

    Args:
        student: Backbone and head.
        teacher: The same with no dropped paths; starts as the student.
        loss: Of what both say, the number of crops and the teacher's temperature.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: nn.Module) -> None:
        self.student, self.teacher = student, teacher
        self.teacher.load_state_dict(student.state_dict())
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.loss = loss.to(next(student.parameters()).device)
        decayed, free = [], []
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                exempt = name.endswith(".bias") or parameter.ndim == 1
                (free if exempt else decayed).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": free, "weight_decay": 0.0}],
            foreach=False,
            fused=False,
        )

    def __call__(
        self,
        crops: list[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        temperature: float = 0.04,
        freeze_last_layer: bool = False,
    ) -> float:
        """One step on normalised crops, the two global ones first.

        Returns:
            The loss in nats.
        """
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = lr
            if number == 0:
                group["weight_decay"] = weight_decay
        with torch.no_grad():
            teacher = self.teacher(crops[:GLOBAL_CROPS])
        loss = self.loss(self.student(crops), teacher, len(crops), temperature)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        self.optimizer.zero_grad()
        loss.backward()
        clip(self.student, 3.0)
        if freeze_last_layer:
            for name, parameter in self.student.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
            for student, old in pairs:
                old.data.mul_(momentum).add_((1 - momentum) * student.detach().data)
        return loss.item()


@torch.no_grad()
def moved(center: Tensor, logits: Tensor) -> Tensor:
    """The centre, [1, K], a tenth of the way to the mean of the teacher's logits, [rows, K]."""
    mean = logits.sum(dim=0, keepdim=True) / len(logits)
    return center * 0.9 + mean * 0.1


def clip(model: nn.Module, limit: float) -> list[float]:
    """Scale each parameter's gradient down to a norm of `limit`.

    Returns:
        The norms before.
    """
    norms = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            norm = parameter.grad.data.norm(2)
            norms.append(norm.item())
            factor = limit / (norm + 1e-6)
            if factor < 1:
                parameter.grad.data.mul_(factor)
    return norms


def initialise(module: nn.Module) -> None:
    """Linear weights N(0, 0.02), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vit_small(prototypes: int = 65536, device: str = "cpu") -> Step:
    """The step of ViT-S/16 as published: 65,536 prototypes and paths dropped up to 0.1."""

    def network(drop_path: float) -> Network:
        backbone = VisionTransformer(16, 384, 12, 6, drop_path=drop_path)
        return Network(backbone, Head(384, prototypes)).to(device)

    return Step(network(0.1), network(0.0), Loss(prototypes))
