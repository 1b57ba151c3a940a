import math

import numpy as np
import pytest

from training.monitor import HORIZON, Monitor

K = 1024
UNIFORM = math.log(K)
GRACE = 300
HEALTHY = {"entropy": 3.0, "kl": 2.0, "deviation": 0.8}


def follow(monitor, steps, start=0, noise=0.03, **values):
    """Feed noisy steps; what is said, by step."""
    random = np.random.default_rng(start)
    said = {}
    for step in range(start + 1, start + steps + 1):
        noisy = {key: value * (1 + noise * random.normal()) for key, value in values.items()}
        loss = noisy.pop("loss", noisy["entropy"] + noisy["kl"])
        messages = monitor.watch(step, loss, noisy)
        if messages:
            said[step] = messages
    return said


def test_a_healthy_run_is_left_alone():
    assert follow(Monitor(K, GRACE), 2000, **HEALTHY) == {}


def test_the_uniform_start_is_no_collapse():
    monitor = Monitor(K, GRACE)
    start = {"entropy": UNIFORM, "kl": 0.001, "deviation": 0.01}
    assert follow(monitor, GRACE - HORIZON, noise=0, **start) == {}
    assert follow(monitor, 2000, GRACE - HORIZON, **HEALTHY) == {}


def test_a_student_that_never_leaves_the_uniform_start_is_said_once_when_the_grace_is_over():
    said = follow(
        Monitor(K, GRACE), 3000, noise=0.002, loss=UNIFORM, **{**HEALTHY, "entropy": 0.7 * UNIFORM}
    )
    assert list(said) == [GRACE + 1]
    [message] = said[GRACE + 1]
    assert f"ln K = {UNIFORM:.3f}" in message
    assert "the loss is 6.9" in message
    assert "teacher.temperature" in message
    assert "head.batch_norm" in message


def test_uniform_targets_are_said_with_their_entropy():
    said = follow(Monitor(K, GRACE), 500, noise=0, entropy=UNIFORM - 0.01, kl=0.002, deviation=0.5)
    assert list(said) == [GRACE + 1]
    assert any("the targets are uniform: their entropy is 6.921" in m for m in said[GRACE + 1])
    assert all("one-hot" not in message for message in said[GRACE + 1])


@pytest.mark.parametrize(("kl", "one_answer"), [(0.004, True), (2.5, False)])
def test_one_hot_targets_are_one_answer_for_all_only_if_the_student_agrees(kl, one_answer):
    said = follow(Monitor(K, GRACE), 500, entropy=0.01, kl=kl, deviation=0.5)
    [message] = said[GRACE + 1]
    assert "the targets are one-hot: their entropy is 0.010" in message
    assert ("every image has one answer" in message) == one_answer
    assert "Sinkhorn-Knopp" in message


def test_embeddings_that_are_all_alike_are_said_also_without_targets():
    monitor = Monitor(None, GRACE)
    said = follow(monitor, 500, loss=0.001, entropy=0.0, kl=0.0, deviation=0.02)
    [message] = said[GRACE + 1]
    assert "all images look alike: the deviation of their embeddings is 0.02" in message
    assert "teacher.momentum" in message


def test_a_loss_that_is_no_cross_entropy_is_not_compared_with_ln_k():
    said = []
    monitor = Monitor(None, 0)
    for step in range(1, 500):
        said += monitor.watch(step, UNIFORM, {"deviation": 0.9})
    assert said == []


def test_a_collapse_in_the_middle_of_a_run_is_said_within_a_few_hundred_steps():
    monitor = Monitor(K, GRACE)
    assert follow(monitor, 2000, **HEALTHY) == {}
    said = follow(monitor, 1000, 2000, entropy=0.001, kl=0.001, deviation=0.001)
    assert min(said) > 2000 + HORIZON
    assert max(said) < 2000 + 6 * HORIZON + 100
    assert sorted(message.split(":")[0] for step in said for message in said[step]) == [
        "all images look alike",
        "the targets are one-hot",
    ]


def test_one_noisy_step_does_not_warn():
    monitor = Monitor(K, GRACE)
    follow(monitor, 1000, **HEALTHY)
    for step in range(1001, 2000):
        bad = step % 50 == 0
        values = {"entropy": 0.0, "kl": 0.0, "deviation": 0.0} if bad else HEALTHY
        assert monitor.watch(step, UNIFORM if bad else 5.0, values) == []


def test_a_value_at_the_threshold_is_said_once_and_again_only_after_a_recovery():
    monitor = Monitor(K, GRACE)
    at_the_edge = {**HEALTHY, "deviation": 0.12}
    assert len(follow(monitor, 5000, noise=0.5, **at_the_edge)) == 1
    assert follow(monitor, 1000, 5000, **HEALTHY) == {}
    assert len(follow(monitor, 5000, 6000, noise=0.5, **at_the_edge)) == 1


def test_a_resumed_run_is_watched_for_a_while_before_anything_is_said():
    said = follow(Monitor(K, GRACE), 500, 10_000, entropy=0.001, kl=0.001, deviation=0.5)
    assert list(said) == [10_000 + HORIZON]
