"""What the manifests say of the gateway, asked of the gateway itself."""

import re

import pytest
import yaml

from service import configuration
from service.engines.base import ServerStatistics
from service.settings import Settings
from service.telemetry import metrics
from tests.data import ROOT
from tests.deploy.manifests import SERVING, environment, of_kind, one, pod, selects, workload
from tests.service.conftest import serve
from tests.service.gateways import Serve

__all__ = ["serve"]


@pytest.fixture(params=SERVING)
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a rendering's gateway would read; a name or value that is wrong fails."""
    for variable, value in environment(request.param).items():
        monkeypatch.setenv(variable, value)
    return configuration.read({}).settings


def test_the_gateway_takes_every_variable_and_its_value(settings: Settings) -> None:
    assert settings.host == "0.0.0.0"  # noqa: S104 - in the container
    assert settings.index == "redis"
    assert settings.threads == 2


def test_what_the_gateway_writes_or_reads_lies_on_a_volume(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["settings"]
    (container,) = pod(workload(name, "foveal-gateway"))["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert not mounts[str(settings.data)].get("readOnly")
    assert not mounts["/tmp"].get("readOnly")  # noqa: S108 - in the container
    for path in (settings.model, settings.keys_file):
        if path is not None and path != Settings.model_fields["model"].default:
            assert mounts[str(path.parent)]["readOnly"]


@pytest.mark.parametrize("name", SERVING)
def test_a_changed_setting_rolls_the_pods(name: str) -> None:
    """Because the name of the ConfigMap has a hash of it, and pods name it."""
    sources = pod(workload(name, "foveal-gateway"))["containers"][0]["envFrom"]
    assert all(re.search(r"-[a-z0-9]{10}$", s["configMapRef"]["name"]) for s in sources)


def test_every_probe_asks_what_the_real_gateway_answers(serve: Serve) -> None:
    (container,) = pod(workload("cpu", "foveal-gateway"))["containers"]
    with serve() as client:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            answer = client.get(container[probe]["httpGet"]["path"])
            assert answer.status_code == 200
            assert answer.json()["status"] in ("alive", "ready")


def test_a_gateway_that_drains_is_taken_off_and_not_restarted() -> None:
    """Only readiness asks /readyz, which is 503 while it drains or waits for Triton."""
    (container,) = pod(workload("cpu", "foveal-gateway"))["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["startupProbe"]["httpGet"]["path"] == "/livez"


def test_the_port_is_the_gateways_own() -> None:
    (container,) = pod(workload("cpu", "foveal-gateway"))["containers"]
    assert container["ports"] == [
        {"name": "http", "containerPort": Settings.model_fields["port"].default}
    ]


def test_prometheus_finds_every_metric_that_it_is_asked_for(serve: Serve) -> None:
    monitor = one("keda", "ServiceMonitor", "foveal-gateway")
    with serve() as client:
        text = client.get(monitor["spec"]["endpoints"][0]["path"]).text
    # What a gateway with Triton shows as well.
    text += metrics.exposition([], [("tiny", ServerStatistics("10.0.0.7:8001", True))]).decode()
    known = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    known |= {f"{name}_{end}" for name in known for end in ("bucket", "count", "sum")}
    asked = {
        metric
        for name in ("keda", "keda-triton")
        for manifest in of_kind(name, "ScaledObject", "PrometheusRule")
        for metric in re.findall(r"\b(?:foveal|http_server)_\w+", str(manifest["spec"]))
    }
    assert {"foveal_queue_depth", "foveal_model_info", "foveal_model_ready"} <= asked
    assert asked <= known


def test_alerts_ask_for_the_gateways_by_the_name_that_prometheus_gives_them() -> None:
    (rules,) = of_kind("keda", "PrometheusRule")
    asked = set(re.findall(r'job="([^"]+)"', str(rules["spec"])))
    monitor = one("keda", "ServiceMonitor", "foveal-gateway")["spec"]
    assert "jobLabel" not in monitor  # so it is the name of the Service
    services = [
        service["metadata"]["name"]
        for service in of_kind("keda", "Service")
        if selects(monitor["selector"], service["metadata"]["labels"])
    ]
    compose = yaml.safe_load((ROOT / "deploy/observability/prometheus/prometheus.yml").read_text())
    assert asked == set(services)
    assert asked <= {job["job_name"] for job in compose["scrape_configs"]}


def test_compose_and_kubernetes_raise_the_same_alerts() -> None:
    (rules,) = of_kind("keda", "PrometheusRule")
    ours = {rule["alert"]: rule for group in rules["spec"]["groups"] for rule in group["rules"]}
    theirs = yaml.safe_load((ROOT / "deploy/observability/prometheus/alerts.yml").read_text())
    for rule in (rule for group in theirs["groups"] for rule in group["rules"]):
        assert ours[rule["alert"]] == rule
