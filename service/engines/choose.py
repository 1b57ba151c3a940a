"""Which engine runs a bundle, and at which precision."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from service.bundle import Bundle, Precision
from service.engines.base import Engine, EngineUnavailable
from service.settings import Settings

AUTO = "auto"
RUNS = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16")}
BASE = ("onnx", "fp32")
# Speeds were measured on the machine that exported; a smaller gain may be gone on another.
CLEARLY_FASTER = 1.1
MODULES = {"onnx": ("onnxruntime", "cpu"), "openvino": ("openvino", "openvino")}
# One of these lets a processor run a precision natively. Without them bf16 is emulated, and int8
# saturates: other numbers than those recorded.
INSTRUCTIONS = {
    "fp32": frozenset[str](),
    "bf16": frozenset({"avx512_bf16", "amx_bf16"}),
    "int8": frozenset({"avx512_vnni", "avx_vnni", "asimddp"}),
}
CPU_INFO = Path("/proc/cpuinfo")

Choice = tuple[str, str]


def choose(bundle: Bundle, settings: Settings) -> Engine:
    """Build the engine that the settings ask for; `auto` takes the fastest faithful one.

    A GPU that ONNX Runtime finds is taken before the processor.

    Raises:
        BundleError: The graph cannot be loaded or has another signature than the contract.
        EngineUnavailable: What the settings ask for cannot run here.
    """
    if settings.engine == "triton":
        return _on_triton(bundle, settings)
    choice = decide(
        bundle.manifest.precisions,
        settings.engine,
        settings.precision,
        partial(obstacle, bundle, instructions()),
    )
    if BASE in allowed(settings.engine, settings.precision) and _has_cuda():
        from service.engines.onnx import OnnxEngine

        # Only a session tells whether the driver and a GPU are there, too.
        engine = OnnxEngine(bundle, settings.threads, gpu_bytes=settings.gpu_bytes)
        if engine.on_gpu or choice == BASE:
            return engine
    return build(bundle, choice, settings)


def decide(
    precisions: Collection[Precision],
    engine: str,
    precision: str,
    obstacle: Callable[[Choice], str | None],
) -> Choice:
    """Pick an engine and its precision.

    Args:
        precisions: What was measured of the bundle.
        engine: The engine asked for, or `auto`.
        precision: The precision asked for, or `auto`: any that is faithful to fp32.
        obstacle: Why a choice cannot run here; None if it can.

    Raises:
        EngineUnavailable: Nothing that was asked for can run here.
    """
    hindered = {choice: obstacle(choice) for choice in allowed(engine, precision)}
    usable = [choice for choice, reason in hindered.items() if reason is None]
    if not usable:
        raise EngineUnavailable("; ".join(str(reason) for reason in hindered.values()))
    measured = {(record.engine, record.precision): record for record in precisions}

    def speed(choice: Choice) -> float:
        unknown = 1.0 if choice == BASE else 0.0
        return measured[choice].speed if choice in measured else unknown

    if precision == AUTO:
        faithful = {choice for choice, record in measured.items() if record.faithful}
        usable = [choice for choice in usable if choice[1] == "fp32" or choice in faithful]
    fastest = max(usable, key=speed)
    return BASE if BASE in usable and speed(fastest) < CLEARLY_FASTER else fastest


def allowed(engine: str, precision: str) -> list[Choice]:
    """Every engine with every precision that fits what is asked for.

    Raises:
        EngineUnavailable: None does.
    """
    names = RUNS if engine == AUTO else (engine,)
    found = [(name, p) for name in names for p in RUNS[name] if precision in (AUTO, p)]
    if not found:
        raise EngineUnavailable(
            f"the engine {engine} runs {' and '.join(RUNS[engine])}, not {precision}"
        )
    return found


def obstacle(bundle: Bundle, instructions: Collection[str], choice: Choice) -> str | None:
    """Why a choice cannot run here; None if it can.

    Args:
        bundle: The model.
        instructions: The processor's, by the names of /proc/cpuinfo.
        choice: Engine and precision.
    """
    engine, precision = choice
    module, extra = MODULES[engine]
    if importlib.util.find_spec(module) is None:
        return _not_installed(engine, extra)
    needed = INSTRUCTIONS[precision]
    if needed and needed.isdisjoint(instructions):
        return f"this processor has no {precision}: it lacks {' or '.join(sorted(needed))}"
    if precision == "int8" and bundle.int8_graph is None:
        return f"{bundle.path} has no int8 graph: `foveal-train measure {bundle.path}` would add it"
    return None


def instructions() -> frozenset[str]:
    """The processor's instruction sets by the names of /proc/cpuinfo; empty where there is none."""
    if not CPU_INFO.exists():
        return frozenset()
    lines = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
    flags = (value for key, _, value in lines if key.strip() in {"flags", "Features"})
    return frozenset(next(flags, "").split())


def build(bundle: Bundle, choice: Choice, settings: Settings) -> Engine:
    """The engine of a choice that `decide` made.

    Raises:
        BundleError: The graph cannot be loaded or has another signature than the contract.
        EngineUnavailable: The bundle has no graph of that precision.
    """
    # Imported late: a library that is not chosen may be missing, and takes time to load.
    engine, precision = choice
    if engine == "openvino":
        from service.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, settings.threads, precision)
    from service.engines.onnx import OnnxEngine

    return OnnxEngine(bundle, settings.threads, precision, gpu_bytes=settings.gpu_bytes)


def _on_triton(bundle: Bundle, settings: Settings) -> Engine:
    if importlib.util.find_spec("tritonclient") is None:
        raise EngineUnavailable(_not_installed("triton", "triton"))
    if settings.precision != AUTO:
        raise EngineUnavailable(
            f"the engine triton runs what its server was given; leave precision at {AUTO}"
        )
    # Read as gRPC is imported: its own line about every handshake that fails would fill the log,
    # which tells of the first.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from service.engines.triton.engine import TritonEngine
    from service.engines.triton.tls import Tls

    tls = None
    if settings.triton_ca:
        tls = Tls(settings.triton_ca, settings.triton_certificate, settings.triton_key)
    return TritonEngine(
        bundle, settings.triton_urls, shared_memory=settings.triton_shared_memory, tls=tls
    )


def _not_installed(engine: str, extra: str) -> str:
    return f"the engine {engine} is not installed: in the checkout, pip install -e '.[{extra}]'"


def _has_cuda() -> bool:
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    from service.engines.onnx import CUDA

    return CUDA in onnxruntime.get_available_providers()
