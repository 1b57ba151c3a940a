"""EsViT's view and region losses against a plain re-derivation of equations 2 and 3."""

import pytest
import torch

from training.build import build
from training.config import Recipe
from training.objectives.base import Moment
from training.objectives.esvit import best_match

RECIPE = {
    "name": "small",
    "data": "unused",
    "batch_size": 2,
    "model": {"architecture": "swin_tiny", "drop_path": 0.0},
    "crops": {"global_size": 64, "local_size": 32, "local_count": 2},
    "head": {"prototypes": 10, "hidden": 16, "bottleneck": 8},
    "objective": {"name": "esvit", "view_epochs": 1},
}
SIDES = (64, 64, 32, 32)


@pytest.fixture(scope="module")
def esvit():
    objective = build(Recipe.model_validate(RECIPE)).train()
    torch.manual_seed(2)
    objective.centering.center.normal_()
    objective.region_centering.center.normal_()
    # A student that has moved away from its teacher, so that matches are not trivial.
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return objective


@pytest.fixture
def crops():
    torch.manual_seed(1)
    return [torch.randn(2, 3, side, side) for side in SIDES]


def plain(objective, crops, temperature):
    """Each network on each crop alone; each pair, image and region on its own."""
    teacher, student = objective.teacher.network, objective.student
    view_loss, region_loss, pairs = 0.0, 0.0, 0
    for g in range(2):
        with torch.no_grad():
            z_view, z_regions = teacher.backbone.regions(crops[g])
            t_view, t_regions = teacher.head(z_view), teacher.region_head(z_regions)
        p_view = torch.softmax((t_view - objective.centering.center) / temperature, dim=-1)
        p_regions = torch.softmax(
            (t_regions - objective.region_centering.center) / temperature, dim=-1
        )
        for v, crop in enumerate(crops):
            if v == g:
                continue
            pairs += 1
            s_embedding, s_tokens = student.backbone.regions(crop)
            s_view, s_regions = student.head(s_embedding), student.region_head(s_tokens)
            for image in range(2):
                log_p = torch.log_softmax(s_view[image] / 0.1, dim=-1)
                view_loss = view_loss - (p_view[image] * log_p).sum() / 2
                for i in range(s_tokens.shape[1]):
                    similarities = [
                        torch.cosine_similarity(s_tokens[image, i], z_regions[image, j], dim=0)
                        for j in range(z_regions.shape[1])
                    ]
                    best = int(torch.stack(similarities).argmax())
                    log_p = torch.log_softmax(s_regions[image, i] / 0.1, dim=-1)
                    term = (p_regions[image, best] * log_p).sum()
                    region_loss = region_loss - term / (2 * s_tokens.shape[1])
    return view_loss / pairs, region_loss / pairs


def test_both_losses_equal_the_plain_derivation(esvit, crops):
    losses = esvit(crops, Moment(0.05, 0.9, epoch=1, epoch_ends=False))
    view, region = plain(esvit, crops, 0.05)
    torch.testing.assert_close(losses.loss, 0.5 * view + 0.5 * region, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.measures["region_loss"], region.detach())


def test_the_first_epochs_look_at_views_alone(esvit, crops):
    losses = esvit(crops, Moment(0.05, 0.9, epoch=0, epoch_ends=False))
    view, _ = plain(esvit, crops, 0.05)
    torch.testing.assert_close(losses.loss, view, atol=1e-5, rtol=1e-5)
    losses.loss.backward()
    assert all(p.grad is None for p in esvit.student.region_head.parameters())
    assert "region_loss" not in losses.measures


def test_each_centre_follows_its_own_logits(crops):
    objective = build(Recipe.model_validate(RECIPE)).train()
    moment = Moment(0.05, 0.9, epoch=1, epoch_ends=False)
    with torch.no_grad():
        views = objective.teacher(crops[:2], True)
        objective(crops, moment)
        objective.update(moment)
    torch.testing.assert_close(objective.centering.center, 0.1 * views.logits.mean((0, 1)))
    regions = torch.cat([r.flatten(0, 1) for r in views.region_logits]).mean(0)
    torch.testing.assert_close(objective.region_centering.center, 0.1 * regions)


def test_a_region_matches_itself():
    tokens = torch.randn(3, 7, 16)
    order = torch.randperm(7)
    assert torch.equal(best_match(tokens[:, order], tokens), order.expand(3, 7))


def test_a_resnet_has_regions_too():
    recipe = {**RECIPE, "model": {"architecture": "resnet18"}}
    objective = build(Recipe.model_validate(recipe)).train()
    crops = [torch.randn(2, 3, side, side) for side in SIDES]
    objective(crops, Moment(0.05, 0.9, epoch=1, epoch_ends=False)).loss.backward()
    assert all(p.grad is not None for p in objective.student.parameters() if p.requires_grad)
