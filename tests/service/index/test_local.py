"""The local index against brute force, across restarts, and against `kill -9`."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.errors import ModelMismatch, NotFound
from service.index.base import IndexUnavailable, Item
from service.index.local import LocalIndex

DIGEST = "d" * 64
OTHER = "e" * 64
DIM = 24


@pytest.fixture
async def index(tmp_path: Path):
    opened = LocalIndex(tmp_path)
    yield opened
    await opened.close()


def items(count: int, seed: int = 0, prefix: str = "") -> list[Item]:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return [
        Item(f"{prefix}{number}", vector, {"parity": number % 2, "number": number})
        for number, vector in enumerate(vectors)
    ]


def ranked(held: list[Item], query: np.ndarray) -> list[tuple[str, float]]:
    """Every item by its cosine to the query, in float64."""
    wide = query.astype(np.float64)
    scores = [
        float(np.dot(item.vector.astype(np.float64), wide))
        / float(np.linalg.norm(item.vector.astype(np.float64)) * np.linalg.norm(wide))
        for item in held
    ]
    order = np.argsort(scores)[::-1]
    return [(held[at].id, scores[at]) for at in order]


def query(seed: int = 99) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)


async def test_neighbours_and_cosines_are_those_of_brute_force(index: LocalIndex) -> None:
    held = items(300)
    await index.put("photos", held, DIGEST)
    found = await index.search("photos", query(), DIGEST, k=10)
    expected = ranked(held, query())[:10]
    assert [match.id for match in found] == [name for name, _ in expected]
    assert [match.score for match in found] == pytest.approx([s for _, s in expected], abs=1e-6)
    assert found[0].metadata == next(i.metadata for i in held if i.id == found[0].id)


async def test_a_replaced_or_deleted_item_is_never_shown(index: LocalIndex) -> None:
    held = items(50)
    await index.put("photos", held, DIGEST)
    moved = Item("0", -held[0].vector, {"moved": True})
    await index.put("photos", [moved], DIGEST)
    await index.delete("photos", "1")
    found = await index.search("photos", held[0].vector, DIGEST, k=50)
    expected = ranked([moved, *held[2:]], held[0].vector)
    assert [match.id for match in found] == [name for name, _ in expected]
    assert found[-1].id == "0"
    assert found[-1].score == pytest.approx(-1)
    assert found[-1].metadata == {"moved": True}


async def test_a_filter_gives_the_best_k_of_those_that_match(index: LocalIndex) -> None:
    held = items(200)
    await index.put("photos", held, DIGEST)
    found = await index.search("photos", query(), DIGEST, k=7, where={"parity": 1})
    odd = [item for item in held if item.metadata["parity"] == 1]
    assert [match.id for match in found] == [name for name, _ in ranked(odd, query())[:7]]
    lone = await index.search("photos", query(), DIGEST, k=7, where={"parity": 1, "number": 13})
    assert [match.id for match in lone] == ["13"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"a": 1}, {"one", "one as real"}),
        ({"a": True}, {"true"}),
        ({"a": "1"}, {"text"}),
        ({"a": None}, {"null"}),
        ({'k"ey.$[0]': "ü"}, {"odd key"}),
        ({"absent": 1}, set()),
    ],
)
async def test_a_filter_tells_json_types_apart(
    index: LocalIndex, where: dict, expected: set[str]
) -> None:
    metadata = {
        "one": {"a": 1},
        "one as real": {"a": 1.0},
        "true": {"a": True},
        "text": {"a": "1"},
        "null": {"a": None},
        "odd key": {'k"ey.$[0]': "ü"},
        "nothing": {},
    }
    await index.put("x", [Item(name, query(), held) for name, held in metadata.items()], DIGEST)
    found = await index.search("x", query(), DIGEST, k=10, where=where)
    assert {match.id for match in found} == expected


async def test_min_score_leaves_out_what_is_less_similar(index: LocalIndex) -> None:
    held = items(100)
    await index.put("photos", held, DIGEST)
    found = await index.search("photos", query(), DIGEST, k=100, min_score=0.1)
    assert {match.id for match in found} == {n for n, s in ranked(held, query()) if s >= 0.1}


async def test_vectors_come_back_at_unit_length(index: LocalIndex) -> None:
    await index.put("photos", [Item("a", query() * 7, {"k": [1, {"deep": None}]})], DIGEST)
    item = await index.get("photos", "a")
    np.testing.assert_allclose(item.vector, query() / np.linalg.norm(query()), atol=1e-6)
    assert item.metadata == {"k": [1, {"deep": None}]}


async def test_a_collection_refuses_another_models_vectors_and_names_both(
    index: LocalIndex,
) -> None:
    await index.put("photos", items(3), DIGEST)
    for refused in (
        index.put("photos", [Item("new", query()[:8], {})], OTHER),
        index.search("photos", query(), OTHER, k=1),
    ):
        with pytest.raises(ModelMismatch) as error:
            await refused
        assert DIGEST in error.value.detail
        assert OTHER in error.value.detail
    with pytest.raises(NotFound):
        await index.get("photos", "new")


async def test_what_is_not_there_is_not_found(index: LocalIndex) -> None:
    await index.put("photos", items(1), DIGEST)
    for missing in (
        index.get("photos", "nope"),
        index.delete("photos", "nope"),
        index.get("nope", "0"),
        index.search("nope", query(), DIGEST, k=1),
        index.drop("nope"),
    ):
        with pytest.raises(NotFound, match="nope"):
            await missing


async def test_collections_are_listed_and_dropped(index: LocalIndex) -> None:
    await index.put("b", items(3), DIGEST)
    await index.put("a", items(2), OTHER)
    listed = await index.collections()
    assert [(c.name, c.digest, c.dim, c.items) for c in listed] == [
        ("a", OTHER, DIM, 2),
        ("b", DIGEST, DIM, 3),
    ]
    await index.drop("a")
    assert [c.name for c in await index.collections()] == ["b"]
    await index.put("a", items(1), DIGEST)
    assert [match.id for match in await index.search("a", query(), DIGEST, k=5)] == ["0"]


async def test_a_reopened_index_answers_as_before(tmp_path: Path) -> None:
    first = LocalIndex(tmp_path)
    await first.put("photos", items(120), DIGEST)
    await first.delete("photos", "7")
    before = await first.search("photos", query(), DIGEST, k=20)
    await first.close()
    second = LocalIndex(tmp_path)
    assert await second.search("photos", query(), DIGEST, k=20) == before
    assert [c.items for c in await second.collections()] == [119]
    await second.close()


async def test_a_second_opener_is_told_that_the_folder_is_in_use(tmp_path: Path) -> None:
    first = LocalIndex(tmp_path)
    with pytest.raises(IndexUnavailable, match="open in another process"):
        LocalIndex(tmp_path)
    await first.close()
    await LocalIndex(tmp_path).close()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(IndexUnavailable, match=r"index\.sqlite"):
        LocalIndex(tmp_path)


WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from service.index.base import Item
from service.index.local import LocalIndex

async def write():
    index = LocalIndex(Path(sys.argv[1]))
    for number in range(100_000):
        vector = np.random.default_rng(number).normal(size=24).astype(np.float32)
        await index.put("photos", [Item(str(number), vector, {"number": number})], "d" * 64)
        print(number, flush=True)

asyncio.run(write())
"""


def test_no_acknowledged_item_is_lost_to_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(150)]
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().splitlines(keepends=True)
    acknowledged += [int(line) for line in rest if line.endswith(b"\n")]
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    asyncio.run(assert_all_are_there(tmp_path, acknowledged))


async def assert_all_are_there(folder: Path, numbers: list[int]) -> None:
    index = LocalIndex(folder)
    for number in numbers:
        vector = np.random.default_rng(number).normal(size=24).astype(np.float32)
        (match,) = await index.search("photos", vector, DIGEST, k=1)
        assert match.id == str(number)
        assert match.score == pytest.approx(1, abs=1e-6)
        assert match.metadata == {"number": number}
    await index.close()
