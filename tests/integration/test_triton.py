"""The gateway as a user runs it, before real Triton servers that come, go, and take their time."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tritonclient.grpc import InferenceServerException, InferInput
from tritonclient.grpc.aio import InferenceServerClient

from service.bundle import Bundle
from tests.bundles import make_bundle
from tests.certificates import Authority
from tests.ports import HeldPort
from tests.service.gateways import PNG, assert_problem, photograph
from tests.service.processes import Serving, foveal, serving
from tests.triton_servers import Encrypted, TritonServer
from tests.waiting import wait_until

# A request must be answered long before this: it is what "never hangs" means.
PATIENCE = 120.0


@contextmanager
def gateway(bundle: Bundle, data: Path, *urls: str, **settings: str) -> Iterator[Serving]:
    environment = {
        "FOVEAL_ENGINE": "triton",
        "FOVEAL_TRITON_URLS": ",".join(urls),
        "FOVEAL_CACHE_BYTES": "0",
        "FOVEAL_REQUEST_TIMEOUT": "60",
        **settings,
    }
    with serving("--model", bundle.path, "--data", data, **environment) as started:
        yield started


def status(address: str, path: str) -> int:
    return httpx.get(address + path, timeout=PATIENCE).status_code


def post(address: str) -> httpx.Response:
    return httpx.post(f"{address}/embed", content=photograph(), headers=PNG, timeout=PATIENCE)


def metric(address: str, name: str, **labels: str) -> float:
    """The sum of a metric over all that have the labels."""
    lines = httpx.get(f"{address}/metrics", timeout=PATIENCE).text.splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if re.match(rf"{name}[{{ ]", line) and all(label in line for label in wanted)
    )


class Load:
    """Photographs, all different, sent by so many clients until it is told to stop."""

    def __init__(self, address: str, clients: int) -> None:
        self.answers: Counter[int] = Counter()
        self.hints: set[str | None] = set()
        self._address = address
        self._clients = clients
        self._stopped = False
        self._sent = 0

    async def __aenter__(self) -> "Load":
        self._http = httpx.AsyncClient(base_url=self._address, timeout=PATIENCE)
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._stopped = True
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self._http.aclose()

    async def more(self, status: int, count: int) -> None:
        """Wait for so many further answers of a status."""
        wanted = self.answers[status] + count
        async with asyncio.timeout(PATIENCE):
            while self.answers[status] < wanted:
                await asyncio.sleep(0.02)
                if done := next((task for task in self._tasks if task.done()), None):
                    done.result()

    async def _client(self) -> None:
        while not self._stopped:
            self._sent += 1
            answer = await self._http.post(
                "/embed", content=photograph(self._sent, (16, 16)), headers=PNG
            )
            self.answers[answer.status_code] += 1
            if answer.status_code == 503:
                self.hints.add(answer.headers.get("retry-after"))
                await asyncio.sleep(0.02)


def test_many_clients_get_the_numbers_of_the_engine_in_process_and_runs_hold_several_images(
    bundle: Bundle, triton: TritonServer, tmp_path: Path
) -> None:
    photos = [photograph(seed) for seed in range(64)]

    async def embed(address: str, meanwhile: Callable[[], object]) -> list[list[float]]:
        async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as http:
            asked = [
                asyncio.create_task(http.post("/embed", content=photo, headers=PNG))
                for photo in photos
            ]
            await asyncio.to_thread(meanwhile)
            answers = await asyncio.gather(*asked)
        return [
            answer.raise_for_status().json()["embeddings"][0]["embedding"] for answer in answers
        ]

    with gateway(bundle, tmp_path, triton.url, FOVEAL_TRITON_SHARED_MEMORY="true") as ours:
        begun = triton.hold()
        before = 0.0

        def count(name: str, **labels: str) -> float:
            return metric(ours.address, f"foveal_{name}", **labels)

        def until_several_wait() -> None:
            nonlocal before
            wait_until(lambda: begun.exists() and count("preprocess_duration_seconds_count") >= 30)
            # All that was run earlier is counted before the next run begins.
            wait_until(lambda: count("triton_ready") == 1)
            before = count("triton_images_total")
            triton.heal()

        found = asyncio.run(embed(ours.address, until_several_wait))
        assert status(ours.address, "/readyz") == 200
        # A run is counted a little after its answer.
        wait_until(lambda: count("triton_images_total", server=triton.url) >= before + len(photos))
        assert count("triton_images_total", server=triton.url) == before + len(photos)
        assert count("triton_ready", model="tiny") == 1
        several = count("triton_runs_total") - count("triton_runs_total", batch_size="1")
        assert several >= 4
        assert count("triton_compute_seconds_total") > 0
        assert ours.end() == 0
    with serving("--model", bundle.path, "--data", tmp_path, FOVEAL_ENGINE="onnx") as local:
        expected = asyncio.run(embed(local.address, lambda: None))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_starts_without_triton_survives_its_end_and_takes_it_up_again(
    bundle: Bundle, triton: TritonServer, tmp_path: Path
) -> None:
    triton.kill()
    with gateway(bundle, tmp_path / "data", triton.url) as ours:
        assert status(ours.address, "/livez") == 200
        assert status(ours.address, "/readyz") == 503
        refused = post(ours.address)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert metric(ours.address, "foveal_triton_ready") == 0
        triton.start()
        wait_until(lambda: status(ours.address, "/readyz") == 200)

        async def load() -> Load:
            async with Load(ours.address, clients=8) as sent:
                await sent.more(200, 50)
                await asyncio.to_thread(triton.kill)
                await sent.more(503, 50)
                await asyncio.to_thread(wait_until, lambda: status(ours.address, "/readyz") == 503)
                assert status(ours.address, "/livez") == 200
                await asyncio.to_thread(triton.start)
                await sent.more(200, 50)
            return sent

        sent = asyncio.run(load())
        assert sent.answers.keys() == {200, 503}
        assert sent.hints == {"1"}
        assert status(ours.address, "/readyz") == 200
        assert ours.end() == 0
        assert "Traceback" not in ours.log
        assert ours.log.count("Not ready before a Triton server has the model") == 1


def test_of_two_servers_one_may_be_killed_and_no_request_fails(
    bundle: Bundle, tritons: tuple[TritonServer, TritonServer], tmp_path: Path
) -> None:
    first, second = tritons
    with gateway(bundle, tmp_path, first.url, second.url) as ours:

        async def load() -> Load:
            async with Load(ours.address, clients=16) as sent:
                await sent.more(200, 100)
                await asyncio.to_thread(first.kill)
                await sent.more(200, 100)
                assert metric(ours.address, "foveal_triton_ready", server=first.url) == 0
                await asyncio.to_thread(first.start)
                await asyncio.to_thread(
                    wait_until, lambda: metric(ours.address, "foveal_triton_ready") == 2
                )
                await asyncio.to_thread(second.kill)
                await sent.more(200, 100)
            return sent

        sent = asyncio.run(load())
        assert sent.answers.keys() == {200}


def test_a_slow_model_is_given_up_at_the_deadline_and_the_next_request_is_answered(
    bundle: Bundle, triton: TritonServer, tmp_path: Path
) -> None:
    with (
        gateway(bundle, tmp_path, triton.url) as ours,
        httpx.Client(base_url=ours.address, timeout=PATIENCE, headers=PNG) as http,
    ):
        triton.slow(1)
        hurried = {"X-Request-Timeout-Ms": "200"}
        late = http.post("/embed", content=photograph(1), headers=hurried)
        triton.heal()
        assert late.status_code == 504
        assert http.post("/embed", content=photograph(2)).status_code == 200
        assert http.get("/readyz").status_code == 200


def test_a_queue_that_others_have_filled_is_503_with_a_hint(
    bundle: Bundle, triton: TritonServer, tmp_path: Path
) -> None:
    stopped = asyncio.Event()

    async def other(server: InferenceServerClient) -> None:
        pixels = InferInput("images", [8, 64, 64, 3], "UINT8")
        pixels.set_data_from_numpy(np.zeros((8, 64, 64, 3), np.uint8))
        while not stopped.is_set():
            with suppress(InferenceServerException):
                await server.infer("tiny", [pixels])
            await asyncio.sleep(0.01)

    async def flood(http: httpx.Client) -> httpx.Response:
        """The answer of the first request that comes when the queue is full."""
        async with InferenceServerClient(triton.url) as server:
            others = [asyncio.create_task(other(server)) for _ in range(12)]
            async with asyncio.timeout(PATIENCE):
                while True:
                    answer = await asyncio.to_thread(http.post, "/embed", content=photograph())
                    if answer.status_code != 200:
                        break
            stopped.set()
            await asyncio.gather(*others)
        return answer

    with (
        gateway(bundle, tmp_path, triton.url) as ours,
        httpx.Client(base_url=ours.address, timeout=PATIENCE, headers=PNG) as http,
    ):
        triton.slow(0.1)
        refused = asyncio.run(flood(http))
        triton.heal()
        assert_problem(refused, 503, "overloaded", "The queue of the model server is full")
        assert refused.headers["retry-after"] == "1"
        assert http.post("/embed", content=photograph()).status_code == 200
        assert http.get("/readyz").status_code == 200


def test_it_waits_for_a_server_that_has_its_model_and_not_another_of_the_same_name(
    triton: TritonServer, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", seed=1)
    with (
        HeldPort() as port,
        gateway(other, tmp_path, f"127.0.0.1:{port.number}", triton.url) as waiting,
    ):
        assert status(waiting.address, "/livez") == 200
        assert status(waiting.address, "/readyz") == 503
        assert metric(waiting.address, "foveal_model_ready") == 0
        wait_until(lambda: f"is {other.digest}. Export this bundle" in waiting.log)
        assert f"that of {other.path} is {other.digest}" in waiting.log
        assert waiting.end() == 0


def test_a_model_that_no_server_has_is_not_loaded_and_harms_no_other(
    bundle: Bundle, triton: TritonServer, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    settings = {"FOVEAL_REPOSITORY": str(tmp_path / "models")}
    with gateway(bundle, tmp_path, triton.url, **settings) as ours:
        make_bundle(tmp_path / "models" / "other", name="other")
        answer = httpx.post(f"{ours.address}/v2/repository/models/other/load", timeout=PATIENCE)
        assert answer.status_code == 422
        assert "no model server has it" in answer.json()["error"]
        assert status(ours.address, "/readyz") == 200


def test_a_folder_is_embedded_by_the_servers(
    bundle: Bundle, triton: TritonServer, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(photograph())
    embedded = foveal(
        *("embed", tmp_path / "photos", "--out", tmp_path / "vectors.npz", "--model", bundle.path),
        FOVEAL_ENGINE="triton",
        FOVEAL_TRITON_URLS=triton.url,
    )
    assert embedded.returncode == 0, embedded.stderr
    assert np.load(tmp_path / "vectors.npz")["embeddings"].shape == (1, bundle.manifest.dim)


def test_with_certificates_on_both_sides_photographs_travel_encrypted(
    bundle: Bundle, encrypted: Encrypted, tmp_path: Path
) -> None:
    files = {
        "FOVEAL_TRITON_CA": str(encrypted.authority.certificate),
        "FOVEAL_TRITON_CERTIFICATE": str(encrypted.client.certificate),
        "FOVEAL_TRITON_KEY": str(encrypted.client.key),
    }
    with gateway(bundle, tmp_path, encrypted.mutual_url, **files) as ours:
        assert status(ours.address, "/readyz") == 200
        answer = post(ours.address)
        assert answer.status_code == 200
        assert ours.end() == 0


def test_a_server_of_another_authority_is_not_used_and_one_line_says_so(
    bundle: Bundle, encrypted: Encrypted, tmp_path: Path
) -> None:
    stranger = str(Authority(tmp_path / "stranger").certificate)
    with gateway(bundle, tmp_path, encrypted.url, FOVEAL_TRITON_CA=stranger) as ours:
        wait_until(lambda: "triton_ca does not vouch" in ours.log)
        time.sleep(2.5)  # Meanwhile it is looked at twice again.
        assert status(ours.address, "/livez") == 200
        assert status(ours.address, "/readyz") == 503
        lines = ours.log.splitlines()
    assert len([line for line in lines if "triton_ca does not vouch for its cert" in line]) == 1
    assert not any("andshake" in line for line in lines)  # gRPC's own, at every look


def test_a_certificate_that_is_not_there_keeps_it_from_starting(
    bundle: Bundle, tmp_path: Path
) -> None:
    told = foveal(
        *("serve", "--port", 0, "--model", bundle.path, "--data", tmp_path / "data"),
        FOVEAL_ENGINE="triton",
        FOVEAL_TRITON_URLS="127.0.0.1:8001",
        FOVEAL_TRITON_CA="/nowhere/ca.crt",
    )
    assert told.returncode == 1
    assert told.stderr == (
        "foveal: triton_ca: /nowhere/ca.crt cannot be read: No such file or directory; name a file "
        "that this process may read\n"
    )
