"""`docker compose up` for real: what the stack answers, what it keeps and how it fails."""

import io
import json
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image

from service.bundle import DEFAULT
from tests.compose_stack import GATEWAY, ROLLING, Stack, build_gateway
from tests.docker_engine import PYTHON, ROOT, DockerEngine
from tests.integration.load import Load
from tests.ports import free_port
from tests.service.gateways import photograph
from tests.waiting import wait_until

PASSWORD = secrets.token_hex()
# Of the official base image; the stand-in's differs.
BASE_MEGABYTES = 130


@pytest.fixture(scope="module")
def image(docker: DockerEngine) -> str:
    build_gateway(docker)
    return GATEWAY


@pytest.fixture(scope="module")
def running(docker: DockerEngine, image: str) -> Iterator[Stack]:
    stack = Stack(docker, FOVEAL_REDIS_PASSWORD=PASSWORD)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture
def stack(running: Stack) -> Stack:
    """Healthy again, whatever the test before did to it."""
    running.up()
    return running


def test_the_stack_embeds_attends_and_finds(stack):
    image = photograph()
    assert len(stack.ask("/embed", image)["embeddings"][0]["embedding"]) == 192
    assert stack.ask("/attention", image, heads="mean")["images"][0]["attention"]
    stack.put("default/items/one", image)
    assert stack.ask("/similar", image)["results"][0]["id"] == "one"
    page = httpx.get(stack.url, timeout=60)
    assert page.headers["content-type"].startswith("text/html")


def test_what_was_put_is_found_after_the_containers_were_made_anew(stack):
    image = photograph(7)
    stack.put("kept/items/seven", image)
    stack("down")
    stack.up()
    assert stack.ask("/similar", image, collection="kept")["results"][0]["id"] == "seven"


def test_the_gateway_may_do_next_to_nothing(stack):
    def inside(*command: str) -> str:
        return stack.docker.run(
            "exec", stack.container("gateway"), *command, check=False
        ).stdout.strip()

    assert inside("id", "--user") == "10001"
    assert inside("sh", "-c", "touch /opt/foveal/x /x; ls /x; ls /opt/foveal/x") == ""
    assert inside("sh", "-c", "cd /data && touch x && cd /tmp && touch x && echo done") == "done"
    status = inside("cat", "/proc/self/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_redis_is_asked_for_a_password_and_can_lead_nowhere(stack):
    redis = stack.container("redis")
    asked = stack.docker.run("exec", "--env", "REDISCLI_AUTH=", redis, "redis-cli", "ping")
    assert "NOAUTH" in asked.stdout
    found = stack.docker.inspect(redis)
    assert found["HostConfig"]["PortBindings"] in (None, {})
    assert list(found["NetworkSettings"]["Networks"]) == ["foveal-test_back"]
    assert stack.docker.inspect("foveal-test_back")["Internal"]


def test_the_image_is_small_and_has_no_torch(docker, image):
    own = (docker.inspect(image)["Size"] - docker.inspect(PYTHON)["Size"]) / 1e6
    assert own + BASE_MEGABYTES < 450
    found = "import importlib.util as u; print(*map(u.find_spec, ('torch', 'training')))"
    assert docker("run", "--rm", "--entrypoint", "python", image, "-c", found) == "None None"


def test_no_request_fails_while_redis_is_killed_and_comes_back(stack):
    redis = stack.container("redis")

    def restarts() -> int:
        return stack.docker.inspect(redis)["RestartCount"]

    def back() -> bool:
        return restarts() > before and stack.state("redis")["Health"]["Status"] == "healthy"

    before = restarts()
    with Load(stack.port, 4) as load:
        load.wait(20)
        os.kill(stack.state("redis")["Pid"], signal.SIGKILL)
        load.wait(40)
        wait_until(back, 300)
        load.wait(20)
    assert set(load.outcomes) == {"200"}
    assert restarts() == before + 1


def test_stopped_under_load_it_answers_all_that_it_accepted(stack, tmp_path):
    gateway = stack.container("gateway")
    # In the gateway's own network: Docker's proxy accepts for a gateway that does not.
    client = stack.docker(
        *("run", "--detach", "--network", f"container:{gateway}", "--entrypoint", "python"),
        *("--volume", f"{ROOT}/tests/integration/load.py:/load.py:ro"),
        *(GATEWAY, "/load.py", "8000", "8", "20"),
    )
    try:
        wait_until(lambda: stack.docker("logs", client) == "answered", 300)
        stack("stop", "gateway")
        assert stack.docker("wait", client) == "0"
        outcomes = json.loads(stack.docker("logs", client).splitlines()[-1])
    finally:
        stack.docker("rm", "--force", client)
    assert set(outcomes) == {"200", "refused"}
    state = stack.docker.inspect(gateway)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)


def test_killed_for_its_memory_it_is_started_again(stack):
    stack.up(FOVEAL_MEMORY="400m")
    # Each takes 240 MB to decode. All differ: of two that are the same only one would be.
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(stack.post, "/embed", blank(7900 - cut)) for cut in range(8)]
    assert any(isinstance(one.exception(), httpx.TransportError) for one in asked)
    stack.wait_until_ready()
    assert stack.docker.inspect(stack.container("gateway"))["RestartCount"] >= 1
    assert len(stack.ask("/embed", photograph())["embeddings"]) == 1


def blank(height: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (7900, height)).save(encoded, "PNG")
    return encoded.getvalue()


def refusal(docker: DockerEngine, *options: str | Path) -> str:
    """The one line that a gateway ends with, which cannot start."""
    done = docker.run("run", "--rm", *options, GATEWAY, check=False)
    assert done.returncode == 1, done.stderr
    *others, line = done.stderr.strip().splitlines()
    assert line.startswith("foveal: ")
    assert all("WARNING" in other for other in others), done.stderr
    return line


def test_a_model_with_a_wrong_checksum_is_refused_in_one_line(docker, image, tmp_path):
    broken = shutil.copytree(DEFAULT, tmp_path / "broken")
    graph = bytearray((broken / "model.onnx").read_bytes())
    graph[1000] ^= 1
    (broken / "model.onnx").write_bytes(graph)
    line = refusal(docker, "-v", f"{broken}:/models/broken:ro", "-e", "FOVEAL_MODEL=/models/broken")
    assert "model.onnx" in line
    assert "sha256" in line


def test_a_volume_that_is_read_only_is_refused_in_one_line(docker, image, tmp_path):
    line = refusal(docker, "--volume", f"{tmp_path}:/data:ro")
    assert "/data" in line


def test_a_port_that_is_taken_is_told_in_one_line(stack):
    gateway = stack.container("gateway")
    line = refusal(stack.docker, "--network", f"container:{gateway}")
    assert "cannot listen on 0.0.0.0:8000" in line


def test_a_port_that_is_taken_on_the_machine_is_told_by_compose(stack):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = stack("up", "--detach", "gateway", check=False, FOVEAL_PORT=port)
    assert port in said
    assert "in use" in said or "already allocated" in said


def test_gateways_are_replaced_without_a_failed_request(docker, image, stack):
    stack("down")
    rolling = Stack(
        docker,
        ROLLING,
        FOVEAL_PROXY_IMAGE=PYTHON,
        FOVEAL_REDIS_PASSWORD=PASSWORD,
    )
    rolling.up()
    old = rolling.container("gateway")
    with Load(rolling.port, 4) as load:
        load.wait(20)
        rolling.replace()
        load.wait(20)
    assert set(load.outcomes) == {"200"}
    assert rolling.container("gateway") not in ("", old)
    rolling("down")


def test_prometheus_can_answer_what_dashboard_and_alerts_ask(stack):
    port = free_port()
    stack.up(
        "gateway",
        "prometheus",
        FOVEAL_PROMETHEUS_IMAGE="prometheus:stand-in",
        FOVEAL_PROMETHEUS_PORT=str(port),
    )
    stack.ask("/embed", photograph())
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as prometheus:
        query(prometheus, 'up{job="foveal-gateway"} == 1', until_found=True)
        for expression in expressions():
            query(prometheus, expression)


def query(prometheus: httpx.Client, expression: str, *, until_found: bool = False) -> None:
    deadline = time.monotonic() + 300
    while True:
        with suppress(httpx.TransportError):
            answer = prometheus.get("/api/v1/query", params={"query": expression})
            # It listens a moment before it is ready.
            assert answer.status_code in (200, 503), f"{expression}: {answer.text}"
            if answer.is_success and (answer.json()["data"]["result"] or not until_found):
                return
        assert time.monotonic() < deadline, expression
        time.sleep(0.2)


def expressions() -> Iterator[str]:
    folder = ROOT / "deploy/observability"
    dashboard = json.loads((folder / "grafana/dashboards/foveal.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m")
    rules = yaml.safe_load((folder / "prometheus/alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]
