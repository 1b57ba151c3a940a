"""The collapse monitor: says when a run learns nothing, and what to try.

A teacher that gives every image the same answer makes the loss easy and the model useless. The
answer is then either spread evenly over all outcomes, with an entropy of ln K, or one outcome,
with an entropy of 0; in both the KL divergence from the student to its targets is 0 (Caron et
al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, section 5.3). All of this
is also true of a healthy run's first steps, so nothing is said in these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Steps over which numbers are averaged: the values of single batches scatter by some per cent.
HORIZON = 100
# A share of ln K. 1 % of it leaves a perplexity of K^0.01, 1.1 outcomes of 65,536, or 9/10 of
# them all; runs that learnt had averages between 27 and 85 %.
NEAR = 0.01
# Deviation^2 = 1 - mean cosine between two images, so 0.12 is a cosine of 0.986. Of 27 small runs
# (benchmarks/training/rivals.py) those without momentum fell to 0.03, 0.08 and 0.10, all others
# stayed above 0.16.
ALIKE = 0.12
# What was said is said again only after a value was this many times as far off.
RECOVERED = 2.0


class Sign(NamedTuple):
    """A way of learning nothing.

    Attributes:
        kind: Its name.
        distance: How far the run is from it.
        limit: The distance below which it is said.
        message: What is seen and what to try.
    """

    kind: str
    distance: float
    limit: float
    message: str


class Monitor:
    """Watches a run's averages.

    Args:
        outcomes: Number K of outcomes of the targets; None where targets are not distributions,
            which leaves only the deviation to watch.
        grace: Steps in which nothing is said, because every run starts out collapsed: the learning
            rate's warm-up and an epoch after it is fair. Never less than HORIZON steps, also after
            a resume.
    """

    def __init__(self, outcomes: int | None, grace: int) -> None:
        self._uniform = math.log(outcomes) if outcomes else None
        self._grace = grace
        self._steps = 0
        self._averages: dict[str, float] = {}
        self._said: set[str] = set()

    def watch(self, step: int, loss: float, measures: Mapping[str, float]) -> list[str]:
        """Take in one step.

        Args:
            step: Its number, from 1.
            loss: Its loss.
            measures: Its `deviation` and, with distributions for targets, `entropy` and `kl` in
                nats; what is not there is not watched.

        Returns:
            The warnings that are new: each kind once, until the run has recovered from it.
        """
        self._steps += 1
        # A plain mean at first, so that the averages do not lean towards the first step.
        weight = max(1 / self._steps, 1 / HORIZON)
        for name, value in {"loss": loss, **measures}.items():
            average = self._averages.setdefault(name, value)
            self._averages[name] = average + weight * (value - average)
        if step <= self._grace or self._steps < HORIZON:
            return []
        messages = []
        for sign in self._signs():
            if sign.distance < sign.limit and sign.kind not in self._said:
                self._said.add(sign.kind)
                messages.append(sign.message)
            elif sign.distance > RECOVERED * sign.limit:
                self._said.discard(sign.kind)
        return messages

    def _signs(self) -> Iterator[Sign]:
        averages = self._averages
        if "deviation" in averages:
            yield _alike(averages["deviation"])
        if self._uniform is None:
            return
        yield _no_better_than_uniform(averages["loss"], self._uniform)
        if "entropy" in averages:
            yield _uniform_targets(averages["entropy"], self._uniform)
            yield _one_hot_targets(averages["entropy"], averages["kl"], self._uniform)


def _alike(deviation: float) -> Sign:
    return Sign(
        "alike",
        deviation,
        ALIKE,
        f"all images look alike: the deviation of their embeddings is {deviation:.3f} (1: evenly "
        "spread, 0: one point). Let a momentum teacher give the targets (teacher.follows=momentum, "
        "teacher.momentum=0.99 or more) and lower optimizer.lr",
    )


def _no_better_than_uniform(loss: float, uniform: float) -> Sign:
    return Sign(
        "start",
        abs(loss / uniform - 1),
        NEAR,
        f"the loss is {loss:.3f} and ln K = {uniform:.3f}: the student does no better than a "
        "guess that is the same for every image. Lower teacher.temperature, or set "
        "head.batch_norm=true; in a short run also lower teacher.momentum",
    )


def _uniform_targets(entropy: float, uniform: float) -> Sign:
    return Sign(
        "uniform",
        1 - entropy / uniform,
        NEAR,
        f"the targets are uniform: their entropy is {entropy:.3f} and ln K = {uniform:.3f}. "
        "Sharpen them: lower teacher.temperature and teacher.warmup_temperature (swav: "
        "objective.epsilon)",
    )


def _one_hot_targets(entropy: float, kl: float, uniform: float) -> Sign:
    seen = f"the targets are one-hot: their entropy is {entropy:.3f} of at most {uniform:.3f}"
    if kl < NEAR * uniform:
        seen += f", and the KL from the student to them is {kl:.3f}: every image has one answer"
    return Sign(
        "one-hot",
        entropy / uniform,
        NEAR,
        f"{seen}. Balance them by centring (teacher.center_momentum=0.9) or by Sinkhorn-Knopp "
        "(objective.targets=sinkhorn), raise teacher.temperature, and let a momentum teacher give "
        "them (teacher.follows=momentum)",
    )
