"""Centring and Sinkhorn-Knopp against plain arithmetic."""

import math

import numpy as np
import pytest
import torch

from training.objectives.targets import Centering, SinkhornKnopp, log_sinkhorn


def test_centring_subtracts_the_centre_and_sharpens():
    centering = Centering(5)
    centering.center.normal_()
    logits = torch.randn(2, 3, 5)
    expected = torch.softmax((logits - centering.center) / 0.07, dim=-1)
    torch.testing.assert_close(centering(logits, 0.07).exp(), expected)


def test_the_centre_moves_once_by_all_that_was_seen():
    centering = Centering(5, momentum=0.9)
    first, second = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    before = centering(first, 0.04)
    after = centering(first, 0.04)
    assert torch.equal(before, after)
    centering._means.clear()
    centering(first, 0.04), centering(second, 0.04)
    centering.update()
    mean = torch.cat([first, second]).reshape(-1, 5).mean(0)
    torch.testing.assert_close(centering.center, 0.1 * mean)
    centering(first, 0.04)
    centering.update()
    torch.testing.assert_close(centering.center, 0.09 * mean + 0.1 * first.reshape(-1, 5).mean(0))


def sinkhorn(logits, epsilon):
    """Equation 3 of SwAV as its pseudo-code has it, in doubles."""
    q = np.exp(logits.double().numpy() / epsilon).T
    q /= q.sum()
    prototypes, batch = q.shape
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True)
        q /= prototypes
        q /= q.sum(axis=0, keepdims=True)
        q /= batch
    return (q * batch).T


@pytest.mark.parametrize(("batch", "prototypes"), [(6, 4), (4, 12), (1, 3)])
def test_sinkhorn_equals_the_plain_matrix_scaling(batch, prototypes):
    logits = torch.randn(batch, prototypes)
    codes = log_sinkhorn(logits / 0.05).exp()
    np.testing.assert_allclose(codes.numpy(), sinkhorn(logits, 0.05), rtol=1e-4, atol=1e-6)


def test_sinkhorn_treats_each_view_on_its_own():
    logits = torch.randn(2, 6, 4)
    codes = SinkhornKnopp()(logits, 0.05).exp()
    for view in range(2):
        np.testing.assert_allclose(
            codes[view].numpy(), sinkhorn(logits[view], 0.05), rtol=1e-4, atol=1e-6
        )


def test_sinkhorn_uses_all_prototypes_even_where_one_wins_every_image():
    logits = 0.01 * torch.randn(64, 8)
    logits[:, 3] += 1.0
    codes = log_sinkhorn(logits / 0.05).exp()
    torch.testing.assert_close(codes.sum(1), torch.ones(64))
    assert codes.sum(0).min() > 4.0


def test_no_temperature_overflows():
    codes = log_sinkhorn(1000.0 * torch.randn(8, 4))
    assert not codes.isnan().any()
    assert math.isclose(codes.exp().sum().item(), 8.0, rel_tol=1e-4)
