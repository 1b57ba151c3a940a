"""What deploy/README.md tells a person to write is rendered as it stands there."""

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.data import ROOT
from tests.deploy.manifests import KUBERNETES, Manifest, kustomize, pod

README = (ROOT / "deploy" / "README.md").read_text()


def rendered(example: str, folder: Path) -> list[Manifest]:
    """An overlay beside `deploy/`, wherever the tests write it."""
    text = example.replace("../deploy", os.path.relpath(ROOT / "deploy", folder.resolve()))
    (folder / "kustomization.yaml").write_text(text)
    return list(yaml.safe_load_all(kustomize(folder)))


@pytest.fixture
def examples() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_an_overlay_of_ones_own_changes_images_settings_and_scaling(
    examples: list[str], tmp_path: Path
) -> None:
    found = rendered(examples[0], tmp_path)
    (gateway,) = (m for m in found if m["kind"] == "Deployment")
    assert pod(gateway)["containers"][0]["image"].startswith("registry.example/foveal/gateway:")
    (config,) = (
        m["data"] for m in found if "FOVEAL_HOST" in m.get("data", {}) and m["kind"] == "ConfigMap"
    )
    assert config["FOVEAL_RATE_LIMIT"] == "100/s"
    kinds = [m["kind"] for m in found]
    assert "ScaledObject" in kinds
    assert "HorizontalPodAutoscaler" not in kinds


def test_the_label_that_prometheus_asks_for_reaches_what_it_reads_and_no_pod(
    examples: list[str], tmp_path: Path
) -> None:
    """Of pods it would change the selectors, which a Deployment that exists does not take."""
    component = KUBERNETES / "components" / "monitoring" / "kustomization.yaml"
    uncommented = re.findall(r"^#   (.*)", component.read_text(), re.MULTILINE)
    (label,) = yaml.safe_load(examples[1])["labels"]
    assert yaml.safe_load("\n".join(uncommented)) == {"labels": [label]}
    plain = rendered(examples[0], tmp_path)
    labelled = rendered(examples[0] + examples[1], tmp_path)
    for one, other in zip(plain, labelled, strict=True):
        if one["kind"] in ("ServiceMonitor", "PrometheusRule"):
            assert label["pairs"].items() <= other["metadata"]["labels"].items()
        assert one.get("spec") == other.get("spec")


def test_a_training_of_ones_own_has_its_arguments(examples: list[str], tmp_path: Path) -> None:
    (job,) = (m for m in rendered(examples[2], tmp_path) if m["kind"] == "Job")
    assert pod(job)["containers"][0]["args"][:2] == ["run", "dino-vitb16"]


@pytest.mark.parametrize("folder", ["overlays", "components"])
def test_every_overlay_and_component_is_told_of(folder: str) -> None:
    names = {path.name for path in (KUBERNETES / folder).iterdir()}
    assert names <= set(re.findall(r"^\| `([a-z-]+)` \|", README, re.MULTILINE))


def test_the_same_overlay_goes_into_a_second_namespace(tmp_path: Path) -> None:
    """As the runbook has it for a new model without a gap."""
    found = rendered("resources: [../deploy/kubernetes/overlays/gpu]\nnamespace: next\n", tmp_path)
    names = {m["metadata"]["name"] for m in found if m["kind"] == "Namespace"}
    assert names == {"next"}
    assert {m["metadata"]["namespace"] for m in found if m["kind"] != "Namespace"} == {"next"}
    assert "foveal.svc" not in str(found)
