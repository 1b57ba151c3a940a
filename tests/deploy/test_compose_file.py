"""What docker-compose.yml promises, checked on what compose makes of it."""

import json
import re
import subprocess
from typing import Any

import pytest

from service import __version__
from service.settings import Settings
from tests.docker_engine import COMPOSE, ROOT, require

FILES = ("docker-compose.yml", "deploy/rolling/compose.yml")
EXAMPLE = (ROOT / ".env.example").read_text()


def configuration(*options: str, **environment: str) -> dict[str, Any]:
    require(COMPOSE)
    command = [COMPOSE, "--env-file", "/dev/null", *options, "config", "--format", "json"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    files = [option for file in FILES for option in ("--file", file)]
    return configuration(*files, "--profile", "*")["services"]


def test_without_profiles_it_is_the_gateway_and_redis():
    assert set(configuration()["services"]) == {"gateway", "redis"}


def test_profiles_add_triton_and_the_observers():
    gpu = configuration("--profile", "gpu", FOVEAL_ENGINE="triton")["services"]
    assert set(gpu) == {"gateway", "redis", "triton", "triton-models"}
    assert gpu["gateway"]["environment"]["FOVEAL_ENGINE"] == "triton"
    assert gpu["gateway"]["depends_on"]["triton"]["condition"] == "service_healthy"
    [device] = gpu["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    observed = configuration("--profile", "observability")["services"]
    assert set(observed) == {"gateway", "redis", "prometheus", "grafana"}


@pytest.mark.parametrize("folder", ["./service/bundles", "./bundles"])
def test_triton_gets_the_gateways_models_and_both_start_anew_with_others(folder):
    given = {} if folder == "./service/bundles" else {"FOVEAL_MODELS": folder}
    services = configuration("--profile", "gpu", **given)["services"]
    [mount] = (v for v in services["gateway"]["volumes"] if v["target"] == "/models")
    assert services["triton-models"]["build"]["args"]["BUNDLES"] == folder
    assert mount["source"] == str(ROOT / folder)
    for name in ("gateway", "triton"):
        assert services[name]["depends_on"]["triton-models"]["restart"] is True


def test_every_service_is_contained_and_limited(everything):
    for name, service in everything.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert "privileged" not in service, name


def test_what_is_published_is_for_this_machine_alone(everything):
    ports = [port for service in everything.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    [port] = configuration(FOVEAL_BIND="192.0.2.1")["services"]["gateway"]["ports"]
    assert port["host_ip"] == "192.0.2.1"


def test_redis_and_triton_are_where_nothing_leads_out():
    project = configuration("--profile", "*")
    assert project["networks"]["back"]["internal"]
    for name in ("redis", "triton"):
        assert set(project["services"][name]["networks"]) == {"back"}


def test_the_gateway_gets_settings_that_exist_and_values_that_they_take(monkeypatch):
    lines = re.findall(r"^#(\w+)=(.*)$", EXAMPLE, re.MULTILINE)
    given = configuration(**{name: value for name, value in lines if name != "COMPOSE_FILE"})
    environment = given["services"]["gateway"]["environment"]
    settings = {name: value for name, value in environment.items() if name.startswith("FOVEAL_")}
    known = {f"FOVEAL_{field.upper()}" for field in Settings.model_fields}
    assert set(settings) <= known
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert Settings().index == "redis"


def test_what_can_be_set_is_in_the_example():
    used = {
        name
        for file in FILES
        for name in re.findall(
            r"\$\{(\w+)|^      ((?:FOVEAL|OTEL)_\w+):$", (ROOT / file).read_text(), re.MULTILINE
        )
    }
    names = {first or second for first, second in used}
    explained = set(re.findall(r"^#(\w+)=", EXAMPLE, re.MULTILINE))
    assert names - explained == set()
    assert explained - names == {"COMPOSE_PROFILES", "COMPOSE_FILE"}


def test_the_example_sets_nothing_by_itself():
    assert all(line.startswith("#") or not line for line in EXAMPLE.splitlines())


def test_images_of_ours_carry_this_version(everything):
    ours = {s["image"] for s in everything.values() if s["image"].startswith("foveal/")}
    assert {image.rpartition(":")[2] for image in ours} == {__version__}


def test_the_gateway_is_given_the_time_that_draining_may_take(everything):
    defaults = Settings()
    longest = defaults.header_timeout + defaults.body_timeout + defaults.request_timeout
    assert everything["gateway"]["stop_grace_period"] == "1m0s"
    assert longest < 60


def test_redis_keeps_what_has_no_time_to_live_and_loads_the_query_engine(everything):
    command = everything["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert command[0] == "redis-server"
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "volatile-lru"
    most = {"gb": 2**30}[options["--maxmemory"][-2:]] * int(options["--maxmemory"][:-2])
    assert int(everything["redis"]["deploy"]["resources"]["limits"]["memory"]) >= 1.5 * most
    assert any(volume["target"] == "/data" for volume in everything["redis"]["volumes"])
