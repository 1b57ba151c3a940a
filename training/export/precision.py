"""What a lower precision costs and gains: measured on real images, written into the bundle."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from service.bundle import INT8_GRAPH, MANIFEST, Bundle, Manifest, Precision, sha256
from service.engines.base import Engine, Images
from service.engines.choose import AUTO, BASE, Choice, allowed, build, instructions, obstacle
from service.settings import Settings
from training.data.sources import Source
from training.evaluation.features import Embedded, Report, batches
from training.evaluation.knn import unit
from training.evaluation.validation import Validation
from training.export.folding import folded

ROUNDS = 7

Engines = dict[Choice, Engine]


def add_int8(bundle: Bundle) -> Bundle:
    """Write the graph once more, with the products with weights in int8.

    Each column of a weight matrix has its own scale, found now; activations get theirs when they
    are computed. Convolution, norms, softmax and the products within attention stay in fp32.
    """
    # The quantiser looks for weights, not for nodes, and the exporter leaves the transposition of a
    # weight that is used twice, as in a ViT's last block.
    model = folded(bundle.graph)
    # Otherwise the quantiser advises to prepare the graph.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    path = bundle.path / INT8_GRAPH
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    return _rewritten(bundle, files=bundle.manifest.files | {INT8_GRAPH: sha256(path)})


def add_precisions(
    bundle: Bundle, validation: Validation, command: str, report: Report = lambda count: None
) -> Bundle:
    """Measure every engine and precision that runs here, and write what was found into the bundle.

    Args:
        bundle: With its int8 graph.
        validation: The images, and how they are classified.
        command: Measures it again.
        report: Told how many more images are done.

    Raises:
        BundleError: An engine cannot load the graph.
        DataError: No image can be read.
    """
    precisions = asyncio.run(_measure(bundle, validation, command, report))
    return _rewritten(bundle, precisions=precisions)


async def _measure(
    bundle: Bundle, validation: Validation, command: str, report: Report
) -> tuple[Precision, ...]:
    settings = Settings()
    present = instructions()
    async with AsyncExitStack() as stack:
        engines: Engines = {}
        for choice in allowed(AUTO, AUTO):
            if obstacle(bundle, present, choice) is None:
                engines[choice] = build(bundle, choice, settings)
                stack.push_async_callback(engines[choice].close)
                await engines[choice].warm_up()
        train, held_out = validation.train, validation.held_out
        keys = await _embed(engines, train, validation.among, bundle, report)
        queries = await _embed(engines, held_out, validation.queries, bundle, report)
        _, pixels = next(batches(held_out, validation.queries, bundle.manifest.input))
        speeds = await _speeds(engines, pixels)
    accuracy = {choice: validation.share(keys[choice], queries[choice]) for choice in engines}
    base = np.concatenate([keys[BASE].features, queries[BASE].features])
    records = []
    for choice in engines:
        features = np.concatenate([keys[choice].features, queries[choice].features])
        cosines = (unit(features).astype(np.float64) * unit(base)).sum(axis=1)
        records.append(
            Precision.model_validate(
                {
                    "engine": choice[0],
                    "precision": choice[1],
                    "cosine": round(float(cosines.mean()), 7),
                    "least_cosine": round(float(cosines.min()), 7),
                    "knn_change": round(accuracy[choice] - accuracy[BASE], 3),
                    "speed": round(speeds[choice], 2),
                    "images": len(cosines),
                    "command": command,
                }
            )
        )
    return tuple(records)


async def _embed(
    engines: Engines, source: Source, indices: Sequence[int], bundle: Bundle, report: Report
) -> dict[Choice, Embedded]:
    """Every engine's embeddings of the same pixels."""
    kept: list[int] = []
    rows: dict[Choice, list[NDArray[np.float32]]] = {choice: [] for choice in engines}
    for chosen, pixels in batches(source, indices, bundle.manifest.input):
        for choice, engine in engines.items():
            rows[choice].append(await _run(engine, pixels))
        kept.extend(chosen)
        report(len(chosen))
    return {choice: Embedded(np.concatenate(rows[choice]), kept) for choice in engines}


async def _run(engine: Engine, pixels: Images) -> NDArray[np.float32]:
    """Embed images as a busy gateway does: in batches of the engine's, as many as it has slots."""
    slots = asyncio.Semaphore(engine.slots)

    async def one(start: int) -> NDArray[np.float32]:
        async with slots:
            part = pixels[start : start + engine.max_batch]
            return (await engine.infer(part, ("embedding",)))["embedding"]

    starts = range(0, len(pixels), engine.max_batch)
    return np.concatenate(await asyncio.gather(*map(one, starts)))


async def _speeds(engines: Engines, pixels: Images) -> dict[Choice, float]:
    """Images a second over those of `BASE`: medians over rounds in which all take their turn."""
    loop = asyncio.get_running_loop()
    ratios: dict[Choice, list[float]] = {choice: [] for choice in engines}
    for _ in range(ROUNDS):
        seconds = {}
        for choice, engine in engines.items():
            started = loop.time()
            await _run(engine, pixels)
            seconds[choice] = loop.time() - started
        for choice, taken in seconds.items():
            ratios[choice].append(seconds[BASE] / taken)
    return {choice: statistics.median(found) for choice, found in ratios.items()}


def _rewritten(bundle: Bundle, **changes: Any) -> Bundle:
    manifest = Manifest.model_validate(bundle.manifest.model_dump() | changes)
    (bundle.path / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return Bundle.load(bundle.path)
