"""What every Dockerfile keeps to, whether it is built in the tests or not."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from service import __version__
from tests.docker_engine import HADOLINT, ROOT, require

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVERS = ("gateway", "gateway-gpu")


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.stem)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return request.param


def instructions(dockerfile: Path, stage: int = -1) -> list[tuple[str, str]]:
    """The instructions of one stage, continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    stages = re.split(r"^(?=FROM )", "\n".join(lines), flags=re.MULTILINE)
    return [tuple(line.split(" ", 1)) for line in stages[stage].splitlines() if line.strip()]


def values(dockerfile: Path, name: str) -> list[str]:
    return [value for instruction, value in instructions(dockerfile) if instruction == name]


def test_there_is_one_for_each_role():
    roles = {path.stem.removesuffix(".Dockerfile") for path in DOCKERFILES}
    assert roles == {"gateway", "gateway-gpu", "training", "triton-models"}


def test_the_linter_finds_nothing(dockerfile):
    require(HADOLINT)
    done = subprocess.run(
        [HADOLINT, "--ignore", "DL3008", dockerfile], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_base_is_an_argument_and_what_builds_stays_behind(dockerfile):
    text = dockerfile.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"\$\{\w+\}", base) for base in bases)
    for base in bases:
        assert re.search(rf"^ARG {base[2:-1]}=\S+", text, re.MULTILINE)


def test_dependencies_are_the_locked_ones(dockerfile):
    text = dockerfile.read_text()
    assert "PIP_CONSTRAINT=/source/constraints.txt" in text
    # As newer releases of pip want it, for what builds the wheel.
    assert "PIP_BUILD_CONSTRAINT=/source/constraints.txt" in text
    assert "COPY pyproject.toml constraints.txt" in text


def test_what_builds_the_wheel_is_locked_too():
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = (ROOT / "constraints.txt").read_text()
    for requirement in (*backend, "trove-classifiers"):
        name = re.split("[<>=]", requirement)[0]
        assert re.search(rf"^{name}==", locked, re.MULTILINE)


def test_any_builder_can_build_it(dockerfile):
    text = dockerfile.read_text()
    assert "--mount" not in text
    assert "<<" not in text
    assert "# syntax" not in text


def test_it_runs_as_a_number_that_is_not_root(dockerfile):
    assert values(dockerfile, "USER") == ["10001:10001"]


def test_it_is_stopped_by_sigterm_and_started_without_a_shell(dockerfile):
    assert values(dockerfile, "STOPSIGNAL") == ["SIGTERM"]
    for value in [*values(dockerfile, "ENTRYPOINT"), *values(dockerfile, "CMD")]:
        assert json.loads(value)


def test_its_labels_say_what_it_is(dockerfile):
    labels = " ".join(values(dockerfile, "LABEL"))
    for name in ("title", "description", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert f"VERSION={__version__}" in values(dockerfile, "ARG")


def test_servers_say_whether_they_are_ready_without_curl(dockerfile):
    [check] = values(dockerfile, "HEALTHCHECK")
    if dockerfile.stem in SERVERS:
        assert "/readyz" in check
        assert "curl" not in check
    else:
        assert check == "NONE"


def test_a_training_can_compile_its_model():
    """For which torch wants a compiler of C, for GPUs, and one of C++."""
    training = next(path for path in DOCKERFILES if path.stem == "training")
    [command] = values(training, "RUN")[:1]
    installed = re.search(r"apt-get install -y --no-install-recommends ([^&]*)", command)
    assert {"gcc", "g++", "libc6-dev"} <= set(installed[1].split())


def test_nothing_reports_to_the_makers_of_onnx_runtime(dockerfile):
    assert "ORT_DISABLE_TELEMETRY=1" in dockerfile.read_text()
