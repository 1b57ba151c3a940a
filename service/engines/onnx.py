"""ONNX Runtime, on a GPU where its CUDA provider works and on the processor elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.bundle import Bundle, BundleError
from service.engines.base import EngineUnavailable, Images, Outputs
from service.engines.signature import Node, check_signature
from service.engines.threaded import ThreadedEngine

logger = logging.getLogger(__name__)

Provider = tuple[str, dict[str, Any]]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
ON_PROCESSORS: list[Provider] = [(CPU, {})]
GPU_BATCH = 64
CPU_BATCHES = (1, 2, 4, 8)
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxEngine(ThreadedEngine):
    """Runs a bundle's graph with ONNX Runtime.

    Args:
        bundle: The model.
        threads: Processor cores to use.
        precision: `fp32`, or `int8` on a processor.
        gpu_bytes: The most memory that the graph takes on a GPU; None for all there is.

    Attributes:
        on_gpu: Whether a GPU runs it.

    Raises:
        BundleError: The graph cannot be loaded or has another signature than the contract.
        EngineUnavailable: The bundle has no int8 graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        precision: str = "fp32",
        *,
        gpu_bytes: int | None = None,
    ) -> None:
        int8 = precision == "int8"
        graph = bundle.int8_graph if int8 else bundle.graph
        if graph is None:
            raise EngineUnavailable(
                f"{bundle.path} has no int8 graph; `foveal-train measure {bundle.path}` adds it, "
                "or take another precision"
            )
        # ONNX Runtime has no kernels for products in int8 on a GPU.
        chosen = ON_PROCESSORS if int8 else providers(ort.get_available_providers(), gpu_bytes)
        narrow = _session(graph, 1, chosen)
        check_signature(bundle, _nodes(narrow.get_inputs()), _nodes(narrow.get_outputs()))
        side = bundle.manifest.input.crop
        self.on_gpu = CUDA in narrow.get_providers()
        if self.on_gpu:
            run = Graph(narrow, side, padded=True)
            super().__init__(
                "onnx", precision, bundle, beside=run, alone=run, threads=1, batches=(GPU_BATCH,)
            )
            return
        if chosen != ON_PROCESSORS:
            logger.warning("onnxruntime-gpu finds no GPU that it can use: processors run the model")
        wide = narrow if threads == 1 else _session(graph, threads, ON_PROCESSORS)
        super().__init__(
            "onnx",
            precision,
            bundle,
            beside=Graph(narrow, side),
            alone=Graph(wide, side),
            threads=threads,
            # A run has one scale for the activations of all its images: in a batch of several,
            # the numbers of one image would depend on the others.
            batches=(1,) if int8 else CPU_BATCHES,
        )


class Graph:
    """Runs a session.

    Args:
        session: For every size.
        side: The usual height and width.
        padded: Fill batches up to a power of two. A GPU takes little longer for it, and its
            memory and kernels are prepared for seven batch sizes instead of 64.
    """

    def __init__(self, session: ort.InferenceSession, side: int, padded: bool = False) -> None:
        self._session = session
        self._usual_shape = (side, side, 3)
        self._padded = padded
        # The arena keeps what a run took for the next. After an unusual size it gives it back, or a
        # few large photographs would fill the memory for good.
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry(
            "memory.enable_memory_arena_shrinkage",
            "cpu:0;gpu:0" if CUDA in session.get_providers() else "cpu:0",
        )

    def __call__(self, images: Images, outputs: tuple[str, ...]) -> Outputs:
        """Run images of one shape and give the named outputs."""
        count = len(images)
        if self._padded:
            images = pad(images)
        options = None if images.shape[1:] == self._usual_shape else self._shrink
        arrays = self._session.run(list(outputs), {"images": images}, options)
        return {name: array[:count] for name, array in zip(outputs, arrays, strict=True)}


def pad(images: Images) -> Images:
    """Fill a batch with black images up to the next power of two."""
    wanted = 1 << (len(images) - 1).bit_length()
    return np.pad(images, ((0, wanted - len(images)), (0, 0), (0, 0), (0, 0)))


def providers(available: list[str], gpu_bytes: int | None) -> list[Provider]:
    """CUDA and the processor, as far as this build of ONNX Runtime has them.

    Args:
        available: Providers of the build.
        gpu_bytes: The most memory of the GPU's arena; None for no bound.
    """
    # By default the arena doubles whenever it grows, and holds up to twice what it needs.
    cuda: dict[str, Any] = {"arena_extend_strategy": "kSameAsRequested"}
    if gpu_bytes is not None:
        cuda["gpu_mem_limit"] = gpu_bytes
    return [(name, options) for name, options in ((CUDA, cuda), (CPU, {})) if name in available]


def _session(graph: Path, threads: int, chosen: list[Provider]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while they wait for work take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(graph), options, providers=chosen)
    except Exception as error:
        raise BundleError(f"{graph} cannot be loaded: {error}") from error


def _nodes(args: list[ort.NodeArg]) -> list[Node]:
    return [
        Node(
            arg.name,
            DTYPES.get(arg.type, arg.type),
            tuple(size if isinstance(size, int) else None for size in arg.shape),
        )
        for arg in args
    ]
