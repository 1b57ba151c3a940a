"""Half an hour of everything at once: does memory stay flat, and does nothing fail?"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import replace

from benchmarks.serving.memory import Memory
from benchmarks.serving.models import model
from benchmarks.serving.results import rounded, target, write
from benchmarks.serving.servers import foveal, running

# Small enough to be full after a minute: most of a soak is then eviction.
CACHED = foveal("auto", FOVEAL_CACHE_BYTES="1000000")
PATHS = ("/embed", "/attention", "/embed?fit=whole&size=160", "/embed?size=224")
STRETCH = 20.0  # seconds on one path


def soak(minutes: float) -> None:
    """Hits and misses, embeddings and attention, crops and wholes, broken images, leaving."""
    statuses: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    left = 0
    with running(CACHED, model("vit")) as gateway, Memory(gateway.process) as memory:
        until = time.monotonic() + 60 * minutes
        for number, path in enumerate(itertools.cycle(PATHS)):
            if time.monotonic() > until:
                break
            gateway.spec = replace(gateway.spec, path=path)
            outcome = gateway.load(
                seconds=STRETCH, connections=16, broken=0.01, leaving=0.05, seed=number
            )
            statuses.update(outcome.statuses)
            broken.update(outcome.broken)
            left += outcome.left
    slope = memory.slope()
    failed = sum(n for status, n in statuses.items() if status != "200")
    unsaid = sum(n for status, n in broken.items() if not status.startswith("4"))
    write(
        "soak",
        f"ViT-S/16, {minutes:g} minutes of {', '.join(PATHS)}; 1 % broken images, 5 % leave",
        {
            CACHED.name: {
                "answers 200": statuses["200"],
                "other answers": failed,
                "broken images not answered 4xx": unsaid,
                "left": left,
                "memory at first, MB": memory.series[0][1],
                "memory at last, MB": memory.series[-1][1],
                "MB an hour": rounded(slope),
            }
        },
        targets=[
            target("innocent requests that failed", [failed], most=0),
            target("broken images not answered 4xx", [unsaid], most=0),
            target("MB an hour over the last two thirds", [slope], most=20),
        ],
        memory=memory.series[::10],
    )
