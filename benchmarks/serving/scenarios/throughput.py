"""Images a second and processor time an image: all sides in turn, beside no server at all."""

from __future__ import annotations

from itertools import chain
from typing import Any

from benchmarks.serving import bare, settings
from benchmarks.serving.models import model
from benchmarks.serving.results import medians, target, write
from benchmarks.serving.servers import (
    AUTO,
    FP32,
    MOSEC,
    PEERS,
    Running,
    lineup,
    with_our_preprocessing,
)

NAMES = {peer.name for peer in PEERS}

Rounds = list[dict[str, dict[str, float]]]


def throughput(rounds: int, seconds: float) -> None:
    """ViT-S/16: the model is the load."""
    found = measure("vit", (16, 64), rounds, seconds)
    targets = list(
        chain.from_iterable(
            (
                target(
                    f"fp32 over the bare loop, {c} connections",
                    (r["foveal fp32"][f"images/s, {c}"] / r["bare"]["images/s"] for r in found),
                    least=0.95,
                ),
                target(
                    f"fp32 over the best peer, {c} connections",
                    (r["foveal fp32"][f"images/s, {c}"] / _best(r, c) for r in found),
                    least=1.0,
                ),
                target(
                    f"auto over the best peer, {c} connections",
                    (r["foveal auto"][f"images/s, {c}"] / _best(r, c) for r in found),
                    least=2.0,
                ),
            )
            for c in (16, 64)
        )
    )
    _write("throughput", "ViT-S/16 at 224 px, 640x480 JPEGs, closed loop", "vit", found, targets)


def null(rounds: int, seconds: float) -> None:
    """A near-null model: the server is the load."""
    found = measure("null", (16,), rounds, seconds)
    targets = [
        target(
            "images/s over the best peer's",
            (r["foveal fp32"]["images/s, 16"] / _best(r, 16) for r in found),
            least=1.5,
        ),
        target(
            "processor time an image over the least of the peers'",
            (
                r["foveal fp32"]["CPU ms, 16"] / min(r[p]["CPU ms, 16"] for p in NAMES & r.keys())
                for r in found
            ),
            most=0.7,
        ),
        target(
            "images/s over the bare loop's",
            (r["foveal fp32"]["images/s, 16"] / r["bare"]["images/s"] for r in found),
            least=0.85,
        ),
    ]
    _write("null", "A near-null model, 640x480 JPEGs, closed loop", "null", found, targets)


def measure(name: str, connections: tuple[int, ...], rounds: int, seconds: float) -> Rounds:
    """Rounds of all sides, every other one in the opposite order."""
    bundle, chosen = model(name), settings.best(name)
    peers = settings.at_their_best(name)
    # The quickest of them all, for comparison only.
    (mosec,) = (with_our_preprocessing(peer) for peer in peers if peer.name == MOSEC.name)
    ours = [FP32, AUTO] if name == "vit" else [FP32]
    found: Rounds = []
    with lineup([*ours, *peers, mosec], bundle) as sides:
        for number in range(rounds):
            speed = bare.measure(bundle, chosen["bare"]["batch"], seconds)
            figures = {"bare": {"images/s": speed.rate, "CPU ms": 1000 * speed.cpu}}
            for side in sides[:: -1 if number % 2 else 1]:
                with side.turn():
                    figures[side.server.name] = dict(
                        chain.from_iterable(_figures(side, c, seconds) for c in connections)
                    )
            found.append(figures)
            print({side: {k: round(v, 2) for k, v in f.items()} for side, f in figures.items()})
    return found


def _figures(side: Running, connections: int, seconds: float) -> list[tuple[str, float]]:
    before = side.process.cpu()
    outcome = side.load(connections=connections, seconds=seconds)
    if outcome.statuses.keys() != {"200"}:
        raise RuntimeError(f"{side.server.name} answered {outcome.statuses}")
    # What was answered in the ramp counts here: its processor time was taken as well.
    cpu = (side.process.cpu() - before) / outcome.answered
    return [
        (f"images/s, {connections}", outcome.rate),
        (f"CPU ms, {connections}", 1000 * cpu),
        (f"p99 ms, {connections}", 1000 * outcome.percentile(99)),
    ]


def _best(figures: dict[str, dict[str, float]], connections: int) -> float:
    return max(figures[peer][f"images/s, {connections}"] for peer in NAMES & figures.keys())


def _write(
    scenario: str, what: str, name: str, found: Rounds, targets: list[dict[str, Any]]
) -> None:
    bare = medians([r["bare"] for r in found])
    table: dict[str, Any] = {
        "bare": {"images/s, 16": bare["images/s"], "CPU ms, 16": bare["CPU ms"]},
        **{s: medians([r[s] for r in found]) for s in found[0] if s != "bare"},
    }
    bundle = model(name)
    write(
        scenario,
        what,
        table,
        targets=targets,
        settings=settings.best(name),
        digest=bundle.digest,
        rounds=found,
    )
