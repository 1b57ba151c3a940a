"""What is decided around TensorRT, with a stand-in for its builder; the real one needs a GPU.

The stand-in's plan is the graph that it was given, run by ONNX Runtime, blurred at will.
"""

import sys
import types

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from service.bundle import MANIFEST, Bundle
from tests.bundles import make_bundle
from tests.data import dataset
from training import bundling
from training.data.sources import open_source
from training.export import tensorrt
from training.export.tensorrt import PlanError, TensorRT, cached_plan, faithful_plan, fidelity
from training.export.triton_config import profile

COMMAND = "foveal-train export BUNDLE --triton REPOSITORY --plan --data photos"


class Builder:
    """Builds as TensorRT would, and counts.

    `noise` is added to every output of a plan.
    """

    def __init__(self, version="10.9.0.34", gpu="NVIDIA H200", capability="9.0", noise=0.0):
        self.version, self.gpu, self.capability, self.noise = version, gpu, capability, noise
        self.built = []

    def build(self, graph, profile):
        self.built.append((graph, profile))
        return graph

    def load(self, plan):
        session = ort.InferenceSession(plan)
        names = [output.name for output in session.get_outputs()]

        def run(images):
            outputs = session.run(names, {"images": images})
            return {
                n: array + np.float32(self.noise) for n, array in zip(names, outputs, strict=True)
            }

        return run


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def photos():
    return open_source(dataset("photos"))


def test_a_plan_is_built_of_the_default_size_for_every_batch(bundle, tmp_path):
    builder = Builder()
    cached_plan(bundle, builder, tmp_path / "plans")
    ((graph, shapes),) = builder.built
    assert shapes == {"min": (1, 64, 64, 3), "opt": (64, 64, 64, 3), "max": (64, 64, 64, 3)}
    assert shapes == profile(bundle)
    _, *sides = onnx.load_from_string(graph).graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value for side in sides] == [64, 64, 3]


def test_a_plan_that_the_cache_has_is_not_built_again(bundle, tmp_path):
    builder = Builder()
    first = cached_plan(bundle, builder, tmp_path / "plans")
    assert cached_plan(bundle, builder, tmp_path / "plans") == first
    assert cached_plan(bundle, Builder(), tmp_path / "plans") == first
    assert len(builder.built) == 1
    assert list((tmp_path / "plans").iterdir()) == [first]


@pytest.mark.parametrize(
    "other", [{"version": "10.10.0.1"}, {"gpu": "NVIDIA H100"}, {"capability": "8.9"}]
)
def test_another_gpu_or_release_has_a_plan_of_its_own(other, bundle, tmp_path):
    first = cached_plan(bundle, Builder(), tmp_path / "plans")
    builder = Builder(**other)
    assert cached_plan(bundle, builder, tmp_path / "plans") != first
    assert len(builder.built) == 1


def test_another_model_has_a_plan_of_its_own(bundle, tmp_path):
    builder = Builder()
    first = cached_plan(bundle, builder, tmp_path / "plans")
    other = make_bundle(tmp_path / "other", seed=1)
    assert cached_plan(other, builder, tmp_path / "plans") != first
    assert len(builder.built) == 2


def test_a_build_that_fails_leaves_nothing_in_the_cache(bundle, tmp_path):
    class Failing(Builder):
        def build(self, graph, profile):
            raise PlanError("out of memory")

    with pytest.raises(PlanError, match="out of memory"):
        cached_plan(bundle, Failing(), tmp_path / "plans")
    assert list((tmp_path / "plans").iterdir()) == []


def test_fidelity_is_measured_on_real_images_against_the_bundles_graph(bundle, photos, tmp_path):
    builder = Builder(noise=0.01)
    plan = cached_plan(bundle, builder, tmp_path / "plans").read_bytes()
    measured = fidelity(bundle, builder.load(plan), photos)
    assert measured.largest_difference == pytest.approx(0.01, abs=1e-5)
    assert measured.least_cosine <= measured.cosine < 1
    exact = fidelity(bundle, Builder().load(plan), photos)
    assert exact.least_cosine == pytest.approx(1, abs=1e-6)
    assert exact.largest_difference < 1e-5


def test_what_was_measured_stands_in_the_bundle_once_for_each_gpu(bundle, photos, tmp_path):
    before = bundle.manifest
    for builder in (Builder(), Builder(noise=1e-4), Builder(gpu="NVIDIA L4")):
        written, _ = faithful_plan(bundle, builder, tmp_path / "plans", photos, COMMAND)
        bundle = Bundle.load(bundle.path)
        assert bundle == written
    assert bundle.digest == before.digest
    assert bundle.manifest.model_dump(exclude={"evaluation"}) == before.model_dump(
        exclude={"evaluation"}
    )
    figures = {figure.name: figure for figure in bundle.manifest.evaluation}
    assert list(figures) == [
        f"TensorRT FP16 on NVIDIA {gpu}, beside ONNX at fp32: {what}"
        for gpu in ("H200", "L4")
        for what in ("mean cosine", "least cosine", "largest difference")
    ]
    assert {figure.command for figure in figures.values()} == {COMMAND}
    largest = figures["TensorRT FP16 on NVIDIA H200, beside ONNX at fp32: largest difference"]
    assert largest.value == pytest.approx(1e-4, abs=1e-5)


@pytest.mark.parametrize("noise", [1.0, float("nan")])
def test_a_plan_that_is_not_faithful_is_refused(noise, bundle, photos, tmp_path):
    before = (bundle.path / MANIFEST).read_bytes()
    with pytest.raises(PlanError, match="not faithful to fp32"):
        faithful_plan(bundle, Builder(noise=noise), tmp_path / "plans", photos, COMMAND)
    assert (bundle.path / MANIFEST).read_bytes() == before


@pytest.fixture
def gpu(monkeypatch):
    """A machine that has a GPU, as far as torch tells."""
    monkeypatch.setattr(tensorrt.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(tensorrt.torch.cuda, "get_device_capability", lambda: (9, 0))


def library(version):
    """A module `tensorrt` of some release."""
    found = types.ModuleType("tensorrt")
    found.__version__ = version
    found.Logger = lambda severity: severity
    found.Logger.WARNING = "warning"
    return found


def test_without_a_gpu_no_plan_is_promised(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PlanError, match=r"no NVIDIA GPU here.*leave --plan out"):
        TensorRT()


@pytest.mark.usefixtures("gpu")
def test_without_tensorrt_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PlanError, match="not installed: take the release that Triton has"):
        TensorRT()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("version", ["8.6.1", "11.0.0.1"])
def test_a_release_with_another_api_is_refused(version, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", library(version))
    with pytest.raises(PlanError, match=f"TensorRT {version} is here, but"):
        TensorRT()


@pytest.mark.usefixtures("gpu")
def test_the_builder_tells_what_names_a_plan(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", library("10.9.0.34"))
    builder = TensorRT()
    found = (builder.version, builder.gpu, builder.capability)
    assert found == ("10.9.0.34", "NVIDIA H200", "9.0")


def test_the_command_line_says_that_there_is_no_gpu_before_anything_is_done(
    bundle, tmp_path, monkeypatch, foveal_train
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, printed = foveal_train(
        "export", bundle.path, "--triton", tmp_path / "models", "--plan", "--data", "x"
    )
    assert code == 1
    assert printed.startswith("error: there is no NVIDIA GPU here")
    assert not (tmp_path / "models").exists()


def test_the_command_line_writes_plan_and_figures(bundle, tmp_path, monkeypatch, foveal_train):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val").symlink_to(dataset("photos"))
    monkeypatch.setattr(tensorrt, "TensorRT", Builder)
    monkeypatch.setattr(bundling, "PLANS", tmp_path / "plans")
    code, printed = foveal_train(
        *("export", bundle.path, "--triton", tmp_path / "models"),
        *("--plan", "--data", tmp_path / "data"),
    )
    assert code == 0, printed
    (plan,) = (tmp_path / "plans").iterdir()
    assert (tmp_path / "models/tiny/1/model.plan").read_bytes() == plan.read_bytes()
    figures = Bundle.load(bundle.path).manifest.evaluation
    assert figures[0].value == pytest.approx(1, abs=1e-6)
    assert figures[0].command.endswith("--plan --data data")
    assert f"{figures[0].name}: {figures[0].value}" in printed
