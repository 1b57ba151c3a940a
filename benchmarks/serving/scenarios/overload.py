"""Five times more than the gateway can do: what it still does, and how it says no."""

from __future__ import annotations

from benchmarks.serving.memory import Memory
from benchmarks.serving.models import model
from benchmarks.serving.results import rounded, target, write
from benchmarks.serving.servers import FP32, running

TIMES = 5


def overload(seconds: float) -> None:
    """Capacity in a closed loop, then arrivals at five times that rate."""
    with running(FP32, model("vit")) as gateway:
        gateway.load(seconds=2, connections=16)
        capacity = gateway.load(seconds=10, connections=16).rate
        with Memory(gateway.process) as memory:
            outcome = gateway.load(rate=TIMES * capacity, seconds=seconds, fresh=True)
        after = gateway.load(seconds=5, connections=16).rate
    # Those still queued when the flood ends do not count.
    good = outcome.in_time / seconds
    others = {s: n for s, n in outcome.statuses.items() if s not in ("200", "503")}
    middle = memory.series[len(memory.series) // 2][1]
    write(
        "overload",
        f"ViT-S/16, {TIMES} times capacity ({TIMES * capacity:.0f} requests/s) for {seconds:g} s",
        {
            FP32.name: {
                "capacity, images/s": rounded(capacity),
                "goodput, images/s": rounded(good),
                "afterwards, images/s": rounded(after),
                **{f"answers {s}": n for s, n in sorted(outcome.statuses.items())},
                "p50 of 200, ms": rounded(1000 * outcome.percentile(50)),
                "p50 of 503, ms": rounded(1000 * outcome.percentile(50, "503")),
                "p99 of 503, ms": rounded(1000 * outcome.percentile(99, "503")),
                "memory at most, MB": max(megabytes for _, megabytes in memory.series),
            }
        },
        targets=[
            target("goodput over capacity", [good / capacity], least=0.95),
            target("answers neither 200 nor 503", [sum(others.values())], most=0),
            target("p99 of 503, ms", [1000 * outcome.percentile(99, "503")], most=1000),
            target(
                "memory in the second half over that at half time",
                [max(mb for _, mb in memory.series[len(memory.series) // 2 :]) / middle],
                most=1.1,
            ),
        ],
        memory=memory.series,
    )
