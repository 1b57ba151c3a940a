"""`/v1`, asked by OpenAI's own client."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from service.bundle import Bundle
from tests.service.gateways import PNG, Serve, b64, photograph


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{b64(data)['b64']}"


def connect(client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ai(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with connect(client) as started:
        yield started


def embedded(client: httpx.Client, *photos: bytes) -> np.ndarray:
    files = [("images", photo) for photo in photos]
    rows = client.post("/embed", files=files).json()["embeddings"]
    return np.array([row["embedding"] for row in rows])


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 16}])
def test_the_client_gets_the_unit_vectors_of_embed(
    ai: openai.OpenAI, client: httpx.Client, bundle: Bundle, options: dict[str, Any]
) -> None:
    photos = [photograph(1), photograph(2)]
    inputs = [uri(photos[0]), b64(photos[1])["b64"]]
    answer = ai.embeddings.create(model="tiny", input=inputs, user="me", **options)
    assert answer.object == "list"
    assert answer.model == "tiny"
    assert answer.model_extra == {"digest": bundle.digest}
    assert [entry.index for entry in answer.data] == [0, 1]
    found = np.array([entry.embedding for entry in answer.data])
    np.testing.assert_allclose(found, embedded(client, *photos), atol=1e-6)
    # 64 px in patches of 8 px, two images.
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2 * 8 * 8


def test_base64_holds_little_endian_float32(ai: openai.OpenAI, client: httpx.Client) -> None:
    raw = ai.embeddings.with_raw_response.create(
        model="tiny", input=uri(photograph()), encoding_format="base64"
    )
    text = raw.http_response.json()["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(text), "<f4")
    np.testing.assert_allclose(vector, embedded(client, photograph())[0], atol=1e-6)


def test_one_input_that_is_not_a_list_is_one_image(ai: openai.OpenAI) -> None:
    assert len(ai.embeddings.create(model="tiny", input=uri(photograph())).data) == 1


def refusal(error: pytest.ExceptionInfo[openai.APIStatusError]) -> dict[str, Any]:
    body = error.value.body
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code"}
    return body


@pytest.mark.parametrize(
    "text", ["a photo of a cat", "cats", "", [1, 2, 3], [[1, 2]], ["cats", "dogs"]]
)
def test_text_and_tokens_are_told_that_the_model_sees_images(ai: openai.OpenAI, text: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ai.embeddings.create(model="tiny", input=text)
    body = refusal(error)
    assert body["type"] == "invalid_request_error"
    assert body["param"] == "input[0]"
    assert "data:image/png;base64" in body["message"]


def test_the_first_image_that_fails_is_named(ai: openai.OpenAI) -> None:
    whole = photograph()
    with pytest.raises(openai.BadRequestError) as error:
        ai.embeddings.create(
            model="tiny", input=[uri(whole), uri(whole[: len(whole) // 2]), "text"]
        )
    body = refusal(error)
    assert body["param"] == "input[1]"
    assert body["code"] == "undecodable_image"
    assert "input[1]" in body["message"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dimensions": 8}, ["dimensions", "16"]),
        ({"dimensions": -1}, ["dimensions"]),
        ({"input": []}, ["input", "empty"]),
        ({"encoding_format": "hex"}, ["encoding_format", "base64"]),
        ({"extra_body": {"colour": 1}}, ["colour"]),
        ({"input": "https://example.org/a.png"}, ["FOVEAL_URL_FETCH"]),
    ],
)
def test_an_option_that_cannot_be_met_is_a_bad_request(
    ai: openai.OpenAI, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ai.embeddings.create(**{"model": "tiny", "input": uri(photograph())} | options)
    for word in words:
        assert word in refusal(error)["message"]


def test_an_unknown_model_is_not_found_and_those_served_are_named(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        ai.embeddings.create(model="text-embedding-3-small", input=uri(photograph()))
    with pytest.raises(openai.NotFoundError, match="tiny"):
        ai.models.retrieve("text-embedding-3-small")


def test_the_models_in_service_are_listed(ai: openai.OpenAI, bundle: Bundle) -> None:
    (model,) = ai.models.list().data
    assert model == ai.models.retrieve("tiny")
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "foveal")
    assert model.created > 1_700_000_000
    assert model.model_extra == {"digest": bundle.digest}


def test_errors_of_the_body_and_the_route_have_openais_form(client: httpx.Client) -> None:
    for answer, status, code in (
        (client.post("/v1/embeddings", content=b"{"), 400, "malformed_request"),
        (client.post("/v1/embeddings", json=[]), 400, "invalid_option"),
        (client.post("/v1/embeddings", content=b"x", headers=PNG), 400, "unsupported_media_type"),
        (client.get("/v1/nothing"), 404, "not_found"),
        (client.get("/v1/embeddings"), 405, "method_not_allowed"),
    ):
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["code"] == code
        assert error["message"]


def test_too_many_images_are_refused_with_the_limit(serve: Serve) -> None:
    with serve(max_images=2) as client, connect(client) as ai:
        with pytest.raises(openai.APIStatusError, match="the limit is 2") as error:
            ai.embeddings.create(model="tiny", input=[uri(photograph())] * 3)
        assert error.value.status_code == 413


def test_a_full_queue_and_a_late_answer_are_the_servers_errors(serve: Serve) -> None:
    with serve(max_queue=1) as client, connect(client) as ai:
        photos = [uri(photograph(seed, (2000, 3000))) for seed in range(8)]
        with pytest.raises(openai.InternalServerError) as error:
            ai.embeddings.create(model="tiny", input=photos)
        assert error.value.status_code == 503
        assert error.value.response.headers["retry-after"] == "1"
        assert refusal(error)["type"] == "server_error"


def test_a_large_grey_photograph_comes_as_json_too(ai: openai.OpenAI, client: httpx.Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    assert len(buffer.getvalue()) > 1_000_000
    found = ai.embeddings.create(model="tiny", input=uri(buffer.getvalue())).data[0].embedding
    np.testing.assert_allclose(found, embedded(client, buffer.getvalue())[0], atol=1e-6)
