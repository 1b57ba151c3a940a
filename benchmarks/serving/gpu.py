"""Images a second of the papers' three backbones on one GPU, in fp16.

    python -m benchmarks.serving.gpu [--device cpu --tiny]

ViT-S/16, ViT-B/16 and Swin-T at 224 px, random weights, in batches up to 256. `torch` embeds
normalised images that lie on the device, as the papers measured (DINO's table 2 and EsViT's table
1, on one V100 at 128 images). `ONNX Runtime CUDA` runs the exported graph at fp32, raw images in
and embeddings out over the bus, where this build of it finds the GPU. A figure is the median of
the rounds. Writes serving_gpu.json and serving_gpu.md to $OUT, or benchmarks/results.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from benchmarks.machine import describe
from training.build import build_backbone
from training.config import ModelConfig
from training.export.onnx import card_of, input_spec, write_bundle
from training.models.backbone import Backbone

RESULTS = Path(__file__).parents[1] / "results"
MODELS = {
    "ViT-S/16": ModelConfig(architecture="vit_small", patch_size=16),
    "ViT-B/16": ModelConfig(architecture="vit_base", patch_size=16),
    "Swin-T": ModelConfig(architecture="swin_tiny", window=7),
}
# Images a second on one V100: Caron et al. (2021), table 2; Li et al. (2022), table 1.
PAPERS = {"ViT-S/16": 1007, "ViT-B/16": 312, "Swin-T": 808}
ROUNDS, SECONDS = 5, 0.5
Embed = Callable[[], object]


def by_torch(backbone: Backbone, batch: int, side: int, device: torch.device) -> Embed:
    """Embeds a batch of noise in fp16."""
    images = torch.randn(batch, 3, side, side, dtype=torch.float16, device=device)

    def embed() -> None:
        with torch.inference_mode():
            backbone(images)

    return embed


def by_onnx_runtime(session: ort.InferenceSession, batch: int, side: int) -> Embed:
    """Embeds a batch of raw noise."""
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    return lambda: session.run(["embedding"], {"images": images})


def session(backbone: Backbone, config: ModelConfig, provider: str) -> ort.InferenceSession | None:
    """A backbone's exported graph on ONNX Runtime; None where that lacks the provider.

    Where a library of CUDA's is missing it would quietly take the processor.
    """
    if provider not in ort.get_available_providers():
        return None
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(
            Path(folder),
            backbone,
            card_of(
                backbone,
                name="benchmark",
                architecture=config.architecture,
                spec=input_spec(backbone, 224),
                training={"weights": "random"},
                evaluation=(),
                licence="Apache-2.0",
            ),
        )
        loaded = ort.InferenceSession(bundle.graph, providers=[provider])
    return loaded if provider in loaded.get_providers() else None


def rate(embed: Embed, batch: int, wait: Callable[[], object], seconds: float) -> float:
    """Images a second: the median of rounds, after one that warms up and tells how many runs fit.

    Args:
        embed: Starts a run.
        batch: Images in it.
        wait: Returns when all that was started is done.
        seconds: That a round takes, about.
    """

    def timed(runs: int) -> float:
        started = time.perf_counter()
        for _ in range(runs):
            embed()
        wait()
        return time.perf_counter() - started

    timed(2)
    runs = max(1, round(seconds / (timed(2) / 2)))
    return statistics.median(batch * runs / timed(runs) for _ in range(ROUNDS))


def sweep(
    build: Callable[[int], Embed], batches: list[int], wait: Callable[[], object], seconds: float
) -> dict[int, float]:
    """The rate at each batch, up to the first that does not fit in memory."""
    rates = {}
    for batch in batches:
        try:
            rates[batch] = round(rate(build(batch), batch, wait, seconds), 1)
        except torch.OutOfMemoryError:
            break
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    return rates


def table(result: dict[str, Any]) -> str:
    """The result for people: a row for each model and way to run it."""
    batches = sorted({int(batch) for row in result["rows"] for batch in row["rates"]})
    head = ["model", "by", *(f"batch {batch}" for batch in batches), "best", "paper, V100", "ratio"]
    lines = [head, ["---", "---", *["---:"] * (len(batches) + 3)]]
    for row in result["rows"]:
        rates = {int(batch): value for batch, value in row["rates"].items()}
        best, paper = max(rates.values()), PAPERS[row["model"]]
        cells = [f"{rates[batch]:,.0f}" if batch in rates else "" for batch in batches]
        figures = [f"{best:,.0f}", f"{paper:,}", f"{best / paper:.1f}"]
        lines.append([row["model"], row["by"], *cells, *figures])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"Images a second, {result['side']} px, {result['device']}.\n\n{body}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="one model, small images: a rehearsal")
    arguments = parser.parse_args()
    device, tiny = torch.device(arguments.device), arguments.tiny
    on_gpu = device.type == "cuda"
    side, seconds = (32, 0.01) if tiny else (224, SECONDS)
    batches = [1, 2] if tiny else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    result: dict[str, Any] = {
        "what": "embeddings, images a second",
        "command": "python -m benchmarks.serving.gpu",
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "side": side,
        "papers, V100": PAPERS,
        "machine": describe("torch", "numpy"),
        "rows": [],
    }
    out = Path(os.environ.get("OUT", RESULTS))
    out.mkdir(parents=True, exist_ok=True)

    def add(model: str, by: str, rates: dict[int, float]) -> None:
        result["rows"].append({"model": model, "by": by, "rates": rates})
        print(model, by, rates, flush=True)
        (out / "serving_gpu.json").write_text(json.dumps(result, indent=2) + "\n")
        (out / "serving_gpu.md").write_text(table(result))

    wait = torch.cuda.synchronize if on_gpu else lambda: None
    for name, config in list(MODELS.items())[: 1 if tiny else None]:
        torch.manual_seed(0)
        backbone = build_backbone(config, 224, 3).eval()
        graph = session(backbone, config, provider)
        half = backbone.half().to(device)
        rates = sweep(partial(by_torch, half, side=side, device=device), batches, wait, seconds)
        add(name, "torch, fp16", rates)
        if graph is not None:
            by = f"ONNX Runtime {ort.__version__} {'CUDA' if on_gpu else 'CPU'}, fp32"
            build = partial(by_onnx_runtime, graph, side=side)
            add(name, by, sweep(build, batches, lambda: None, seconds))
    print(table(result))


if __name__ == "__main__":
    main()
