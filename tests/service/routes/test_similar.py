import io

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.service.gateways import PNG, Serve, assert_problem, b64, photograph


@pytest.fixture(scope="module")
def client(serve: Serve):
    with serve() as started:
        for seed in range(30):
            answer = started.put(
                f"/collections/default/items/photo-{seed}",
                content=photograph(seed),
                headers=PNG,
                params={"metadata": f'{{"seed": {seed}, "odd": {str(seed % 2 == 1).lower()}}}'},
            )
            assert answer.status_code == 200
        yield started


def embed(client: httpx.Client, photos: list[bytes]) -> np.ndarray:
    answer = client.post("/embed", json={"images": [b64(photo) for photo in photos]})
    return np.array([entry["embedding"] for entry in answer.json()["embeddings"]])


def test_neighbours_are_those_of_brute_force(client: httpx.Client) -> None:
    (query,) = embed(client, [photograph(100)])
    scores = embed(client, [photograph(seed) for seed in range(30)]) @ query
    answer = client.post("/similar?k=7", content=photograph(100), headers=PNG).json()
    assert answer["collection"] == "default"
    expected = np.argsort(-scores)[:7]
    assert [found["id"] for found in answer["results"]] == [f"photo-{n}" for n in expected]
    assert [found["score"] for found in answer["results"]] == pytest.approx(
        list(scores[expected]), abs=1e-5
    )
    assert answer["results"][0]["metadata"]["seed"] == expected[0]


def test_ten_results_by_default(client: httpx.Client) -> None:
    answer = client.post("/similar", content=photograph(3), headers=PNG).json()
    assert len(answer["results"]) == 10
    assert answer["results"][0]["id"] == "photo-3"
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_an_embedding_or_an_id_searches_like_its_image(client: httpx.Client) -> None:
    by_image = client.post("/similar", content=photograph(3), headers=PNG).json()["results"]
    vector = embed(client, [photograph(3)])[0].tolist()
    for asked in ({"json": {"embedding": vector}}, {"json": {"id": "photo-3"}}):
        found = client.post("/similar", **asked).json()["results"]
        assert [entry["id"] for entry in found] == [entry["id"] for entry in by_image]
    assert client.post("/similar?id=photo-3").json()["results"][0]["id"] == "photo-3"


def test_filter_and_min_score_narrow_the_results(client: httpx.Client) -> None:
    asked = {"id": "photo-3", "k": 1000, "filter": {"odd": False}}
    found = client.post("/similar", json=asked).json()["results"]
    assert {entry["metadata"]["seed"] for entry in found} == set(range(0, 30, 2))
    near = client.post("/similar", json={**asked, "min_score": 0.5}).json()["results"]
    assert near == [entry for entry in found if entry["score"] >= 0.5]
    text = client.post('/similar?filter={"seed":4}', content=photograph(3), headers=PNG).json()
    assert [entry["id"] for entry in text["results"]] == ["photo-4"]


def test_candidates_are_ranked_against_the_first_image(client: httpx.Client) -> None:
    photos = [photograph(seed) for seed in range(12)]
    mirror = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(photos[0]))).save(mirror, "PNG")
    scores = embed(client, [*photos[1:], mirror.getvalue()]) @ embed(client, photos[:1])[0]
    candidates = [("candidates", p) for p in [*photos[1:], mirror.getvalue()]]
    answer = client.post("/similar", files=[("images", photos[0]), *candidates]).json()
    assert [entry["index"] for entry in answer["results"]] == np.argsort(-scores).tolist()
    assert [entry["score"] for entry in answer["results"]] == pytest.approx(
        sorted(scores, reverse=True), abs=1e-5
    )
    few = client.post("/similar?k=2", files=[("images", photos[0]), *candidates]).json()
    assert few["results"] == answer["results"][:2]


def test_a_candidate_that_fails_comes_last_with_its_error(client: httpx.Client) -> None:
    body = {"images": [b64(photograph(0))], "candidates": [b64(b"text"), b64(photograph(1))]}
    good, bad = client.post("/similar", json=body).json()["results"]
    assert good["index"] == 1
    assert (bad["index"], bad["error"]["status"]) == (0, 415)
    failing = client.post("/similar", json={**body, "candidates": [b64(b"text")]})
    assert_problem(failing, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("asked", "status", "code", "word"),
    [
        ({}, 422, "invalid_option", "an id"),
        ({"id": "photo-1", "embedding": [1.0] * 16}, 422, "invalid_option", "one of these"),
        ({"embedding": [1.0, 2.0]}, 422, "invalid_option", "16"),
        ({"embedding": [0.0] * 16}, 422, "invalid_option", "direction"),
        ({"embedding": "x"}, 422, "invalid_option", "embedding"),
        ({"id": "photo-1", "k": 0}, 422, "invalid_option", "k"),
        ({"id": "photo-1", "k": 1001}, 422, "invalid_option", "k"),
        ({"id": "photo-1", "min_score": 2}, 422, "invalid_option", "min_score"),
        ({"id": "photo-1", "filter": {"a": [1]}}, 422, "invalid_option", "filter"),
        ({"id": "nobody"}, 404, "not_found", "nobody"),
        ({"id": "photo-1", "collection": "nowhere"}, 404, "not_found", "nowhere"),
        ({"id": "photo-1", "model": "clip"}, 404, "not_found", "clip"),
        ({"images": [b64(photograph(0))] * 2}, 422, "invalid_option", "exactly one"),
        (
            {"images": [b64(photograph(0))], "candidates": [b64(photograph(1))], "id": "x"},
            422,
            "invalid_option",
            "candidates",
        ),
    ],
)
def test_what_cannot_be_searched_is_told(
    client: httpx.Client, asked: dict, status: int, code: str, word: str
) -> None:
    assert_problem(client.post("/similar", json=asked), status, code, word)


def test_very_long_vectors_keep_their_direction(client: httpx.Client) -> None:
    vector = embed(client, [photograph(3)])[0]
    found = client.post("/similar", json={"embedding": (vector * 1e300).tolist()}).json()
    assert found["results"][0]["id"] == "photo-3"
