import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import GRAPH, Bundle, BundleError
from service.engines.onnx import OnnxEngine, best_batch
from tests.bundles import DIM, HEADS, PATCH, graph, weights

OUTPUTS = ("embedding", "patches", "attention")


@pytest.fixture
async def engine(bundle: Bundle) -> AsyncIterator[OnnxEngine]:
    engine = OnnxEngine(bundle, threads=2)
    await engine.warm_up()
    yield engine
    await engine.close()


def images(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)


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
    alone = [await engine.infer(batch, OUTPUTS) for batch in batches]
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
    assert engine.slots == threads
    assert engine.max_batch in {1, 2, 4, 8}
    await engine.close()


@settings(deadline=None, max_examples=50)
@given(
    costs=st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4),
    fixed=st.floats(0.0, 1.0),
)
def test_the_batch_chosen_is_the_largest_that_is_nearly_the_quickest(
    costs: list[float], fixed: float
) -> None:
    sizes = (1, 2, 4, 8)
    seconds = {n: fixed + cost * n for n, cost in zip(sizes, costs, strict=True)}
    best = best_batch(seconds.__getitem__)
    each = {n: seconds[n] / n for n in sizes}
    bound = 1.05 * min(each.values())
    assert each[best] <= bound
    assert all(each[larger] > bound for larger in sizes if larger > best)


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
