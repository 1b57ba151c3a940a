"""The application as a whole: errors of every kind, the page, the documentation, the load."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.bundle import Bundle, BundleError
from service.index.base import IndexUnavailable
from service.settings import Settings
from tests.service.gateways import PNG, Serve, assert_problem, photograph, serving


@pytest.fixture
def app(bundle: Bundle, tmp_path: Path):
    return create_app(Settings(model=bundle.path, data=tmp_path, threads=2))


@pytest.fixture
def client(app):
    with serving(app) as started:
        yield started


def test_an_unknown_route_and_a_wrong_method_are_problems(client: httpx.Client) -> None:
    assert_problem(client.get("/nothing"), 404, "not_found", "/docs")
    assert_problem(client.post("/embed/", content=b"x"), 404, "not_found")
    assert_problem(client.get("/web/nothing.js"), 404, "not_found")
    wrong = client.get("/embed")
    assert_problem(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert client.put("/livez").headers["allow"] == "GET, HEAD"


def test_a_defect_is_a_500_that_tells_nothing(app, client: httpx.Client) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    gateway = app.state.gateway
    gateway.index.collections = fail
    gateway.model().pipeline.begin = fail
    for answer in (
        client.get("/collections"),
        client.post("/embed", content=photograph(), headers=PNG),
        client.post("/embed", files=[("images", photograph())] * 2),
    ):
        assert_problem(answer, 500, "internal", "log")
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text


def test_a_defect_on_one_image_spares_the_others(app, client: httpx.Client) -> None:
    pipeline = app.state.gateway.model().pipeline
    begin, bad = pipeline.begin, photograph(13)

    def fail_on_bad(data: bytes, *rest: object) -> object:
        if data == bad:
            raise RuntimeError("a secret")
        return begin(data, *rest)

    pipeline.begin = fail_on_bad
    answer = client.post("/embed", files=[("images", photograph()), ("images", bad)])
    assert answer.status_code == 200
    good, failed = answer.json()["embeddings"]
    assert good["embedding"]
    assert failed["error"]["status"] == 500


def test_a_request_past_its_deadline_is_a_504(bundle: Bundle, tmp_path: Path) -> None:
    settings = Settings(model=bundle.path, data=tmp_path, request_timeout=1e-6)
    with serving(create_app(settings)) as client:
        answer = client.post("/embed", content=photograph(), headers=PNG)
        assert_problem(answer, 504, "deadline_exceeded")


def test_concurrent_requests_all_get_their_own_answer(client: httpx.Client) -> None:
    photos = [photograph(seed) for seed in range(48)]
    alone = [client.post("/embed", content=photo, headers=PNG).json() for photo in photos]

    async def ask_all() -> list[dict]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as many:
            answers = await asyncio.gather(
                *(many.post("/embed?size=64", content=p, headers=PNG) for p in photos)
            )
            return [answer.json() for answer in answers]

    for one, other in zip(asyncio.run(ask_all()), alone, strict=True):
        assert one["embeddings"][0]["embedding"] == pytest.approx(
            other["embeddings"][0]["embedding"], abs=1e-5
        )


def test_the_pages_and_their_files_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/web/app.js", "javascript"),
        ("/web/style.css", "css"),
        ("/docs", "text/html"),
        ("/web/docs.js", "javascript"),
        ("/web/swagger-ui-bundle.js", "javascript"),
        ("/web/swagger-ui.css", "css"),
    ):
        answer = client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'; img-src 'self' blob: data:" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    for page in ("/", "/docs"):
        loaded = re.findall(r'(?:src|href)="([^"]+)"', client.get(page).text)
        for address in loaded:
            assert address == "data:," or client.get(address).status_code == 200


def test_the_documentation_shows_forms_options_and_answers(client: httpx.Client) -> None:
    assert "Foveal" in client.get("/docs").text
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "Foveal"
    embed = document["paths"]["/embed"]["post"]
    assert set(embed["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert {"fit", "pooling", "size"} < {entry["name"] for entry in embed["parameters"]}
    assert "EmbedAnswer" in document["components"]["schemas"]
    assert "application/problem+json" in embed["responses"]["4XX"]["content"]
    assert "/similar" in document["paths"]


def test_browsers_of_named_sites_may_send_every_documented_header(serve: Serve) -> None:
    sent = (
        "authorization",
        "content-type",
        "inference-header-content-length",
        "traceparent",
        "tracestate",
        "x-api-key",
        "x-request-id",
        "x-request-timeout-ms",
    )
    origin = {"Origin": "https://app.example"}
    with serve(cors_origins="https://app.example") as client:
        for name in sent:
            asked = {
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": name,
            }
            assert client.options("/embed", headers=origin | asked).status_code == 200, name
        answer = client.get("/livez", headers=origin)
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {"inference-header-content-length", "ratelimit-policy"} < set(exposed)


def test_a_folder_that_is_no_bundle_or_an_index_in_use_is_told(
    app, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json"):
        create_app(Settings(model=tmp_path / "nothing", data=tmp_path / "other"))
    with pytest.raises(IndexUnavailable, match="open in another process"):
        create_app(Settings(model=bundle.path, data=tmp_path))
