import pytest
import torch

from tests.training.runs import small
from training.build import build
from training.config import OptimizerConfig
from training.optimizers import build_optimizer, clip_each, parameter_groups


@pytest.mark.parametrize("limit", [0.01, 1.0, 100.0])
def test_each_gradient_is_clipped_as_if_it_were_alone(limit):
    ours = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (1, 1, 2), (7,))]
    theirs = [torch.nn.Parameter(torch.zeros_like(p)) for p in ours]
    for scale, one, two in zip((0.001, 1.0, 50.0, 0.0), ours, theirs, strict=True):
        one.grad = scale * torch.randn_like(one)
        two.grad = one.grad.clone()
    without = torch.nn.Parameter(torch.zeros(2))
    clip_each([*ours, without], limit)
    for one, two in zip(ours, theirs, strict=True):
        torch.nn.utils.clip_grad_norm_([two], limit)
        torch.testing.assert_close(one.grad, two.grad)
    assert without.grad is None


def test_cls_and_positions_are_decayed_but_no_bias_and_no_norm():
    student = build(small()).student
    decayed, free = ({id(p) for p in group["params"]} for group in parameter_groups(student))
    backbone = student.backbone
    assert {id(backbone.cls_token), id(backbone.pos_embed)} <= decayed
    assert {id(backbone.norm.weight), id(backbone.patch_embed.proj.bias)} <= free
    assert id(student.head.last_layer.weight_g) not in decayed | free  # frozen at one


def test_nothing_of_a_teacher_is_moved_by_gradients():
    objective = build(small())
    optimizer = build_optimizer(OptimizerConfig(), objective)
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert moved == {id(p) for p in objective.student.parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("sgd", "SGD")])
def test_the_optimiser_is_the_named_one(name, kind):
    optimizer = build_optimizer(OptimizerConfig(name=name), torch.nn.Linear(2, 2))
    assert type(optimizer).__name__ == kind
    assert [group["weight_decay"] == 0.0 for group in optimizer.param_groups][1]
