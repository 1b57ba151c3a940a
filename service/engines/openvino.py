"""OpenVINO, on Intel and AMD processors, in bf16 where they have it."""

from __future__ import annotations

import functools
import importlib
import queue
import sys
from typing import Any

import numpy as np

from service.bundle import Bundle, BundleError
from service.engines.base import EngineUnavailable, Images, Outputs
from service.engines.signature import Node, check_signature
from service.engines.threaded import ThreadedEngine

HINTS = {"fp32": "f32", "bf16": "bf16"}
DTYPES = {"u8": "uint8", "f32": "float32"}
# Each batch size is a graph of its own, half as large again in memory as the weights in fp32. Two
# images are already within a few hundredths of the most images a second.
BATCHES = (1, 2)


class OpenVinoEngine(ThreadedEngine):
    """Runs a bundle's graph with OpenVINO.

    Args:
        bundle: The model.
        threads: Processor cores to use.
        precision: `fp32` or `bf16`.

    Raises:
        BundleError: The graph cannot be loaded or has another signature than the contract.
        EngineUnavailable: OpenVINO is not installed.
    """

    def __init__(self, bundle: Bundle, threads: int, precision: str = "fp32") -> None:
        core = _core()
        try:
            model = core.read_model(bundle.graph)
            check_signature(bundle, _nodes(model.inputs), _nodes(model.outputs))
            options = {
                "INFERENCE_PRECISION_HINT": HINTS[precision],
                "INFERENCE_NUM_THREADS": threads,
                # Several servers on one machine would all pin themselves to its first cores.
                "ENABLE_CPU_PINNING": False,
                # Kernels kept for shapes seen: thousands by default, which photographs of many
                # aspects fill with gigabytes.
                "CPU_RUNTIME_CACHE_CAPACITY": 64,
            }
            beside = _Graphs(bundle, core, model, BATCHES, options | {"NUM_STREAMS": threads})
            alone = beside
            if threads > 1:
                alone = _Graphs(bundle, core, model, (1,), options | {"NUM_STREAMS": 1})
            # OpenVINO's bindings make tables as they first run, under a lock that they hold while
            # they wait for the interpreter. Two threads that came first together would wait for
            # each other for ever, so the first run is one thread's.
            side = bundle.manifest.input.crop
            alone(np.zeros((1, side, side, 3), np.uint8), bundle.manifest.outputs)
        except RuntimeError as error:
            raise BundleError(f"{bundle.graph} cannot be loaded: {error}") from error
        super().__init__(
            "openvino",
            precision,
            bundle,
            beside=beside,
            alone=alone,
            threads=threads,
            batches=BATCHES,
        )


class _Graphs:
    """The graph at fixed shapes for the default size, and with free ones for all others.

    With free shapes it runs at 0.6 to 0.9 of the speed.
    """

    def __init__(
        self,
        bundle: Bundle,
        core: Any,
        model: Any,
        batches: tuple[int, ...],
        options: dict[str, Any],
    ) -> None:
        side = bundle.manifest.input.crop
        self._usual_shape = (side, side, 3)
        self._fixed: dict[int, _Graph] = {}
        for batch in batches:
            fixed = model.clone()
            fixed.reshape([batch, *self._usual_shape])
            self._fixed[batch] = _Graph(core.compile_model(fixed, "CPU", options))
        self._free = _Graph(core.compile_model(model, "CPU", options))

    def __call__(self, images: Images, outputs: tuple[str, ...]) -> Outputs:
        if images.shape[1:] != self._usual_shape:
            return self._free(images, outputs)
        parts = []
        start = 0
        while start < len(images):
            batch = max(size for size in self._fixed if size <= len(images) - start)
            parts.append(self._fixed[batch](images[start : start + batch], outputs))
            start += batch
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


class _Graph:
    """A compiled graph and its requests, one for each thread that has run it at the same time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, images: Images, outputs: tuple[str, ...]) -> Outputs:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            arrays = request.infer({"images": images}, share_inputs=True, share_outputs=True)
            # The next run writes into the same memory.
            return {name: arrays[name].copy() for name in outputs}
        finally:
            self._idle.put(request)


@functools.cache
def _core() -> Any:
    """The one core of the process.

    Its plugin gives the thread that loads it a stack for signal handlers, and takes away what is
    there as it is unloaded. With a core for each engine, the first signal after one of two engines
    had gone ended the process.
    """
    # OpenVINO reports each import to its makers over the network if it finds this package.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino").Core()
    except ModuleNotFoundError:
        raise EngineUnavailable(
            "OpenVINO is not installed: in the checkout, pip install -e '.[openvino]'; or take "
            "another engine"
        ) from None


def _nodes(ports: Any) -> list[Node]:
    return [
        Node(
            port.any_name,
            DTYPES.get(port.element_type.to_string(), port.element_type.to_string()),
            tuple(
                size.get_length() if size.is_static else None for size in port.get_partial_shape()
            ),
        )
        for port in ports
    ]
