"""What weights do not say of themselves, against transformers' models of random weights."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, SwinConfig, SwinModel, ViTConfig, ViTModel

from tests.training.models.mapping import swin_names, to_authors
from tests.training.models.oracle import assert_equal, seeded
from training.checkpoint import CheckpointError
from training.data.pixels import MEAN, STD
from training.models.checkpoints import read_backbone
from training.models.config_files import read_normalisation

DEPTHS, HEADS = (2, 2, 2, 2), (1, 2, 4, 8)


def vit(width=320, heads=4, **changes):
    fields = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 64, "patch_size": 16}
    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=2,
        intermediate_size=2 * width,
        attn_implementation="eager",
        **fields | changes,
    )
    return seeded(ViTModel(config))


def edit(folder, **changes):
    """Change the `config.json` beside weights, None to leave a field out."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))


@pytest.mark.parametrize(("width", "heads"), [(320, 4), (128, 4), (192, 12), (96, 1), (384, 6)])
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_the_heads_are_the_configs(tmp_path, width, heads, file):
    theirs = vit(width, heads)
    theirs.save_pretrained(tmp_path)
    backbone = read_backbone(tmp_path / file).backbone
    assert backbone.heads == heads
    assert_equal(backbone, theirs, 64, 64)


def test_dinov2s_heads_are_the_configs(tmp_path):
    config = Dinov2Config(
        hidden_size=96,
        num_attention_heads=6,
        num_hidden_layers=2,
        image_size=70,
        patch_size=14,
        attn_implementation="eager",
    )
    theirs = seeded(Dinov2Model(config))
    theirs.save_pretrained(tmp_path)
    assert_equal(read_backbone(tmp_path).backbone, theirs, 70, 70)


@pytest.mark.parametrize("config", ["none", "silent"])
def test_an_unpublished_width_needs_its_heads(tmp_path, config):
    theirs = vit()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    if config == "silent":
        edit(tmp_path, num_attention_heads=None, hidden_size=320)
    with pytest.raises(CheckpointError, match=r"width 320 .* heads .*name --heads, or put .*json"):
        read_backbone(tmp_path)
    assert_equal(read_backbone(tmp_path, heads=4).backbone, theirs, 64, 64)
    with pytest.raises(CheckpointError, match="width 320 is no multiple of its heads, 7"):
        read_backbone(tmp_path, heads=7)


def test_named_heads_go_before_the_configs(tmp_path):
    vit().save_pretrained(tmp_path)
    assert read_backbone(tmp_path, heads=5).backbone.heads == 5


def test_timms_config_has_heads_too(tmp_path):
    theirs = vit(128, 4)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit", "num_features": 128, "model_args": {"num_heads": 4}})
    )
    assert_equal(read_backbone(tmp_path).backbone, theirs, 64, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "config.json says 'relu' between layers; here it is gelu"),
        ({"hidden_act": None, "model_args": {"act_layer": "quick_gelu"}}, "'quick_gelu'"),
        ({"layer_norm_eps": 1e-3}, "norms of epsilon 0.001; here it is 1e-06"),
        ({"hidden_size": 384}, "config.json is of a model of width 384, not 320"),
        ({"image_size": [32, 128]}, r"image_size: .*\[32, 128\] is no square"),
        ({"num_attention_heads": "many"}, r"config.json: num_attention_heads: .*integer"),
        ({"num_attention_heads": 0}, "num_attention_heads: .*greater than 0"),
    ],
)
def test_what_the_network_cannot_do_is_refused(tmp_path, changes, message):
    vit().save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        read_backbone(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
def test_a_librarys_usual_epsilon_hardly_matters(tmp_path, epsilon):
    theirs = vit(layer_norm_eps=epsilon)
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = read_backbone(tmp_path).backbone(images)
        expected = theirs(images).last_hidden_state[:, 0]
    assert torch.cosine_similarity(ours, expected).min() > 1 - 1e-6


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_config_is_named(tmp_path, text):
    vit().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json (is no JSON|holds no settings)"):
        read_backbone(tmp_path)


@pytest.fixture(scope="module")
def swin():
    """transformers' Swin for 192 px in windows of 6, whose last stage is one window."""
    config = SwinConfig(
        image_size=192,
        window_size=6,
        embed_dim=16,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        attn_implementation="eager",
    )
    theirs = seeded(SwinModel(config))
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    return theirs


def masks(theirs):
    """The masks that older checkpoints keep, of every stage that has more than one window."""
    found = {}
    for i, stage in enumerate(theirs.encoder.layers[:-1]):
        side = 48 // 2**i
        mask = stage.blocks[1].get_attn_mask(side, side, torch.float32, torch.device("cpu"))
        found[f"layers.{i}.blocks.1.attn_mask"] = mask
    return found


@pytest.mark.parametrize("said_by", ["masks", "a later stage's mask", "timm's config.json"])
def test_a_swin_shifts_as_where_it_was_trained(swin, tmp_path, said_by):
    weights = to_authors(swin.state_dict(), swin_names(DEPTHS))
    if said_by == "timm's config.json":
        edit(tmp_path, num_features=128, pretrained_cfg={"input_size": [3, 192, 192]})
    else:
        of_stages = masks(swin)
        weights |= of_stages if said_by == "masks" else dict([of_stages.popitem()])
    save_file(weights, tmp_path / "model.safetensors")
    backbone = read_backbone(tmp_path).backbone
    assert [stage.blocks[1].shift for stage in backbone.layers] == [3, 3, 3, 0]
    images = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = swin(images)
        ours = backbone.features(images)
    torch.testing.assert_close(ours.embedding, expected.pooler_output, atol=2e-5, rtol=0)
    patches = expected.last_hidden_state.unflatten(1, (6, 6))
    torch.testing.assert_close(ours.patches, patches, atol=5e-5, rtol=0)


def test_an_unpublished_window_needs_its_image_size(swin, tmp_path):
    save_file(to_authors(swin.state_dict(), swin_names(DEPTHS)), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"windows of 6 .* image size .* put .*config\.json"):
        read_backbone(tmp_path)


def test_heads_that_the_weights_contradict_are_refused(swin, tmp_path):
    weights = to_authors(swin.state_dict(), swin_names(DEPTHS)) | masks(swin)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="its heads are 8 by its weights, not 4"):
        read_backbone(tmp_path, heads=4)


GREY = [0.5, 0.5, 0.5]
OWN = [0.7, 0.6, 0.5]


@pytest.mark.parametrize(
    ("preprocessor", "config", "expected"),
    [
        (None, None, (MEAN, STD)),
        (None, {"hidden_size": 384}, (MEAN, STD)),
        ({"image_mean": GREY, "image_std": OWN, "rescale_factor": None}, None, (GREY, OWN)),
        ({"image_mean": OWN, "image_std": GREY, "rescale_factor": 0.003921569}, None, (OWN, GREY)),
        (None, {"pretrained_cfg": {"mean": OWN, "std": GREY}}, (OWN, GREY)),
        (None, {"architecture": "old", "mean": OWN, "std": GREY}, (OWN, GREY)),
        ({"do_normalize": False}, None, ([0, 0, 0], [1, 1, 1])),
    ],
)
def test_the_normalisation_is_that_of_the_files(tmp_path, preprocessor, config, expected):
    for name, values in (("preprocessor_config", preprocessor), ("config", config)):
        if values is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(values))
    wanted = tuple(map(tuple, expected))
    assert read_normalisation(tmp_path) == wanted
    assert read_normalisation(tmp_path / "model.safetensors") == wanted


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"do_normalize": True}, "it lacks image_mean or image_std; name --mean and --std"),
        ({"image_mean": GREY, "image_std": GREY, "rescale_factor": 1 / 127.5}, "divided by 255"),
        ({"image_mean": GREY, "image_std": GREY, "do_rescale": False}, "divided by 255"),
        ({"image_mean": [0.5], "image_std": GREY}, "preprocessor_config.json: image_mean"),
    ],
)
def test_a_normalisation_that_no_bundle_has_is_refused(tmp_path, preprocessor, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with pytest.raises(CheckpointError, match=message):
        read_normalisation(tmp_path)
