"""The OpenAPI document says what the routes do."""

from typing import Any

import httpx
import pytest

from tests.service.gateways import b64, photograph

IMAGE_ROUTES = ["/embed", "/attention", "/correspond", "/similar"]


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def resolved(document: dict[str, Any], reference: str) -> Any:
    found = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return here + [found for value in node.values() for found in references(value)]
    if isinstance(node, list):
        return [found for value in node for found in references(value)]
    return []


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = references(document)
    assert found
    for reference in found:
        assert isinstance(resolved(document, reference), dict)


@pytest.mark.parametrize("route", IMAGE_ROUTES)
def test_every_form_and_option_is_described(
    client: httpx.Client, document: dict[str, Any], route: str
) -> None:
    post = document["paths"][route]["post"]
    content = post["requestBody"]["content"]
    raw = {"image/*", "application/octet-stream"} if route != "/correspond" else set()
    assert set(content) == {"multipart/form-data", "application/json"} | raw
    in_query = {entry["name"] for entry in post["parameters"] if entry["in"] == "query"}
    refused = client.post(f"{route}?no_such=1", json={}).json()["detail"]
    options = refused.partition("options are ")[2].removesuffix(".").split(", ")
    assert in_query == set(options)
    images = {"images", "candidates"} if route == "/similar" else {"images"}
    for form in ("multipart/form-data", "application/json"):
        assert set(content[form]["schema"]["properties"]) == in_query | images
    assert [entry["name"] for entry in post["parameters"] if entry["in"] == "header"] == [
        "X-Request-Timeout-Ms"
    ]


@pytest.mark.parametrize("route", IMAGE_ROUTES)
def test_defaults_and_choices_are_accepted_as_described(
    client: httpx.Client, document: dict[str, Any], route: str
) -> None:
    images = [b64(photograph(seed)) for seed in range(2 if route == "/correspond" else 1)]
    candidates = {"candidates": images} if route == "/similar" else {}
    for parameter in document["paths"][route]["post"]["parameters"]:
        schema = parameter.get("schema", {})
        for value in [
            *schema.get("enum", []),
            *([schema["default"]] if "default" in schema else []),
        ]:
            if parameter["name"] == "collection" or value in ("cls", "cls_mean"):
                continue  # not beside candidates; not of this model
            answer = client.post(
                route,
                params={parameter["name"]: value},
                json={"images": images, **candidates},
            )
            assert answer.status_code == 200, answer.text
            assert (
                answer.headers["content-type"]
                in document["paths"][route]["post"]["responses"]["200"]["content"]
            )


@pytest.mark.parametrize("route", IMAGE_ROUTES)
def test_problems_are_described_as_they_come(
    client: httpx.Client, document: dict[str, Any], route: str
) -> None:
    described = document["paths"][route]["post"]["responses"]["4XX"]["content"]
    answer = client.post(f"{route}?size=0", json={"images": [b64(photograph())]})
    assert list(described) == [answer.headers["content-type"]]
    problem = resolved(document, described["application/problem+json"]["schema"]["$ref"])
    assert set(problem["required"]) == set(answer.json())
