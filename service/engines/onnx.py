"""ONNX Runtime, on a GPU where its CUDA provider works and on the processor elsewhere."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort

from service.bundle import Bundle, BundleError
from service.engines.base import Images, Outputs

GPU = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
GPU_BATCH = 64
CPU_BATCHES = (1, 2, 4, 8)

Shape = tuple[int | None, ...]


class OnnxEngine:
    """Runs a bundle's graph with ONNX Runtime.

    A processor is fed with one single-threaded run a core, which gives more images a second than
    one run over all cores; but a run that starts while no other is in flight gets all cores, so
    that a lone request is answered soonest. That takes two sessions, each with the weights.

    Args:
        bundle: The model.
        threads: Processor cores to use.

    Raises:
        BundleError: The graph cannot be loaded or has another signature than the contract.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle = bundle
        self._narrow = _session(bundle, threads=1)
        _check_signature(bundle, self._narrow)
        self._gpu = GPU in self._narrow.get_providers()
        alone = self._gpu or threads == 1
        self._wide = self._narrow if alone else _session(bundle, threads)
        self.slots = 2 if self._gpu else threads
        self.max_batch = 1
        self._in_flight = 0
        self._ready = False
        self._pool = ThreadPoolExecutor(self.slots, "onnx")

    @property
    def ready(self) -> bool:
        """Whether the model is warm and not closed."""
        return self._ready

    async def infer(self, images: Images, outputs: tuple[str, ...]) -> Outputs:
        """Run images of one shape, uint8 [batch, height, width, 3], and give the named outputs."""
        self._in_flight += 1
        try:
            # Runs that start in the same turn of the loop see one another after it.
            await asyncio.sleep(0)
            session = self._wide if self._in_flight == 1 else self._narrow
            # The arena keeps what a run took for the next. After an unusual size it gives it back,
            # or a few large photographs would fill the memory for good.
            side = self._bundle.manifest.input.crop
            unusual = images.shape[1:3] != (side, side)
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, _run, session, images, outputs, unusual
            )
        finally:
            self._in_flight -= 1

    async def warm_up(self) -> None:
        """Choose `max_batch` and run each batch size up to it once in each session."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._warm_up)
        self._ready = True

    async def close(self) -> None:
        """Finish the runs in flight and release the model."""
        self._ready = False
        await asyncio.to_thread(self._pool.shutdown)

    def _warm_up(self) -> None:
        if self._gpu:
            self.max_batch = GPU_BATCH
        else:
            self.max_batch = best_batch(lambda size: self._time(self._narrow, size))
        for session in {self._narrow, self._wide}:
            size = 1
            while size <= self.max_batch:
                self._time(session, size)
                size *= 2

    def _time(self, session: ort.InferenceSession, size: int) -> float:
        side = self._bundle.manifest.input.crop
        images = np.zeros((size, side, side, 3), np.uint8)
        started = time.perf_counter()
        _run(session, images, self._bundle.manifest.outputs, shrink=False)
        return time.perf_counter() - started


def best_batch(run: Callable[[int], float]) -> int:
    """The largest of `CPU_BATCHES` that takes at most 5 % longer an image than the quickest.

    A larger batch saves a turn of the event loop for every image, worth a little of the model's
    time; on a processor it may cost more than that.

    Args:
        run: Runs a batch of the given size and tells the seconds it took.
    """
    for size in CPU_BATCHES:
        run(size)  # The first run of a shape also allocates.
    each = {size: statistics.median(run(size) for _ in range(5)) / size for size in CPU_BATCHES}
    return max(size for size in CPU_BATCHES if each[size] <= 1.05 * min(each.values()))


def _session(bundle: Bundle, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while they wait for work take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    available = ort.get_available_providers()
    providers = [name for name in (GPU, CPU) if name in available]
    try:
        return ort.InferenceSession(str(bundle.graph), options, providers=providers)
    except Exception as error:
        raise BundleError(f"{bundle.graph} cannot be loaded: {error}") from error


def _run(
    session: ort.InferenceSession, images: Images, outputs: tuple[str, ...], shrink: bool
) -> Outputs:
    options = ort.RunOptions()
    if shrink:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return dict(zip(outputs, session.run(list(outputs), {"images": images}, options), strict=True))


def _check_signature(bundle: Bundle, session: ort.InferenceSession) -> None:
    """Compare names, types and shapes with the contract of `service.bundle`."""
    manifest = bundle.manifest
    contract: dict[str, Shape] = {
        "embedding": (None, manifest.dim),
        "patches": (None, None, None, manifest.dim),
        "attention": (None, manifest.heads, None, None),
    }
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or not _is(inputs[0], "images", "tensor(uint8)", (None, None, None, 3)):
        raise BundleError(
            f"{bundle.graph} must have one input, images, uint8 [batch, height, width, 3], "
            f"with any batch; it has {_describe(inputs)}"
        )
    for name in manifest.outputs:
        if name not in contract:
            raise BundleError(f"{bundle.path} names an unknown output, {name!r}")
        if not any(_is(node, name, "tensor(float)", contract[name]) for node in outputs):
            raise BundleError(
                f"{bundle.graph} must have an output {name}, float32 {list(contract[name])}, "
                f"with any batch; it has {_describe(outputs)}"
            )


def _is(node: ort.NodeArg, name: str, kind: str, shape: Shape) -> bool:
    """Whether a node is as expected: None fits any size, a name in the graph fits any number."""
    return (
        (node.name, node.type, len(node.shape)) == (name, kind, len(shape))
        and not isinstance(node.shape[0], int)
        and all(
            want is None or not isinstance(size, int) or size == want
            for size, want in zip(node.shape, shape, strict=True)
        )
    )


def _describe(nodes: list[ort.NodeArg]) -> str:
    return ", ".join(f"{node.name} {node.type} {node.shape}" for node in nodes)
