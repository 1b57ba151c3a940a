"""From a bundle to a TensorRT plan for the GPU of this machine, and how faithful it is.

A plan runs on the kind of GPU and with the release of TensorRT that built it, so both name it in
the cache, beside the bundle's digest.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from service.bundle import LEAST_COSINE, MANIFEST, Bundle, BundleError, Evaluation, Manifest
from training.data.sources import Source
from training.evaluation.features import batches
from training.evaluation.knn import unit
from training.export.fixed_size import fixed_size
from training.export.triton_config import GPU_BATCH, profile

# From 11 on TensorRT takes types from the graph alone and has no flag for FP16.
MAJOR = 10
IMAGES = 256  # that fidelity is measured on

Arrays = Mapping[str, NDArray[np.float32]]
Profile = Mapping[str, tuple[int, ...]]
Run = Callable[[NDArray[np.uint8]], Arrays]  # uint8 [batch, height, width, 3] -> every output


class PlanError(BundleError):
    """No plan can be had here, or not a faithful one; the message says why and what else to do."""


class Builder(Protocol):
    """What builds and runs plans on this machine's GPU.

    Attributes:
        version: Of TensorRT.
        gpu: The GPU's name.
        capability: Its architecture, for example `9.0`.
    """

    version: str
    gpu: str
    capability: str

    def build(self, graph: bytes, profile: Profile) -> bytes:
        """A plan in FP16 of an ONNX graph, for shapes of `images` from `min` to `max`."""
        ...

    def load(self, plan: bytes) -> Run:
        """Make a plan ready to run."""
        ...


class TensorRT:
    """TensorRT's own builder, of NVIDIA's Python API for release 10.

    Raises:
        PlanError: There is no GPU, or no such release of TensorRT.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise PlanError(
                "there is no NVIDIA GPU here, and a plan is built on the kind of GPU that will run "
                "it; leave --plan out, and serve with --model-config-name=tensorrt"
            )
        try:
            self._library: Any = importlib.import_module("tensorrt")
        except ModuleNotFoundError:
            raise PlanError(
                "TensorRT is not installed: take the release that Triton has, as "
                "deploy/triton/README.md says, or leave --plan out"
            ) from None
        self.version: str = self._library.__version__
        if int(self.version.partition(".")[0]) != MAJOR:
            raise PlanError(
                f"TensorRT {self.version} is here, but plans are built by release {MAJOR}: "
                "take the one that Triton has, as deploy/triton/README.md says, or leave --plan out"
            )
        self.gpu = torch.cuda.get_device_name()
        self.capability = "{}.{}".format(*torch.cuda.get_device_capability())
        self._logger = self._library.Logger(self._library.Logger.WARNING)

    def build(self, graph: bytes, profile: Profile) -> bytes:
        """A plan in FP16 of an ONNX graph, for shapes of `images` from `min` to `max`."""
        trt = self._library
        builder = trt.Builder(self._logger)
        network = builder.create_network()
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(graph):
            faults = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise PlanError(f"TensorRT {self.version} cannot take in the graph: {faults}")
        shapes = builder.create_optimization_profile()
        shapes.set_shape("images", profile["min"], profile["opt"], profile["max"])
        config = builder.create_builder_config()
        config.add_optimization_profile(shapes)
        config.set_flag(trt.BuilderFlag.FP16)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise PlanError(f"TensorRT {self.version} built no plan; what it printed says why")
        return bytes(plan)

    def load(self, plan: bytes) -> Run:
        """Make a plan ready to run."""
        return _Context(self._library.Runtime(self._logger), plan)


class _Context:
    """A plan on the GPU, with torch's memory."""

    def __init__(self, runtime: Any, plan: bytes) -> None:
        self._runtime = runtime  # must outlive the engine
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise PlanError("TensorRT cannot load the plan; what it printed says why")
        self._context = self._engine.create_execution_context()

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        pixels = torch.from_numpy(images).cuda()
        self._context.set_input_shape("images", tuple(images.shape))
        self._context.set_tensor_address("images", pixels.data_ptr())
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        outputs = {}
        for name in names:
            if name != "images":
                shape = tuple(self._context.get_tensor_shape(name))
                outputs[name] = torch.empty(shape, device=pixels.device)
                self._context.set_tensor_address(name, outputs[name].data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise PlanError("TensorRT cannot run the plan; what it printed says why")
        torch.cuda.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def faithful_plan(
    bundle: Bundle, builder: Builder, cache: Path, source: Source, command: str
) -> tuple[Bundle, Path]:
    """A plan that is measured and may be served.

    Args:
        bundle: The model.
        builder: Of this machine.
        cache: Folder that keeps plans.
        source: Images to measure it on.
        command: Measures it again.

    Returns:
        The bundle with what was measured, and the plan.

    Raises:
        PlanError: TensorRT cannot build it, or it is not faithful to fp32.
        DataError: No image can be read.
    """
    plan = cached_plan(bundle, builder, cache)
    measured = fidelity(bundle, builder.load(plan.read_bytes()), source)
    if not (measured.cosine >= LEAST_COSINE and math.isfinite(measured.largest_difference)):
        raise PlanError(
            f"the plan is not faithful to fp32, so it is not served: mean cosine {measured.cosine} "
            f"of {LEAST_COSINE}, largest difference {measured.largest_difference}; leave --plan out"
        )
    return record(bundle, builder, measured, command), plan


def cached_plan(bundle: Bundle, builder: Builder, cache: Path) -> Path:
    """The plan of a bundle for this GPU, built unless the cache has it.

    Args:
        bundle: The model.
        builder: Of this machine.
        cache: Folder that keeps plans.

    Raises:
        PlanError: TensorRT cannot build it.
    """
    path = cache / _name(bundle, builder)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(f".{os.getpid()}")
        staging.write_bytes(builder.build(fixed_size(bundle).SerializeToString(), profile(bundle)))
        staging.replace(path)
    return path


def _name(bundle: Bundle, builder: Builder) -> str:
    gpu = re.sub(r"[^a-z0-9]+", "-", builder.gpu.lower()).strip("-")
    parts = (bundle.digest, f"b{GPU_BATCH}", f"sm{builder.capability}", gpu)
    return "_".join((*parts, f"trt{builder.version}")) + ".plan"


class Fidelity(NamedTuple):
    """How a plan's answers differ from the graph's, on real images.

    Attributes:
        cosine: Mean cosine of the embeddings.
        least_cosine: The least of them.
        largest_difference: Of any number of any output.
    """

    cosine: float
    least_cosine: float
    largest_difference: float


def fidelity(bundle: Bundle, run: Run, source: Source) -> Fidelity:
    """Compare a plan with the graph on ONNX Runtime at fp32.

    Args:
        bundle: The model.
        run: Its plan.
        source: Images, of which at most `IMAGES` are taken, evenly.

    Raises:
        DataError: No image can be read.
    """
    session = ort.InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    names = list(bundle.manifest.outputs)
    count = min(IMAGES, len(source))
    indices = [index * len(source) // count for index in range(count)]
    cosines, differences = [], []
    for _, pixels in batches(source, indices, bundle.manifest.input):
        given = run(pixels)
        expected = dict(zip(names, session.run(names, {"images": pixels}), strict=True))
        one, other = (unit(each["embedding"]).astype(np.float64) for each in (given, expected))
        cosines.append((one * other).sum(axis=1))
        differences += [np.abs(given[name] - expected[name]).max() for name in names]
    found = np.concatenate(cosines)
    # NumPy's maximum is not a number where one of them is none.
    return Fidelity(float(found.mean()), float(found.min()), float(np.max(differences)))


def record(bundle: Bundle, builder: Builder, measured: Fidelity, command: str) -> Bundle:
    """Write what was measured into the bundle, in place of what was there of the same GPU."""
    who = f"TensorRT FP16 on {builder.gpu}, beside ONNX at fp32"
    figures = {
        "mean cosine": measured.cosine,
        "least cosine": measured.least_cosine,
        "largest difference": measured.largest_difference,
    }
    kept = [figure for figure in bundle.manifest.evaluation if not figure.name.startswith(who)]
    added = [
        Evaluation(name=f"{who}: {name}", value=float(f"{value:.7g}"), command=command)
        for name, value in figures.items()
    ]
    manifest = Manifest.model_validate(
        bundle.manifest.model_dump() | {"evaluation": (*kept, *added)}
    )
    (bundle.path / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return Bundle.load(bundle.path)
