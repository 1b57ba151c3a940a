"""At which of its settings each peer is at its best: measured once, then kept."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.serving import bare
from benchmarks.serving.models import CACHE, model
from benchmarks.serving.servers import PEERS, Server, tuned

SECONDS = 3.0


def choose(name: str) -> dict[str, Any]:
    """Measure every setting with the named model; keep and give the best and all the rates."""
    bundle = model(name)
    batch, rates = bare.best_batch(bundle, SECONDS)
    chosen: dict[str, Any] = {"bare": {"batch": batch, "rates": rates}}
    for peer in PEERS:
        best, rates = tuned(peer, bundle, SECONDS)
        chosen[peer.name] = {"setting": best.settings[0], "rates": rates}
        print(f"{name}, {peer.name}: {rates}", flush=True)
    _file(name).write_text(json.dumps(chosen, indent=2))
    return chosen


def best(name: str) -> dict[str, Any]:
    """What `choose` found, or finds now."""
    return json.loads(_file(name).read_text()) if _file(name).exists() else choose(name)


def at_their_best(name: str) -> list[Server]:
    """The peers, each at its best setting for the named model."""
    chosen = best(name)
    return [peer.at(chosen[peer.name]["setting"]) for peer in PEERS]


def _file(name: str) -> Any:
    return CACHE / f"settings-{name}.json"
