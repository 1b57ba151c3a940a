"""Both clients against the real application on a real server."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.attention import mass_masks
from service.bundle import Bundle
from service.client import (
    Embedding,
    InvalidInput,
    NotFound,
    Unreachable,
    UnreadableFile,
    stack,
)
from service.client.many import Batching
from tests.bundles import DIM, HEADS
from tests.service.client.conftest import Connect
from tests.service.gateways import PNG, Serve, photograph

BROKEN = photograph()[:200]


def by_hand(client: httpx.Client, image: bytes, **options: Any) -> np.ndarray:
    accept = PNG | {"Accept": "application/x-npy"}
    answer = client.post("/embed", content=image, headers=accept, params=options)
    return np.load(io.BytesIO(answer.content))[0]


def test_embeddings_are_those_of_the_server_to_the_bit(foveal: Any, client: httpx.Client) -> None:
    images = [photograph(seed) for seed in range(3)]
    expected = np.stack([by_hand(client, image) for image in images])
    found = stack(foveal.embed(images))
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_an_embedding_names_its_model(foveal: Any, bundle: Bundle) -> None:
    (embedding,) = foveal.embed(photograph())
    assert (embedding.model, embedding.digest) == ("tiny", bundle.digest)


def test_a_path_bytes_a_picture_and_a_data_uri_are_the_same_image(
    foveal: Any, tmp_path: Path
) -> None:
    data = photograph()
    (tmp_path / "a.png").write_bytes(data)
    picture = Image.open(io.BytesIO(data))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    images = [data, tmp_path / "a.png", str(tmp_path / "a.png"), picture, uri]
    vectors = stack(foveal.embed(images))
    assert np.array_equal(vectors, np.repeat(vectors[:1], len(images), axis=0))


@pytest.mark.parametrize("pooling", ["mean", "gem", "patches"])
def test_poolings_and_options_reach_the_server(
    foveal: Any,
    client: httpx.Client,
    pooling: str,
) -> None:
    options = {"pooling": pooling, "normalize": False, "size": 96, "fit": "whole"}
    (embedding,) = foveal.embed(photograph(), **options)
    assert np.array_equal(embedding.vector, by_hand(client, photograph(), **options))


def test_one_broken_image_is_a_value_among_the_others(foveal: Any) -> None:
    first, broken, last = foveal.embed([photograph(0), BROKEN, photograph(1)])
    assert isinstance(first, Embedding)
    assert isinstance(last, Embedding)
    assert isinstance(broken, InvalidInput)
    assert (broken.status, broken.code) == (422, "undecodable_image")
    with pytest.raises(InvalidInput, match="truncated"):
        stack([first, broken, last])


@pytest.mark.parametrize("count", [1, 3])
def test_broken_images_alone_are_values_too(foveal: Any, count: int) -> None:
    answers = foveal.embed([BROKEN] * count)
    assert [answer.code for answer in answers] == ["undecodable_image"] * count


def test_what_concerns_the_whole_call_is_raised(foveal: Any) -> None:
    with pytest.raises(NotFound, match="no model 'none'") as raised:
        foveal.embed([photograph(), photograph(1)], model="none")
    assert raised.value.status == 404
    assert raised.value.code == "not_found"
    with pytest.raises(InvalidInput, match="size"):
        foveal.embed([photograph(), photograph(1)], size=7)


def test_a_file_that_is_not_there_is_told_before_anything_is_sent(connect: Connect) -> None:
    nobody = connect("http://127.0.0.1:9")
    with pytest.raises(UnreadableFile, match="No such file"):
        nobody.attention("nowhere.jpg")
    for images in ("nowhere.jpg", ["nowhere.jpg", "neither.jpg"]):
        for answers in (nobody.embed(images), nobody.add_items("birds", images)):
            assert len(answers) == (1 if isinstance(images, str) else 2)
            assert all(isinstance(answer, UnreadableFile) for answer in answers)


def test_a_file_that_is_not_there_costs_the_other_images_nothing(
    foveal: Any, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.jpg"
    images = [gone, photograph(0), BROKEN, gone, photograph(1)]
    answers = foveal.embed(images)
    expected = stack(foveal.embed([images[1], images[4]]))
    assert [type(answers[index]) for index in (0, 2, 3)] == [
        UnreadableFile,
        InvalidInput,
        UnreadableFile,
    ]
    assert np.array_equal(stack([answers[1], answers[4]]), expected)

    metadata = [{"number": number} for number in range(5)]
    ids = foveal.add_items("gone", images, ids=list("abcde"), metadata=metadata)
    assert [entry if isinstance(entry, str) else None for entry in ids] == [
        *(None, "b", None, None, "e"),
    ]
    item = foveal.get_item("gone", "e")
    assert item.metadata == {"number": 4}
    assert np.array_equal(item.vector, expected[1])
    only_broken = foveal.embed([BROKEN, gone])
    assert [type(answer) for answer in only_broken] == [InvalidInput, UnreadableFile]


def test_ids_that_are_too_many_are_refused_beside_a_file_that_is_not_there(foveal: Any) -> None:
    with pytest.raises(InvalidInput, match="ids"):
        foveal.add_items("gone", [photograph(0), "gone.jpg", photograph(1)], ids=list("abcd"))


def test_many_images_are_answered_in_order_and_none_is_lost(
    connect: Connect,
    client: httpx.Client,
    tmp_path: Path,
) -> None:
    images: list[Any] = [photograph(seed) for seed in range(11)]
    images[3] = BROKEN
    images[6] = tmp_path / "gone.jpg"
    images[10] = b"no image"  # the last group has it alone
    foveal = connect(str(client.base_url), batching=Batching(images=2, in_flight=3))
    answers = list(foveal.embed_many(iter(images)))
    assert [image for image, _ in answers] == images
    for index, (image, answer) in enumerate(answers):
        if index in (3, 6, 10):
            assert isinstance(answer, UnreadableFile if index == 6 else InvalidInput)
        else:
            assert np.array_equal(answer.vector, by_hand(client, image))


def test_many_images_stay_within_the_limits_of_a_request(serve: Serve, connect: Connect) -> None:
    images = [photograph(seed) for seed in range(7)]
    limit = 2 * max(map(len, images)) + 1000
    with serve(max_images=3, max_body_bytes=limit) as server:
        foveal = connect(str(server.base_url), batching=Batching(images=3, size=limit - 1000))
        assert stack(answer for _, answer in foveal.embed_many(images)).shape == (7, DIM)


def test_a_folder_is_searched_for_images(
    foveal: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.PNG", "deep/down/a.jpg", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photograph())
    (tmp_path / "notes.txt").write_text("no image")
    found = [path for path, _ in foveal.embed_folder(tmp_path)]
    assert found == [tmp_path / "a.png", tmp_path / "b.PNG", tmp_path / "deep/down/a.jpg"]
    assert "100%" in capsys.readouterr().err
    list(foveal.embed_folder(tmp_path, progress=False))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_folder_is_told(foveal: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnreadableFile, match=f"{tmp_path / name}: there is no such folder"):
        list(foveal.embed_folder(tmp_path / name))


def test_attention_comes_as_arrays(foveal: Any, client: httpx.Client) -> None:
    found = foveal.attention(photograph(), mass=0.6, size=48)
    answer = client.post(
        "/attention", content=photograph(), headers=PNG, params={"output": "npy", "size": 48}
    )
    assert np.array_equal(found.maps, np.load(io.BytesIO(answer.content)))
    assert found.heads == list(range(HEADS))
    assert found.query == "mean"
    assert np.array_equal(found.masks, mass_masks(found.maps, 0.6))
    assert foveal.attention(photograph(), heads="mean").maps.shape[0] == 1


def test_attention_comes_as_a_picture(foveal: Any) -> None:
    picture = foveal.attention_picture(photograph(), view="heatmap")
    assert Image.open(io.BytesIO(picture)).format == "PNG"


def test_an_image_corresponds_to_itself(foveal: Any) -> None:
    found = foveal.correspond(photograph(), photograph(), fit="crop")
    assert found.grids == ((8, 8), (8, 8))
    # Blocks of one colour have equal patches: the match need not be the patch itself.
    assert np.allclose(found.scores, 1, atol=1e-5)
    assert found.matches.shape == (8, 8, 2)
    assert found.mutual.dtype == np.bool_


def test_items_are_kept_found_and_deleted(foveal: Any) -> None:
    images = [photograph(seed) for seed in range(3)]
    ids = foveal.add_items(
        "birds", [*images, BROKEN], ids=["a", "b,c", "d/é ?", "e"], metadata={"sea": True}
    )
    assert ids[:3] == ["a", "b,c", "d/é ?"]
    assert ids[3].code == "undecodable_image"
    item = foveal.get_item("birds", "d/é ?")
    assert item.metadata == {"sea": True}
    assert np.array_equal(item.vector, foveal.embed(images[2])[0].vector)

    matches = foveal.similar(images[1], collection="birds", k=2, filter={"sea": True})
    assert matches[0].id == "b,c"
    assert matches[0].score == pytest.approx(1, abs=1e-5)
    assert foveal.similar(embedding=item.vector, collection="birds")[0].id == "d/é ?"
    assert foveal.similar(id="a", collection="birds")[0].id == "a"

    put = foveal.put_item("birds", "v", embedding=item.vector, metadata={"n": 1})
    assert np.allclose(put.vector, item.vector, atol=1e-6)
    foveal.put_item("birds", "w", images[0])
    (collection,) = [entry for entry in foveal.collections() if entry.name == "birds"]
    assert (collection.items, collection.dim) == (5, DIM)
    foveal.delete_item("birds", "a")
    with pytest.raises(NotFound):
        foveal.get_item("birds", "a")
    foveal.drop_collection("birds")
    assert "birds" not in [entry.name for entry in foveal.collections()]


def test_candidates_are_ranked(foveal: Any) -> None:
    ranked = foveal.rank(photograph(0), [photograph(1), BROKEN, photograph(0)])
    assert [entry.index for entry in ranked] == [2, 0, 1]
    assert ranked[0].score == pytest.approx(1, abs=1e-5)
    assert ranked[2].score.code == "undecodable_image"


def test_no_server_is_told_with_its_address(connect: Connect) -> None:
    slept: list[float] = []
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9/collections, asked 6 times"):
        connect("http://127.0.0.1:9", slept=slept).collections()
    assert len(slept) == 5
