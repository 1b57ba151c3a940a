from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service.bundle import INT8_GRAPH, Bundle, Precision
from service.engines import choose as choosing
from service.engines.base import EngineUnavailable
from service.engines.choose import choose, decide, instructions, obstacle
from service.engines.onnx import CPU, CUDA
from service.settings import Settings

ALL = {"onnx fp32", "onnx int8", "openvino fp32", "openvino bf16"}


def record(
    engine: str, precision: str, speed: float, cosine: float = 0.9999, knn_change: float = 0.0
) -> Precision:
    return Precision.model_validate(
        {
            "engine": engine,
            "precision": precision,
            "cosine": cosine,
            "least_cosine": cosine,
            "knn_change": knn_change,
            "speed": speed,
            "images": 100,
            "command": "measure",
        }
    )


INT8 = record("onnx", "int8", 1.7)
OV32 = record("openvino", "fp32", 1.15)
BF16 = record("openvino", "bf16", 2.0)


@pytest.mark.parametrize(
    ("records", "asked", "runnable", "expected"),
    [
        ([], "auto auto", ALL, "onnx fp32"),
        ([INT8, OV32, BF16], "auto auto", ALL, "openvino bf16"),
        ([INT8, OV32, BF16], "auto auto", ALL - {"openvino bf16"}, "onnx int8"),
        ([INT8, OV32, BF16], "auto auto", {"onnx fp32", "openvino fp32"}, "openvino fp32"),
        ([INT8, OV32, BF16], "auto auto", {"onnx fp32"}, "onnx fp32"),
        ([INT8, OV32, BF16], "auto auto", {"openvino fp32"}, "openvino fp32"),
        ([record("openvino", "bf16", 2, cosine=0.99899)], "auto auto", ALL, "onnx fp32"),
        ([record("openvino", "bf16", 2, cosine=0.999)], "auto auto", ALL, "openvino bf16"),
        ([record("openvino", "bf16", 2, knn_change=-0.11)], "auto auto", ALL, "onnx fp32"),
        ([record("openvino", "bf16", 2, knn_change=-0.1)], "auto auto", ALL, "openvino bf16"),
        ([record("openvino", "bf16", 2, knn_change=3.0)], "auto auto", ALL, "openvino bf16"),
        ([record("openvino", "bf16", 0.5)], "auto auto", ALL, "onnx fp32"),
        ([record("openvino", "fp32", 1.09)], "auto auto", ALL, "onnx fp32"),
        ([record("openvino", "fp32", 1.09)], "auto fp32", ALL, "onnx fp32"),
        ([INT8, OV32, BF16], "auto fp32", ALL, "openvino fp32"),
        ([INT8, OV32, BF16], "onnx auto", ALL, "onnx int8"),
        ([INT8, OV32, BF16], "onnx fp32", ALL, "onnx fp32"),
        ([OV32], "openvino auto", ALL, "openvino fp32"),
        ([], "openvino auto", ALL, "openvino fp32"),
        ([], "openvino bf16", ALL, "openvino bf16"),
        ([], "auto bf16", ALL, "openvino bf16"),
        ([], "auto int8", ALL, "onnx int8"),
        ([record("onnx", "int8", 0.5, cosine=0.5)], "auto int8", ALL, "onnx int8"),
    ],
)
def test_the_fastest_faithful_one_that_runs_here_is_chosen(
    records: list[Precision], asked: str, runnable: set[str], expected: str
) -> None:
    engine, precision = asked.split()
    found = decide(
        records,
        engine,
        precision,
        lambda choice: None if " ".join(choice) in runnable else "cannot",
    )
    assert " ".join(found) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("onnx bf16", "the engine onnx runs fp32 and int8, not bf16"),
        ("openvino int8", "the engine openvino runs fp32 and bf16, not int8"),
        ("auto bf16", "openvino bf16 cannot"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(asked: str, message: str) -> None:
    engine, precision = asked.split()
    with pytest.raises(EngineUnavailable, match=message):
        decide([], engine, precision, lambda choice: f"{' '.join(choice)} cannot")


@pytest.mark.parametrize(
    ("choice", "present", "reason"),
    [
        (("onnx", "fp32"), set(), None),
        (("openvino", "fp32"), set(), None),
        (("openvino", "bf16"), {"avx512_bf16"}, None),
        (("openvino", "bf16"), {"amx_bf16"}, None),
        (("openvino", "bf16"), {"avx2"}, "this processor has no bf16: it lacks amx_bf16 or"),
        (("onnx", "int8"), {"avx2"}, "this processor has no int8"),
        (("onnx", "int8"), {"avx512_vnni"}, "has no int8 graph: `foveal-train measure"),
    ],
)
def test_a_choice_needs_the_processor_and_its_graph(
    bundle: Bundle, choice: tuple[str, str], present: set[str], reason: str | None
) -> None:
    found = obstacle(bundle, present, choice)
    assert found is None if reason is None else reason in (found or "")


def test_an_int8_graph_in_the_bundle_is_no_obstacle(bundle: Bundle) -> None:
    files = bundle.manifest.files | {INT8_GRAPH: "0" * 64}
    with_int8 = Bundle(bundle.path, bundle.manifest.model_copy(update={"files": files}))
    assert obstacle(with_int8, {"avx_vnni"}, ("onnx", "int8")) is None


@pytest.mark.parametrize(
    ("engine", "module", "extra"),
    [("openvino", "openvino", "openvino"), ("onnx", "onnxruntime", "cpu")],
)
def test_an_engine_that_is_not_installed_names_its_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, engine: str, module: str, extra: str
) -> None:
    monkeypatch.setattr(choosing.importlib.util, "find_spec", {module: None}.get)
    install = f"in the checkout, pip install -e '.[{extra}]'"
    message = f"the engine {engine} is not installed: {install}"
    assert obstacle(bundle, set(), (engine, "fp32")) == message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\nbugs\t: x\n", "avx512_bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", "asimddp"),
        ("processor\t: 0\n", None),
    ],
)
def test_instructions_are_read_from_the_processor(
    text: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(choosing, "CPU_INFO", tmp_path / "cpuinfo")
    assert found in instructions() if found else not instructions()


def test_where_no_processor_is_described_none_is_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "CPU_INFO", tmp_path / "missing")
    assert instructions() == frozenset()


@pytest.mark.parametrize(
    ("engine", "expected"), [("auto", "onnx"), ("onnx", "onnx"), ("openvino", "openvino")]
)
async def test_the_engine_asked_for_is_built(bundle: Bundle, engine: str, expected: str) -> None:
    settings = Settings(engine=engine, precision="fp32", threads=1)
    built = choose(bundle, settings)
    assert (built.name, built.precision) == (expected, "fp32")
    await built.close()


async def test_where_cuda_finds_no_gpu_processors_run_the_model_and_one_line_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    # As this build of ONNX Runtime tells that it has no CUDA.
    with pytest.warns(UserWarning, match=CUDA):
        built = choose(bundle, Settings(engine="onnx", precision="fp32", threads=2))
    assert caplog.messages == [
        "onnxruntime-gpu finds no GPU that it can use: processors run the model"
    ]
    answer = await built.infer(np.zeros((1, 64, 64, 3), np.uint8), ("embedding",))
    assert len(answer["embedding"]) == 1
    await built.close()


TRITON = Settings(engine="triton", triton_urls=("localhost:8001",))


async def test_triton_is_built_without_its_graph_and_asked_for_no_precision(bundle: Bundle) -> None:
    built = choose(Bundle(Path("nowhere"), bundle.manifest), TRITON)
    assert (built.name, built.ready) == ("triton", False)
    await built.close()
    with pytest.raises(EngineUnavailable, match="leave precision at auto"):
        choose(bundle, TRITON.model_copy(update={"precision": "int8"}))


def test_triton_that_is_not_installed_names_its_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match=r"pip install -e '\.\[triton\]'"):
        choose(bundle, TRITON)
