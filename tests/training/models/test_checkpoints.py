"""Checkpoints in every published layout, against transformers' models with the same weights."""

import argparse
import os
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tests.training.models.mapping import dinov2_names, to_authors, vit_names
from tests.training.models.oracle import assert_equal, seeded
from training.checkpoint import CheckpointError
from training.models.checkpoints import read_backbone
from training.models.positions import antialiased_weights
from training.models.resnet import resnet
from training.models.swin import SwinTransformer, swin
from training.models.vit import VisionTransformer, vit

SIZES = {
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "layer_norm_eps": 1e-6,
    "attn_implementation": "eager",
}


@pytest.fixture(scope="module")
def dino():
    return seeded(ViTModel(ViTConfig(**SIZES, intermediate_size=512, image_size=64, patch_size=16)))


@pytest.fixture(scope="module")
def dinov2():
    return seeded(Dinov2Model(Dinov2Config(**SIZES, image_size=70, patch_size=14)))


@pytest.fixture(scope="module")
def with_registers():
    config = Dinov2WithRegistersConfig(**SIZES, image_size=70, patch_size=14, num_register_tokens=4)
    return seeded(Dinov2WithRegistersModel(config))


def official(model):
    """A transformers state dict under the names of DINO's authors."""
    theirs = model.state_dict()
    blocks = [
        next(name.partition(".attention.")[0] for name in theirs if f".{i}.attention." in name)
        for i in range(2)
    ]
    names = (vit_names if isinstance(model, ViTModel) else dinov2_names)(blocks)
    return to_authors(theirs, names)


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_dinos_own_names_as_torch_or_safetensors(dino, tmp_path, write):
    path = tmp_path / ("vit.safetensors" if write is save_file else "vit.pth")
    write(official(dino), path)
    model = read_backbone(path)
    assert_equal(model.backbone, dino, 64, 64)
    assert model.architecture == "vit_192x2"
    assert model.source == "the authors' layout"
    assert model.left_over == ()
    assert (model.backbone.patch_size, model.backbone.grid, model.backbone.heads) == (16, 4, 3)
    assert not model.backbone.training


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_teacher_of_a_full_checkpoint(dino, tmp_path, prefix):
    weights = official(dino)
    heads = {"head.mlp.0.weight": torch.zeros(8, 128), "head.last_layer.weight_g": torch.ones(8, 1)}
    student = {f"module.backbone.{name}": torch.zeros_like(t) for name, t in weights.items()}
    teacher = {f"{prefix}backbone.{name}": tensor for name, tensor in weights.items()}
    teacher |= {f"{prefix}{name}": tensor for name, tensor in heads.items()}
    # The learning rate is a numpy scalar: DINO's schedules are numpy arrays.
    groups = [{"lr": np.linspace(0, 1, 3)[1], "params": [0]}]
    state = {
        "student": student,
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": groups},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, out_dim=65536),
        "dino_loss": {"center": torch.zeros(1, 8)},
        "fp16_scaler": {"scale": 65536.0},
    }
    torch.save(state, tmp_path / "full.pth")
    model = read_backbone(tmp_path / "full.pth")
    assert_equal(model.backbone, dino, 64, 64)
    assert model.source == "the authors' layout, `teacher` of a checkpoint"
    assert model.left_over == ("head.mlp.0.weight", "head.last_layer.weight_g")


@pytest.mark.parametrize("names", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize("family", ["dino", "dinov2", "with_registers"])
def test_hugging_faces_names(family, names, request, tmp_path):
    theirs = request.getfixturevalue(family)
    if names == "transformers 5":
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
        assert any(".q_proj." in name for name in theirs.state_dict())
    else:
        theirs.save_pretrained(tmp_path)  # it keeps the names of transformers 4 on disk
    model = read_backbone(tmp_path)
    prefix = 5 if family == "with_registers" else 1
    size = theirs.config.image_size
    assert_equal(model.backbone, theirs, size, size, prefix)
    assert model.backbone.prefix_tokens == prefix
    assert model.source == "Hugging Face's layout"
    left = {"dino": ("pooler.dense.bias", "pooler.dense.weight")}.get(family, ("mask_token",))
    assert tuple(sorted(model.left_over)) == left


@pytest.mark.parametrize("names", ["transformers 4", "transformers 5"])
def test_hugging_faces_names_behind_the_models_own(dino, names, tmp_path):
    classifier = ViTForImageClassification(dino.config)
    classifier.vit.load_state_dict(dino.state_dict(), strict=False)
    if names == "transformers 5":
        torch.save(classifier.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        classifier.save_pretrained(tmp_path)
    model = read_backbone(tmp_path)
    assert_equal(model.backbone, dino, 64, 64)
    assert sorted(model.left_over) == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("family", ["dinov2", "with_registers"])
def test_dinov2s_own_names(family, request, tmp_path):
    theirs = request.getfixturevalue(family)
    torch.save(official(theirs), tmp_path / "dinov2.pth")
    model = read_backbone(tmp_path / "dinov2.pth")
    assert_equal(model.backbone, theirs, 70, 70, model.backbone.prefix_tokens)
    assert model.left_over == ("mask_token",)
    assert (model.backbone.patch_size, model.backbone.grid) == (14, 5)


def test_timms_form_of_registers_with_no_position_of_cls(with_registers, tmp_path):
    weights = official(with_registers)
    positions = weights.pop("pos_embed")
    weights["cls_token"] = weights["cls_token"] + positions[:, :1]
    weights["pos_embed"] = positions[:, 1:].clone()
    weights["reg_token"] = weights.pop("register_tokens")
    save_file(weights, tmp_path / "model.safetensors")
    backbone = read_backbone(tmp_path).backbone
    assert_equal(backbone, with_registers, 70, 70, 5)


@pytest.mark.parametrize(("height", "width"), [(42, 42), (28, 98), (140, 112)])
def test_with_registers_positions_are_filtered_at_any_size(with_registers, tmp_path, height, width):
    torch.save(official(with_registers), tmp_path / "dinov2.pth")
    backbone = read_backbone(tmp_path / "dinov2.pth").backbone
    assert_equal(backbone, with_registers, height, width, 5)


@pytest.mark.parametrize("count", [1, 5, 16, 37, 50])
def test_filtered_positions_equal_torchs(count):
    values = torch.randn(3, 37, generator=torch.Generator().manual_seed(0))
    image = values[None, :, :, None].expand(-1, -1, -1, 37)
    expected = torch.nn.functional.interpolate(
        image, size=(count, 37), mode="bicubic", antialias=True
    )
    actual = values @ antialiased_weights(torch.arange(float(count)), 37).T
    torch.testing.assert_close(actual, expected[0, :, :, 0], atol=5e-6, rtol=0)
    if count == 37:
        assert torch.equal(actual, values)


def test_without_registers_positions_are_interpolated_as_dinov2s_authors_do(dinov2, tmp_path):
    torch.save(official(dinov2), tmp_path / "dinov2.pth")
    backbone = read_backbone(tmp_path / "dinov2.pth").backbone
    grid = backbone.pos_embed[:, 1:].unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    scale = (3.1 / 5, 7.1 / 5)
    expected = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
    torch.testing.assert_close(
        backbone._positions(3, 7), expected.permute(0, 2, 3, 1), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("patch_size", [8, 16])
def test_a_published_size_has_its_name(tmp_path, patch_size):
    torch.save(vit("vit_small", patch_size).half().state_dict(), tmp_path / "small.pth")
    model = read_backbone(tmp_path / "small.pth")
    assert model.architecture == "vit_small"
    assert model.backbone.grid == 224 // patch_size
    assert model.backbone.norm.weight.dtype == torch.float32


def assert_same(backbone, original):
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for actual, truth in zip(backbone.features(images), original.features(images), strict=True):
            assert torch.equal(actual, truth)


@pytest.mark.parametrize("window", [7, 14])
def test_the_swin_transformer_of_a_full_esvit_checkpoint(tmp_path, window):
    original = seeded(SwinTransformer(32, (1, 2, 2, 1), (1, 2, 4, 8), window))
    teacher = {f"module.{name}": tensor for name, tensor in original.state_dict().items()}
    teacher |= {"module.head_dense.mlp.0.weight": torch.zeros(8, 256)}
    center = {"center": torch.zeros(1, 8), "center_grid": torch.zeros(1, 8)}
    args = argparse.Namespace(arch="swin_tiny")
    torch.save({"teacher": teacher, "dino_loss": center, "args": args}, tmp_path / "esvit.pth")
    model = read_backbone(tmp_path / "esvit.pth")
    assert_same(model.backbone, original)
    assert model.architecture == "swin_32x6"
    assert model.left_over == ("head_dense.mlp.0.weight",)


def test_timms_swin_keeps_each_step_down_a_stage_later(tmp_path):
    original = seeded(swin("swin_tiny"))
    shifted = {
        re.sub(r"layers\.(\d)\.down", lambda i: f"layers.{int(i[1]) + 1}.down", name): tensor
        for name, tensor in original.state_dict().items()
        if not name.endswith("relative_position_index")
    }
    assert "layers.3.downsample.norm.bias" in shifted
    shifted["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)  # older versions keep it
    save_file(shifted | {"head.fc.bias": torch.zeros(10)}, tmp_path / "model.safetensors")
    model = read_backbone(tmp_path)
    assert_same(model.backbone, original)
    assert model.architecture == "swin_tiny"


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("prefix", ["", "module.backbone.", "backbone.backbone."])
def test_a_resnet_under_torchvisions_names(tmp_path, name, prefix):
    original = seeded(resnet(name))
    weights = {f"{prefix}{key}": tensor for key, tensor in original.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "resnet.pth")
    model = read_backbone(tmp_path / "resnet.pth")
    assert_same(model.backbone, original)
    assert model.architecture == name


@pytest.mark.parametrize(
    ("model", "absent"),
    [
        (lambda: SwinTransformer(32, (1, 1), (1, 2), 7), "patch_embed.proj.weight"),
        (lambda: SwinTransformer(32, (1, 1), (1, 2), 7), "layers.1.blocks.0.norm1.bias"),
        (
            lambda: SwinTransformer(32, (1, 1), (1, 2), 7),
            "layers.1.blocks.0.attn.relative_position_bias_table",
        ),
        (lambda: resnet("resnet18"), "conv1.weight"),
        (lambda: resnet("resnet18"), "layer4.1.bn2.running_var"),
    ],
)
def test_what_a_swin_transformer_or_a_resnet_lacks_is_named(tmp_path, model, absent):
    weights = model().state_dict()
    del weights[absent]
    torch.save(weights, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=f"it lacks {absent}"):
        read_backbone(tmp_path / "bad.pth")


def small(**changes):
    torch.manual_seed(0)
    weights = VisionTransformer(16, 192, depth=2, heads=3, image_size=32).state_dict()
    for name, value in changes.items():
        weights.pop(name) if value is None else weights.update({name: value})
    return weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.bias": None}, "it lacks norm.bias"),
        (
            {
                f"blocks.1.{name}.weight": None
                for name in ("norm1", "norm2", "attn.qkv", "attn.proj")
            }
            | {"norm.weight": None},
            "it lacks .*, .*, .*, .* and 1 more",
        ),
        ({"norm_pre.weight": torch.ones(192)}, "it also has norm_pre.weight"),
        ({"norm.bias": torch.zeros(3)}, "of another shape: norm.bias"),
        ({"pos_embed": torch.zeros(1, 4, 32)}, "pos_embed, 1 x 5 x 32, is not of CLS and a square"),
        (
            {"pos_embed": torch.zeros(1, 7, 192)},
            "pos_embed, 1 x 7 x 192, is not of CLS and a square",
        ),
        ({"patch_embed.proj.weight": torch.zeros(60, 3, 8, 8)}, "width 60 does not say how many"),
        (
            {"patch_embed.proj.weight": torch.zeros(192, 4, 8, 8)},
            "192 x 4 x 8 x 8 is not of square",
        ),
        ({"pos_embed": None}, "it lacks pos_embed and holds cls_token, patch_embed.proj.weight"),
        ({"blocks.0.mlp.fc1.weight": None}, "it lacks blocks.0.mlp.fc1.weight"),
    ],
)
def test_what_is_missing_or_too_much_is_named(tmp_path, changes, message):
    torch.save(small(**changes), tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=f"holds no model that can be imported: .*{message}"):
        read_backbone(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.layers.0.blocks.0.layernorm_before.weight", "a Swin transformer"),
        ("encoder.stages.0.layers.0.shortcut.convolution.weight", "a ResNet"),
        ("rope_embed.periods", "rotary positions"),
    ],
)
def test_another_architecture_is_called_by_its_name(tmp_path, name, kind):
    torch.save({"teacher": {name: torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=f"holds .*{kind}"):
        read_backbone(tmp_path / "other.pth")


@pytest.mark.parametrize("state", [{"epoch": 3}, {}, [torch.zeros(1)], torch.zeros(1)])
def test_a_file_without_weights_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"holds no (weights|model)"):
        read_backbone(tmp_path / "empty.pth")


def test_a_checkpoint_of_a_run_is_sent_to_export(tmp_path):
    torch.save({"recipe": {"name": "x"}, "step": 1, "model": {}}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="export it instead"):
        read_backbone(tmp_path / "last.pt")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def plain_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("write", [torch.save, plain_pickle])
@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: argparse.Namespace(arch=bad)])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, write, wrap):
    target = tmp_path / "owned"
    write({"teacher": small(), "args": wrap(Malicious(str(target)))}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_backbone(tmp_path / "bad.pth")
    assert not target.exists()


@pytest.mark.parametrize("name", ["vit.pth", "vit.safetensors"])
def test_a_damaged_or_missing_file_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"no checkpoint at .*{re.escape(name)}"):
        read_backbone(tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is not a readable checkpoint"):
        read_backbone(tmp_path / name)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        read_backbone(tmp_path)
