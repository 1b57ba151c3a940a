"""DINO against a plain re-derivation of the paper's Algorithm 1."""

import copy
import math

import pytest
import torch

from training.config import Recipe
from training.loop import Trainer
from training.models.heads import DINOHead
from training.models.vit import vit
from training.objectives.dino import DINO, dino_loss

RECIPE = {
    "name": "small",
    "data": "unused",
    "epochs": 2,
    "batch_size": 3,
    "precision": "fp32",
    "model": {"architecture": "vit_tiny", "patch_size": 8, "drop_path": 0.0},
    "crops": {"global_size": 32, "local_size": 16, "local_count": 3},
    "head": {"prototypes": 24, "hidden": 32, "bottleneck": 16, "norm_last_layer": False},
    "teacher": {"warmup_temperature": 0.04, "temperature": 0.07, "warmup_epochs": 2},
    "optimizer": {"lr": 0.5, "warmup_epochs": 1, "clip_grad": 0.02},
}


def algorithm_1(student, teacher, batches, recipe, steps_per_epoch):
    """The paper's pseudo-code, a line at a time, with the published schedules and order of a step.

    Networks are called one crop at a time; every pair has its own cross-entropy; nothing is shared
    with the code under test but the networks' own forward pass.
    """
    steps = recipe.epochs * steps_per_epoch
    warmup = recipe.optimizer.warmup_epochs * steps_per_epoch
    base_lr = recipe.optimizer.lr * recipe.batch_size / 256
    center = torch.zeros(recipe.head.prototypes)
    names = [n for n, p in student.named_parameters() if p.requires_grad]
    first = dict.fromkeys(names, 0.0)
    second = dict.fromkeys(names, 0.0)
    losses = []
    for step, crops in enumerate(batches):
        epoch = step // steps_per_epoch
        if step < warmup:
            lr = base_lr * step / (warmup - 1)
        else:
            angle = math.pi * (step - warmup) / (steps - warmup)
            end = recipe.optimizer.min_lr
            lr = end + 0.5 * (base_lr - end) * (1 + math.cos(angle))
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        decay = 0.4 + (0.04 - 0.4) * cosine
        momentum = 1.0 + (0.996 - 1.0) * cosine
        tau_t = [0.04, 0.07][epoch]

        t = [teacher([crop])[0].detach() for crop in crops[:2]]
        s = [student([crop])[0] for crop in crops]
        loss, pairs = 0.0, 0
        for g in range(2):
            p = torch.softmax((t[g] - center) / tau_t, dim=1)
            for v in range(len(crops)):
                if v != g:
                    loss = loss + (-p * torch.log_softmax(s[v] / 0.1, dim=1)).sum(1).mean()
                    pairs += 1
        loss = loss / pairs
        center = 0.9 * center + 0.1 * torch.cat(t).mean(0)
        losses.append(loss.item())

        student.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, p in student.named_parameters():
                if name not in first:
                    continue
                grad = p.grad * min(1.0, recipe.optimizer.clip_grad / (p.grad.norm() + 1e-6))
                if "last_layer" in name and epoch == 0:
                    continue
                count = step + 1 - (steps_per_epoch if "last_layer" in name else 0)
                if not (name.endswith(".bias") or p.ndim == 1):
                    p.mul_(1 - lr * decay)
                first[name] = 0.9 * first[name] + 0.1 * grad
                second[name] = 0.999 * second[name] + 0.001 * grad**2
                unbiased = first[name] / (1 - 0.9**count)
                deviation = (second[name] / (1 - 0.999**count)).sqrt() + 1e-8
                p.sub_(lr * unbiased / deviation)
            for p_t, p_s in zip(teacher.parameters(), student.parameters(), strict=True):
                p_t.copy_(momentum * p_t + (1 - momentum) * p_s)
    return losses, center


def test_three_steps_equal_algorithm_1():
    recipe = Recipe.model_validate(RECIPE)
    trainer = Trainer(recipe, steps_per_epoch=2)
    # Adam divides small gradients by themselves: only doubles keep two derivations together.
    trainer.model.double()
    trainer.model.center = trainer.model.center.float()
    student, teacher = copy.deepcopy(trainer.model.student), copy.deepcopy(trainer.model.teacher)
    torch.manual_seed(1)
    sides = (32, 32, 16, 16, 16)
    batches = [[torch.randn(3, 3, s, s).double() for s in sides] for _ in range(3)]

    losses = [trainer.train_step(crops)[0] for crops in batches]
    expected, center = algorithm_1(student, teacher, batches, recipe, steps_per_epoch=2)

    # Softmax and the centre are taken in float32, as under autocast.
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(trainer.model.center, center.float(), atol=1e-7, rtol=1e-4)
    for ours, theirs in ((trainer.model.student, student), (trainer.model.teacher, teacher)):
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(
                p, q, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_teacher_starts_as_the_student_and_has_no_gradient():
    model = Trainer(Recipe.model_validate(RECIPE), 2).model
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in student)
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_the_teacher_never_drops_a_path():
    model = DINO(vit("vit_tiny", 8, 16, drop_path=0.9), DINOHead(192, 8, hidden=16, bottleneck=8))
    model.train()
    crops = [torch.randn(2, 3, 16, 16)]
    assert torch.equal(model.teacher(crops), model.teacher(crops))
    assert not torch.equal(model.student(crops), model.student(crops))


def test_entropy_tells_a_uniform_teacher_from_a_collapsed_one():
    student = torch.randn(4, 5, 64)
    uniform = dino_loss(student, torch.zeros(2, 5, 64), torch.zeros(64), 0.1, 0.04)
    one_answer = torch.zeros(2, 5, 64)
    one_answer[..., 7] = 10.0
    collapsed = dino_loss(student, one_answer, torch.zeros(64), 0.1, 0.04)
    assert uniform.teacher_entropy.item() == pytest.approx(math.log(64))
    assert collapsed.teacher_entropy.item() == pytest.approx(0.0, abs=1e-6)


def test_last_layer_rests_in_the_first_epoch_only():
    trainer = Trainer(Recipe.model_validate(RECIPE), steps_per_epoch=2)
    layer = trainer.model.student.head.last_layer.weight_v
    before = layer.detach().clone()
    moved = []
    for _ in range(3):
        trainer.train_step([torch.randn(3, 3, s, s) for s in (32, 32, 16)])
        moved.append(not torch.equal(layer, before))
    assert moved == [False, False, True]
