"""What every index holds to, local or shared, against brute force."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import ModelMismatch, NotFound
from service.index.base import Index, Item
from service.index.local import LocalIndex
from service.index.redis import RedisIndex
from tests.service.index.vectors import DIGEST, DIM, OTHER, items, query, ranked


@pytest.fixture(params=["local", "redis"])
async def index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Index]:
    opened: Index
    if request.param == "local":
        opened = LocalIndex(tmp_path)
    else:
        opened = RedisIndex(request.getfixturevalue("redis8").url, timeout=30)
    yield opened
    await opened.close()


async def test_neighbours_and_cosines_are_those_of_brute_force(index: Index) -> None:
    held = items(300)
    await index.put("photos", held, DIGEST)
    found = await index.search("photos", query(), DIGEST, k=10)
    expected = ranked(held, query())[:10]
    assert [match.id for match in found] == [name for name, _ in expected]
    assert [match.score for match in found] == pytest.approx([s for _, s in expected], abs=1e-6)
    assert found[0].metadata == next(i.metadata for i in held if i.id == found[0].id)


async def test_a_replaced_or_deleted_item_is_never_shown(index: Index) -> None:
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


async def test_a_filter_gives_the_best_k_of_those_that_match(index: Index) -> None:
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
    index: Index, where: dict, expected: set[str]
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


async def test_min_score_leaves_out_what_is_less_similar(index: Index) -> None:
    held = items(100)
    await index.put("photos", held, DIGEST)
    found = await index.search("photos", query(), DIGEST, k=100, min_score=0.1)
    assert {match.id for match in found} == {n for n, s in ranked(held, query()) if s >= 0.1}


async def test_vectors_come_back_at_unit_length(index: Index) -> None:
    await index.put("photos", [Item("a", query() * 7, {"k": [1, {"deep": None}]})], DIGEST)
    item = await index.get("photos", "a")
    np.testing.assert_allclose(item.vector, query() / np.linalg.norm(query()), atol=1e-6)
    assert item.metadata == {"k": [1, {"deep": None}]}


async def test_a_collection_refuses_another_models_vectors_and_names_both(
    index: Index,
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


async def test_what_is_not_there_is_not_found(index: Index) -> None:
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


async def test_collections_are_listed_and_dropped(index: Index) -> None:
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


async def test_of_an_id_given_twice_the_last_stays(index: Index) -> None:
    first, second = items(2)
    twice = [Item("a", first.vector, {"n": 1}), Item("a", second.vector, {"n": 2})]
    await index.put("photos", twice, DIGEST)
    (match,) = await index.search("photos", second.vector, DIGEST, k=5)
    assert match.score == pytest.approx(1, abs=1e-6)
    assert match.metadata == {"n": 2}
    assert [c.items for c in await index.collections()] == [1]


async def test_a_replaced_items_old_metadata_no_longer_matches(index: Index) -> None:
    await index.put("x", [Item("a", query(), {"old": 1, "same": True})], DIGEST)
    await index.put("x", [Item("a", query(), {"new": 1, "same": True})], DIGEST)
    for where, count in (({"old": 1}, 0), ({"new": 1}, 1), ({"same": True}, 1)):
        assert len(await index.search("x", query(), DIGEST, k=5, where=where)) == count


ODD_IDS = [
    "a b",
    "ü/ñ?#",
    "{tag}|,.<>",
    '"quoted"',
    "\\",
    "*",
    "a:b",
    "-1",
    "\U0001f600" * 60,
    "%00",
]


async def test_any_id_comes_back_as_it_was(index: Index) -> None:
    held = [Item(name, vector.vector, {}) for name, vector in zip(ODD_IDS, items(10), strict=True)]
    await index.put("photos", held, DIGEST)
    found = await index.search("photos", query(), DIGEST, k=10)
    assert [m.id for m in found] == [name for name, _ in ranked(held, query())]
    for name in ODD_IDS:
        assert (await index.get("photos", name)).id == name
        await index.delete("photos", name)
    assert await index.search("photos", query(), DIGEST, k=10) == []


async def test_k_answers_come_whenever_k_are_there(index: Index) -> None:
    held = items(400)
    await index.put("photos", held, DIGEST)
    for item in held[:380]:
        await index.delete("photos", item.id)
    for k in (1, 19, 20, 1000):
        found = await index.search("photos", query(), DIGEST, k=k)
        assert [m.id for m in found] == [name for name, _ in ranked(held[380:], query())[:k]]


async def test_nearly_all_that_brute_force_finds_is_found(index: Index) -> None:
    held = items(3000)
    await index.put("photos", held, DIGEST)
    hits = 0
    for seed in range(20):
        found = await index.search("photos", query(seed), DIGEST, k=10)
        truth = {name for name, _ in ranked(held, query(seed))[:10]}
        hits += len(truth & {match.id for match in found})
    assert hits / 200 > 0.98


async def test_what_was_put_is_in_each_search_that_starts_afterwards(index: Index) -> None:
    async def put_and_search(item: Item) -> None:
        await index.put("photos", [item], DIGEST)
        (found,) = await index.search("photos", item.vector, DIGEST, k=1)
        assert found.id == item.id

    await asyncio.gather(*(put_and_search(item) for item in items(200)))


SCALARS: list[Any] = [None, True, False, "", "1", "true", "null", "a b", "é", "A B"]
SCALARS += [0, 1, -1, 1.0, 0.5, -0.0, 2**53, 2**53 + 1, float(2**53), 1e300]
SCALARS += [2**63 - 1, -(2**63), -float(2**63), 2**63, float(2**63)]


def same(held: Any, wanted: Any) -> bool:
    """Whether two JSON values are equal; booleans are no numbers."""
    if isinstance(held, bool) or isinstance(wanted, bool):
        return held is wanted
    return bool(held == wanted)


async def test_a_filter_finds_each_value_that_is_equal_and_no_other(index: Index) -> None:
    held = [Item(str(n), query(n), {"a": value, "b": n % 3}) for n, value in enumerate(SCALARS)]
    held += [Item("list", query(), {"a": [1]}), Item("object", query(), {"a": {"a": 1}})]
    await index.put("x", held, DIGEST)
    for wanted in SCALARS:
        found = await index.search("x", query(), DIGEST, k=50, where={"a": wanted})
        expected = {str(n) for n, value in enumerate(SCALARS) if same(value, wanted)}
        assert {match.id for match in found} == expected, wanted
        found = await index.search("x", query(), DIGEST, k=50, where={"b": 1, "a": wanted})
        assert {match.id for match in found} == {n for n in expected if int(n) % 3 == 1}, wanted
