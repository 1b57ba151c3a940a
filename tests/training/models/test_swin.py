"""The Swin transformer against an independent implementation and against loops over windows."""

import pytest
import torch
from torch import nn
from transformers import SwinConfig, SwinModel
from transformers.models.swin.modeling_swin import SwinRelativePositionBias

from tests.training.models.mapping import swin_names, to_transformers
from training.models.swin import SIZES, Block, SwinTransformer, swin
from training.models.windows import shift_mask

TINY_DEPTHS = (2, 2, 2, 2)


def seeded(model: nn.Module) -> nn.Module:
    """Every parameter moved away from its start: no zero bias may hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.add_(torch.randn_like(parameter))
    return model.eval()


def small(window: int = 7, image_size: int = 224, drop_path: float = 0.0) -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(
        16, TINY_DEPTHS, (1, 2, 4, 8), window, image_size=image_size, drop_path=drop_path
    )


def reference(model: SwinTransformer, depths, heads, window: int) -> SwinModel:
    """transformers' Swin with our weights and EsViT's rules for windows and norms."""
    config = SwinConfig(
        embed_dim=model.dim // 8,
        depths=list(depths),
        num_heads=list(heads),
        window_size=window,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    other = SwinModel(config).eval()
    for module in other.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    for i, layer in enumerate(other.encoder.layers):
        side = 56 // 2**i
        for block in layer.blocks:
            if side <= window:
                block.window_size, block.shift_size = side, 0
                block.attention.relative_position_bias = SwinRelativePositionBias(
                    heads[i], (side, side)
                )
    other.load_state_dict(to_transformers(model.state_dict(), swin_names(depths)))
    return other


@pytest.mark.parametrize("name", ["swin_tiny", "swin_base"])
def test_equals_transformers(name):
    dim, depths, heads = SIZES[name]
    depths = (2, 2, 4, 2) if name == "swin_base" else depths
    torch.manual_seed(0)
    model = seeded(SwinTransformer(dim, depths, heads, 7))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = model.features(images)
        theirs = reference(model, depths, heads, 7)(images, output_attentions=True)
    tokens = theirs.last_hidden_state
    # One window holds the whole last stage: the mean over its queries is the definition.
    attention = theirs.attentions[-1].mean(dim=2).unflatten(2, (7, 7))
    torch.testing.assert_close(ours.embedding, theirs.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.patches, tokens.unflatten(1, (7, 7)), atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.attention, attention, atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [7, 14])
@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (96, 96), (256, 320), (448, 224), (50, 170), (4, 4)]
)
def test_windows_shifts_and_padding_are_esvits_at_any_size(window, height, width):
    model = seeded(small(window))
    images = torch.randn(2, 3, height, width)
    other = reference(model, TINY_DEPTHS, (1, 2, 4, 8), window)
    with torch.no_grad():
        patches = model.features(images).patches
        # `always_partition` stops it from shrinking windows to the image at hand.
        tokens = other(images, always_partition=True).last_hidden_state
    rows, columns = -(-height // 32), -(-width // 32)
    torch.testing.assert_close(patches, tokens.unflatten(1, (rows, columns)), atol=2e-5, rtol=0)


def by_loops(block: Block, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One block and its mean attention, token by token, from the paper's section 3.2."""
    rows, columns, dim = tokens.shape
    window, shift, attn = block.window, block.shift, block.attn
    width = dim // attn.heads
    padded_rows = -(-rows // window) * window
    padded_columns = -(-columns // window) * window
    # Zeros after the norm: a padding token's projection is the bias of qkv.
    projected = attn.qkv.bias.repeat(padded_rows, padded_columns, 1)
    projected[:rows, :columns] = attn.qkv(block.norm1(tokens))
    places = [(r, c) for r in range(padded_rows) for c in range(padded_columns)]

    def rolled(place):
        return (place[0] - shift) % padded_rows, (place[1] - shift) % padded_columns

    out = torch.zeros(rows, columns, dim)
    received = torch.zeros(attn.heads, rows, columns)
    side = 2 * window - 1
    for r, c in places:
        if r >= rows or c >= columns:
            continue
        y, x = rolled((r, c))
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            query = projected[r, c, :dim][part]
            keys, scores = [], []
            for place in places:
                v, u = rolled(place)
                if (v // window, u // window) != (y // window, x // window):
                    continue
                score = query @ projected[place][dim : 2 * dim][part] / width**0.5
                offset = (y - v + window - 1) * side + (x - u + window - 1)
                score = score + attn.relative_position_bias_table[offset, head]
                if (place[0] < shift) != (r < shift) or (place[1] < shift) != (c < shift):
                    score = score - 100.0
                keys.append(place)
                scores.append(score)
            weights = torch.stack(scores).softmax(dim=0)
            for place, weight in zip(keys, weights, strict=True):
                out[r, c, part] += weight * projected[place][2 * dim :][part]
                if place[0] < rows and place[1] < columns:
                    received[head][place] += weight
    tokens = tokens + attn.proj(out)
    hidden = block.mlp.fc1(block.norm2(tokens))
    tokens = tokens + block.mlp.fc2(nn.functional.gelu(hidden))
    return tokens, received / received.sum(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("window", "shift", "rows", "columns"),
    [
        (4, 0, 8, 8),
        (4, 2, 8, 8),
        (4, 2, 6, 6),  # shifted and padded, as a 96 px crop is
        (4, 2, 5, 11),
        (4, 0, 3, 3),  # smaller than a window, as the last stage of a 96 px crop
        (5, 2, 9, 4),
        (1, 0, 2, 3),
    ],
)
def test_a_block_equals_loops_over_its_tokens(window, shift, rows, columns):
    torch.manual_seed(0)
    block = seeded(Block(8, 2, window, shift, mlp_ratio=4.0, drop_path=0.0))
    tokens = torch.randn(2, rows, columns, 8)
    with torch.no_grad():
        ours, attention = block(tokens), block.attention(tokens)
        for i in range(2):
            expected, received = by_loops(block, tokens[i])
            torch.testing.assert_close(ours[i], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(attention[i], received, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("window", "image_size", "windows", "shifts"),
    [
        (7, 224, [7, 7, 7, 7], [3, 3, 3, 0]),
        (14, 224, [14, 14, 14, 7], [7, 7, 0, 0]),
        (7, 64, [7, 7, 4, 2], [3, 3, 0, 0]),
        (7, 28, [7, 4, 2, 1], [0, 0, 0, 0]),
    ],
)
def test_a_window_is_no_larger_than_its_stage(window, image_size, windows, shifts):
    model = small(window, image_size)
    for stage, side, shift in zip(model.layers, windows, shifts, strict=True):
        assert [block.window for block in stage.blocks] == [side, side]
        assert [block.shift for block in stage.blocks] == [0, shift]


@pytest.mark.parametrize(
    ("name", "count"),
    [("swin_tiny", 27_519_354), ("swin_small", 48_837_258), ("swin_base", 86_743_224)],
)
def test_has_the_published_number_of_parameters(name, count):
    dim, depths, heads = SIZES[name]
    with torch.device("meta"):
        ours = swin(name)
        theirs = SwinModel(SwinConfig(embed_dim=dim, depths=list(depths), num_heads=list(heads)))
    assert sum(p.numel() for p in ours.parameters()) == count
    assert sum(p.numel() for p in theirs.parameters()) == count


def test_parameters_are_named_and_shaped_as_esvits_checkpoints():
    with torch.device("meta"):
        state = swin("swin_tiny", window=14).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {
        "patch_embed.proj.weight": (96, 3, 4, 4),
        "patch_embed.proj.bias": (96,),
        "patch_embed.norm.weight": (96,),
        "patch_embed.norm.bias": (96,),
        "norm.weight": (768,),
        "norm.bias": (768,),
    }
    stages = [(96, 2, 3, 14), (192, 2, 6, 14), (384, 6, 12, 14), (768, 2, 24, 7)]
    for i, (dim, depth, heads, window) in enumerate(stages):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            expected |= {
                f"{block}.norm1.weight": (dim,),
                f"{block}.norm1.bias": (dim,),
                f"{block}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads),
                f"{block}.attn.relative_position_index": (window**2, window**2),
                f"{block}.attn.qkv.weight": (3 * dim, dim),
                f"{block}.attn.qkv.bias": (3 * dim,),
                f"{block}.attn.proj.weight": (dim, dim),
                f"{block}.attn.proj.bias": (dim,),
                f"{block}.norm2.weight": (dim,),
                f"{block}.norm2.bias": (dim,),
                f"{block}.mlp.fc1.weight": (4 * dim, dim),
                f"{block}.mlp.fc1.bias": (4 * dim,),
                f"{block}.mlp.fc2.weight": (dim, 4 * dim),
                f"{block}.mlp.fc2.bias": (dim,),
            }
        if i < 3:
            expected[f"layers.{i}.downsample.norm.weight"] = (4 * dim,)
            expected[f"layers.{i}.downsample.norm.bias"] = (4 * dim,)
            expected[f"layers.{i}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
    assert shapes == expected


def test_starts_as_esvit_does():
    torch.manual_seed(0)
    model = SwinTransformer(96, (2, 2), (3, 6), 7)
    block = model.layers[1].blocks[0]
    for weight in (
        block.mlp.fc1.weight,
        block.attn.relative_position_bias_table,
        model.layers[0].downsample.reduction.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.qkv.bias.abs().max() == 0
    # torch's own default for the patch convolution: uniform within 1 / sqrt(fan-in)
    bound = (3 * 4 * 4) ** -0.5
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_embedding_and_regions_are_those_of_the_features():
    model = seeded(small())
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        features = model.features(images)
        embedding, tokens = model.regions(images)
        torch.testing.assert_close(model(images), features.embedding, atol=1e-6, rtol=0)
    assert torch.equal(tokens, features.patches.flatten(1, 2))
    torch.testing.assert_close(embedding, tokens.mean(dim=1))
    torch.testing.assert_close(features.embedding, embedding)


def test_an_image_off_the_patch_is_one_with_zeros_around_its_corner():
    model = seeded(small())
    images = torch.randn(2, 3, 61, 94)
    with torch.no_grad():
        padded = model.features(nn.functional.pad(images, (0, 2, 0, 3)))
        for ours, expected in zip(model.features(images), padded, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_attention_over_several_windows_sums_to_one():
    model = seeded(small())
    with torch.no_grad():
        attention = model.features(torch.randn(2, 3, 288, 480)).attention
    assert attention.shape == (2, 8, 9, 15)
    assert attention.min() >= 0
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 8))


def test_the_mask_of_a_resolution_is_made_once():
    model = small().eval()
    shift_mask.cache_clear()
    for size in (224, 96, 224, 96):
        with torch.inference_mode():
            model(torch.randn(1, 3, size, size))
    # Three of the four stages shift. At 224 px they have 8 x 8, 4 x 4 and 2 x 2 windows, at 96 px
    # 4 x 4, 2 x 2 and 1: four masks for twelve shifted blocks.
    assert shift_mask.cache_info().misses == 4
    assert shift_mask.cache_info().hits == 8


def test_a_mask_made_in_inference_serves_training():
    model = small()
    shift_mask.cache_clear()
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        model(images)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_stochastic_depth_grows_over_all_stages():
    blocks = [block for stage in small(drop_path=0.7).layers for block in stage.blocks]
    assert [block.drop_path.rate for block in blocks] == pytest.approx([i / 10 for i in range(8)])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_last_blocks_are_pooled_and_normed_in_the_last_stage_only(count):
    model = seeded(small())
    other = reference(model, TINY_DEPTHS, (1, 2, 4, 8), 7)
    outputs = []
    for stage in other.encoder.layers:
        for block in stage.blocks:
            block.register_forward_hook(lambda _, __, out: outputs.append(out))
    images = torch.randn(2, 3, 224, 160)
    with torch.no_grad():
        other(images, always_partition=True)
        tokens = [out[0] if isinstance(out, tuple) else out for out in outputs]
        tokens[-2:] = [other.layernorm(last) for last in tokens[-2:]]
        expected = torch.cat([each.mean(dim=1) for each in tokens[-count:]], dim=1)
        actual = model.last_blocks(images, count)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert len(outputs) == 8


def test_esvits_feature_for_linear_evaluation_is_2304_wide():
    model = swin("swin_tiny").eval()
    with torch.no_grad():
        assert model.last_blocks(torch.randn(1, 3, 64, 64), 4).shape == (1, 2304)
