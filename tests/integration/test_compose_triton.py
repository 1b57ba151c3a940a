"""`docker compose --profile gpu up` for real, but for the GPU: Triton runs on processors."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.bundle import DEFAULT, Bundle
from tests.bundles import make_bundle
from tests.compose_stack import Stack, build_gateway
from tests.docker_engine import PYTHON, ROOT, DockerEngine
from tests.service.gateways import PNG, photograph
from tests.service.processes import serving
from tests.triton_image import TRITON, build_triton

# What a machine without a GPU cannot have; everything else stays as users get it.
PROCESSORS = f"""
services:
  triton-models:
    build:
      network: host
      args: {{FINAL: "{PYTHON}"}}
  triton:
    command: !override
      - tritonserver
      - --model-repository=/models
      - --model-config-name=cpu
      - --exit-timeout-secs=50
    deploy:
      resources:
        limits: {{cpus: "2"}}
        reservations: !reset null
"""


@pytest.fixture(scope="module")
def stack(docker: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    build_gateway(docker)
    build_triton(docker)
    processors: Path = tmp_path_factory.mktemp("compose") / "processors.yml"
    processors.write_text(PROCESSORS)
    stack = Stack(
        docker,
        str(processors),
        COMPOSE_PROFILES="gpu",
        FOVEAL_ENGINE="triton",
        FOVEAL_TRITON_IMAGE=TRITON,
    )
    try:
        stack("build", "triton-models")
        stack.up()
        yield stack
    finally:
        stack.down()


def test_what_the_stack_answers_is_what_the_gateway_computes_by_itself(stack, tmp_path):
    image = photograph()
    with serving("--data", tmp_path, "--engine", "onnx", "--precision", "fp32") as alone:
        answer = httpx.post(f"{alone.address}/embed", content=image, headers=PNG, timeout=60)
        expected = answer.raise_for_status().json()
    found = stack.ask("/embed", image)
    assert found["digest"] == expected["digest"] == Bundle.load(DEFAULT).digest
    one, other = (answer["embeddings"][0]["embedding"] for answer in (found, expected))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert stack.ask("/attention", image, heads="mean")["images"][0]["attention"]


def test_pixels_reach_triton_in_memory_that_both_containers_share(stack):
    stack.ask("/embed", photograph(1))
    regions = inside_triton(stack, "/v2/systemsharedmemory/status")
    assert regions
    assert all(region["key"].startswith("/foveal-") for region in regions)


def test_triton_may_do_next_to_nothing_and_nobody_outside_reaches_it(stack):
    triton = stack.container("triton")
    status = stack.docker("exec", triton, "cat", "/proc/1/status")
    assert "Uid:\t10001" in status
    assert "CapEff:\t0000000000000000" in status
    found = stack.docker.inspect(triton)
    assert found["HostConfig"]["ReadonlyRootfs"]
    assert found["HostConfig"]["PortBindings"] in (None, {})
    assert list(found["NetworkSettings"]["Networks"]) == ["foveal-test_back"]


def test_without_triton_the_gateway_says_so_and_serves_again_when_it_is_back(stack):
    before = stack.docker.inspect(stack.container("gateway"))["State"]["StartedAt"]
    os.kill(stack.state("triton")["Pid"], signal.SIGKILL)
    # Docker starts it again at once, which takes a second or two; before it ends, it may answer.
    answers = (stack.post("/embed", photograph(seed)) for seed in range(100, 1000))
    refused = next(answer for answer in answers if answer.status_code != 200)
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]
    stack.wait_until_ready()
    assert stack.ask("/embed", photograph(99))
    assert stack.docker.inspect(stack.container("triton"))["RestartCount"] == 1
    assert stack.docker.inspect(stack.container("gateway"))["State"]["StartedAt"] == before


@pytest.fixture
def bundles(stack) -> Iterator[Path]:
    """A folder in the checkout, where images are built from."""
    parent = ROOT / "bundles"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        # It mounts the folder.
        stack("rm", "--stop", "--force", "gateway")
    if not any(parent.iterdir()):
        parent.rmdir()


def test_a_model_of_ones_own_and_one_in_its_place_are_served(stack, bundles):
    settings = {"FOVEAL_MODELS": f"./{bundles.relative_to(ROOT)}", "FOVEAL_MODEL": "/models/mine"}
    for seed in range(2):
        own = make_bundle(bundles / "mine", "mine", seed)
        stack("up", "--detach", "--build", "--wait", "--wait-timeout", "300", **settings)
        assert stack.ask("/embed", photograph())["digest"] == own.digest


def inside_triton(stack: Stack, path: str) -> list[dict]:
    """What Triton answers to one who asks from its own container."""
    asked = ("curl", "--fail", "--silent", f"http://127.0.0.1:8000{path}")
    return json.loads(stack.docker("exec", stack.container("triton"), *asked))
