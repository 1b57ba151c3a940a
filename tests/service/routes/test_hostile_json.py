"""Bodies of JSON that are all values: none costs much more than its own bytes."""

import asyncio
import base64
import json
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import model_validator
from starlette.requests import Request

from service.bundle import Bundle
from service.json_text import MAX_VALUES
from service.routes import inputs
from service.schemas import Options
from service.settings import Settings
from tests.service.gateways import assert_problem, b64, photograph

JSON = {"Content-Type": "application/json"}
INFER = "/v2/models/tiny/infer"
TENSOR = '"inputs":[{"name":"bytes","shape":[1],"datatype":"BYTES","data":[""]}]'
MANY = 250_000  # values that are still parsed


def filled(start: str, value: str, end: str, count: int) -> bytes:
    return f"{start}{','.join([value] * count)}{end}".encode()


def names(start: str, end: str, count: int) -> bytes:
    return f"{start}{','.join(f'{json.dumps(str(n))}:0' for n in range(count))}{end}".encode()


def images(value: str) -> Callable[[int], bytes]:
    return lambda count: filled('{"images":[', value, "]}", count)


def field(name: str, value: str) -> Callable[[int], bytes]:
    return lambda count: filled(f'{{"{name}":[', value, "]}", count)


HOSTILE: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "images that are none": ("/embed", images("0")),
    "images that are empty": ("/attention", images('""')),
    "candidates": ("/similar", field("candidates", "0")),
    "an option that is a list": ("/correspond", field("size", "{}")),
    "unknown options": ("/embed", lambda count: names("{", "}", count)),
    "embedding": ("/similar", field("embedding", '""')),
    "embedding of numbers": ("/similar", field("embedding", "1")),
    "filter": ("/similar", lambda count: names('{"filter":{', "}}", count)),
    "ids": ("/collections/x/items", field("ids", '""')),
    "good ids": ("/collections/x/items", field("ids", '"a"')),
    "metadata": ("/collections/x/items", field("metadata", "0")),
    "metadata that is empty": ("/collections/x/items", field("metadata", "{}")),
    "outputs": (INFER, lambda count: filled(f'{{{TENSOR},"outputs":[', "0", "]}", count)),
    "inputs": (INFER, field("inputs", "0")),
    "a shape": (INFER, lambda count: filled('{"inputs":[{"shape":[', '""', "]}]}", count)),
    "inputs of OpenAI": (
        "/v1/embeddings",
        lambda count: filled('{"model":"tiny","input":[', '""', "]}", count),
    ),
    "unknown fields of OpenAI": ("/v1/embeddings", lambda count: names("{", "}", count)),
    "parameters of a model": (
        "/v2/repository/models/tiny/load",
        lambda count: names('{"parameters":{', "}}", count),
    ),
}


@pytest.mark.parametrize("count", [MANY, 10 * MANY])
@pytest.mark.parametrize("kind", HOSTILE)
def test_many_bad_values_cost_little_and_are_answered_shortly(
    client: httpx.Client, kind: str, count: int
) -> None:
    path, make = HOSTILE[kind]
    body = make(count)
    tracemalloc.start()
    try:
        answer = client.post(path, content=body, headers=JSON)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code in (400, 413, 422), answer.text[:1000]
    assert len(answer.content) < 4000
    # Client and server are one process: each holds the body once or twice.
    # Of a parsed value orjson alone reserves 512 bytes to write it down again, and touches few.
    parsed = 600 * min(count, MAX_VALUES)
    assert peak < 5 * len(body) + parsed


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/embed", {"model": "m" * 500_000, "images": [""]}),
        ("/embed", {"o" * 500_000: 1}),
        ("/similar", {"filter": {"k" * 10_000: []}, "id": "a"}),
        ("/v1/embeddings", {"model": "m" * 500_000, "input": ""}),
        ("/v1/embeddings", {"o" * 500_000: 1}),
    ],
)
def test_what_was_sent_is_not_sent_back(client: httpx.Client, path: str, asked: dict) -> None:
    answer = client.post(path, json=asked)
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 4000


def test_the_first_faults_are_told_and_how_many_more(client: httpx.Client) -> None:
    asked = {"filter": {str(n): [] for n in range(10)}, "id": "a"}
    problem = assert_problem(client.post("/similar", json=asked), 422, "invalid_option", "filter.0")
    assert "and 35 more" in problem["detail"]
    unknown = client.post("/embed", json={f"o{n}": 1 for n in range(10)})
    assert_problem(unknown, 422, "invalid_option", "'o0'", "'o4'", "and 5 more", "pooling")


def test_options_of_a_form_are_bounded_like_those_of_json(client: httpx.Client) -> None:
    form: dict[str, Any] = {"files": {"images": photograph()}}
    form["data"] = {"ids": "a," * 200_000}
    assert_problem(client.post("/collections/x/items", **form), 422, "invalid_option", "ids")
    form["data"] = {"metadata": "[" + "{}," * 700_000 + "{}]"}
    assert_problem(client.post("/collections/x/items", **form), 413, "too_large", "600000")
    form["data"] = {"heads": "0," * 200_000}
    assert_problem(client.post("/attention", **form), 422, "invalid_option", "heads")


def test_images_are_counted_before_one_is_decoded(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = inputs.decode
    monkeypatch.setattr(inputs, "decode", lambda entry: decoded.append(entry) or decode(entry))
    many = {"images": [b64(photograph())], "candidates": [b64(photograph())] * 64}
    assert_problem(client.post("/similar", json=many), 413, "too_large", "65 images", "64")
    assert not decoded
    assert client.post("/similar", json=many | {"candidates": many["images"]}).status_code == 200
    assert len(decoded) == 2


def test_large_images_in_json_are_decoded_beside_the_loop(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[bool] = []
    decode = base64.b64decode

    def watched(*arguments: Any, **options: Any) -> bytes:
        beside.append(not in_a_loop())
        return decode(*arguments, **options)

    large = b64(photograph() + bytes(300_000))
    tensor = {"name": "bytes", "shape": [1], "datatype": "BYTES", "data": [large]}
    monkeypatch.setattr(base64, "b64decode", watched)
    for path, asked in (
        ("/embed", {"images": [large]}),
        ("/v1/embeddings", {"model": "tiny", "input": large["b64"]}),
        (INFER, {"inputs": [tensor]}),
    ):
        assert client.post(path, json=asked).status_code == 200
    assert beside == [True] * 3


def in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Watched(Options):
    """Says where it is validated."""

    beside: bool = False

    @model_validator(mode="before")
    @classmethod
    def _where(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values | {"beside": not in_a_loop()}


@pytest.mark.parametrize(("size", "beside"), [(1000, False), (300_000, True)])
async def test_a_large_body_is_validated_beside_the_loop(
    bundle: Bundle, size: int, beside: bool
) -> None:
    body = json.dumps({"images": [], "model": "m" * size}).encode()
    arriving: asyncio.Queue = asyncio.Queue()
    arriving.put_nowait({"type": "http.request", "body": body})
    gateway = SimpleNamespace(settings=Settings(model=bundle.path))
    scope = {
        "type": "http",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
        "app": SimpleNamespace(state=SimpleNamespace(gateway=gateway)),
    }
    asked = await inputs.receive(Request(scope, arriving.get), Watched)
    assert asked.options.beside is beside
