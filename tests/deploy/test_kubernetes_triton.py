"""What the manifests say of Triton, asked of a real tritonserver; its backend is a stand-in."""

import subprocess

import httpx
import pytest

from service.engines.triton.servers import FIND_PAUSE
from tests.deploy.manifests import (
    Manifest,
    containers,
    environment,
    one,
    pod,
    port_number,
    workload,
)
from tests.triton_servers import TritonServer, triton

__all__ = ["triton"]

# tritonserver's own, as its --help has them.
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}


def server(name: str = "gpu") -> Manifest:
    (found,) = pod(workload(name, "foveal-triton"))["containers"]
    return dict(found)


def option(triton: TritonServer, name: str) -> str:
    command = triton._command
    return command[command.index(name) + 1]


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_every_probe_asks_what_the_real_server_answers(triton: TritonServer, probe: str) -> None:
    http = option(triton, "--http-port")
    path = server()[probe]["httpGet"]["path"]
    answer = httpx.get(f"http://127.0.0.1:{http}{path}", timeout=60)
    assert answer.status_code == 200


@pytest.mark.parametrize("rendering", ["gpu", "triton-tls"])
def test_the_real_server_knows_every_argument(triton: TritonServer, rendering: str) -> None:
    name, *arguments = server(rendering)["args"]
    assert name == "tritonserver"
    known = subprocess.run(
        [triton._command[0], "--help"], env=triton._env, capture_output=True, text=True, check=False
    )
    for argument in arguments:
        assert argument.partition("=")[0] in known.stdout + known.stderr


def test_the_gateway_asks_for_grpc_at_the_service_that_names_every_server() -> None:
    host, port = environment("gpu")["FOVEAL_TRITON_URLS"].split(":")
    service = one("gpu", "Service", host)["spec"]
    assert service["clusterIP"] == "None"  # an address of its own would lead to one server only
    assert [p["port"] for p in service["ports"] if p["name"] == "grpc"] == [int(port)]


def test_the_ports_are_the_servers_own() -> None:
    found = workload("gpu", "foveal-triton")
    assert {name: port_number(found, name) for name in PORTS} == PORTS


def test_a_server_that_leaves_answers_until_every_gateway_knows() -> None:
    assert server()["lifecycle"]["preStop"]["sleep"]["seconds"] >= 2 * FIND_PAUSE


def test_gateways_find_a_new_server_before_the_last_old_one_goes() -> None:
    names_are_held = 30  # seconds, by CoreDNS as Kubernetes configures it
    ready = workload("gpu", "foveal-triton")["spec"]["minReadySeconds"]
    assert ready >= names_are_held + 2 * FIND_PAUSE


def test_the_models_are_copied_to_where_the_server_looks() -> None:
    copy, run = containers(workload("gpu", "foveal-triton"))
    (copied,), (found,) = (
        [m for m in container["volumeMounts"] if m["name"] == "models"] for container in (copy, run)
    )
    assert copy["command"] == ["cp", "-r", "/models/.", copied["mountPath"]]
    assert f"--model-repository={found['mountPath']}" in run["args"]


def test_with_tls_both_sides_are_given_certificates_of_their_own() -> None:
    told = {
        "foveal-gateway": environment("triton-tls").values(),
        "foveal-triton": [argument.partition("=")[2] for argument in server("triton-tls")["args"]],
    }
    secrets = {}
    for called, values in told.items():
        files = {value for value in values if value.endswith((".crt", ".key"))}
        (folder,) = {file.rpartition("/")[0] for file in files}
        # What cert-manager puts into a Secret of the type kubernetes.io/tls.
        assert files == {f"{folder}/{name}" for name in ("ca.crt", "tls.crt", "tls.key")}
        found = pod(workload("triton-tls", called))
        (mount,) = (m for m in found["containers"][0]["volumeMounts"] if m["mountPath"] == folder)
        # One file alone would never be renewed.
        assert "subPath" not in mount
        (volume,) = (v for v in found["volumes"] if v["name"] == mount["name"])
        secrets[called] = volume["secret"]["secretName"]
    assert secrets == {
        "foveal-gateway": "foveal-gateway-tls",
        "foveal-triton": "foveal-triton-tls",
    }
