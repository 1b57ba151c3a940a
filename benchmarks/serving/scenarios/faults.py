"""Broken images and clients that go away: who else suffers, and what is computed for nobody."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import chain

from benchmarks.serving.models import model
from benchmarks.serving.results import target, write
from benchmarks.serving.servers import FP32, NAIVE, PEERS, PeerFailed, Running, running

BROKEN, LEAVING = 0.01, 0.2
CONNECTIONS = 32


def faults(seconds: float) -> None:
    """Every server with batches, where it has them: they are what an image can spoil."""
    bundle = model("vit")
    peers = [p if p is NAIVE else p.at(p.settings[-1]) for p in PEERS]
    table = {}
    for server in chain((FP32,), peers):
        with suppress(PeerFailed), running(server, bundle) as side:
            side.load(seconds=2, connections=16)
            table[server.name] = _suffered(side, seconds)
    ours = table[FP32.name]
    write(
        "faults",
        f"ViT-S/16, {CONNECTIONS} connections, 1 % broken images, 20 % of the clients leave after "
        "50 ms",
        table,
        targets=[
            target("innocent requests that failed", [ours["innocents failed"]], most=0),
            # A client may leave while its image is in the model.
            target("abandoned images computed, %", [ours["abandoned computed, %"]], most=5),
        ],
    )


def _suffered(side: Running, seconds: float) -> dict[str, float | int | str]:
    before = side.computed()
    outcome = side.load(
        seconds=seconds, connections=CONNECTIONS, broken=BROKEN, leaving=LEAVING, patience=0.05
    )
    computed = _settled(side) - before
    failed = outcome.sent - outcome.statuses.get("200", 0)
    wasted = max(computed - outcome.answered, 0)
    return {
        "innocents": outcome.sent,
        "innocents failed": failed,
        "their answers": _counts(outcome.statuses),
        "broken images' answers": _counts(outcome.broken),
        "left": outcome.left,
        "abandoned computed": wasted,
        "abandoned computed, %": round(100 * wasted / max(outcome.left, 1), 1),
        "images/s": round(outcome.statuses.get("200", 0) / seconds, 1),
    }


def _settled(side: Running) -> int:
    """Images computed, once no more are: a server may still work for clients that have gone."""
    last, now = -1, side.computed()
    while now != last:
        time.sleep(2)
        last, now = now, side.computed()
    return now


def _counts(statuses: dict[str, int]) -> str:
    """Statuses and how many; 0 is a connection that ended without an answer."""
    return ", ".join(f"{n} x {status}" for status, n in sorted(statuses.items())) or "none"
