import io

import httpx
import numpy as np
import pytest

from service.bundle import Bundle
from service.images import Limits, View, prepare
from tests.bundles import weights
from tests.service.routes.conftest import PNG, assert_problem, photograph

NPY = "application/x-npy"


def by_hand(pixels: np.ndarray) -> np.ndarray:
    """The tiny bundle's embedding, written out in NumPy."""
    w = weights()
    scaled = (pixels / 255 - w["mean"]) / w["std"]
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    cells = scaled.reshape(rows, 8, columns, 8, 3)
    tokens = np.tanh(np.einsum("ryxwc,dcyw->rxd", cells, w["cut"]))
    padded = np.pad(tokens, ((1, 1), (1, 1), (0, 0)))
    mixed = sum(
        padded[y : y + rows, x : x + columns] @ w["mix"][:, :, y, x].T
        for y in range(3)
        for x in range(3)
    )
    return mixed.mean((0, 1))


def test_the_answer_names_the_model_and_holds_unit_vectors(
    client: httpx.Client, bundle: Bundle
) -> None:
    answer = client.post("/embed", content=photograph(), headers=PNG).json()
    assert answer["model"] == "tiny"
    assert answer["digest"] == bundle.digest
    assert answer["dim"] == bundle.manifest.dim == len(answer["embeddings"][0]["embedding"])
    assert np.linalg.norm(answer["embeddings"][0]["embedding"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("query", "view"),
    [
        ("", View()),
        ("&size=96", View(size=96)),
        ("&fit=whole", View(fit="whole")),
        ("&fit=whole&size=32", View(fit="whole", size=32)),
    ],
)
def test_the_embedding_is_that_of_the_fitted_photograph(
    client: httpx.Client, bundle: Bundle, query: str, view: View
) -> None:
    photo = photograph()
    answer = client.post(f"/embed?normalize=false{query}", content=photo, headers=PNG)
    pixels = prepare(photo, bundle.manifest.input, view, Limits(10**7, 10**7, 4096))
    found = answer.json()["embeddings"][0]["embedding"]
    np.testing.assert_allclose(found, by_hand(pixels), atol=1e-4)


def test_npy_holds_one_row_an_image(client: httpx.Client) -> None:
    photos = [("images", photograph(seed)) for seed in range(3)]
    answer = client.post("/embed", files=photos, headers={"Accept": NPY})
    assert answer.headers["content-type"] == NPY
    array = np.load(io.BytesIO(answer.content))
    assert array.dtype == np.float32
    rows = client.post("/embed", files=photos).json()["embeddings"]
    np.testing.assert_allclose(array, [row["embedding"] for row in rows], atol=1e-6)


def test_npy_has_no_place_for_an_error(client: httpx.Client) -> None:
    photos = [("images", photograph()), ("images", b"text")]
    answer = client.post("/embed", files=photos, headers={"Accept": NPY})
    assert_problem(answer, 415, "unsupported_media_type")
