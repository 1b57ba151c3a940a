import pytest
import torch

from training.anomaly.augment import mask_patches, paste_anomalies, saliency


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=4, height=24, width=32, seed=0):
    return torch.randn(batch, 3, height, width, generator=generator(seed))


def attention(batch=4, rows=3, columns=4, seed=1):
    return torch.rand(batch, 2, rows, columns, generator=generator(seed))


def test_every_head_counts_the_same_whatever_it_gives_to_cls():
    faint = torch.tensor([[[[1e-6, 3e-6]], [[0.5, 0.5]]]])
    assert torch.allclose(saliency(faint), torch.tensor([[[0.375, 0.625]]]))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_masks_exactly_the_least_salient_patches(ratio):
    clean, maps = images(), attention()
    masked = mask_patches(clean, maps, generator(), ratio=(ratio, ratio), fill=7.0)
    for image, before, mask, patches in zip(
        masked.images, clean, masked.mask, saliency(maps), strict=True
    ):
        order = sorted(range(12), key=lambda patch: float(patches.flatten()[patch]))
        hidden = set(order[: round(ratio * 12)])
        for patch in range(12):
            row, column = divmod(patch, 4)
            pixels = (slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            assert mask[row, column] == (patch in hidden)
            expected = torch.full((3, 8, 8), 7.0) if patch in hidden else before[pixels]
            assert torch.equal(image[pixels], expected)


def test_ratio_and_probability_of_masking_are_the_documented_ones():
    maps = torch.rand(4000, 1, 10, 10, generator=generator())
    mask = mask_patches(
        torch.zeros(4000, 1, 10, 10), maps, generator(), probability=0.7, ratio=(0.2, 0.6)
    ).mask
    share = mask.mean(dim=(1, 2))
    masked = share[share > 0]
    assert len(masked) / 4000 == pytest.approx(0.7, abs=0.03)
    assert masked.min() >= 0.2 - 1e-6
    assert masked.max() <= 0.6 + 1e-6
    assert masked.mean() == pytest.approx(0.4, abs=0.01)
    assert masked.std() == pytest.approx(0.4 / 12**0.5, abs=0.01)


def test_the_mask_is_the_share_of_changed_pixels_of_each_patch():
    clean = images(batch=64)
    damaged = paste_anomalies(clean, attention(batch=64), generator(), probability=0.5)
    changed = (damaged.images != clean).any(dim=1)
    share = changed.view(64, 3, 8, 4, 8).float().mean(dim=(2, 4))
    assert torch.allclose(damaged.mask, share)
    assert (share.sum(dim=(1, 2)) > 0).float().mean() == pytest.approx(0.5, abs=0.15)


def test_anomalies_lie_where_the_attention_is():
    """Small ones, whose own extent hides nothing: the hit patches follow the distribution."""
    maps = attention(batch=1, rows=4, columns=4) ** 4
    damaged = paste_anomalies(
        torch.randn(1, 1, 64, 64, generator=generator()).expand(6000, -1, -1, -1),
        maps.expand(6000, -1, -1, -1),
        generator(),
        probability=1.0,
        area=(1e-3, 1e-3),
        aspect=(1.0, 1.0),
    )
    hits = (damaged.mask / damaged.mask.sum(dim=(1, 2), keepdim=True)).mean(dim=0)
    assert torch.allclose(hits, saliency(maps)[0], atol=0.02)
    assert saliency(maps).max() > 0.12


def test_area_of_anomalies_away_from_the_edge_is_the_documented_share():
    centre = torch.zeros(500, 1, 5, 5)
    centre[:, :, 2, 2] = 1.0
    for area in (0.01, 0.04, 0.09):
        mask = paste_anomalies(
            images(batch=500, height=80, width=80),
            centre,
            generator(),
            probability=1.0,
            area=(area, area),
            aspect=(1.0, 3.0),
        ).mask
        assert mask.mean() == pytest.approx(area, rel=0.03)


def test_pasted_pixels_blend_by_their_opacity():
    clean = torch.zeros(8, 3, 16, 16)
    half = paste_anomalies(
        clean,
        torch.ones(8, 1, 2, 2),
        generator(),
        probability=1.0,
        brightness=(1.0, 1.0),
        opacity=(0.25, 0.25),
    )
    assert half.images.unique().tolist() == [0.0, 0.25]
    assert half.mask.sum() > 0


def test_one_generator_one_answer_and_the_input_stays_whole():
    clean, maps = images(), attention()
    before = clean.clone()
    for augment in (mask_patches, paste_anomalies):
        first, second = (augment(clean, maps, generator(3)) for _ in range(2))
        other = augment(clean, maps, generator(4))
        assert torch.equal(first.images, second.images)
        assert not torch.equal(first.images, other.images)
        assert torch.equal(clean, before)


@pytest.mark.parametrize("augment", [mask_patches, paste_anomalies])
def test_says_what_does_not_fit(augment):
    with pytest.raises(ValueError, match=r"3 x 5 patches does not divide images of 24 x 32"):
        augment(images(), attention(columns=5), generator())
    with pytest.raises(ValueError, match="same batch"):
        augment(images(), attention(batch=3), generator())
    with pytest.raises(ValueError, match="probability must lie between 0 and 1"):
        augment(images(), attention(), generator(), probability=1.5)
