"""Every manifest against the schemas of the API server, of KEDA and of the Prometheus operator."""

import copy
from typing import Any

import pytest

from tests.deploy.manifests import RENDERINGS, Manifest, of_kind, render, tool

OLDEST, NEWEST = "1.30", "1.37"
# Kind: the module of its Pydantic model, which is made from the operator's CRD.
CUSTOM = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
}


def validate(manifest: Manifest, version: str) -> None:
    tool("kubernetes_validate").validate(manifest, version, strict=True)


def understood(manifest: Manifest) -> dict[str, Any]:
    """What is left of a custom resource when its operator has read it."""
    kind = manifest["kind"]
    model = getattr(tool(CUSTOM[kind]), kind)
    read: dict[str, Any] = model.model_validate(manifest).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    return read


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", RENDERINGS)
def test_kubernetes_takes_every_manifest(name: str, version: str) -> None:
    for manifest in render(name):
        if manifest["kind"] not in CUSTOM:
            validate(manifest, version)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_schemas_refuse_a_field_that_does_not_exist(version: str) -> None:
    deployment = copy.deepcopy(of_kind("cpu", "Deployment")[0])
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(Exception, match="enableServiceLink"):
        validate(deployment, version)


def test_the_newest_schemas_are_the_newest_there_are() -> None:
    assert tool("kubernetes_validate").latest_version() == f"{NEWEST}.0"


@pytest.mark.parametrize("name", ["keda", "keda-triton"])
@pytest.mark.parametrize("kind", CUSTOM)
def test_the_operators_understand_every_field(name: str, kind: str) -> None:
    found = of_kind(name, kind)
    assert found
    for manifest in found:
        assert understood(manifest) == manifest


def test_a_field_that_an_operator_does_not_know_is_noticed() -> None:
    scaled = copy.deepcopy(of_kind("keda", "ScaledObject")[0])
    scaled["spec"]["minReplicas"] = 1
    assert understood(scaled) != scaled


@pytest.mark.parametrize("name", ["cpu", "gpu", "training", "training-nodes"])
def test_the_overlays_need_no_operator(name: str) -> None:
    groups = {manifest["apiVersion"].rpartition("/")[0] for manifest in render(name)}
    assert groups <= {"", "apps", "autoscaling", "batch", "policy"} | {
        "networking.k8s.io",
        "rbac.authorization.k8s.io",
    }


@pytest.mark.parametrize("name", RENDERINGS)
def test_no_secret_is_in_a_file(name: str) -> None:
    assert not of_kind(name, "Secret")
