"""The gateway before Triton, beside Triton asked directly with the same pixels."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.serving import images
from benchmarks.serving.direct import measure
from benchmarks.serving.load import read
from benchmarks.serving.models import CACHE, model
from benchmarks.serving.results import medians, target, write
from benchmarks.serving.servers import CORES, Running, foveal
from benchmarks.serving.servers import running as gateway
from service.bundle import Bundle
from service.images import Limits, View, prepare
from tests.triton_servers import TritonServer, running, write_repository

CONNECTIONS = 16
MAX_BATCH = 8
COUNT = 64
LIMITS = Limits(bytes=2**24, pixels=2**24, patches=2**12)


def triton(rounds: int, seconds: float) -> None:
    """ViT-S/16, on one server that all sides ask in turn; Triton at the better of two batches."""
    bundle = model("vit")
    pixels = fitted(bundle)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        write_repository(repository, bundle, max_batch=MAX_BATCH, max_queue=1024, instances=CORES)
        with running(repository, Path(folder)) as server:
            found = _turns(server, bundle, pixels, rounds, seconds)
    ratios = [
        r["gateway"] / max(rate for side, rate in r.items() if side != "gateway") for r in found
    ]
    write(
        "triton",
        f"ViT-S/16 in Triton with {CORES} single-threaded instances of a stand-in for its ONNX "
        f"Runtime backend, fitted 224 px images, {CONNECTIONS} connections",
        {side: {"images/s": rate} for side, rate in medians(found).items()},
        targets=[target("gateway over Triton asked directly", ratios, least=0.9)],
        rounds=found,
    )


def fitted(bundle: Bundle) -> Path:
    """A folder of images as the model takes them: files of uint8 [224, 224, 3]."""
    folder = CACHE / f"pixels-{COUNT}-{bundle.manifest.input.crop}"
    if not folder.is_dir():
        staging = folder.with_suffix(".new")
        staging.mkdir(parents=True, exist_ok=True)
        for number, photo in enumerate(read(images.written(COUNT))):
            image = prepare(photo, bundle.manifest.input, View(), LIMITS)
            (staging / f"{number:04}").write_bytes(image.tobytes())
        staging.rename(folder)
    return folder


def _turns(
    server: TritonServer, bundle: Bundle, pixels: Path, rounds: int, seconds: float
) -> list[dict[str, float]]:
    ours = foveal("auto", FOVEAL_ENGINE="triton", FOVEAL_TRITON_URLS=server.url)
    name, side = bundle.manifest.name, bundle.manifest.input.crop

    def directly(batch: int) -> float:
        connections = max(CONNECTIONS // batch, 2 * CORES)
        return measure(server.url, name, pixels, side, batch, connections, seconds)

    found = []
    with gateway(ours, bundle) as started:
        started.spec = replace(
            started.spec, path=f"/v2/models/{name}/infer", form="pixels", images=str(pixels)
        )
        sides = {
            "gateway": lambda: _rate(started, seconds),
            **{f"Triton, {n} images a request": partial(directly, n) for n in (1, MAX_BATCH)},
        }
        # The first runs of each batch size also allocate.
        started.load(connections=CONNECTIONS, seconds=3)
        started.process.pause()
        for number in range(rounds):
            turns = [*sides.items()][:: -1 if number % 2 else 1]
            found.append({key: rate() for key, rate in turns})
            print({key: round(rate, 2) for key, rate in found[-1].items()}, flush=True)
    return found


def _rate(started: Running, seconds: float) -> float:
    with started.turn():
        outcome = started.load(connections=CONNECTIONS, seconds=seconds)
    if outcome.statuses.keys() != {"200"}:
        raise RuntimeError(f"the gateway answered {outcome.statuses}")
    return outcome.rate
