import io

import httpx
import numpy as np
import pytest
from PIL import Image

from service.bundle import Bundle
from tests.service.gateways import PNG, assert_problem, photograph


def ask(client: httpx.Client, query: str = "", photo: bytes | None = None) -> httpx.Response:
    return client.post(f"/attention?{query}", content=photo or photograph(), headers=PNG)


def test_the_grid_follows_the_photographs_shape(client: httpx.Client, bundle: Bundle) -> None:
    answer = ask(client, photo=photograph(size=(80, 160))).json()
    assert answer["model"] == "tiny"
    assert answer["digest"] == bundle.digest
    (image,) = answer["images"]
    assert image["index"] == 0
    assert image["grid"] == [8, 16]
    assert image["heads"] == [0, 1]
    assert image["query"] == "mean"
    assert "masks" not in image
    maps = np.array(image["attention"])
    assert maps.shape == (2, 8, 16)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-4)


def test_size_gives_a_finer_grid_and_crop_a_square_one(client: httpx.Client) -> None:
    assert ask(client, "size=128", photograph(size=(80, 160))).json()["images"][0]["grid"] == [
        16,
        32,
    ]
    assert ask(client, "fit=crop", photograph(size=(80, 160))).json()["images"][0]["grid"] == [8, 8]


def test_heads_are_chosen_or_averaged(client: httpx.Client) -> None:
    every = np.array(ask(client).json()["images"][0]["attention"])
    one = ask(client, "heads=1").json()["images"][0]
    assert one["heads"] == [1]
    np.testing.assert_allclose(one["attention"], every[1:], atol=1e-6)
    mean = ask(client, "heads=mean").json()["images"][0]
    np.testing.assert_allclose(mean["attention"], every.mean(0, keepdims=True), atol=1e-6)
    assert_problem(ask(client, "heads=7"), 422, "invalid_option", "heads")


def test_mass_adds_one_mask_a_head(client: httpx.Client) -> None:
    (image,) = ask(client, "mass=0.6").json()["images"]
    assert len(image["masks"]) == 2
    assert image["masks"][0]["size"] == image["grid"]
    assert_problem(ask(client, "mass=0"), 422, "invalid_option", "mass")
    assert_problem(ask(client, "mass=1.1"), 422, "invalid_option", "mass")


def test_of_several_images_each_fails_alone(client: httpx.Client) -> None:
    answer = client.post("/attention", files=[("images", photograph()), ("images", b"text")])
    good, bad = answer.json()["images"]
    assert good["grid"]
    assert bad["error"]["status"] == 415


def test_npy_is_the_jsons_array(client: httpx.Client) -> None:
    answer = ask(client, "output=npy")
    assert answer.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(answer.content))
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, ask(client).json()["images"][0]["attention"], atol=1e-6)


def test_npy_stacks_images_of_one_grid_and_refuses_others(client: httpx.Client) -> None:
    alike = [("images", photograph(seed)) for seed in range(2)]
    stacked = client.post("/attention", files=alike, data={"output": "npy"})
    assert np.load(io.BytesIO(stacked.content)).shape[:2] == (2, 2)
    unlike = [("images", photograph()), ("images", photograph(size=(80, 80)))]
    refused = client.post("/attention", files=unlike, data={"output": "npy"})
    assert_problem(refused, 422, "invalid_option", "grids", "JSON")


@pytest.mark.parametrize("view", ["heatmap", "overlay", "mask", "heads"])
def test_png_draws_each_view(client: httpx.Client, view: str) -> None:
    answer = ask(client, f"output=png&view={view}", photograph(size=(80, 160)))
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.content))
    picture.load()
    assert picture.format == "PNG"


def test_png_draws_exactly_one_image(client: httpx.Client) -> None:
    two = [("images", photograph(seed)) for seed in range(2)]
    answer = client.post("/attention", files=two, data={"output": "png"})
    assert_problem(answer, 422, "invalid_option", "images", "2")
