"""From a bundle to a model repository of NVIDIA's Triton Inference Server.

    REPOSITORY/NAME/config.pbtxt             a GPU by CUDA, at every size
    REPOSITORY/NAME/configs/cpu.pbtxt        a processor, at every size
    REPOSITORY/NAME/configs/tensorrt.pbtxt   a GPU by TensorRT in FP16, at the default size
    REPOSITORY/NAME/configs/plan.pbtxt       the same by a plan that was built before
    REPOSITORY/NAME/1/                       a version: its graphs, its digest, perhaps its plan

`tritonserver --model-config-name=cpu` takes another configuration than the first. As in the
gateway, TensorRT is for who asks: it needs minutes to start and gives other numbers than fp32.
"""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from service.bundle import GRAPH, Bundle
from training.export.fixed_size import fixed_size
from training.export.triton_config import FIXED_GRAPH, PLAN, configurations, pbtxt

CONFIG = "config.pbtxt"
OVERLAYS = "configs"
DIGEST = "digest"


def write_repository(bundle: Bundle, repository: Path, plan: Path | None = None) -> int:
    """Add a bundle to a model repository and let it be served.

    A version appears whole, and only then is the configuration replaced by one that names it: a
    Triton that polls serves the old model or the new one under its own digest.

    Args:
        bundle: The model.
        repository: The folder; made if missing.
        plan: Of `training.export.tensorrt`, for the GPU that will run it.

    Returns:
        The version that is served: the one that has the bundle's digest, else the next number.
        What is there already is not written again.
    """
    model = repository / bundle.manifest.name
    version = _version(model, bundle.digest)
    has_plan = plan is not None or (model / str(version) / PLAN).exists()
    repository.mkdir(parents=True, exist_ok=True)
    # Triton takes each folder of the repository for a model, and finds no version in this one.
    with TemporaryDirectory(prefix=".foveal-", dir=repository) as folder:
        staged = Path(folder) / "staged"
        staged.mkdir()
        if not (model / str(version)).exists():
            _write_version(bundle, staged / str(version))
        if plan is not None:
            (staged / str(version)).mkdir(exist_ok=True)
            shutil.copyfile(plan, staged / str(version) / PLAN)
        _write_configurations(bundle, staged, version, has_plan)
        _publish(staged, model, version)
    if not has_plan:
        (model / OVERLAYS / "plan.pbtxt").unlink(missing_ok=True)
    return version


def _version(model: Path, digest: str) -> int:
    versions = {int(path.name): path for path in model.glob("[1-9]*") if path.name.isdecimal()}
    for number, path in versions.items():
        if (path / DIGEST).exists() and (path / DIGEST).read_text() == digest:
            return number
    return max(versions, default=0) + 1


def _write_version(bundle: Bundle, folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(bundle.graph, folder / GRAPH)
    onnx.save(fixed_size(bundle), folder / FIXED_GRAPH)
    (folder / DIGEST).write_text(bundle.digest)


def _write_configurations(bundle: Bundle, folder: Path, version: int, has_plan: bool) -> None:
    messages = configurations(bundle, version)
    (folder / CONFIG).write_text(pbtxt(messages.pop("cuda")))
    (folder / OVERLAYS).mkdir()
    for name, message in messages.items():
        if has_plan or name != "plan":
            (folder / OVERLAYS / f"{name}.pbtxt").write_text(pbtxt(message))


def _publish(staged: Path, model: Path, version: int) -> None:
    """Move what is staged to its place: the version first, the configuration last."""
    if not model.exists():
        staged.rename(model)
        return
    if not (model / str(version)).exists():
        (staged / str(version)).rename(model / str(version))
    (model / OVERLAYS).mkdir(exist_ok=True)
    overlays = sorted((staged / OVERLAYS).iterdir())
    for source in (staged / str(version) / PLAN, *overlays, staged / CONFIG):
        target = model / source.relative_to(staged)
        if source.exists() and not _same(source, target):
            source.replace(target)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)
