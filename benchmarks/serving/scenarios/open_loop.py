"""Latency at 70 % of capacity: arrivals that do not wait for answers."""

from __future__ import annotations

from benchmarks.serving import settings
from benchmarks.serving.load import Outcome
from benchmarks.serving.models import model
from benchmarks.serving.results import rounded, target, write
from benchmarks.serving.servers import AUTO, FP32, lineup

SHARE = 0.7
# A peer that this rate nearly fills only shows its queue growing.
ROOM = 0.9


def open_loop(rounds: int, seconds: float) -> None:
    """Every server at one rate, 70 % of the best peer's capacity, with the same arrivals."""
    bundle, ours = model("vit"), {FP32.name, AUTO.name}
    with lineup([FP32, AUTO, *settings.at_their_best("vit")], bundle) as sides:
        capacity = {}
        for side in sides:
            with side.turn():
                capacity[side.server.name] = side.load(connections=16, seconds=seconds / 3).rate
        best = max(rate for name, rate in capacity.items() if name not in ours)
        rate = SHARE * best
        full = {n: rounded(c) for n, c in capacity.items() if n not in ours and rate > ROOM * c}
        kept = [side for side in sides if side.server.name not in full]
        found: list[dict[str, Outcome]] = []
        for number in range(rounds):
            outcomes = {}
            for side in kept[:: -1 if number % 2 else 1]:
                with side.turn():
                    outcomes[side.server.name] = side.load(rate=rate, seconds=seconds, seed=number)
            found.append(outcomes)
    peers = [side.server.name for side in kept if side.server.name not in ours]
    write(
        "open",
        f"ViT-S/16, Poisson arrivals at {rate:.1f}/s, 70 % of the best peer's capacity; latency "
        "from the time a request was due",
        {
            side.server.name: {
                "capacity, images/s": rounded(capacity[side.server.name]),
                **_latency([outcomes[side.server.name] for outcomes in found]),
            }
            for side in kept
        },
        targets=[
            target(
                f"p99 of {name} over the best peer's",
                (
                    o[name].percentile(99) / min(o[peer].percentile(99) for peer in peers)
                    for o in found
                ),
                most=0.5,
            )
            for name in (AUTO.name, FP32.name)
        ],
        left_out=full,
    )


def _latency(outcomes: list[Outcome]) -> dict[str, float | str]:
    pooled = Outcome(1, latencies={"200": [s for o in outcomes for s in o.latencies["200"]]})
    failed = sum(sum(o.statuses.values()) - o.statuses["200"] for o in outcomes)
    return {
        "p50 ms": rounded(1000 * pooled.percentile(50)),
        "p99 ms": rounded(1000 * pooled.percentile(99)),
        "requests": len(pooled.latencies["200"]),
        "failed": failed,
    }
