import math

import pytest

from training.schedules import cosine, staircase


def test_cosine_starts_after_a_linear_rise_and_ends_one_step_before_its_end():
    values = cosine(2.0, 1.0, steps=14, warmup=4)
    assert values[:4] == pytest.approx([0.0, 2 / 3, 4 / 3, 2.0])
    expected = [1.0 + 0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert values[4:] == pytest.approx(expected)


def test_a_warmup_longer_than_the_run_only_rises():
    assert len(cosine(1.0, 0.0, steps=3, warmup=10)) == 3


def test_staircase_steps_once_an_epoch():
    values = staircase(0.04, 0.07, warmup_epochs=4, epochs=6, steps=2)
    assert values == pytest.approx([0.04] * 2 + [0.05] * 2 + [0.06] * 2 + [0.07] * 2 + [0.07] * 4)


def test_staircase_shorter_than_its_warmup_is_cut():
    assert staircase(0.04, 0.07, warmup_epochs=4, epochs=2, steps=1) == pytest.approx([0.04, 0.05])
