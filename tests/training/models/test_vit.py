"""The transformer against an independent implementation with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTModel

from tests.training.models.mapping import to_transformers, vit_names
from training.models.heads import DINOHead
from training.models.positions import bicubic_weights
from training.models.vit import VisionTransformer, vit


def positions_by_torch(model, rows, columns):
    """DINO's interpolation written with torch's own bicubic filter."""
    cls, patches = model.pos_embed[:, :1], model.pos_embed[:, 1:]
    if (rows, columns) == (model.grid, model.grid):
        return model.pos_embed
    grid = patches.reshape(1, model.grid, model.grid, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / model.grid, (columns + 0.1) / model.grid)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    assert grid.shape[2:] == (rows, columns)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def reference(model: VisionTransformer, height: int, width: int) -> ViTModel:
    """transformers' ViT at a fixed size with our weights."""
    config = ViTConfig(
        hidden_size=model.dim,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.dim,
        layer_norm_eps=1e-6,
        image_size=(height, width),
        patch_size=model.patch_size,
        attn_implementation="eager",
    )
    other = ViTModel(config, add_pooling_layer=False).eval()
    rows, columns = height // model.patch_size, width // model.patch_size
    names = vit_names([f"layers.{i}" for i in range(model.depth)])
    positions = positions_by_torch(model, rows, columns)
    other.load_state_dict(to_transformers(model.state_dict() | {"pos_embed": positions}, names))
    return other


@pytest.mark.parametrize(
    ("name", "patch", "height", "width"),
    [
        ("vit_tiny", 16, 224, 224),
        ("vit_tiny", 16, 480, 480),
        ("vit_tiny", 16, 320, 480),
        ("vit_small", 16, 224, 224),
        ("vit_small", 16, 480, 480),
        ("vit_small", 16, 320, 480),
        ("vit_tiny", 14, 224, 224),
        ("vit_tiny", 14, 98, 322),
    ],
)
def test_equals_transformers_at_any_size(name, patch, height, width):
    torch.manual_seed(0)
    model = vit(name, patch).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no zero bias may hide a mistake
            parameter.add_(0.02 * torch.randn_like(parameter))
        images = torch.randn(2, 3, height, width)
        ours = model.features(images)
        theirs = reference(model, height, width)(images, output_attentions=True)
    rows, columns = height // patch, width // patch
    tokens = theirs.last_hidden_state
    attention = theirs.attentions[-1][:, :, 0, 1:].unflatten(2, (rows, columns))
    torch.testing.assert_close(ours.embedding, tokens[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        ours.patches, tokens[:, 1:].unflatten(1, (rows, columns)), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(ours.attention, attention, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [(14, 14), (30, 30), (20, 30), (6, 6), (3, 50), (14, 20), (1, 1)])
def test_positions_equal_torchs_bicubic_interpolation(grid):
    torch.manual_seed(0)
    model = vit("vit_tiny", 16)
    expected = positions_by_torch(model, *grid)[:, 1:].unflatten(1, grid)
    torch.testing.assert_close(model._positions(*grid), expected, atol=1e-6, rtol=0)


def test_the_native_grid_is_left_exactly_as_it_is():
    weights = bicubic_weights(torch.arange(14.0), 14, torch.tensor(False))
    assert torch.equal(weights, torch.eye(14))


@pytest.mark.parametrize(
    ("name", "patch", "count"),
    [
        ("vit_small", 16, 21_665_664),
        ("vit_small", 8, 21_670_272),
        ("vit_base", 16, 85_798_656),
        ("vit_large", 16, 303_301_632),
    ],
)
def test_has_the_published_number_of_parameters(name, patch, count):
    assert sum(p.numel() for p in vit(name, patch).parameters()) == count


def test_starts_as_dino_does():
    torch.manual_seed(0)
    model = vit("vit_small", 16)
    weight = model.blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].mlp.fc1.bias.abs().max() == 0
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    # torch's own default for the patch convolution: uniform within 1 / sqrt(fan-in)
    bound = (3 * 16 * 16) ** -0.5
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_an_embedding_is_the_same_with_and_without_its_maps():
    torch.manual_seed(0)
    model = vit("vit_tiny", 8, image_size=64).eval()
    images = torch.randn(3, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(model(images), model.features(images).embedding)


def seeded(model: VisionTransformer) -> VisionTransformer:
    """No zero bias may hide a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("registers", [0, 4])
def test_regions_are_the_features_from_one_pass(registers):
    torch.manual_seed(0)
    model = seeded(VisionTransformer(8, 128, 3, 4, image_size=64, registers=registers))
    images = torch.randn(3, 3, 32, 64)
    with torch.no_grad():
        embedding, tokens = model.regions(images)
        features = model.features(images)
    torch.testing.assert_close(embedding, features.embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens, features.patches.flatten(1, 2), atol=1e-5, rtol=0)


def test_the_last_blocks_are_the_normed_cls_tokens_of_transformers():
    torch.manual_seed(0)
    model = seeded(vit("vit_micro", 4, image_size=32))
    other = reference(model, 32, 32)
    outputs = []
    for layer in other.layers:
        layer.register_forward_hook(lambda _, __, out: outputs.append(out))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        other(images)
        expected = [other.layernorm(out)[:, 0] for out in outputs]
        torch.testing.assert_close(
            model.last_blocks(images, 4), torch.cat(expected[2:], dim=1), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(model.last_blocks(images, 1), model(images), atol=1e-5, rtol=0)
    assert len(outputs) == 6


def test_a_micro_transformer_takes_small_grey_images():
    torch.manual_seed(0)
    model = seeded(vit("vit_micro", 4, image_size=28, channels=1))
    features = model.features(torch.randn(2, 1, 28, 28))
    assert features.embedding.shape == (2, 128)
    assert features.patches.shape == (2, 7, 7, 128)
    assert features.attention.shape == (2, 4, 7, 7)


def test_gradients_do_not_depend_on_which_attention_ran(monkeypatch):
    torch.manual_seed(0)
    model = vit("vit_tiny", 8, image_size=64)
    images, direction = torch.randn(2, 3, 64, 64), torch.randn(2, 192)
    gradients = []
    for limit in (256, 0):
        monkeypatch.setattr("training.models.attention.SHORT_SEQUENCE", limit)
        model.zero_grad()
        (model(images) * direction).sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    # Beside entries of 18, and 0.7 on average, that is what single precision leaves.
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_stochastic_depth_grows_from_block_to_block():
    model = vit("vit_micro", 4, drop_path=0.1)
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])


def test_a_dropped_block_leaves_the_tokens_as_they_are():
    torch.manual_seed(0)
    block = vit("vit_micro", 4, drop_path=0.9).blocks[-1].train()
    tokens = torch.randn(64, 5, 128)
    same = (block(tokens) == tokens).flatten(1).all(dim=1)
    assert 32 < same.sum() < 64  # both residuals are dropped for 81 % of the samples


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_head_is_mlp_then_unit_norm_then_unit_prototypes(batch_norm):
    torch.manual_seed(0)
    head = DINOHead(24, prototypes=10, hidden=32, bottleneck=16, batch_norm=batch_norm)
    embedding = torch.randn(5, 24)
    first, second, last = (layer for layer in head.mlp if isinstance(layer, torch.nn.Linear))
    hidden = embedding
    for linear in (first, second):
        hidden = hidden @ linear.weight.T + linear.bias
        if batch_norm:
            centred = hidden - hidden.mean(dim=0)
            hidden = centred / (centred.square().mean(dim=0) + 1e-5).sqrt()
        hidden = F.gelu(hidden)
    hidden = hidden @ last.weight.T + last.bias
    unit = hidden / hidden.norm(dim=1, keepdim=True)
    prototypes = head.last_layer.weight_v
    cosines = unit @ (prototypes / prototypes.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(head(embedding), cosines)
    torch.testing.assert_close(head.eval()(embedding), cosines)
    assert not head.last_layer.weight_g.requires_grad
