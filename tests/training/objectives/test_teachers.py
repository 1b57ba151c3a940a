"""What each teacher is made of, step by step."""

import pytest
import torch

from training.models.drop_path import DropPath
from training.models.heads import DINOHead
from training.models.vit import vit
from training.objectives.base import Moment, Network
from training.objectives.teachers import Follows, Teacher

STEPS_PER_EPOCH = 2


def network(drop_path=0.0, predictor=False):
    head = DINOHead(128, 8, hidden=16, bottleneck=8, predictor=predictor)
    return Network(vit("vit_micro", 8, 16, drop_path), head)


def weights(net):
    return net.head.mlp[0].weight.detach().clone()


def histories(follows, momentum=0.75, steps=5):
    """The student's weights before each step, and the teacher's that the step learnt from."""
    torch.manual_seed(0)
    student = network()
    teacher = Teacher(student, follows)
    students, teachers = [], []
    for step in range(steps):
        students.append(weights(student))
        teachers.append(weights(teacher.network))
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        ends = (step + 1) % STEPS_PER_EPOCH == 0
        teacher.update(student, Moment(0.04, momentum, step // STEPS_PER_EPOCH, ends))
    return students, teachers


def test_student_copy():
    students, teachers = histories(Follows.STUDENT_COPY)
    assert all(map(torch.equal, students, teachers))


def test_previous_iteration():
    students, teachers = histories(Follows.PREVIOUS_ITERATION)
    assert all(map(torch.equal, [students[0], *students[:-1]], teachers))


def test_previous_epoch():
    students, teachers = histories(Follows.PREVIOUS_EPOCH)
    expected = [students[step - step % STEPS_PER_EPOCH] for step in range(5)]
    assert all(map(torch.equal, expected, teachers))


def test_momentum():
    students, teachers = histories(Follows.MOMENTUM, momentum=0.75)
    average = students[0]
    for step, teacher in enumerate(teachers):
        torch.testing.assert_close(teacher, average)
        average = 0.75 * average + 0.25 * students[min(step + 1, 4)]


@pytest.mark.parametrize("follows", Follows)
def test_a_teacher_has_no_gradient_no_predictor_and_never_drops_a_path(follows):
    student = network(drop_path=0.9, predictor=True).train()
    teacher = Teacher(student, follows).train()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any("predictor" in name for name, _ in teacher.named_parameters())
    assert all(m.rate == 0 for m in teacher.modules() if isinstance(m, DropPath))
    crops = [torch.randn(2, 3, 16, 16)]
    assert torch.equal(teacher(crops)[1], teacher(crops)[1])
    assert not torch.equal(student(crops)[1], student(crops)[1])
    teacher.update(student, Moment(0.04, 0.9, 0, True))


def test_buffers_are_the_teachers_own():
    student = network()
    student.register_buffer("seen", torch.zeros(1))
    teacher = Teacher(student, Follows.MOMENTUM)
    student.seen.fill_(5.0)
    teacher.update(student, Moment(0.04, 0.0, 0, False))
    assert teacher.network.seen.item() == 0.0
