"""What deploy/triton/README.md tells a person to type, run with stand-ins for docker and pip."""

import re
import subprocess
from pathlib import Path

from tests.data import ROOT
from tests.deploy.manifests import pod, workload

README = (ROOT / "deploy" / "triton" / "README.md").read_text()
STAND_IN = """#!/bin/sh
echo "${{0##*/}} $*" >> "{said}"
[ "${{0##*/}}" = docker ] && printf %s 10.13.3.9-1+cuda13.0
exit 0
"""


def test_a_plan_is_built_by_the_release_of_tensorrt_that_triton_has(tmp_path: Path) -> None:
    (block,) = (b for b in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "tensorrt" in b)
    said = tmp_path / "said"
    for name in ("docker", "pip", "foveal-train"):
        (tmp_path / name).write_text(STAND_IN.format(said=said))
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["/bin/sh", "-e", "-c", block], env=path, check=True, capture_output=True)
    docker, pip, train = said.read_text().splitlines()
    (server,) = pod(workload("gpu", "foveal-triton"))["containers"]
    assert f" {server['image']} " in docker
    assert pip == "pip install tensorrt==10.13.3.9"
    assert "--plan" in train
