"""What each pod must be: restricted, bounded, probed, spread, and gone without a lost request."""

import re

import pytest

from service import __version__
from service.settings import Settings
from tests.data import ROOT
from tests.deploy.manifests import (
    COMPONENT,
    NAME,
    RENDERINGS,
    SERVING,
    Manifest,
    containers,
    labels,
    of_kind,
    one,
    pod,
    port_number,
    selects,
    workload,
    workloads,
)

USER = 10001
GPU = "nvidia.com/gpu"
# What the profile `restricted` lets a pod mount.
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
SERVERS = [("cpu", "foveal-gateway"), ("gpu", "foveal-gateway"), ("gpu", "foveal-triton")]

every_rendering = pytest.mark.parametrize("name", RENDERINGS)


@pytest.mark.parametrize("name", RENDERINGS)
def test_the_namespace_enforces_the_profile_restricted(name: str) -> None:
    (namespace,) = of_kind(name, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for manifest in workloads(name):
        assert manifest["metadata"]["namespace"] == namespace["metadata"]["name"]


@every_rendering
def test_the_profile_restricted_admits_every_pod(name: str) -> None:
    for found in workloads(name):
        spec = pod(found)
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= VOLUMES
        for container in containers(found):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container.get("ports", []))


@every_rendering
def test_no_container_runs_as_root(name: str) -> None:
    for found in workloads(name):
        context = pod(found)["securityContext"]
        assert {context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {USER}


@every_rendering
def test_no_pod_has_a_token_or_the_links_of_services(name: str) -> None:
    for found in workloads(name):
        spec = pod(found)
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        tokens = [v["name"] for v in spec.get("volumes", []) if "serviceAccountToken" in str(v)]
        makes_the_password = labels(found)[COMPONENT] == "password"
        assert tokens == (["account"] if makes_the_password else [])
        assert ("serviceAccountName" in spec) == makes_the_password


@pytest.mark.parametrize("name", [name for name in SERVING if name != "external-redis"])
def test_the_one_account_can_create_secrets_and_do_nothing_else(name: str) -> None:
    (role,) = of_kind(name, "Role")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    (binding,) = of_kind(name, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (account,) = of_kind(name, "ServiceAccount")
    assert [s["name"] for s in binding["subjects"]] == [account["metadata"]["name"]]
    (job,) = of_kind(name, "Job")
    assert pod(job)["serviceAccountName"] == account["metadata"]["name"]
    # A Job that stayed would make the next version's `kubectl apply` fail.
    assert job["spec"]["ttlSecondsAfterFinished"] <= 60


@every_rendering
def test_every_container_has_requests_and_limits(name: str) -> None:
    for found in workloads(name):
        for container in containers(found):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


@every_rendering
def test_only_triton_and_training_take_a_gpu_and_tolerate_its_nodes(name: str) -> None:
    for found in workloads(name):
        takes = any(GPU in c["resources"]["limits"] for c in containers(found))
        tolerates = any(t["key"] == GPU for t in pod(found).get("tolerations", []))
        assert takes == tolerates == (labels(found)[COMPONENT] in ("triton", "training"))


@every_rendering
def test_volumes_are_bounded_and_all_of_them_are_mounted(name: str) -> None:
    for found in workloads(name):
        volumes = pod(found).get("volumes", [])
        assert all("sizeLimit" in v["emptyDir"] for v in volumes if "emptyDir" in v)
        there = {v["name"] for v in volumes}
        there |= {c["metadata"]["name"] for c in found["spec"].get("volumeClaimTemplates", [])}
        mounted = {m["name"] for c in containers(found) for m in c.get("volumeMounts", [])}
        assert mounted == there


@every_rendering
def test_images_carry_the_version(name: str) -> None:
    for found in workloads(name):
        for container in containers(found):
            image, _, tag = container["image"].rpartition(":")
            assert image, "an image without a tag is whatever is newest"
            if image.startswith("foveal/") and image != "foveal/model":  # that one is the user's
                assert tag == __version__


@pytest.mark.parametrize(
    ("name", "called"), [*SERVERS, ("cpu", "foveal-redis"), ("gpu", "foveal-redis")]
)
def test_every_server_has_three_probes_of_its_own_ports(name: str, called: str) -> None:
    found = workload(name, called)
    (server,) = pod(found)["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if "httpGet" in server[probe]:
            assert port_number(found, server[probe]["httpGet"]["port"]) == 8000
        else:
            assert server[probe]["exec"]["command"]
    # A slow start must not look like a death.
    assert _patience(server["startupProbe"]) >= 3 * _patience(server["livenessProbe"])


def _patience(probe: Manifest) -> int:
    seconds: int = probe["periodSeconds"] * probe["failureThreshold"]
    return seconds


@pytest.mark.parametrize("name", SERVING)
def test_a_gateway_is_killed_only_after_it_could_answer_all(name: str) -> None:
    spec = pod(workload(name, "foveal-gateway"))
    settings = Settings(redis_url=None)
    drain = settings.header_timeout + settings.body_timeout + settings.request_timeout
    sleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep == 10
    assert spec["terminationGracePeriodSeconds"] > sleep + drain
    (config,) = (
        m["data"]
        for m in of_kind(name, "ConfigMap")
        if m["metadata"]["name"].startswith("foveal-gateway-")
    )
    assert not any(setting.endswith("_TIMEOUT") for setting in config)


def test_triton_is_killed_only_after_it_could_answer_all() -> None:
    spec = pod(workload("gpu", "foveal-triton"))
    (server,) = spec["containers"]
    (drain,) = (a for a in server["args"] if a.startswith("--exit-timeout-secs="))
    sleep = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > sleep + int(drain.partition("=")[2])


@pytest.mark.parametrize(("name", "called"), SERVERS)
def test_servers_are_spread_and_leave_one_at_a_time(name: str, called: str) -> None:
    found = workload(name, called)
    spread = pod(found)["topologySpreadConstraints"]
    assert {s["topologyKey"] for s in spread} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    assert all(selects(s["labelSelector"], labels(found)) for s in spread)
    budget = one(name, "PodDisruptionBudget", called)["spec"]
    assert budget["maxUnavailable"] == 1
    assert selects(budget["selector"], labels(found))


@pytest.mark.parametrize("name", SERVING)
def test_every_selector_takes_the_pods_of_its_own_workload_alone(name: str) -> None:
    for found in workloads(name):
        if "selector" not in found["spec"]:
            continue
        taken = [w for w in workloads(name) if selects(found["spec"]["selector"], labels(w))]
        assert taken == [found]
        assert found["spec"]["selector"]["matchLabels"].keys() == {NAME, COMPONENT}


@pytest.mark.parametrize("name", SERVING)
def test_the_number_of_a_deployments_pods_has_one_owner(name: str) -> None:
    owners = [
        manifest["spec"]["scaleTargetRef"]["name"]
        for manifest in of_kind(name, "HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert len(owners) == len(set(owners))
    for deployment in of_kind(name, "Deployment"):
        assert ("replicas" in deployment["spec"]) != (deployment["metadata"]["name"] in owners)


@pytest.mark.parametrize("name", SERVING)
def test_who_scales_scales_down_slowly_and_never_to_one(name: str) -> None:
    for scaler in of_kind(name, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
        assert scaler["spec"]["minReplicas"] >= 2
    for scaler in of_kind(name, "ScaledObject"):
        own = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
        assert own["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
        assert scaler["spec"]["minReplicaCount"] >= 2


def test_keda_takes_over_the_autoscaler_of_a_cluster_that_runs_already() -> None:
    """KEDA refuses to scale what an autoscaler scales, unless it is told of both."""
    (scaler,) = of_kind("cpu", "HorizontalPodAutoscaler")
    (scaled,) = of_kind("keda", "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == scaler["spec"]["scaleTargetRef"]["name"]
    annotations = scaled["metadata"]["annotations"]
    assert annotations["scaledobject.keda.sh/transfer-hpa-ownership"] == "true"
    own = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
    assert own["name"] == scaler["metadata"]["name"]


@pytest.mark.parametrize(
    "text", ["README.md", "kubernetes/components/keda-triton/kustomization.yaml"]
)
def test_whoever_adds_keda_is_told_how_no_server_goes_when_replicas_does(text: str) -> None:
    lost = [
        deployment["metadata"]["name"]
        for deployment in of_kind("gpu", "Deployment")
        if "replicas" in deployment["spec"]
        and "replicas" not in workload("keda-triton", deployment["metadata"]["name"])["spec"]
    ]
    assert lost
    command = re.compile(r"kubectl -n foveal apply edit-last-applied deployment/([\w-]+)")
    assert command.findall((ROOT / "deploy" / text).read_text()) == lost


@pytest.mark.parametrize(
    ("name", "called"), [("keda", "foveal-gateway"), ("keda-triton", "foveal-triton")]
)
def test_keda_scales_on_the_queues_depth(name: str, called: str) -> None:
    scaled = one(name, "ScaledObject", called)["spec"]
    assert workload(name, scaled["scaleTargetRef"]["name"])
    (trigger,) = (t for t in scaled["triggers"] if t["type"] == "prometheus")
    assert "foveal_queue_depth" in trigger["metadata"]["query"]
