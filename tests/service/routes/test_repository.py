"""`/v2/repository`, asked by Triton's own client, while others go on embedding."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service.app import create_app
from service.bundle import GRAPH, Bundle
from service.settings import Settings
from tests.bundles import make_bundle
from tests.service.gateways import PNG, Serve, photograph, serving


@dataclass
class Served:
    """A gateway, its repository and Triton's client."""

    http: httpx.Client
    triton: triton.InferenceServerClient
    folder: Path

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.triton.get_model_repository_index()}


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Iterator[Served]:
    make_bundle(tmp_path / "other", "other", seed=1)
    with (
        serve(repository=tmp_path) as http,
        triton.InferenceServerClient(f"127.0.0.1:{http.base_url.port}") as client,
    ):
        yield Served(http, client, tmp_path)


def replace(bundle: Path, seed: int) -> Bundle:
    """Put a new version in a bundle's place, as a deployment does: whole, by renaming."""
    new = bundle.with_name(f".{bundle.name}-{seed}")
    made = make_bundle(new, bundle.name, seed)
    bundle.rename(bundle.with_name(f".{bundle.name}-before-{seed}"))
    new.rename(bundle)
    return made


def embed(client: httpx.Client, model: str, seed: int = 0) -> httpx.Response:
    return client.post(f"/embed?model={model}", content=photograph(seed), headers=PNG)


def test_the_index_lists_what_is_served_and_what_could_be(served: Served, bundle: Bundle) -> None:
    make_bundle(served.folder / "third", "third", seed=2)
    index = served.triton.get_model_repository_index()
    assert index[0] == {
        "name": "tiny",
        "version": bundle.digest,
        "state": "READY",
        "reason": "",
    }
    assert served.states() == {"tiny": "READY", "other": "READY", "third": "UNAVAILABLE"}
    ready = served.http.post("/v2/repository/index", json={"ready": True}).json()
    assert [row["name"] for row in ready] == ["tiny", "other"]


def test_a_model_is_loaded_used_and_unloaded(served: Served) -> None:
    made = make_bundle(served.folder / "third", "third", seed=2)
    assert embed(served.http, "third").status_code == 404
    served.triton.load_model("third")
    assert served.triton.is_model_ready("third")
    assert embed(served.http, "third").json()["digest"] == made.digest
    served.triton.unload_model("third")
    assert not served.triton.is_model_ready("third")
    assert embed(served.http, "third").status_code == 404
    assert served.states()["third"] == "UNAVAILABLE"


def test_new_versions_are_taken_into_use_without_a_failed_request(served: Served) -> None:
    folder = served.folder / "other"
    digests = [Bundle.load(folder).digest]
    seen: list[list[str]] = [[] for _ in range(4)]
    failures: list[str] = []
    stop = threading.Event()

    def hammer(worker: int) -> None:
        with httpx.Client(base_url=served.http.base_url, timeout=30) as client:
            seed = worker * 1000
            while not stop.is_set():
                seed += 1
                answer = embed(client, "other", seed)
                if answer.status_code == 200:
                    seen[worker].append(answer.json()["digest"])
                else:
                    failures.append(answer.text)

    threads = [threading.Thread(target=hammer, args=(worker,)) for worker in range(len(seen))]
    for thread in threads:
        thread.start()

    def wait_for_answers() -> None:
        so_far = [len(answers) for answers in seen]
        while any(len(now) < before + 3 for now, before in zip(seen, so_far, strict=True)):
            assert not failures
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.01)

    try:
        for seed in range(2, 6):
            wait_for_answers()
            digests.append(replace(folder, seed).digest)
            served.triton.load_model("other")
            assert embed(served.http, "other").json()["digest"] == digests[-1]
        wait_for_answers()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    for answers in seen:
        # Each client goes through the versions in their order and never back.
        order = [digests.index(digest) for digest in answers]
        assert order == sorted(order)
        assert len(set(order)) == len(digests)


def test_a_damaged_bundle_is_not_taken_and_the_old_goes_on(served: Served) -> None:
    before = embed(served.http, "other").json()
    (served.folder / "other" / GRAPH).write_bytes(b"broken")
    with pytest.raises(InferenceServerException, match="damaged") as error:
        served.triton.load_model("other")
    assert error.value.status() == "422"
    after = embed(served.http, "other").json()
    assert after["digest"] == before["digest"]
    np.testing.assert_array_equal(
        after["embeddings"][0]["embedding"], before["embeddings"][0]["embedding"]
    )


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e", "..%2ftiny", "%2fetc", "other%2f"])
def test_a_name_outside_the_repository_is_not_found(served: Served, name: str) -> None:
    for verb in ("load", "unload"):
        answer = served.http.post(f"/v2/repository/models/{name}/{verb}")
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}


def test_the_default_cannot_be_unloaded(served: Served) -> None:
    with pytest.raises(InferenceServerException, match="default"):
        served.triton.unload_model("tiny")
    served.triton.load_model("tiny")
    assert served.triton.is_model_ready("tiny")


@pytest.mark.parametrize("override", [{"config": "{}"}, {"files": {"file:1/m.onnx": b"x"}}])
def test_a_model_cannot_be_sent_along(served: Served, override: dict[str, Any]) -> None:
    if "files" in override:
        override["config"] = "{}"
    with pytest.raises(InferenceServerException, match=r"parameters\.") as error:
        served.triton.load_model("other", **override)
    assert error.value.status() == "422"


def test_one_of_several_processes_cannot_load_for_all(bundle: Bundle, tmp_path: Path) -> None:
    app = create_app(Settings(model=bundle.path, data=tmp_path, threads=1))
    gateway = app.state.gateway
    several = gateway.settings.model_copy(update={"workers": 2})
    app.state.gateway = dataclasses.replace(gateway, settings=several)
    with serving(app) as http:
        for verb in ("load", "unload"):
            answer = http.post(f"/v2/repository/models/tiny/{verb}")
            assert answer.status_code == 422
            assert "--workers 1" in answer.json()["error"]
