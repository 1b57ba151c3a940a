"""Dashboard and alerts ask for what the gateway gives, and each alert comes when it should."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.bundle import Bundle
from service.engines.base import ServerStatistics
from service.settings import Settings
from service.telemetry import metrics
from tests.docker_engine import PROMTOOL, ROOT, require
from tests.service.gateways import PNG, photograph, serving

FOLDER = ROOT / "deploy/observability"
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/foveal.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "prometheus/alerts.yml").read_text())
OURS = re.compile(r"\b(?:foveal|http_server|process)_\w+")


def panels() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def alerts() -> dict[str, dict]:
    return {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}


def exposed(exposition: str) -> tuple[set[str], set[str]]:
    """The names of all series, and of all labels."""
    samples = [s for f in text_string_to_metric_families(exposition) for s in f.samples]
    families = {f.name for f in text_string_to_metric_families(exposition)}
    return {s.name for s in samples} | families, {label for s in samples for label in s.labels}


def test_all_that_dashboard_and_alerts_name_is_in_metrics(bundle: Bundle, tmp_path):
    app = create_app(Settings(model=bundle.path, data=tmp_path))
    with serving(app) as client:
        client.post("/embed", content=photograph(), headers=PNG)
        text = client.get("/metrics").text
    # As with a Triton, of which there is none here.
    server = ServerStatistics("triton:8001", ready=True, batches={1: 1})
    text += metrics.exposition([], [("tiny", server)]).decode()
    names, labels = exposed(text)
    # A counter has no series before it counts.
    names |= {"foveal_requests_shed_total"}
    labels |= {"instance", "namespace", "reason"}
    expressions = panels() + [rule["expr"] for rule in alerts().values()]
    for expression in expressions:
        assert set(OURS.findall(expression)) <= names, expression
        for group in re.findall(r"(?:by|without) \(([^)]*)\)", expression):
            assert {name.strip() for name in group.split(",")} <= labels, expression


def test_every_alert_is_told_of_in_full():
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["summary"].endswith("."), name
        assert rule["for"], name


def test_kubernetes_has_the_same_alerts():
    rule = ROOT / "deploy/kubernetes/components/monitoring/prometheusrule.yaml"
    assert yaml.safe_load(rule.read_text())["spec"]["groups"] == ALERTS["groups"]


def test_prometheus_takes_the_configuration():
    require(PROMTOOL)
    command = [PROMTOOL, "check", "config", FOLDER / "prometheus/prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


UP = 'up{job="foveal-gateway"}'
COUNT = "http_server_request_duration_seconds_count"
REQUESTS = COUNT + '{{http_route="{}",http_response_status_code="{}"}}'
SLOW = "foveal_queue_duration_seconds_bucket"
READY = 'foveal_model_ready{{model="m",instance="{}"}}'
# What each alert must come from within 45 minutes, and what must leave it silent.
SERIES = {
    "FovealDown": ({UP: "0+0x60"}, {UP: "1+0x60", "foveal_queue_depth": "0+0x60"}),
    "FovealErrors": (
        {
            REQUESTS.format("/embed", 200): "0+100x60",
            REQUESTS.format("/embed", 500): "0+5x60",
            REQUESTS.format("/readyz", 200): "0+1000x60",
        },
        {
            REQUESTS.format("/embed", 200): "0+100x60",
            REQUESTS.format("/embed", 503): "0+5x60",
            REQUESTS.format("/metrics", 500): "0+5x60",
        },
    ),
    "FovealShedding": (
        {'foveal_requests_shed_total{reason="full"}': "0+5x60"},
        {'foveal_requests_shed_total{reason="closed"}': "0+5x60"},
    ),
    "FovealSlow": (
        {
            f'{SLOW}{{le="5"}}': "0+0x60",
            f'{SLOW}{{le="10"}}': "0+9x60",
            f'{SLOW}{{le="+Inf"}}': "0+9x60",
        },
        {
            f'{SLOW}{{le="5"}}': "0+9x60",
            f'{SLOW}{{le="10"}}': "0+9x60",
            f'{SLOW}{{le="+Inf"}}': "0+9x60",
        },
    ),
    "FovealRedisFails": (
        {'foveal_cache_requests_total{result="error"}': "0+1x60"},
        {'foveal_cache_requests_total{result="error"}': "5+0x60"},
    ),
    "FovealTritonGone": (
        {READY.format("a"): "0+0x60", READY.format("b"): "0+0x60"},
        {READY.format("a"): "0+0x60", READY.format("b"): "1+0x60"},
    ),
    "FovealTwoModels": (
        {
            'foveal_model_info{model="m",digest="a"}': "1+0x60",
            'foveal_model_info{model="m",digest="b"}': "1+0x60",
        },
        {
            'foveal_model_info{model="m",digest="a"}': "1+0x60",
            'foveal_model_info{model="n",digest="b"}': "1+0x60",
        },
    ),
}


@pytest.mark.parametrize("name", alerts())
def test_an_alert_comes_when_it_should_and_else_is_silent(name, tmp_path):
    require(PROMTOOL)
    firing, silent = SERIES[name]
    assert fires(name, firing, tmp_path)
    assert not fires(name, silent, tmp_path)


@pytest.mark.parametrize("name", alerts())
def test_installations_that_are_well_hide_none_that_is_not(name, tmp_path):
    require(PROMTOOL)
    firing, silent = SERIES[name]
    series = within("one", firing)
    for other in range(20):
        series |= within(f"other-{other}", silent)
    assert fires(name, series, tmp_path)


def test_installations_may_serve_different_models(tmp_path):
    require(PROMTOOL)
    model = 'foveal_model_info{{model="m",digest="{}"}}'
    one, other = ({model.format(digest): "1+0x60"} for digest in "ab")
    assert not fires("FovealTwoModels", within("one", one) | within("other", other), tmp_path)


def test_it_is_told_of_when_there_is_no_gateway_at_all(tmp_path):
    require(PROMTOOL)
    assert fires("FovealDown", {}, tmp_path)


def within(namespace: str, series: dict[str, str]) -> dict[str, str]:
    """The same series as an installation in that namespace has them."""
    return {
        f'{name}{{namespace="{namespace}",{labels}': values
        for key, values in series.items()
        for name, _, labels in [(key if "{" in key else key + "{}").partition("{")]
    }


def test_probes_and_scrapes_are_not_among_the_requests_that_are_looked_at():
    for expression in panels() + [rule["expr"] for rule in alerts().values()]:
        for selector in re.findall(r"http_server_request_duration_seconds\w+(\{[^}]*)", expression):
            assert 'http_route!~"/livez|/readyz|/metrics"' in selector


def fires(name: str, series: dict[str, str], folder: Path) -> bool:
    """Whether Prometheus raises the alert at minute 45, asked as a test that it stays silent."""
    inputs = [{"series": key, "values": values} for key, values in series.items()]
    silence = {"alertname": name, "eval_time": "45m", "exp_alerts": []}
    case = {"interval": "1m", "input_series": inputs, "alert_rule_test": [silence]}
    rules = {"rule_files": [str(FOLDER / "prometheus/alerts.yml")], "tests": [case]}
    (folder / "case.yml").write_text(yaml.safe_dump(rules))
    command = [PROMTOOL, "test", "rules", folder / "case.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or f"alertname: {name}" in done.stdout + done.stderr
    return done.returncode != 0
