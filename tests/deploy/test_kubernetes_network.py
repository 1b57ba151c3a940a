"""Who reaches whom, by the Services' ports and by the network policies."""

import pytest

from tests.deploy.manifests import (
    RENDERINGS,
    SERVING,
    labels,
    of_kind,
    pod,
    port_number,
    selects,
    workloads,
)
from tests.deploy.policies import Peer, allowed

GATEWAY, REDIS = Peer(workload="foveal-gateway"), Peer(workload="foveal-redis")
TRITON, TRAINING = Peer(workload="foveal-triton"), Peer(workload="foveal-train")
PASSWORD = Peer(workload="foveal-redis-password")
STRANGER = Peer(namespace="default")
MONITORING, DNS = Peer(namespace="monitoring"), Peer(namespace="kube-system")
INTERNET, INSIDE = Peer(address="93.184.216.34"), Peer(address="10.0.0.7")
METADATA = Peer(address="169.254.169.254")


@pytest.mark.parametrize("name", RENDERINGS)
def test_every_service_leads_to_a_port_of_its_pods(name: str) -> None:
    for service in of_kind(name, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        behind = [w for w in workloads(name) if selects(selector, labels(w))]
        assert [w["metadata"]["name"] for w in behind] == [service["metadata"]["name"]]
        for port in service["spec"]["ports"]:
            assert port_number(behind[0], port["targetPort"]) == port["port"]


@pytest.mark.parametrize("name", RENDERINGS)
def test_every_name_of_a_pod_is_resolved_by_a_service(name: str) -> None:
    services = {s["metadata"]["name"] for s in of_kind(name, "Service")}
    for workload in workloads(name):
        named = {workload["spec"].get("serviceName"), pod(workload).get("subdomain")} - {None}
        assert named <= services


@pytest.mark.parametrize("name", RENDERINGS)
def test_what_no_policy_names_is_denied(name: str) -> None:
    denies = [p["spec"] for p in of_kind(name, "NetworkPolicy") if not p["spec"]["podSelector"]]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in denies
    for workload in workloads(name):
        each = Peer(workload=workload["metadata"]["name"])
        assert allowed(name, each, METADATA, 80) == (each == PASSWORD)
        assert allowed(name, each, INSIDE, 22) == (each == PASSWORD)
        assert not allowed(name, STRANGER, each, 22)
        for protocol in ("UDP", "TCP"):
            assert allowed(name, each, DNS, 53, protocol)


@pytest.mark.parametrize("name", SERVING)
def test_anybody_may_ask_the_gateway(name: str) -> None:
    assert allowed(name, STRANGER, GATEWAY, 8000)
    assert allowed(name, INTERNET, GATEWAY, 8000)


@pytest.mark.parametrize("name", [n for n in SERVING if n != "external-redis"])
def test_redis_is_reached_by_the_gateway_alone(name: str) -> None:
    assert allowed(name, GATEWAY, REDIS, 6379)
    for other in (STRANGER, INTERNET, INSIDE, MONITORING, PASSWORD):
        assert not allowed(name, other, REDIS, 6379)
    for target in (GATEWAY, INTERNET, INSIDE):
        assert not any(allowed(name, REDIS, target, port) for port in (80, 443, 6443, 8000))


@pytest.mark.parametrize("name", [n for n in SERVING if n != "external-redis"])
def test_the_password_is_made_by_one_who_reaches_any_api_server_and_whom_nobody_reaches(
    name: str,
) -> None:
    # Of managed clusters, kubeadm, minikube, MicroK8s, and behind a port of a node.
    for port in (443, 6443, 8443, 16443, 31443):
        assert allowed(name, PASSWORD, INSIDE, port)
    for other in (STRANGER, INTERNET, INSIDE, GATEWAY):
        assert not allowed(name, other, PASSWORD, 443)


@pytest.mark.parametrize("name", ["gpu", "keda-triton"])
def test_triton_is_reached_by_the_gateway_alone(name: str) -> None:
    assert allowed(name, GATEWAY, TRITON, 8001)
    for other in (STRANGER, INTERNET, REDIS):
        assert not any(allowed(name, other, TRITON, port) for port in (8000, 8001, 8002))
    assert not any(allowed(name, TRITON, t, 443) for t in (INTERNET, INSIDE))
    assert allowed(name, MONITORING, TRITON, 8002) == (name == "keda-triton")


@pytest.mark.parametrize("name", SERVING)
def test_the_gateway_goes_out_only_where_a_component_says_so(name: str) -> None:
    assert allowed(name, GATEWAY, INTERNET, 80) == (name == "open")
    assert allowed(name, GATEWAY, INTERNET, 443) == (name in ("open", "model-download"))
    assert allowed(name, GATEWAY, INSIDE, 6379) == (name == "external-redis")
    assert allowed(name, GATEWAY, INSIDE, 443) == (name == "model-download")


def test_the_nodes_of_a_training_reach_each_other_and_nobody_else() -> None:
    assert all(allowed("training-nodes", TRAINING, TRAINING, port) for port in (29500, 40123))
    assert not allowed("training-nodes", STRANGER, TRAINING, 29500)
    assert not allowed("training", TRAINING, TRAINING, 29500)
    assert not allowed("training", TRAINING, INTERNET, 443)


@pytest.mark.parametrize("name", ["keda", "keda-triton"])
def test_every_monitor_finds_a_port_of_a_service(name: str) -> None:
    for monitor in of_kind(name, "ServiceMonitor"):
        found = [
            service
            for service in of_kind(name, "Service")
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
        ]
        called = monitor["metadata"]["name"]
        if called == "foveal-triton" and name == "keda":  # there is none
            assert not found
            continue
        assert [service["metadata"]["name"] for service in found] == [called]
        ports = {port["name"] for port in found[0]["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
