import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.bundle import Bundle
from service.index.base import Item
from service.settings import Settings
from tests.bundles import make_bundle
from tests.service.gateways import PNG, Serve, assert_problem, b64, photograph, serving


@pytest.fixture
def client(serve: Serve):
    with serve() as started:
        yield started


def test_an_item_is_put_read_replaced_and_deleted(client: httpx.Client) -> None:
    path = "/collections/photos/items/2024/summer ü.jpg"
    put = client.put(path, content=photograph(), headers=PNG, params={"metadata": '{"a": [1]}'})
    assert put.status_code == 200
    assert put.json()["id"] == "2024/summer ü.jpg"
    got = client.get(path)
    assert got.json() == put.json()
    assert got.json()["metadata"] == {"a": [1]}
    embedded = client.post("/embed", content=photograph(), headers=PNG).json()
    assert got.json()["embedding"] == pytest.approx(
        embedded["embeddings"][0]["embedding"], abs=1e-6
    )

    vector = np.arange(1, 17).tolist()
    client.put(path, json={"embedding": vector, "metadata": {"b": 2}})
    replaced = client.get(path).json()
    assert replaced["embedding"] == pytest.approx(vector / np.linalg.norm(vector), abs=1e-6)
    assert replaced["metadata"] == {"b": 2}

    assert client.delete(path).status_code == 204
    assert_problem(client.get(path), 404, "not_found", "summer")
    assert_problem(client.delete(path), 404, "not_found", "summer")


def test_many_images_are_kept_and_failures_reported(client: httpx.Client) -> None:
    body = {
        "images": [b64(photograph(0)), b64(b"text"), b64(photograph(2))],
        "ids": ["a", "b", "c"],
        "metadata": [{"n": 0}, {"n": 1}, {"n": 2}],
    }
    answer = client.post("/collections/photos/items", json=body)
    assert answer.status_code == 200
    a, b, c = answer.json()["items"]
    assert a == {"index": 0, "id": "a"}
    assert b["error"]["status"] == 415
    assert c == {"index": 2, "id": "c"}
    assert client.get("/collections/photos/items/c").json()["metadata"] == {"n": 2}
    assert_problem(client.get("/collections/photos/items/b"), 404, "not_found")


@pytest.mark.parametrize("ids", ["x,y", '["x", "y"]'])
def test_a_form_names_its_images_by_commas_or_json(client: httpx.Client, ids: str) -> None:
    parts = [("images", photograph(0)), ("images", photograph(1))]
    answer = client.post("/collections/form/items", files=parts, data={"ids": ids})
    assert [item["id"] for item in answer.json()["items"]] == ["x", "y"]


def test_without_ids_the_bytes_give_them(client: httpx.Client) -> None:
    photos = [photograph(0), photograph(1)]
    answer = client.post(
        "/collections/photos/items",
        files=[("images", photo) for photo in photos],
        data={"metadata": '{"shared": true}'},
    )
    ids = [hashlib.sha256(photo).hexdigest()[:32] for photo in photos]
    assert [item["id"] for item in answer.json()["items"]] == ids
    for item in ids:
        found = client.get(f"/collections/photos/items/{item}").json()
        assert found["metadata"] == {"shared": True}


def test_collections_are_listed_and_deleted(client: httpx.Client, bundle: Bundle) -> None:
    assert client.get("/collections").json() == {"collections": []}
    client.post("/collections/b/items?ids=x", content=photograph(), headers=PNG)
    client.put("/collections/a/items/y", content=photograph(), headers=PNG)
    listed = client.get("/collections").json()["collections"]
    assert listed == [
        {"name": name, "digest": bundle.digest, "dim": 16, "items": 1} for name in "ab"
    ]
    assert client.delete("/collections/a").status_code == 204
    assert [c["name"] for c in client.get("/collections").json()["collections"]] == ["b"]
    assert_problem(client.delete("/collections/a"), 404, "not_found", "'a'")


@pytest.mark.parametrize(
    ("method", "path", "asked", "word"),
    [
        ("PUT", "/collections/.hidden/items/x", {"embedding": [1.0] * 16}, "collection"),
        ("PUT", "/collections/c/items/" + "x" * 257, {"embedding": [1.0] * 16}, "item"),
        ("PUT", "/collections/c/items/a%00b", {"embedding": [1.0] * 16}, "item"),
        ("PUT", "/collections/c/items/x", {}, "image or an embedding"),
        ("PUT", "/collections/c/items/x", {"embedding": [1.0]}, "16"),
        (
            "PUT",
            "/collections/c/items/x",
            {"embedding": [1.0] * 16, "metadata": {"a": "x" * 17_000}},
            "16384",
        ),
        ("PUT", "/collections/c/items/x", {"embedding": [1.0] * 16, "metadata": 7}, "metadata"),
        ("POST", "/collections/c/items", {"images": []}, "images"),
        ("POST", "/collections/c/items", {"images": [b64(photograph())], "ids": "a,b"}, "ids"),
        (
            "POST",
            "/collections/c/items",
            {"images": [b64(photograph())] * 2, "ids": ["a", "a"]},
            "ids",
        ),
        (
            "POST",
            "/collections/c/items",
            {"images": [b64(photograph())], "metadata": [{}, {}]},
            "metadata",
        ),
    ],
)
def test_what_cannot_be_kept_is_told(
    client: httpx.Client, method: str, path: str, asked: dict, word: str
) -> None:
    assert_problem(client.request(method, path, json=asked), 422, "invalid_option", word)
    assert client.get("/collections").json() == {"collections": []}


def nested(depth: int) -> dict:
    return {"a": nested(depth - 1)} if depth else {}


def test_metadata_is_as_deep_as_it_can_be_given_back(client: httpx.Client) -> None:
    put, asked = "/collections/c/items/x", {"embedding": [1.0] * 16}
    deepest = nested(31)
    assert client.put(put, json=asked | {"metadata": deepest}).json()["metadata"] == deepest
    for deeper in (nested(32), {"a": [[nested(30)]]}, nested(252), nested(300)):
        for body in (
            client.put(put, json=asked | {"metadata": deeper}),
            client.put(put, params={"metadata": json.dumps(deeper)}, json=asked),
        ):
            assert_problem(body, 422, "invalid_option", "metadata", "32")
    similar = client.post("/similar", json={"collection": "c", **asked}).json()
    assert similar["results"][0]["metadata"] == deepest


def test_a_filter_that_no_metadata_could_match_is_refused(client: httpx.Client) -> None:
    long = {"embedding": [1.0] * 16, "filter": {"a": "x" * 17_000}}
    assert_problem(client.post("/similar", json=long), 422, "invalid_option", "filter", "16384")


async def test_a_put_answers_what_was_put_whatever_others_do(
    bundle: Bundle, tmp_path: Path
) -> None:
    app = create_app(Settings(model=bundle.path, data=tmp_path))
    with serving(app) as client:
        index = app.state.gateway.index
        put = index.put

        async def put_and_lose(collection: str, items: Sequence[Item], *rest: Any) -> None:
            await put(collection, items, *rest)
            await index.delete(collection, items[0].id)

        index.put = put_and_lose
        vector = np.arange(1, 17).tolist()
        asked = {"embedding": vector, "metadata": {"n": 1}}
        answer = client.put("/collections/c/items/x", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["metadata"] == {"n": 1}
    assert answer.json()["embedding"] == pytest.approx(vector / np.linalg.norm(vector), abs=1e-6)


def test_another_model_is_refused_on_an_old_collection(tmp_path: Path) -> None:
    first, second = (make_bundle(tmp_path / name, name, seed) for seed, name in enumerate("xy"))
    data = tmp_path / "data"
    with serving(create_app(Settings(model=first.path, data=data))) as client:
        client.put("/collections/default/items/a", content=photograph(), headers=PNG)
    with serving(create_app(Settings(model=second.path, data=data))) as client:
        for answer in (
            client.put("/collections/default/items/b", content=photograph(), headers=PNG),
            client.post("/collections/default/items", content=photograph(), headers=PNG),
            client.post("/similar", content=photograph(), headers=PNG),
        ):
            assert_problem(answer, 409, "model_mismatch", first.digest, second.digest)
        assert client.get("/collections/default/items/a").status_code == 200


def test_items_survive_a_restart(tmp_path: Path, bundle: Bundle) -> None:
    settings = Settings(model=bundle.path, data=tmp_path)
    with serving(create_app(settings)) as client:
        client.put("/collections/default/items/a", content=photograph(), headers=PNG)
    with serving(create_app(settings)) as client:
        found = client.post("/similar", content=photograph(), headers=PNG).json()["results"]
        assert [entry["id"] for entry in found] == ["a"]
