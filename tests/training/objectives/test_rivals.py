"""BYOL, MoCo-v2, SwAV and SimCLR against plain re-derivations of their papers' equations."""

import math

import pytest
import torch

from training.build import build
from training.config import Recipe
from training.objectives.base import Moment, deviation
from training.objectives.moco import contrast
from training.objectives.simclr import nt_xent

MOMENT = Moment(temperature=0.04, momentum=0.9, epoch=0, epoch_ends=False)


def objective(name, local_count=0, **keys):
    recipe = {
        "name": "small",
        "data": "unused",
        "batch_size": 4,
        "model": {"architecture": "vit_micro", "patch_size": 8, "drop_path": 0.0},
        "crops": {"global_size": 16, "local_size": 8, "local_count": local_count},
        "head": {"hidden": 16, "bottleneck": 8, "batch_norm": True},
        "objective": {"name": name, **keys},
    }
    if name == "swav":
        recipe["head"]["prototypes"] = 12
    return build(Recipe.model_validate(recipe)).train()


def crops(sides=(16, 16)):
    torch.manual_seed(1)
    return [torch.randn(4, 3, side, side) for side in sides]


def unit(vector):
    return vector / vector.norm()


def test_byol_is_the_symmetrised_distance_of_prediction_and_projection():
    byol = objective("byol")
    _, predictions = byol.student(crops())
    _, targets = byol.teacher(crops())
    expected = 0.0
    for mine, other in ((0, 1), (1, 0)):
        for image in range(4):
            distance = unit(predictions[mine, image]) - unit(targets[other, image])
            expected = expected + (distance**2).sum() / 8
    losses = byol(crops(), MOMENT)
    torch.testing.assert_close(losses.loss, expected)
    losses.loss.backward()
    assert all(p.grad is not None for p in byol.student.parameters() if p.requires_grad)


def test_infonce_is_the_share_of_the_positive_among_all():
    queries, keys, negatives = (
        torch.nn.functional.normalize(torch.randn(n, 5), dim=1) for n in (3, 3, 7)
    )
    expected = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(float(query @ key) / 0.2)
        rest = sum(math.exp(float(query @ negative) / 0.2) for negative in negatives)
        expected -= math.log(positive / (positive + rest)) / 3
    assert contrast(queries, keys, negatives, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_mocos_newest_keys_take_the_oldest_ones_places():
    moco = objective("moco", queue=12)
    start = moco.queue.clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(12))
    _, keys = moco.teacher(crops())
    keys = torch.nn.functional.normalize(keys, dim=-1)
    moco(crops(), MOMENT)
    assert torch.equal(moco.queue, start)
    moco.update(MOMENT)
    torch.testing.assert_close(moco.queue, torch.cat([keys[0], keys[1], start[:4]]))


def test_moco_contrasts_in_both_directions_and_sees_the_queue_alone():
    moco = objective("moco", queue=12, temperature=0.2)
    queries, keys = (
        torch.nn.functional.normalize(net(crops())[1], dim=-1)
        for net in (moco.student, moco.teacher)
    )
    expected = (
        contrast(queries[1], keys[0], moco.queue, 0.2)
        + contrast(queries[0], keys[1], moco.queue, 0.2)
    ) / 2
    torch.testing.assert_close(moco(crops(), MOMENT).loss, expected)


def test_swav_predicts_each_global_views_code_from_every_other_view():
    swav = objective("swav", local_count=2)
    views = crops((16, 16, 8, 8))
    _, scores = swav.student(views)
    expected = 0.0
    for g in range(2):
        q = torch.exp(scores[g].detach() / 0.05).T
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / 12
            q = q / q.sum(0, keepdim=True) / 4
        q = (q * 4).T
        for v in range(4):
            if v != g:
                p = torch.softmax(scores[v] / 0.1, dim=1)
                expected = expected - (q * p.log()).sum(1).mean() / 6
    losses = swav(views, MOMENT)
    torch.testing.assert_close(losses.loss, expected, atol=1e-4, rtol=1e-4)
    assert swav.backbone is swav.student.backbone


def test_swavs_prototypes_keep_unit_length():
    swav = objective("swav")
    assert not swav.student.head.last_layer.weight_g.requires_grad


def test_simclr_finds_each_view_its_partner():
    first, second = (torch.nn.functional.normalize(torch.randn(3, 5), dim=1) for _ in range(2))
    views = [*first, *second]
    expected = 0.0
    for i, view in enumerate(views):
        partner = (i + 3) % 6
        scores = [math.exp(float(view @ other) / 0.1) for j, other in enumerate(views) if j != i]
        expected -= math.log(math.exp(float(view @ views[partner]) / 0.1) / sum(scores)) / 6
    assert nt_xent(first, second, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_simclr_has_a_gradient_for_all_it_trains():
    simclr = objective("simclr")
    simclr(crops(), MOMENT).loss.backward()
    assert all(p.grad is not None for p in simclr.parameters())


def test_deviation_is_one_for_spread_and_zero_for_equal_embeddings():
    torch.manual_seed(0)
    assert deviation(torch.randn(4096, 64)).item() == pytest.approx(1.0, abs=0.01)
    assert deviation(torch.ones(8, 64)).item() == pytest.approx(0.0, abs=1e-6)
