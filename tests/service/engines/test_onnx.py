import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from service.bundle import DEFAULT, GRAPH, Bundle, BundleError
from service.engines.base import EngineUnavailable
from service.engines.onnx import Graph, OnnxEngine, pad, providers
from tests.bundles import DIM, HEADS, PATCH, graph, make_bundle, weights
from tests.commands import run
from tests.service.engines.batches import OUTPUTS, cosines, images, photographs


@pytest.fixture(scope="module")
def int8() -> Bundle:
    return Bundle.load(DEFAULT)


@pytest.fixture
async def engine(bundle: Bundle) -> AsyncIterator[OnnxEngine]:
    engine = OnnxEngine(bundle, threads=2)
    await engine.warm_up()
    yield engine
    await engine.close()


def reference(batch: np.ndarray) -> dict[str, np.ndarray]:
    """The tiny bundle's outputs by plain sums, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights().items()}
    x = (batch / 255 - w["mean"]) / w["std"]
    n, h, width, _ = x.shape
    rows, columns = h // PATCH, width // PATCH
    cells = x.reshape(n, rows, PATCH, columns, PATCH, 3)
    tokens = np.tanh(np.einsum("nrycxk,dkyx->nrcd", cells, w["cut"]))
    padded = np.pad(tokens, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = sum(
        np.einsum("nrcd,ed->nrce", padded[:, y : y + rows, x : x + columns], w["mix"][:, :, y, x])
        for y in range(3)
        for x in range(3)
    )
    logits = np.einsum("nrcd,hd->nhrc", patches, w["query"][:, :, 0, 0])
    exp = np.exp(logits - logits.max((2, 3), keepdims=True))
    return {
        "embedding": patches.mean((1, 2)),
        "patches": patches,
        "attention": exp / exp.sum((2, 3), keepdims=True),
    }


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 64), (2, 32, 80), (1, 8, 8)])
async def test_outputs_agree_with_plain_sums(
    engine: OnnxEngine, shape: tuple[int, int, int]
) -> None:
    batch = images(*shape)
    actual = await engine.infer(batch, OUTPUTS)
    for name, expected in reference(batch).items():
        assert actual[name].dtype == np.float32
        np.testing.assert_allclose(actual[name], expected, atol=1e-5)


async def test_only_the_outputs_asked_for_are_given(engine: OnnxEngine) -> None:
    actual = await engine.infer(images(2, 64, 64), ("attention",))
    assert {name: array.shape for name, array in actual.items()} == {"attention": (2, HEADS, 8, 8)}


async def test_runs_side_by_side_give_what_a_lone_run_gives(engine: OnnxEngine) -> None:
    batches = [images(2, 64, 64, seed) for seed in range(8)]
    alone = [await engine.infer(batch, OUTPUTS, lone=True) for batch in batches]
    together = await asyncio.gather(*(engine.infer(batch, OUTPUTS) for batch in batches))
    for one, other in zip(alone, together, strict=True):
        for name in OUTPUTS:
            np.testing.assert_allclose(one[name], other[name], atol=1e-6)


async def test_it_is_ready_only_between_warm_up_and_close(bundle: Bundle) -> None:
    engine = OnnxEngine(bundle, threads=2)
    assert not engine.ready
    await engine.warm_up()
    assert engine.ready
    await engine.close()
    assert not engine.ready


@pytest.mark.parametrize("threads", [1, 3])
async def test_each_core_is_a_slot_and_takes_a_small_batch(bundle: Bundle, threads: int) -> None:
    engine = OnnxEngine(bundle, threads)
    await engine.warm_up()
    assert engine.slots == threads + 1
    assert engine.max_batch in {1, 2, 4, 8}
    await engine.close()


def changed(bundle: Bundle, folder: Path, model: onnx.ModelProto) -> Bundle:
    onnx.save(model, folder / GRAPH)
    return Bundle(path=folder, manifest=bundle.manifest)


def test_a_graph_without_an_output_of_the_contract_is_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    model = graph()
    del model.graph.output[2]
    with pytest.raises(BundleError, match="must have an output attention"):
        OnnxEngine(changed(bundle, tmp_path, model), threads=1)


def test_a_graph_of_another_width_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest.model_copy(update={"dim": DIM + 1})
    onnx.save(graph(), tmp_path / GRAPH)
    with pytest.raises(BundleError, match=r"output embedding, float32 \[None, 17\]"):
        OnnxEngine(Bundle(path=tmp_path, manifest=manifest), threads=1)


def test_a_graph_of_one_batch_size_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = graph()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(BundleError, match="with any batch"):
        OnnxEngine(changed(bundle, tmp_path, model), threads=1)


def test_a_file_that_is_no_graph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot be loaded"):
        OnnxEngine(Bundle(path=tmp_path, manifest=bundle.manifest), threads=1)


async def test_int8_runs_one_image_at_a_time(int8: Bundle) -> None:
    engine = OnnxEngine(int8, threads=2, precision="int8")
    await engine.warm_up()
    assert (engine.precision, engine.max_batch, engine.slots) == ("int8", 1, 3)
    await engine.close()


async def test_int8_keeps_the_direction_of_embeddings(int8: Bundle) -> None:
    engine = OnnxEngine(int8, threads=1, precision="int8")
    other = OnnxEngine(int8, threads=1)
    for photo in photographs(12):
        some = (await engine.infer(photo[None], ("embedding",)))["embedding"]
        others = (await other.infer(photo[None], ("embedding",)))["embedding"]
        assert cosines(some, others).min() > 0.999
        assert np.abs(some - others).max() > 1e-4
    await asyncio.gather(engine.close(), other.close())


def test_a_bundle_without_an_int8_graph_says_how_to_add_it(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match=r"`foveal-train measure .*` adds it"):
        OnnxEngine(bundle, threads=1, precision="int8")


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 2), (3, 4), (33, 64), (64, 64)])
def test_a_batch_is_filled_up_to_a_power_of_two(count: int, padded: int) -> None:
    batch = images(count, 8, 16)
    filled = pad(batch)
    assert filled.shape == (padded, 8, 16, 3)
    np.testing.assert_array_equal(filled[:count], batch)
    assert not filled[count:].any()


def test_filling_a_batch_does_not_show_in_the_answer(bundle: Bundle) -> None:
    session = ort.InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    batch = images(3, 64, 64)
    filled = Graph(session, 64, padded=True)(batch, OUTPUTS)
    for name, expected in reference(batch).items():
        assert filled[name].shape == expected.shape
        np.testing.assert_allclose(filled[name], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("available", "gpu_bytes", "expected"),
    [
        (["CPUExecutionProvider"], 10, [("CPUExecutionProvider", {})]),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            None,
            [
                ("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}),
                ("CPUExecutionProvider", {}),
            ],
        ),
        (
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
            2**30,
            [
                (
                    "CUDAExecutionProvider",
                    {"arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": 2**30},
                ),
                ("CPUExecutionProvider", {}),
            ],
        ),
    ],
)
def test_cuda_is_taken_where_it_is_with_a_bounded_arena(
    available: list[str], gpu_bytes: int | None, expected: list[object]
) -> None:
    assert providers(available, gpu_bytes) == expected


def test_memory_of_an_unusual_size_is_given_back(tmp_path: Path) -> None:
    """Of a fresh process: after large photographs it holds little more than before them."""
    bundle = make_bundle(tmp_path / "tiny")
    program = f"""
import asyncio, json
from pathlib import Path
import numpy as np
from service.bundle import Bundle
from service.engines.onnx import OnnxEngine

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

async def main():
    engine = OnnxEngine(Bundle.load(Path({str(bundle.path)!r})), threads=1)
    await engine.warm_up()
    before = held()
    for side in (1024, 2048, 1536, 2048):
        await engine.infer(np.zeros((1, side, side, 3), np.uint8), ("embedding",))
    print(held() - before)
    await engine.close()

asyncio.run(main())
"""
    told = run([sys.executable, "-c", program], timeout=300)
    assert told.returncode == 0, told.stderr
    largest = 2048 * 2048 * 3 * np.dtype(np.float32).itemsize
    assert int(told.stdout) < 2 * largest


TOLD = """
import importlib, importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["service.engines.onnx", "training.export.precision"])
def test_onnx_runtime_is_told_to_report_nothing_before_it_loads(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    ended = run([sys.executable, "-c", TOLD, module], timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr
