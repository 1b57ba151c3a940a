import base64
import io

import httpx
import numpy as np
import pytest

from service.bundle import Bundle
from service.images import Limits, View, prepare
from tests.bundles import weights
from tests.service.gateways import PNG, Serve, assert_problem, photograph

NPY = "application/x-npy"


def tokens(pixels: np.ndarray) -> np.ndarray:
    """The tiny bundle's patches, written out in NumPy."""
    w = weights()
    scaled = (pixels / 255 - w["mean"]) / w["std"]
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    cells = scaled.reshape(rows, 8, columns, 8, 3)
    cut = np.tanh(np.einsum("ryxwc,dcyw->rxd", cells, w["cut"]))
    padded = np.pad(cut, ((1, 1), (1, 1), (0, 0)))
    return sum(
        padded[y : y + rows, x : x + columns] @ w["mix"][:, :, y, x].T
        for y in range(3)
        for x in range(3)
    )


def by_hand(pixels: np.ndarray) -> np.ndarray:
    """The tiny bundle's embedding: the mean of its patches."""
    return tokens(pixels).mean((0, 1))


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
    assert_problem(answer, 415, "unsupported_media_type", "images[1]")


def ask(client: httpx.Client, query: str = "", photo: bytes | None = None) -> dict:
    answer = client.post(f"/embed?{query}", content=photo or photograph(), headers=PNG)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_each_pooling_is_that_of_the_patches(client: httpx.Client, bundle: Bundle) -> None:
    limits = Limits(10**7, 10**7, 4096)
    expected = tokens(prepare(photograph(), bundle.manifest.input, View("whole"), limits))
    assert expected.shape == (8, 12, 16)
    poolings = {
        "default": expected.mean((0, 1)),
        "mean": expected.mean((0, 1)),
        "gem": np.cbrt((expected.clip(1e-6) ** 3).mean((0, 1))),
        "patches": expected,
    }
    for pooling, vectors in poolings.items():
        answer = ask(client, f"fit=whole&pooling={pooling}&normalize=false")
        assert answer["dim"] == 16
        np.testing.assert_allclose(answer["embeddings"][0]["embedding"], vectors, atol=1e-4)
        scaled = ask(client, f"fit=whole&pooling={pooling}")["embeddings"][0]["embedding"]
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        np.testing.assert_allclose(scaled, unit, atol=1e-4)


def test_patches_come_with_their_grid(client: httpx.Client) -> None:
    (entry,) = ask(client, "fit=whole&pooling=patches", photograph(size=(80, 160)))["embeddings"]
    assert entry["grid"] == [8, 16]
    assert np.shape(entry["embedding"]) == (8, 16, 16)
    assert "grid" not in ask(client)["embeddings"][0]


@pytest.mark.parametrize("pooling", ["cls", "cls_mean"])
def test_cls_of_a_model_without_one_is_refused(client: httpx.Client, pooling: str) -> None:
    answer = client.post(f"/embed?pooling={pooling}", content=photograph(), headers=PNG)
    assert_problem(answer, 422, "invalid_option", "pooling", "CLS token", "mean, gem")


@pytest.mark.parametrize("pooling", ["default", "patches"])
@pytest.mark.parametrize(
    ("dtype", "code"), [("float32", "<f4"), ("float16", "<f2"), ("int8", "i1")]
)
def test_base64_and_numbers_hold_the_same_values(
    client: httpx.Client, pooling: str, dtype: str, code: str
) -> None:
    query = f"pooling={pooling}&dtype={dtype}"
    (numbers,) = ask(client, query)["embeddings"]
    (encoded,) = ask(client, query + "&encoding=base64")["embeddings"]
    values = np.frombuffer(base64.b64decode(encoded["embedding"]), code)
    shape = np.shape(numbers["embedding"])
    assert np.array_equal(values.reshape(shape), np.array(numbers["embedding"], code))
    assert ("scale" in numbers) == (dtype == "int8")
    full = ask(client, f"pooling={pooling}")["embeddings"][0]["embedding"]
    restored = np.array(numbers["embedding"]) * numbers.get("scale", 1)
    np.testing.assert_allclose(restored, full, atol=0.5 / 127 + 1e-6 if dtype == "int8" else 1e-3)


def test_int8_keeps_the_length_of_what_is_not_normalized(client: httpx.Client) -> None:
    (full,) = ask(client, "normalize=false")["embeddings"]
    (short,) = ask(client, "normalize=false&dtype=int8")["embeddings"]
    restored = np.array(short["embedding"]) * short["scale"]
    np.testing.assert_allclose(restored, full["embedding"], atol=0.51 * short["scale"])
    answer = client.post(
        "/embed?normalize=false&dtype=int8",
        content=photograph(),
        headers={**PNG, "Accept": NPY},
    )
    assert_problem(answer, 422, "invalid_option", "dtype", "scale")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_npy_of_patches_has_a_grid_of_its_type(client: httpx.Client, dtype: str) -> None:
    photos = [("images", photograph(seed)) for seed in range(3)]
    query = f"/embed?pooling=patches&size=32&dtype={dtype}"
    answer = client.post(query, files=photos, headers={"Accept": NPY})
    array = np.load(io.BytesIO(answer.content))
    assert array.shape == (3, 4, 4, 16)
    assert array.dtype == dtype
    rows = client.post(query, files=photos).json()["embeddings"]
    assert np.array_equal(array, np.array([row["embedding"] for row in rows], dtype))


def test_npy_refuses_grids_of_different_shapes(client: httpx.Client) -> None:
    photos = [("images", photograph()), ("images", photograph(size=(80, 80)))]
    query = "/embed?pooling=patches&fit=whole"
    answer = client.post(query, files=photos, headers={"Accept": NPY})
    assert_problem(answer, 422, "invalid_option", "grids", "fit=crop")


def test_patches_over_the_limit_of_an_answer_are_refused(serve: Serve) -> None:
    with serve(max_answer_bytes=3 * 64 * 16 * 4) as client:
        photos = [("images", photograph(seed)) for seed in range(4)]
        assert client.post("/embed?pooling=patches", files=photos[:3]).status_code == 200
        refused = client.post("/embed?pooling=patches", files=photos)
        assert_problem(refused, 413, "too_large", "16384", "12288", "fewer")
        assert client.post("/embed?pooling=gem", files=photos).status_code == 200
