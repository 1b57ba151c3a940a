"""How Triton is to serve a bundle: its `ModelConfig`, in protobuf's text format.

Field names and their meaning: triton-inference-server/common, protobuf/model_config.proto; the
parameters of TensorRT: the table in triton-inference-server/onnxruntime_backend, README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from service.bundle import GRAPH, Bundle
from training.export.fixed_size import output_shapes

FIXED_GRAPH = "model.fixed.onnx"
PLAN = "model.plan"

GPU_BATCH = 64
CPU_BATCH = 8
# One run copies its images to the GPU and its answers back while the other computes.
GPU_INSTANCES = 2
# What a gateway gives a request, in microseconds; each request may bring less.
TIMEOUT = 30_000_000
# Requests. Each gateway has a few in flight and queues its images itself.
MAX_QUEUE = 256
# Where TensorRT's plans are kept: a volume mounted there saves minutes at each start.
PLANS = "/tmp/foveal-plans"  # noqa: S108 - in the container, where a volume may be mounted


class Enum(str):
    """A value of an enumeration, which is written without quotes."""


Scalar = str | int | bool
Value = Scalar | Mapping[str, "Value"] | Sequence["Value"]
Message = Mapping[str, Value]


def configurations(bundle: Bundle, version: int) -> dict[str, Message]:
    """Every way to serve a version.

    Args:
        bundle: The model.
        version: Number of the folder that holds its files.

    Returns:
        By name: `cuda` and `cpu` run the graph at every size; `tensorrt` and `plan` run it in
        FP16 at the default size alone, one by ONNX Runtime, the other by a plan built before.
    """
    gpu = _served(bundle, version, GPU_BATCH) | _instances("KIND_GPU", GPU_INSTANCES)
    cpu = _served(bundle, version, CPU_BATCH) | _instances("KIND_CPU", 1)
    fp32, fp16 = (_parameters(bundle, precision) for precision in ("fp32", "fp16"))
    accelerator = {"gpu_execution_accelerator": _tensorrt(bundle)}
    return {
        "cuda": gpu | fp32 | _onnx(GRAPH) | _any_size(bundle),
        "tensorrt": gpu
        | fp16
        | _onnx(FIXED_GRAPH)
        | _default_size(bundle)
        | {"optimization": {"execution_accelerators": accelerator}},
        "plan": gpu
        | fp16
        | {"platform": "tensorrt_plan", "default_model_filename": PLAN}
        | _default_size(bundle),
        "cpu": cpu | fp32 | _onnx(GRAPH) | _any_size(bundle),
    }


def pbtxt(message: Message) -> str:
    """A message in protobuf's text format; a sequence is a repeated field."""
    return "".join(f"{line}\n" for line in _lines(message))


def profile(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """TensorRT's profile of `images`: the default size at every batch, best at the largest."""
    side = bundle.manifest.input.crop
    return {
        bound: (batch, side, side, 3)
        for bound, batch in (("min", 1), ("opt", GPU_BATCH), ("max", GPU_BATCH))
    }


def _served(bundle: Bundle, version: int, batch: int) -> dict[str, Value]:
    return {
        "name": bundle.manifest.name,
        "max_batch_size": batch,
        # Not the latest: a new version's files may lie there before this file names them.
        "version_policy": {"specific": {"versions": [version]}},
        "dynamic_batching": {
            # Whatever waits when an instance is free; nothing waits for company.
            "max_queue_delay_microseconds": 0,
            "default_queue_policy": {
                "timeout_action": Enum("REJECT"),
                "default_timeout_microseconds": TIMEOUT,
                "allow_timeout_override": True,
                "max_queue_size": MAX_QUEUE,
            },
        },
        "model_warmup": [_warm_up(bundle, size) for size in (1, batch)],
    }


def _warm_up(bundle: Bundle, batch: int) -> Message:
    side = bundle.manifest.input.crop
    images: Message = {
        "data_type": Enum("TYPE_UINT8"),
        "dims": (side, side, 3),
        "zero_data": True,
    }
    return {"name": f"batch {batch}", "batch_size": batch, "inputs": _entry("images", images)}


def _parameters(bundle: Bundle, precision: str) -> dict[str, Value]:
    """By which the gateway knows whose numbers these are."""
    known = {"digest": bundle.digest, "precision": precision}
    return {"parameters": [_entry(key, {"string_value": value}) for key, value in known.items()]}


def _onnx(graph: str) -> dict[str, Value]:
    return {"backend": "onnxruntime", "default_model_filename": graph}


def _instances(kind: str, count: int) -> dict[str, Value]:
    return {"instance_group": {"count": count, "kind": Enum(kind)}}


def _any_size(bundle: Bundle) -> dict[str, Value]:
    manifest = bundle.manifest
    shapes = {
        "embedding": (manifest.dim,),
        "patches": (-1, -1, manifest.dim),
        "attention": (manifest.heads, -1, -1),
    }
    return _tensors((-1, -1, 3), {name: shapes[name] for name in manifest.outputs})


def _default_size(bundle: Bundle) -> dict[str, Value]:
    side = bundle.manifest.input.crop
    return _tensors((side, side, 3), output_shapes(bundle))


def _tensors(images: tuple[int, ...], outputs: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    """Names, types and shapes without the batch."""
    return {
        "input": {"name": "images", "data_type": Enum("TYPE_UINT8"), "dims": images},
        "output": [
            {"name": name, "data_type": Enum("TYPE_FP32"), "dims": shape}
            for name, shape in outputs.items()
        ],
    }


def _tensorrt(bundle: Bundle) -> Message:
    parameters = {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": PLANS,
        # ONNX Runtime adds versions and the GPU's architecture, but looks at no weight.
        "trt_engine_cache_prefix": bundle.digest,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": PLANS,
    } | {
        f"trt_profile_{bound}_shapes": f"images:{'x'.join(map(str, shape))}"
        for bound, shape in profile(bundle).items()
    }
    entries = [_entry(key, value) for key, value in parameters.items()]
    return {"name": "tensorrt", "parameters": entries}


def _entry(key: str, value: Value) -> Message:
    """One pair of a map."""
    return {"key": key, "value": value}


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        for one in (value,) if isinstance(value, Scalar | Mapping) else value:
            if isinstance(one, Mapping):
                yield f"{name} {{"
                yield from (f"  {line}" for line in _lines(one))
                yield "}"
            else:
                yield f"{name}: {_scalar(one)}"


def _scalar(value: Value) -> str:
    """Text format quotes and escapes as JSON does; its truth values are JSON's, too."""
    return value if isinstance(value, Enum) else json.dumps(value)
