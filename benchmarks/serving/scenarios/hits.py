"""Cache hits over HTTP, beside a bare FastAPI route that hashes the body and looks it up."""

from __future__ import annotations

import sys
from dataclasses import replace
from urllib.request import Request, urlopen

from benchmarks.serving import images
from benchmarks.serving.load import read
from benchmarks.serving.models import CACHE, model
from benchmarks.serving.results import medians, target, write
from benchmarks.serving.servers import Running, Server, foveal, running

IMAGES = 64
CACHED = foveal("fp32", FOVEAL_CACHE_BYTES="268435456")
ANSWER = CACHE / "answer.json"
ROUTE = Server(
    "bare FastAPI route",
    (sys.executable, "-m", "benchmarks.serving.peers.hit_route"),
    ({"BENCH_ANSWER": str(ANSWER)},),
)
SIZES = {"photographs": images.PHOTO, "thumbnails": images.THUMBNAIL}


def hits(rounds: int, seconds: float) -> None:
    """The same few images again and again, large ones and small ones."""
    bundle = model("vit")
    table, targets, all_rounds = {}, [], {}
    with running(CACHED, bundle) as ours:
        _ask_once(ours)
        with running(ROUTE, bundle) as route:
            for name, size in SIZES.items():
                folder = str(images.written(IMAGES, size))
                for side in (ours, route):
                    side.spec = replace(side.spec, images=folder)
                _fill(ours)
                found = []
                for number in range(rounds):
                    sides = (ours, route) if number % 2 else (route, ours)
                    found.append({s.server.name: _figures(s, seconds) for s in sides})
                for side in (ours, route):
                    table[f"{side.server.name}, {name}"] = medians(
                        [r[side.server.name] for r in found]
                    )
                targets.append(
                    target(
                        f"requests/s over the bare route's, {name}",
                        (r[CACHED.name]["requests/s"] / r[ROUTE.name]["requests/s"] for r in found),
                        least=0.7,
                    )
                )
                all_rounds[name] = found
    write("hits", "Cache hits, 16 connections", table, targets=targets, rounds=all_rounds)


def _fill(ours: Running) -> None:
    """Ask until nothing new is computed."""
    last = -1
    while (now := ours.computed()) != last:
        last = now
        ours.load(seconds=3)


def _ask_once(ours: Running) -> None:
    """Keep one answer, which the bare route then gives."""
    photo = read(images.written(IMAGES))[0]
    url = f"http://127.0.0.1:{ours.port}{ours.server.path}"
    with urlopen(Request(url, photo, {"Content-Type": "image/jpeg"})) as answer:
        ANSWER.write_bytes(answer.read())


def _figures(side: Running, seconds: float) -> dict[str, float]:
    before = side.process.cpu()
    outcome = side.load(seconds=seconds)
    return {
        "requests/s": outcome.rate,
        "CPU us": 1e6 * (side.process.cpu() - before) / outcome.answered,
        "client's CPU, %": 100 * outcome.cpu / (seconds + 1),
    }
