"""Images a second: the gateway under 16 connections beside a bare loop without a server.

    python -m benchmarks.serving [PHOTOS]

Both sides take the same 640 x 480 JPEGs and run the same model in fp32. The bare loop keeps both
cores busy with what is needed and nothing else: one thread a core, each with a single-threaded
session, decodes, preprocesses and runs batches; of three batch sizes the one with the best median
counts. The gateway runs as `foveal serve` with its cache off. Rounds alternate; the result is the
median of the rounds' ratios. The client shares the cores with the gateway, which is charged for it.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from benchmarks.machine import describe
from service.bundle import DEFAULT, Bundle
from service.images import Limits, View, prepare
from tests.data import dataset

RESULT = Path(__file__).parent / "results" / "serving.json"
CONNECTIONS = 16
IMAGES = 1024
ROUNDS = 5
BARE_BATCHES = (1, 2, 8)
CORES = len(os.sched_getaffinity(0))
LIMITS = Limits(bytes=2**24, pixels=2**24, patches=2**12)


def jpegs(folder: Path) -> list[bytes]:
    """`IMAGES` JPEGs of 640 x 480 out of the photographs of a folder, all different."""
    photos = sorted(p for p in folder.iterdir() if p.suffix in {".jpg", ".png"})
    encoded = []
    for number in range(IMAGES):
        with Image.open(photos[number % len(photos)]) as photo:
            picture = photo.convert("RGB").resize((640, 480), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        # Bytes after a JPEG's end are no pixels, but no two images are then the same.
        encoded.append(file.getvalue() + number.to_bytes(4))
    return encoded


def bare_loop(bundle: Bundle, batch: int) -> Callable[[list[bytes]], float]:
    """Images a second without a server, as a function of the images."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [
        ort.InferenceSession(bundle.graph, options, providers=["CPUExecutionProvider"])
        for _ in range(CORES)
    ]

    def work(core: int, images: list[bytes]) -> None:
        spec = bundle.manifest.input
        for start in range(0, len(images), batch):
            pixels = [prepare(data, spec, View(), LIMITS) for data in images[start : start + batch]]
            sessions[core].run(["embedding"], {"images": np.stack(pixels)})

    def run(images: list[bytes]) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(CORES) as pool:
            shares = [images[core::CORES] for core in range(CORES)]
            list(pool.map(work, range(CORES), shares))
        return len(images) / (time.perf_counter() - started)

    return run


async def ask(port: int, requests: Iterator[bytes]) -> None:
    """Send requests over one connection until there are none left; each must be answered 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for data in requests:
        head = (
            "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        writer.writelines([head.encode(), data])
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the gateway answered {answer!r}")
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()


def served(port: int, images: list[bytes]) -> float:
    """Images a second through the gateway."""

    async def load() -> None:
        queue = iter(images)
        await asyncio.gather(*(ask(port, queue) for _ in range(CONNECTIONS)))

    started = time.perf_counter()
    asyncio.run(load())
    return len(images) / (time.perf_counter() - started)


@contextmanager
def gateway(bundle: Path) -> Iterator[int]:
    """`foveal serve` on a free port, without a cache."""
    with tempfile.TemporaryDirectory() as data:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("foveal"), "serve", "--port", "0", "--data", data],
            env={**os.environ, "FOVEAL_CACHE_BYTES": "0", "FOVEAL_MODEL": str(bundle)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().rsplit(":", 1)[1])
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    images = jpegs(Path(sys.argv[1]) if len(sys.argv) > 1 else dataset("photos"))
    bundle = Bundle.load(DEFAULT)
    loops = {batch: bare_loop(bundle, batch) for batch in BARE_BATCHES}
    rounds = []
    with gateway(DEFAULT) as port:
        for run in (*loops.values(), lambda some: served(port, some)):
            run(images[:64])  # warm-up
        for _ in range(ROUNDS):
            bare = {batch: round(run(images), 2) for batch, run in loops.items()}
            through = round(served(port, images), 2)
            rounds.append({"bare": bare, "served": through})
            print(json.dumps(rounds[-1]), flush=True)
    best = max(loops, key=lambda batch: statistics.median(r["bare"][batch] for r in rounds))
    ratios = [r["served"] / r["bare"][best] for r in rounds]
    result = {
        "what": f"served / bare, images/s, {CONNECTIONS} connections, 640x480 JPEG, fp32",
        "model": bundle.manifest.name,
        "digest": bundle.digest,
        "bare batch": best,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "rounds": rounds,
        "machine": describe("onnxruntime", "uvicorn", "fastapi", "pillow"),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"served / bare: {result['ratio']}")


if __name__ == "__main__":
    main()
