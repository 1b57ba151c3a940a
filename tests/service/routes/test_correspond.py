import io

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from service.bundle import Bundle
from tests.service.gateways import PNG, assert_problem, b64, photograph

NPY = "application/x-npy"


def patches(client: httpx.Client, photo: bytes) -> np.ndarray:
    asked = "/embed?pooling=patches&fit=whole"
    return np.array(
        client.post(asked, content=photo, headers=PNG).json()["embeddings"][0]["embedding"]
    )


def test_each_patch_finds_its_nearest_in_the_other_image(
    client: httpx.Client, bundle: Bundle
) -> None:
    photos = [photograph(0), photograph(1, (80, 160))]
    answer = client.post("/correspond", files=[("images", photo) for photo in photos]).json()
    assert (answer["model"], answer["digest"]) == ("tiny", bundle.digest)
    assert answer["grids"] == [[8, 12], [8, 16]]
    first, second = (patches(client, photo) for photo in photos)
    cosines = np.einsum("abd,ced->abce", first, second).reshape(8, 12, -1)
    np.testing.assert_allclose(answer["scores"], cosines.max(-1), atol=1e-5)
    row, column = np.moveaxis(np.array(answer["matches"]), -1, 0)
    assert np.array_equal(row * 16 + column, cosines.argmax(-1))
    back = cosines.reshape(96, -1).argmax(0)[cosines.argmax(-1)]
    assert np.array_equal(answer["mutual"], back == np.arange(96).reshape(8, 12))


def test_a_mirrored_photograph_is_matched_mirrored(client: httpx.Client) -> None:
    """The middle of each 8 px cell, one colour, is found at the other side."""
    cells = np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(cells).resize((64, 64), Image.Resampling.NEAREST)
    pair = []
    for one in (image, ImageOps.mirror(image)):
        file = io.BytesIO()
        one.save(file, "PNG")
        pair.append(file.getvalue())
    same = client.post("/correspond", json={"images": [b64(pair[0])] * 2}).json()
    places = [[[row, column] for column in range(8)] for row in range(8)]
    assert same["matches"] == places
    assert np.all(same["mutual"])
    assert np.min(same["scores"]) > 0.9999
    mirrored = client.post("/correspond", json={"images": [b64(data) for data in pair]}).json()
    assert np.mean(mirrored["scores"]) < 0.9999


def test_npy_holds_row_column_score_and_mutual(client: httpx.Client) -> None:
    asked = {"files": [("images", photograph(seed)) for seed in range(2)]}
    answer = client.post("/correspond", **asked, headers={"Accept": NPY})
    array = np.load(io.BytesIO(answer.content))
    assert array.dtype == np.float32
    document = client.post("/correspond", **asked).json()
    assert np.array_equal(array[..., :2], document["matches"])
    np.testing.assert_allclose(array[..., 2], document["scores"], atol=1e-6)
    assert np.array_equal(array[..., 3], document["mutual"])


@pytest.mark.parametrize("count", [1, 3])
def test_exactly_two_images_are_matched(client: httpx.Client, count: int) -> None:
    answer = client.post("/correspond", files=[("images", photograph())] * count)
    assert_problem(answer, 422, "invalid_option", "images", "two", str(count))


def test_the_image_that_fails_is_named(client: httpx.Client) -> None:
    answer = client.post("/correspond", files=[("images", photograph()), ("images", b"text")])
    assert_problem(answer, 415, "unsupported_media_type", "images[1]")
