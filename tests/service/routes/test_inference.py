"""`/v2`, asked by Triton's own client."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from service.bundle import Bundle
from service.images import Limits, View, prepare
from tests.service.gateways import Serve, photograph
from tests.service.routes.test_embed import by_hand

SHAPES = {"embedding": (16,), "patches": (8, 8, 16), "attention": (2, 8, 8)}
INFER = "/v2/models/tiny/infer"


def connect(client: httpx.Client) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{client.base_url.port}")


@pytest.fixture(scope="module")
def server(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with connect(client) as started:
        yield started


def fitted(bundle: Bundle, *seeds: int) -> np.ndarray:
    limits = Limits(10**7, 10**7, 4096)
    return np.stack(
        [prepare(photograph(seed), bundle.manifest.input, View(), limits) for seed in seeds]
    )


def pixels(array: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("images", list(array.shape), "UINT8")
    return tensor.set_data_from_numpy(array, binary_data=binary)


def encoded(*photos: bytes, shape: tuple[int, ...] | None = None) -> triton.InferInput:
    array = np.array(photos, object).reshape(shape or len(photos))
    return triton.InferInput("bytes", list(array.shape), "BYTES").set_data_from_numpy(array)


def outputs(*names: str, binary: bool = True) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def test_the_server_and_the_model_are_live_and_ready(
    server: triton.InferenceServerClient, bundle: Bundle
) -> None:
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("tiny")
    assert server.is_model_ready("tiny", bundle.digest)
    assert not server.is_model_ready("tiny", "1")
    assert not server.is_model_ready("other")


def test_the_metadata_describes_server_and_model(
    server: triton.InferenceServerClient, bundle: Bundle
) -> None:
    about = server.get_server_metadata()
    assert about["name"] == "foveal"
    assert "binary_tensor_data" in about["extensions"]
    metadata = server.get_model_metadata("tiny")
    assert metadata["versions"] == [bundle.digest]
    assert metadata["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        {"name": "bytes", "datatype": "BYTES", "shape": [-1]},
    ]
    assert {output["name"]: output["shape"] for output in metadata["outputs"]} == {
        "embedding": [-1, 16],
        "patches": [-1, -1, -1, 16],
        "attention": [-1, 2, -1, -1],
    }
    config = server.get_model_config("tiny", bundle.digest)
    assert config["max_batch_size"] == 64
    assert [tensor["data_type"] for tensor in config["input"]] == ["TYPE_UINT8", "TYPE_STRING"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_fitted_pixels_give_the_models_own_numbers(
    server: triton.InferenceServerClient, bundle: Bundle, binary_in: bool, binary_out: bool
) -> None:
    images = fitted(bundle, 1, 2, 3)
    answer = server.infer(
        "tiny",
        [pixels(images, binary=binary_in)],
        outputs=outputs("embedding", binary=binary_out),
        request_id="mine",
    )
    expected = [by_hand(image) for image in images]
    np.testing.assert_allclose(answer.as_numpy("embedding"), expected, atol=1e-4)
    response = answer.get_response()
    assert response["id"] == "mine"
    assert response["model_name"] == "tiny"
    assert response["model_version"] == bundle.digest
    assert [output["name"] for output in response["outputs"]] == ["embedding"]
    assert ("data" in response["outputs"][0]) is not binary_out


def test_every_output_is_given_where_none_is_asked_for(
    server: triton.InferenceServerClient, bundle: Bundle
) -> None:
    answer = server.infer("tiny", [pixels(fitted(bundle, 1, 2))])
    for name, shape in SHAPES.items():
        assert answer.as_numpy(name).shape == (2, *shape)
    np.testing.assert_allclose(answer.as_numpy("attention").sum((2, 3)), 1, atol=1e-5)


def test_binary_and_json_outputs_may_be_mixed(
    server: triton.InferenceServerClient, bundle: Bundle
) -> None:
    image = pixels(fitted(bundle, 1))
    mixed = server.infer(
        "tiny",
        [image],
        outputs=outputs("attention") + outputs("embedding", binary=False) + outputs("patches"),
    )
    plain = server.infer("tiny", [image])
    for name in SHAPES:
        np.testing.assert_allclose(mixed.as_numpy(name), plain.as_numpy(name), atol=1e-6)


def test_another_size_than_the_default_gives_another_grid(
    server: triton.InferenceServerClient,
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 96, 3), dtype=np.uint8)
    answer = server.infer("tiny", [pixels(image)])
    assert answer.as_numpy("patches").shape == (1, 4, 12, 16)
    np.testing.assert_allclose(answer.as_numpy("embedding")[0], by_hand(image[0]), atol=1e-4)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_encoded_images_take_the_same_path_as_embed(
    server: triton.InferenceServerClient, bundle: Bundle, shape: tuple[int, ...]
) -> None:
    answer = server.infer("tiny", [encoded(photograph(1), photograph(2), shape=shape)])
    expected = [by_hand(image) for image in fitted(bundle, 1, 2)]
    np.testing.assert_allclose(answer.as_numpy("embedding"), expected, atol=1e-4)


def test_encoded_images_are_base64_in_json(client: httpx.Client, bundle: Bundle) -> None:
    text = base64.b64encode(photograph(1)).decode()
    tensor = {"name": "bytes", "shape": [2], "datatype": "BYTES"}
    tensor["data"] = [text, f"data:image/png;base64,{text}"]
    answer = client.post(INFER, json={"inputs": [tensor], "outputs": [{"name": "embedding"}]})
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [2, 16]
    (image,) = fitted(bundle, 1)
    np.testing.assert_allclose(output["data"], np.tile(by_hand(image), 2), atol=1e-4)


def test_the_asynchronous_client_works(client: httpx.Client, bundle: Bundle) -> None:
    async def ask() -> np.ndarray:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{client.base_url.port}") as server:
            assert await server.is_server_ready()
            answer = await server.infer("tiny", [pixels(fitted(bundle, 1))])
            return answer.as_numpy("embedding")

    (image,) = fitted(bundle, 1)
    np.testing.assert_allclose(asyncio.run(ask())[0], by_hand(image), atol=1e-4)


def test_a_version_that_is_not_served_is_not_found(
    server: triton.InferenceServerClient, bundle: Bundle
) -> None:
    image = pixels(fitted(bundle, 1))
    assert server.infer("tiny", [image], model_version=bundle.digest)
    with pytest.raises(InferenceServerException, match=bundle.digest) as error:
        server.infer("tiny", [image], model_version="0" * 64)
    assert error.value.status() == "404"
    with pytest.raises(InferenceServerException, match="'tiny'"):
        server.infer("other", [image])


def test_the_first_image_that_fails_is_named(server: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"bytes\[1\]: .*accepted type") as error:
        server.infer("tiny", [encoded(photograph(), b"text")])
    assert error.value.status() == "415"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 60, 64, 3), "multiples of 8"),
        ((1, 1024, 1024, 3), "limit is 4096"),
        ((65, 8, 8, 3), "limit is 64"),
        ((1, 64, 64, 4), r"\[n, height, width, 3\]"),
        ((64, 64, 3), r"\[n, height, width, 3\]"),
    ],
)
def test_pixels_that_do_not_suit_the_model_are_refused(
    server: triton.InferenceServerClient, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(InferenceServerException, match=words) as error:
        server.infer("tiny", [pixels(np.zeros(shape, np.uint8))])
    assert error.value.status() in ("413", "422")


def test_outputs_over_the_limit_in_bytes_are_refused(serve: Serve, bundle: Bundle) -> None:
    # One image: 16 numbers of embedding, 8 x 8 x 16 of patches, 2 x 8 x 8 of attention.
    exact = 4 * (16 + 1024 + 128)
    with serve(max_answer_bytes=2 * exact) as client, connect(client) as server:
        assert server.infer("tiny", [pixels(fitted(bundle, 1, 2))])
        with pytest.raises(InferenceServerException, match="outputs") as error:
            server.infer("tiny", [pixels(fitted(bundle, 1, 2, 3))])
        assert error.value.status() == "413"
        assert server.infer("tiny", [pixels(fitted(bundle, 1, 2, 3))], outputs=outputs("embedding"))


def tensor(**changes: Any) -> dict[str, Any]:
    data = [[[[0, 1, 2]] * 8] * 8]
    plain = {"name": "images", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": data}
    return {name: value for name, value in (plain | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("document", "status", "words"),
    [
        ({}, 422, "inputs"),
        ({"inputs": []}, 422, "inputs"),
        ({"inputs": [tensor(), tensor()]}, 422, "inputs"),
        ({"inputs": [tensor(name="pixels")]}, 422, "images"),
        ({"inputs": [tensor(datatype="FP32")]}, 422, "UINT8"),
        ({"inputs": [tensor(datatype="BYTES")]}, 422, "UINT8"),
        ({"inputs": [tensor(shape=[1, 8, 8])]}, 422, "[n, height, width, 3]"),
        ({"inputs": [tensor(shape=[1, 16, 8, 3])]}, 422, "384 values; 192"),
        ({"inputs": [tensor(shape=[0, 8, 8, 3], data=[])]}, 422, "shape"),
        ({"inputs": [tensor(shape=[1, 2**31, 2**31, 3])]}, 422, "192 were sent"),
        ({"inputs": [tensor(data=[256] * 192)]}, 422, "0 to 255"),
        ({"inputs": [tensor(data=[-1] * 192)]}, 422, "0 to 255"),
        ({"inputs": [tensor(data=[0.5] * 192)]}, 422, "0 to 255"),
        ({"inputs": [tensor(data=["a"] * 192)]}, 422, "0 to 255"),
        ({"inputs": [tensor(data=[[1], 2])]}, 422, "0 to 255"),
        ({"inputs": [tensor(data=[[1], "2"])]}, 422, "0 to 255"),
        ({"inputs": [tensor()], "outputs": [{"name": "embedding"}] * 4}, 422, "outputs"),
        ({"inputs": [tensor(data=None)]}, 422, "shared memory"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 192})]}, 400, "0 bytes"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, 422, "embedding"),
        (
            {"inputs": [{"name": "bytes", "shape": [2], "datatype": "BYTES", "data": ["aaaa"]}]},
            422,
            "1 elements",
        ),
        (
            {"inputs": [{"name": "bytes", "shape": [1], "datatype": "BYTES", "data": [7]}]},
            422,
            "bytes[0]",
        ),
    ],
)
def test_a_request_that_is_not_the_protocols_is_told_what_is_wrong(
    client: httpx.Client, document: Any, status: int, words: str
) -> None:
    answer = client.post(INFER, json=document)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("header", "binary", "words"),
    [
        ("x", b"", "Inference-Header-Content-Length"),
        ("-1", b"", "Inference-Header-Content-Length"),
        ("1000000", b"", "Inference-Header-Content-Length"),
        ("9" * 5000, b"", "Inference-Header-Content-Length"),
        (None, b"\0" * 191, "191 bytes"),
        (None, b"\0" * 193, "193 bytes"),
    ],
)
def test_binary_data_must_be_as_long_as_it_says(
    client: httpx.Client, header: str | None, binary: bytes, words: str
) -> None:
    head = json.dumps({"inputs": [tensor(data=None, parameters={"binary_data_size": 192})]})
    answer = client.post(
        INFER,
        content=head.encode() + binary,
        headers={"Inference-Header-Content-Length": header or str(len(head))},
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def infer_elements(client: httpx.Client, raw: bytes, count: int) -> httpx.Response:
    texts = {"name": "bytes", "shape": [count], "datatype": "BYTES"}
    texts["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [texts]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return client.post(INFER, content=head + raw, headers=length)


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\x02\0\0\0a", b"\x01\0"])
def test_bytes_elements_must_end_within_the_data(client: httpx.Client, raw: bytes) -> None:
    answer = infer_elements(client, raw, count=1)
    assert answer.status_code == 400, answer.text
    assert "longer" in answer.json()["error"]


def test_no_more_elements_are_split_off_than_there_are_images(client: httpx.Client) -> None:
    raw = bytes(4 * 1_000_000)  # a million empty elements
    answer = infer_elements(client, raw, count=2)
    assert answer.status_code == 422, answer.text
    assert "more elements" in answer.json()["error"]


def test_a_compressed_body_is_refused_and_a_broken_one_is_told(client: httpx.Client) -> None:
    packed = client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415
    assert "gzip" in packed.json()["error"]
    assert client.post(INFER, content=b"{").status_code == 400
    assert client.get("/v2/nothing").json()["error"]
