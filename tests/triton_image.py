"""A stand-in for Triton's image, which cannot be pulled: NVIDIA's server out of nvidia-pytriton,
and the stand-in for its ONNX Runtime backend (see `tests.triton_backend`)."""

import shutil
import tempfile
from pathlib import Path

from tests.docker_engine import DockerEngine
from tests.triton_servers import PACKAGE, SERVER, copy_backends

TRITON = "triton:stand-in"
# curl, because the official image has it and the health check in docker-compose.yml asks with it.
DOCKERFILE = """
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends curl libpython3.11 \
    && python3 -m pip install --no-cache-dir numpy==1.26.4 onnxruntime==1.32.0
COPY libraries /opt/libraries
COPY tritonserver /opt/tritonserver
ENV PATH=/opt/tritonserver/bin:$PATH LD_LIBRARY_PATH=/opt/libraries
"""


def build_triton(docker: DockerEngine) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "Dockerfile").write_text(DOCKERFILE)
        shutil.copytree(PACKAGE / "nvidia_pytriton.libs", folder / "libraries")
        shutil.copytree(SERVER / "bin", folder / "tritonserver" / "bin")
        copy_backends(folder / "tritonserver" / "backends", "3.11")
        docker.build(TRITON, folder)
