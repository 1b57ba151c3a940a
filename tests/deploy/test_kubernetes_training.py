"""The Jobs of the training overlays: their own commands, run as two nodes on this machine."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch.distributed.run import config_from_args, parse_args

from tests.data import ROOT
from tests.deploy.manifests import Manifest, one, pod
from tests.ports import HeldPort

NODES = 2
SMALL = {
    "name": "small",
    "epochs": 1,
    "batch_size": 8,
    "model": {"architecture": "vit_nano", "patch_size": 8},
    "crops": {"global_size": 32, "local_size": 16, "local_count": 1},
    "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
}


def container(name: str) -> Manifest:
    (found,) = pod(one(name, "Job", "foveal-train"))["containers"]
    return dict(found)


def command(name: str, node: int, port: int, arguments: list[str]) -> list[str]:
    """What the container runs, with its variables expanded, on CPUs and on the loopback."""
    variables = {v["name"]: v["value"] for v in container(name).get("env", [])}
    variables["JOB_COMPLETION_INDEX"] = str(node)  # the Job sets it
    if "MASTER_ADDR" in variables:
        assert variables["MASTER_ADDR"] == "foveal-train-0.foveal-train"
        variables["MASTER_ADDR"] = "127.0.0.1"
    words = list(container(name)["command"])
    for variable, value in variables.items():
        words = [word.replace(f"$({variable})", value) for word in words]
    assert not any("$(" in word for word in words)
    instead = {
        "--nproc-per-node=gpu": "--nproc-per-node=1",
        "--master-port=29500": f"--master-port={port}",
    }
    words = [instead.get(word, word) for word in words]
    return [str(Path(sys.executable).with_name(words[0])), *words[1:], *arguments]


@pytest.mark.parametrize(("name", "nodes"), [("training", 1), ("training-nodes", NODES)])
def test_the_jobs_own_command_trains(name: str, nodes: int, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    images = np.random.default_rng(0).integers(0, 256, (24, 40, 40, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_x=images)
    recipe.write_text(json.dumps(SMALL | {"data": str(tmp_path / "images.npz")}))
    arguments = ["run", str(recipe), f"--out={tmp_path / 'run'}", "--device=cpu", "--workers=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with HeldPort() as port, ThreadPoolExecutor(nodes) as pool:
        started = [
            subprocess.Popen(
                command(name, node, port.number, arguments),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for node in range(nodes)
        ]
        try:
            ends = list(pool.map(lambda process: process.communicate(timeout=900), started))
        finally:
            for process in started:
                process.terminate()
    assert [process.returncode for process in started] == [0] * nodes, ends
    # The first process, which is of the node with index 0, says where the checkpoint lies.
    assert [str(tmp_path / "run" / "last.pt") in out for out, _ in ends] == [
        node == 0 for node in range(nodes)
    ]


@pytest.mark.parametrize("name", ["training", "training-nodes"])
def test_the_arguments_name_a_recipe_in_the_box_and_the_volumes(name: str) -> None:
    run, recipe, out, data = container(name)["args"]
    assert run == "run"
    explain = [sys.executable, "-m", "training.cli", "explain", recipe, data]
    assert subprocess.run(explain, cwd=ROOT, capture_output=True, check=False).returncode == 0
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in container(name)["volumeMounts"]}
    assert mounts[f"/{Path(out.partition('=')[2]).parts[1]}"] is False
    assert mounts[f"/{Path(data.partition('=')[2]).parts[1]}"] is True
    assert mounts["/dev/shm"] is False  # noqa: S108 - in the container


def test_every_node_has_an_index_and_a_machine_of_its_own() -> None:
    job = one("training-nodes", "Job", "foveal-train")["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == NODES
    assert {"name": "NODES", "value": str(NODES)} in container("training-nodes")["env"]
    (spread,) = pod(one("training-nodes", "Job", "foveal-train"))["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    service = one("training-nodes", "Service", "foveal-train")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True


@pytest.mark.parametrize("name", ["training", "training-nodes"])
def test_a_pod_that_the_cluster_takes_away_is_no_failure(name: str) -> None:
    job = one(name, "Job", "foveal-train")["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "Ignore"
    assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    spec = job["template"]["spec"]
    assert spec["restartPolicy"] == "Never"  # which podFailurePolicy asks for


@pytest.mark.parametrize("name", ["training", "training-nodes"])
def test_a_pod_has_its_whole_grace_for_a_step_and_a_checkpoint(name: str) -> None:
    """torchrun, which is the pod's first process, does not kill its workers long before."""
    grace = pod(one(name, "Job", "foveal-train"))["terminationGracePeriodSeconds"]
    _, *arguments = command(name, 0, 29500, [])
    config, _, _ = config_from_args(parse_args(arguments))
    assert grace >= 120
    assert grace - 30 <= config.shutdown_timeout < grace


def test_the_failures_that_a_disruption_brings_to_the_other_nodes_do_not_end_the_job() -> None:
    """A worker's own status does not reach the cluster, so no rule can tell them apart."""
    with HeldPort() as port:
        torchrun = command("training-nodes", 0, port.number, [])[:-2]
        ended = [*torchrun, "--nnodes=1", "--no-python", "sh", "-c", "exit 143"]
        done = subprocess.run(ended, capture_output=True, check=False)
    assert done.returncode == 1
    job = one("training-nodes", "Job", "foveal-train")["spec"]
    assert job["backoffLimit"] >= 1000 * (NODES - 1)
