"""The Kubernetes manifests as a user's cluster would get them: rendered by the real kubectl.

A rendering is an overlay of the box, or one of a user's own that adds a component to it.
"""

import importlib
import math
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.data import ROOT

Manifest = dict[str, Any]

KUBERNETES = ROOT / "deploy" / "kubernetes"
TOOLS = ROOT / ".cache" / "kubernetes"
KUBECTL = TOOLS / "kubectl"
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"

# Name: the resources and components of a user's kustomization, as paths below deploy/kubernetes.
RENDERINGS: dict[str, tuple[str, ...]] = {
    "cpu": ("overlays/cpu",),
    "gpu": ("overlays/gpu",),
    "training": ("overlays/training",),
    "training-nodes": ("overlays/training-nodes",),
    "external-redis": ("base", "components/external-redis"),
    "keda": ("overlays/cpu", "components/keda", "components/monitoring"),
    "keda-triton": ("overlays/gpu", "components/keda-triton", "components/monitoring"),
    "triton-tls": ("overlays/gpu", "components/triton-tls"),
    "model-image": ("overlays/cpu", "components/model-image"),
    "model-download": ("overlays/cpu", "components/model-download"),
    "open": ("overlays/cpu", "components/api-keys", "components/url-fetch"),
}
SERVING = [name for name in RENDERINGS if not name.startswith("training")]

# As `make_password.py` writes them.
SECRETS = {("foveal-redis", "url"): "redis://:X7_x-1@foveal-redis:6379/0"}
EXPANDED = re.compile(r"\$\((\w+)\)")


@cache
def render(name: str) -> list[Manifest]:
    """Every manifest of a rendering."""
    resource, *components = RENDERINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        kustomization = {
            "resources": [os.path.relpath(KUBERNETES / resource, here)],
            "components": [os.path.relpath(KUBERNETES / path, here) for path in components],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return list(yaml.safe_load_all(kustomize(here)))


def kustomize(folder: Path) -> str:
    assert KUBECTL.is_file(), f"{KUBECTL} is missing; `make test` installs it"
    command = [KUBECTL, "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not done.returncode, done.stderr
    return done.stdout


def tool(module: str) -> ModuleType:
    """A Python module of those that check manifests."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AssertionError(f"{module}: {error}; `make test` installs it") from None


def of_kind(name: str, *kinds: str) -> list[Manifest]:
    return [manifest for manifest in render(name) if manifest["kind"] in kinds]


def one(name: str, kind: str, called: str) -> Manifest:
    (found,) = (m for m in of_kind(name, kind) if m["metadata"]["name"] == called)
    return found


def workloads(name: str) -> list[Manifest]:
    """Whatever makes pods."""
    return of_kind(name, "Deployment", "StatefulSet", "Job")


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def labels(workload: Manifest) -> dict[str, str]:
    """Those of its pods."""
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def containers(workload: Manifest) -> list[Manifest]:
    """All containers of a pod, those that run before the others included."""
    spec = pod(workload)
    return [*spec.get("initContainers", []), *spec["containers"]]


def workload(name: str, called: str) -> Manifest:
    (found,) = (w for w in workloads(name) if w["metadata"]["name"] == called)
    return found


def selects(selector: Manifest, found: dict[str, str]) -> bool:
    """Whether a label selector takes labels; Foveal's have `matchLabels` only."""
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= found.items()


def port_number(workload: Manifest, port: str | int) -> int:
    """The number of a port that a Service, a probe or a policy names."""
    for container in containers(workload):
        for declared in container.get("ports", []):
            if port in (declared["name"], declared["containerPort"]):
                number: int = declared["containerPort"]
                return number
    raise AssertionError(f"{workload['metadata']['name']} has no port {port}")


def environment(name: str) -> dict[str, str]:
    """What the container `gateway` would find in its environment."""
    (container,) = pod(workload(name, "foveal-gateway"))["containers"]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        found |= one(name, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container["env"]:
        found[variable["name"]] = _value(container, variable)
    return found


def _value(container: Manifest, variable: Manifest) -> str:
    if "value" in variable:
        assert not EXPANDED.search(variable["value"])
        return str(variable["value"])
    source = variable["valueFrom"]
    if "secretKeyRef" in source:
        return SECRETS[source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]]
    field = source["resourceFieldRef"]
    assert field["containerName"] == container["name"]
    assert field["resource"] == "limits.cpu"  # of a whole number of cores, rounded up
    return str(math.ceil(float(container["resources"]["limits"]["cpu"])))
