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


def test_a_training_of_ones_own_has_its_arguments(examples: list[str], tmp_path: Path) -> None:
    (job,) = (m for m in rendered(examples[1], tmp_path) if m["kind"] == "Job")
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
