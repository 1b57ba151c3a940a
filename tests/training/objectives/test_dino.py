"""DINO against a plain re-derivation of the paper's Algorithm 1."""

import copy
import math

import pytest
import torch

from training.config import Recipe
from training.objectives.base import Moment
from training.objectives.dino import cross_entropy, squared_distance
from training.trainer import Trainer

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

        t = [teacher([crop])[1][0].detach() for crop in crops[:2]]
        s = [student([crop])[1][0] for crop in crops]
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
    objective = trainer.objective.double()
    objective.targets.center = objective.targets.center.float()
    student = copy.deepcopy(objective.student)
    teacher = copy.deepcopy(objective.teacher.network)
    torch.manual_seed(1)
    sides = (32, 32, 16, 16, 16)
    batches = [[torch.randn(3, 3, s, s).double() for s in sides] for _ in range(3)]

    losses = [trainer.train_step(crops)["loss"] for crops in batches]
    expected, center = algorithm_1(student, teacher, batches, recipe, steps_per_epoch=2)

    # Softmax and the centre are taken in float32, as under autocast.
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(objective.targets.center, center.float(), atol=1e-7, rtol=1e-4)
    for ours, theirs in ((objective.student, student), (objective.teacher.network, teacher)):
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(
                p, q, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def crops(batch=3, sides=(32, 32, 16, 16, 16)):
    torch.manual_seed(1)
    return [torch.randn(batch, 3, s, s) for s in sides]


def test_parts_of_a_batch_give_the_whole_batchs_numbers():
    whole = Trainer(Recipe.model_validate({**RECIPE, "batch_size": 4}), 2)
    parts = Trainer(Recipe.model_validate({**RECIPE, "batch_size": 4, "accumulate": 2}), 2)
    for _ in range(2):
        records = [trainer.train_step(crops(4)) for trainer in (whole, parts)]
        for name in ("loss", "entropy", "kl"):
            assert records[0][name] == pytest.approx(records[1][name], rel=1e-4)
    # The centre has moved once a step, not once a part, and so has the teacher.
    one, two = whole.objective.state_dict(), parts.objective.state_dict()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3, msg=name)
    torch.testing.assert_close(one["targets.center"], two["targets.center"], atol=1e-6, rtol=1e-4)


def test_entropy_tells_uniform_targets_from_collapsed_ones():
    student = torch.randn(4, 5, 64)
    uniform = torch.zeros(2, 5, 64).log_softmax(-1)
    one_answer = torch.full((2, 5, 64), -1e4)
    one_answer[..., 7] = 0.0
    entropies = [cross_entropy(student, t, 0.1)[1].item() for t in (uniform, one_answer)]
    assert entropies == pytest.approx([math.log(64), 0.0], abs=1e-5)


def test_the_kl_is_what_the_loss_has_over_the_entropy():
    trainer = Trainer(Recipe.model_validate(RECIPE), 2)
    record = trainer.train_step(crops())
    assert record["kl"] == pytest.approx(record["loss"] - record["entropy"], abs=1e-5)
    assert record["kl"] > 0


def test_squared_distance_is_a_mean_over_pairs_of_unit_vectors():
    student, targets = torch.randn(4, 5, 8), torch.randn(2, 5, 8)
    expected = []
    for g in range(2):
        for v in range(4):
            if v != g:
                for image in range(5):
                    t = targets[g, image] / targets[g, image].norm()
                    s = student[v, image] / student[v, image].norm()
                    expected.append(((t - s) ** 2).sum())
    torch.testing.assert_close(
        squared_distance(student, targets), torch.stack(expected).mean(), atol=1e-6, rtol=1e-5
    )


def test_mse_compares_with_centred_logits():
    recipe = Recipe.model_validate({**RECIPE, "objective": {"name": "dino", "loss": "mse"}})
    objective = Trainer(recipe, 2).objective
    objective.targets.center.normal_()
    moment = Moment(temperature=0.04, momentum=0.9, epoch=0, epoch_ends=False)
    loss = objective(crops(), moment).loss
    _, teacher = objective.teacher(crops()[:2])
    _, student = objective.student(crops())
    torch.testing.assert_close(
        loss, squared_distance(student, teacher - objective.targets.center), atol=1e-6, rtol=1e-5
    )


def test_only_the_student_predicts():
    recipe = Recipe.model_validate({**RECIPE, "objective": {"name": "dino", "predictor": True}})
    trainer = Trainer(recipe, 2)
    student, teacher = (
        {n for n, _ in net.named_parameters()}
        for net in (trainer.objective.student, trainer.objective.teacher.network)
    )
    assert teacher < student
    assert all(name.startswith("head.predictor.") for name in student - teacher)
    before = trainer.objective.student.head.predictor[0].weight.clone()
    for _ in range(2):
        trainer.train_step(crops())
    assert not torch.equal(trainer.objective.student.head.predictor[0].weight, before)


def test_last_layer_rests_in_the_first_epoch_only():
    trainer = Trainer(Recipe.model_validate(RECIPE), steps_per_epoch=2)
    layer = trainer.objective.student.head.last_layer.weight_v
    before = layer.detach().clone()
    moved = []
    for _ in range(3):
        trainer.train_step(crops())
        moved.append(not torch.equal(layer, before))
    assert moved == [False, False, True]
