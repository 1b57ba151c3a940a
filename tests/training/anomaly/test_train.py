import pytest
import torch

from training.anomaly.augment import mask_patches
from training.anomaly.consistency import MaskedDINO
from training.anomaly.detector import detection_loss
from training.anomaly.guidance import Guidance
from training.anomaly.train import finetune, pretrain, random_view
from training.models.heads import DINOHead
from training.models.vit import VisionTransformer
from training.objectives.base import Moment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def backbone():
    torch.manual_seed(0)
    return VisionTransformer(patch_size=8, dim=32, depth=2, heads=2, image_size=32)


def texture(batch=16):
    """Stripes: normal is one texture, so that a piece out of phase is a local matter."""
    stripes = torch.sin(torch.arange(32) * 1.5).expand(batch, 3, 32, 32)
    return stripes + 0.1 * torch.randn(batch, 3, 32, 32)


def test_the_loss_is_the_cross_entropy_of_masked_views_with_the_other_unmasked_one():
    objective = MaskedDINO(backbone(), DINOHead(32, 16, hidden=24), Guidance.ATTENTION, generator())
    moment = Moment(temperature=0.05, momentum=0.9, epoch=0, epoch_ends=False)
    views = [torch.randn(4, 3, 32, 32, generator=generator(i)) for i in range(2)]
    head = objective.student.head
    student, teacher = objective.student.backbone, objective.backbone
    objective.targets.center.copy_(torch.randn(16, generator=generator(2)) / 10)
    loss = objective(views, moment).loss

    maps = teacher.features(torch.cat(views)).attention
    masked = mask_patches(torch.cat(views), maps, generator()).images.chunk(2)
    pairs = []
    for g, s in ((0, 1), (1, 0)):
        target = ((head(teacher(views[g])) - objective.targets.center) / 0.05).softmax(dim=1)
        pairs.append(-(target * (head(student(masked[s])) / 0.1).log_softmax(dim=1)).sum(dim=1))
    assert loss.item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-4)


def test_chance_hides_and_damages_anywhere_and_attention_where_it_points():
    maps = torch.zeros(200, 1, 4, 4)
    maps[:, :, 0, 0] = 1.0
    assert Guidance.ATTENTION(maps, generator()) is maps
    chance = Guidance.CHANCE(maps, generator())
    assert chance.shape == maps.shape
    assert (chance[:, 0, 0, 0] > chance[:, 0, 3, 3]).float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("guidance", Guidance)
def test_pretraining_moves_a_copy(guidance):
    start = backbone()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    moved = pretrain(start, texture, guidance, generator(), steps=2)
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in moved.state_dict().items())


def test_the_detector_learns_to_tell_anomalies():
    """Below the entropy of the base rate, which is all that an answer without looking reaches."""
    losses = []
    finetune(
        backbone(),
        lambda: texture(32),
        Guidance.ATTENTION,
        generator(),
        steps=80,
        lr=3e-3,
        report=lambda step, loss: losses.append(loss),
    )
    rate = torch.full((1,), 0.04)
    blind = detection_loss(rate.logit(), rate).item()
    assert sum(losses[-10:]) / 10 < 0.8 * min(blind, sum(losses[:10]) / 10)


def test_views_are_squares_of_the_image_recoloured():
    """Of a ramp: one flipped or not, with the slope of its scale times its contrast."""
    ramp = torch.linspace(-1, 1, 32).expand(64, 1, 32, 32)
    views = random_view(ramp, generator(), least=0.25)
    slopes = (views[:, 0, 16, 20] - views[:, 0, 16, 12]) / (ramp[0, 0, 0, 20] - ramp[0, 0, 0, 12])
    assert slopes.abs().min() >= 0.5 * 0.8 - 0.01
    assert slopes.abs().max() <= 1.2 + 0.01
    assert 0.3 < (slopes < 0).float().mean() < 0.7
    assert torch.equal(views, random_view(ramp, generator(), least=0.25))
