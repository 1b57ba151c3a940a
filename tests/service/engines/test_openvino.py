import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.bundle import DEFAULT, GRAPH, Bundle, BundleError
from service.engines.base import Outputs
from service.engines.onnx import OnnxEngine
from service.engines.openvino import OpenVinoEngine
from tests.bundles import graph
from tests.commands import run
from tests.service.engines.batches import OUTPUTS, cosines, images, photographs


@pytest.fixture(scope="module")
def default() -> Bundle:
    return Bundle.load(DEFAULT)


@pytest.fixture
async def engine(bundle: Bundle) -> AsyncIterator[OpenVinoEngine]:
    engine = OpenVinoEngine(bundle, threads=2)
    await engine.warm_up()
    yield engine
    await engine.close()


def assert_close(some: Outputs, others: Outputs, atol: float) -> None:
    assert some.keys() == others.keys()
    for name, array in some.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, others[name], atol=atol)


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (5, 64, 64), (1, 32, 80), (3, 32, 80)])
async def test_fp32_gives_what_onnx_runtime_gives(
    engine: OpenVinoEngine, bundle: Bundle, shape: tuple[int, int, int]
) -> None:
    other = OnnxEngine(bundle, threads=1)
    batch = images(*shape)
    assert_close(await engine.infer(batch, OUTPUTS), await other.infer(batch, OUTPUTS), 1e-4)
    await other.close()


async def test_fp32_of_the_default_model_gives_what_onnx_runtime_gives(default: Bundle) -> None:
    engine, other = OpenVinoEngine(default, threads=2), OnnxEngine(default, threads=1)
    photos = photographs(3)
    for batch in (photos[:1], photos[:2], photos, photos[:1, :96, :112], photos[:2, :96, :112]):
        actual, expected = await asyncio.gather(
            engine.infer(batch, OUTPUTS), other.infer(batch, OUTPUTS)
        )
        assert_close(actual, expected, 1e-4)
    await asyncio.gather(engine.close(), other.close())


async def test_bf16_keeps_the_direction_of_embeddings_and_does_not_copy_fp32(
    default: Bundle,
) -> None:
    engine, other = OpenVinoEngine(default, 2, "bf16"), OnnxEngine(default, 2)
    photos = photographs(12)
    some = await engine.infer(photos, ("embedding",))
    others = await other.infer(photos, ("embedding",))
    near = cosines(some["embedding"], others["embedding"])
    assert near.min() > 0.999
    assert np.abs(some["embedding"] - others["embedding"]).max() > 1e-4
    await asyncio.gather(engine.close(), other.close())


async def test_a_batch_does_not_change_the_numbers_of_an_image(default: Bundle) -> None:
    engine = OpenVinoEngine(default, threads=1, precision="bf16")
    photos = photographs(3)
    together = (await engine.infer(photos, ("embedding",)))["embedding"]
    for row, photo in enumerate(photos):
        alone = (await engine.infer(photo[None], ("embedding",)))["embedding"]
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
    await engine.close()


async def test_runs_side_by_side_give_what_a_lone_run_gives(engine: OpenVinoEngine) -> None:
    batches = [images(2, 64, 64, seed) for seed in range(8)]
    alone = [await engine.infer(batch, OUTPUTS, lone=True) for batch in batches]
    together = await asyncio.gather(*(engine.infer(batch, OUTPUTS) for batch in batches))
    for one, other in zip(alone, together, strict=True):
        assert_close(one, other, 1e-6)


async def test_an_answer_outlives_the_next_run(engine: OpenVinoEngine) -> None:
    first = await engine.infer(images(1, 64, 64), OUTPUTS)
    kept = {name: array.copy() for name, array in first.items()}
    await engine.infer(images(1, 64, 64, seed=1), OUTPUTS)
    assert_close(first, kept, 0)


async def test_only_the_outputs_asked_for_are_given(engine: OpenVinoEngine) -> None:
    assert set(await engine.infer(images(2, 64, 64), ("attention",))) == {"attention"}


async def test_it_says_what_it_is_and_how_to_feed_it(engine: OpenVinoEngine) -> None:
    assert (engine.name, engine.precision, engine.slots) == ("openvino", "fp32", 3)
    assert engine.max_batch in {1, 2}


def test_a_graph_of_another_signature_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = graph()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / GRAPH)
    with pytest.raises(BundleError, match="with any batch"):
        OpenVinoEngine(Bundle(path=tmp_path, manifest=bundle.manifest), threads=1)


def test_a_file_that_is_no_graph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot be loaded"):
        OpenVinoEngine(Bundle(path=tmp_path, manifest=bundle.manifest), threads=1)


NOT_INSTALLED = """
import sys
from pathlib import Path
sys.modules["openvino"] = None
from service.bundle import Bundle
from service.engines.base import EngineUnavailable
from service.engines.openvino import OpenVinoEngine

try:
    OpenVinoEngine(Bundle.load(Path(sys.argv[1])), threads=1)
except EngineUnavailable as error:
    print(error)
"""


def test_where_it_is_not_installed_the_extra_is_named(bundle: Bundle) -> None:
    ended = run([sys.executable, "-c", NOT_INSTALLED, bundle.path], timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "in the checkout, pip install -e '.[openvino]'" in ended.stdout


def test_memory_does_not_grow_with_the_shapes_seen(bundle: Bundle) -> None:
    program = f"""
import asyncio
from pathlib import Path
import numpy as np
from service.bundle import Bundle
from service.engines.openvino import OpenVinoEngine

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

async def main():
    engine = OpenVinoEngine(Bundle.load(Path({str(bundle.path)!r})), threads=1)
    shapes = [(8 * rows, 8 * columns) for rows in range(2, 16) for columns in range(2, 16)]
    for height, width in shapes[:98]:
        await engine.infer(np.zeros((1, height, width, 3), np.uint8), ("embedding",))
    before = held()
    for height, width in shapes[98:]:
        await engine.infer(np.zeros((1, height, width, 3), np.uint8), ("embedding",))
    print(held() - before)
    await engine.close()

asyncio.run(main())
"""
    told = run([sys.executable, "-c", program], timeout=300)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) < 20_000_000


def test_nothing_is_reported_over_the_network(bundle: Bundle) -> None:
    """Audits a fresh process: no socket is opened, no process started, no reporting module met."""
    program = f"""
import json, sys
seen = []
watched = ("socket.", "subprocess.", "os.system", "os.posix_spawn", "urllib.")
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(watched) else None)
from pathlib import Path
from service.bundle import Bundle
from service.engines.openvino import OpenVinoEngine
OpenVinoEngine(Bundle.load(Path({str(bundle.path)!r})), threads=1)
reporting = [name for name in sys.modules if "telemetry" in name and sys.modules[name]]
print(json.dumps([seen, [name for name in reporting if name.startswith("openvino_tele")]]))
"""
    told = run([sys.executable, "-c", program], timeout=300)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == [[], []]


FIRST = """
import sys
import threading
from pathlib import Path
from service.bundle import Bundle
from service.engines.openvino import OpenVinoEngine

engine = OpenVinoEngine(Bundle.load(Path(sys.argv[1])), threads=2)
import openvino

sys.setswitchinterval(1e-6)  # threads meet more often
together = threading.Barrier(8)

def first():
    together.wait()
    openvino.Type.u8.to_dtype()  # what deadlocked

for _ in range(together.parties):
    threading.Thread(target=first).start()
"""


@pytest.mark.parametrize("attempt", range(5))
def test_threads_that_run_the_engine_first_do_not_wait_for_each_other(
    bundle: Bundle, attempt: int
) -> None:
    ended = run([sys.executable, "-c", FIRST, bundle.path], timeout=300)
    assert ended.returncode == 0, ended.stderr


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
from service.bundle import Bundle
from service.engines.openvino import OpenVinoEngine

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
bundle = Bundle.load(Path(sys.argv[1]))
first, second = OpenVinoEngine(bundle, threads=1), OpenVinoEngine(bundle, threads=1)
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print(len(heard))
"""


def test_a_signal_is_heard_after_engines_have_come_and_gone(bundle: Bundle) -> None:
    ended = run([sys.executable, "-c", SIGNALLED, bundle.path], timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr
