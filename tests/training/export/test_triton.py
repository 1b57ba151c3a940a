"""What Triton is told of a bundle, read by Triton's own protobuf, and by Triton itself."""

import asyncio

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc import model_config_pb2 as pb

from service.bundle import GRAPH, Bundle
from service.engines.onnx import OnnxEngine
from tests.bundles import make_bundle
from tests.training.export.bundles import seeded_bundle
from tests.triton_servers import running
from tests.waiting import wait_until
from training.export import triton as export
from training.export.fixed_size import fixed_size
from training.export.triton import write_repository
from training.export.triton_config import Enum, pbtxt
from training.models.swin import SwinTransformer
from training.models.vit import VisionTransformer

MODELS = {
    # Positions of another grid than the default one, so that they are worked out from the shape.
    "vit": lambda: VisionTransformer(8, 64, 2, 2, image_size=40),
    "swin": lambda: SwinTransformer(16, (2, 2), (1, 2), 7, image_size=112),
}


@pytest.fixture(scope="module", params=MODELS)
def trained(request, tmp_path_factory):
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    return seeded_bundle(tmp_path_factory.mktemp("bundle") / "bundle", model, request.param)


@pytest.fixture
def tiny(tmp_path):
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "models"


def read(path):
    return text_format.Parse(path.read_text(), pb.ModelConfig())


def tree(folder):
    """Every file with its contents and time: what a Triton that polls looks at."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in files
    }


def names(folder):
    return sorted(str(path) for path in tree(folder))


def shapes(tensors):
    return {tensor.name: list(tensor.dims) for tensor in tensors}


def parameters(config):
    return {key: value.string_value for key, value in config.parameters.items()}


def test_the_configuration_for_a_gpu_serves_every_size(tiny, repository):
    assert write_repository(tiny, repository) == 1
    config = read(repository / "tiny" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 64)
    assert config.default_model_filename == "model.onnx"
    assert shapes(config.input) == {"images": [-1, -1, 3]}
    assert config.input[0].data_type == pb.TYPE_UINT8
    assert shapes(config.output) == {
        "embedding": [16],
        "patches": [-1, -1, 16],
        "attention": [2, -1, -1],
    }
    assert {output.data_type for output in config.output} == {pb.TYPE_FP32}
    assert parameters(config) == {"digest": tiny.digest, "precision": "fp32"}
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_GPU]
    assert config.instance_group[0].count == 2
    assert not config.HasField("optimization")


def test_whoever_waits_is_batched_at_once_and_refused_when_late_or_too_many(tiny, repository):
    write_repository(tiny, repository)
    config = read(repository / "tiny" / "config.pbtxt")
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    policy = config.dynamic_batching.default_queue_policy
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert policy.default_timeout_microseconds == 30_000_000
    assert policy.allow_timeout_override
    assert policy.max_queue_size == 256


@pytest.mark.parametrize(("path", "most"), [("config.pbtxt", 64), ("configs/cpu.pbtxt", 8)])
def test_the_default_size_is_warmed_up_at_the_least_and_the_largest_batch(
    path, most, tiny, repository
):
    write_repository(tiny, repository)
    config = read(repository / "tiny" / path)
    assert [sample.batch_size for sample in config.model_warmup] == [1, most]
    for sample in config.model_warmup:
        assert list(sample.inputs) == ["images"]
        assert list(sample.inputs["images"].dims) == [64, 64, 3]
        assert sample.inputs["images"].data_type == pb.TYPE_UINT8
        assert sample.inputs["images"].zero_data


def test_a_processor_is_told_only_what_differs(tiny, repository):
    write_repository(tiny, repository)
    cpu = read(repository / "tiny" / "configs" / "cpu.pbtxt")
    assert cpu.max_batch_size == 8
    assert [group.kind for group in cpu.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]
    gpu = read(repository / "tiny" / "config.pbtxt")
    for field in ("max_batch_size", "instance_group", "model_warmup"):
        cpu.ClearField(field)
        gpu.ClearField(field)
    assert cpu == gpu


def test_tensorrt_gets_the_default_size_in_fp16_with_a_cache_of_its_plans(tiny, repository):
    write_repository(tiny, repository)
    config = read(repository / "tiny" / "configs" / "tensorrt.pbtxt")
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.fixed.onnx")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/tmp/foveal-plans",  # noqa: S108 - in the container
        "trt_engine_cache_prefix": tiny.digest,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/tmp/foveal-plans",  # noqa: S108 - in the container
        "trt_profile_min_shapes": "images:1x64x64x3",
        "trt_profile_opt_shapes": "images:64x64x64x3",
        "trt_profile_max_shapes": "images:64x64x64x3",
    }
    assert config.max_batch_size == 64
    assert parameters(config) == {"digest": tiny.digest, "precision": "fp16"}


def test_shapes_at_the_default_size_are_those_of_the_graphs_answers(trained, repository):
    write_repository(trained, repository)
    config = read(repository / "seeded" / "configs" / "tensorrt.pbtxt")
    session = ort.InferenceSession(repository / "seeded" / "1" / config.default_model_filename)
    (height, width, colours) = config.input[0].dims
    given = session.run(None, {"images": np.zeros((2, height, width, colours), np.uint8)})
    outputs = [output.name for output in session.get_outputs()]
    expected = {name: list(array.shape[1:]) for name, array in zip(outputs, given, strict=True)}
    assert shapes(config.output) == expected


def test_the_graph_of_the_default_size_is_one_that_tensorrt_can_read(trained):
    model = fixed_size(trained)
    onnx.checker.check_model(model, full_check=True)
    # NVIDIA/TensorRT#3985: a uint8 input may go into a cast and nowhere else.
    users = [node.op_type for node in model.graph.node if "images" in node.input]
    assert users == ["Cast"]
    # onnx-tensorrt's operators.md: `Range` of floats only with constants, which leave no `Range`.
    assert "Range" not in {node.op_type for node in model.graph.node}
    assert [opset.domain for opset in model.opset_import] == [""]
    batch, *sides = model.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value for side in sides] == [64, 64, 3]
    assert batch.dim_param


def test_the_graph_of_the_default_size_gives_the_same_numbers(trained):
    random = np.random.default_rng(0)
    fixed = ort.InferenceSession(fixed_size(trained).SerializeToString())
    free = ort.InferenceSession(trained.graph)
    for batch in (1, 3):
        images = random.integers(0, 256, (batch, 64, 64, 3), np.uint8)
        for one, two in zip(
            fixed.run(None, {"images": images}), free.run(None, {"images": images}), strict=True
        ):
            np.testing.assert_allclose(one, two, atol=1e-5, rtol=0)


def test_a_plan_is_served_as_such(tiny, repository, tmp_path):
    (tmp_path / "built").write_bytes(b"plan")
    write_repository(tiny, repository, tmp_path / "built")
    assert (repository / "tiny" / "1" / "model.plan").read_bytes() == b"plan"
    config = read(repository / "tiny" / "configs" / "plan.pbtxt")
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert config.default_model_filename == "model.plan"
    assert shapes(config.input) == {"images": [64, 64, 3]}
    assert shapes(config.output) == {
        "embedding": [16],
        "patches": [8, 8, 16],
        "attention": [2, 8, 8],
    }
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert parameters(config) == {"digest": tiny.digest, "precision": "fp16"}


def test_without_a_plan_none_is_promised(tiny, repository):
    write_repository(tiny, repository)
    assert names(repository / "tiny") == [
        "1/digest",
        "1/model.fixed.onnx",
        "1/model.onnx",
        "config.pbtxt",
        "configs/cpu.pbtxt",
        "configs/tensorrt.pbtxt",
    ]


def test_the_same_model_again_changes_nothing(tiny, repository):
    write_repository(tiny, repository)
    before = tree(repository)
    assert write_repository(tiny, repository) == 1
    assert tree(repository) == before


def test_a_plan_is_added_to_a_version_that_is_there_and_stays(tiny, repository, tmp_path):
    write_repository(tiny, repository)
    before = tree(repository / "tiny")
    (tmp_path / "built").write_bytes(b"plan")
    for plan in (tmp_path / "built", None):
        assert write_repository(tiny, repository, plan) == 1
        after = tree(repository / "tiny")
        assert {str(path) for path in after.keys() - before.keys()} == {
            "1/model.plan",
            "configs/plan.pbtxt",
        }
        assert before.items() <= after.items()


def test_another_model_becomes_the_next_version_and_the_old_one_can_come_back(
    tiny, repository, tmp_path
):
    other = make_bundle(tmp_path / "other", seed=1)
    (tmp_path / "built").write_bytes(b"plan")
    model = repository / "tiny"

    def served():
        configs = [read(path) for path in (model / "config.pbtxt", *(model / "configs").iterdir())]
        versions = {tuple(c.version_policy.specific.versions) for c in configs}
        digests = {c.parameters["digest"].string_value for c in configs}
        return versions, digests

    assert write_repository(tiny, repository, tmp_path / "built") == 1
    assert write_repository(other, repository) == 2
    assert served() == ({(2,)}, {other.digest})
    assert (model / "2" / GRAPH).read_bytes() == other.graph.read_bytes()
    assert (model / "1" / GRAPH).read_bytes() == tiny.graph.read_bytes()
    assert not (model / "configs" / "plan.pbtxt").exists()
    assert write_repository(tiny, repository) == 1
    assert served() == ({(1,)}, {tiny.digest})
    assert (model / "configs" / "plan.pbtxt").exists()


def test_at_no_moment_is_a_configuration_there_whose_files_are_not(
    tiny, repository, tmp_path, monkeypatch
):
    """After each single step on the disk, what a Triton would find is whole."""
    seen = []

    def look():
        for model in repository.glob("[!.]*"):
            for path in (model / "config.pbtxt", *(model / "configs").iterdir()):
                config = read(path)
                (version,) = config.version_policy.specific.versions
                digest = config.parameters["digest"].string_value
                assert (model / str(version) / config.default_model_filename).exists()
                assert (model / str(version) / "digest").read_text() == digest
                seen.append(version)

    for name in ("rename", "replace", "mkdir", "write_text", "unlink"):
        step = getattr(export.Path, name)

        def watched(*arguments, _step=step, **more):
            result = _step(*arguments, **more)
            look()
            return result

        monkeypatch.setattr(export.Path, name, watched)
    (tmp_path / "built").write_bytes(b"plan")
    other = make_bundle(tmp_path / "other", seed=1)
    write_repository(tiny, repository)
    write_repository(tiny, repository, tmp_path / "built")
    write_repository(other, repository)
    assert set(seen) == {1, 2}
    assert not list(repository.glob(".*"))


def test_an_export_that_fails_leaves_the_repository_as_it_was(
    tiny, repository, tmp_path, monkeypatch
):
    write_repository(tiny, repository)
    before = tree(repository)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(export.onnx, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_repository(make_bundle(tmp_path / "other", seed=1), repository)
    assert tree(repository) == before


def test_text_that_protobuf_reads_back():
    message = {
        "name": 'a "quoted"\\name\n',
        "max_batch_size": 3,
        "input": [{"name": "x", "data_type": Enum("TYPE_UINT8"), "dims": (-1, 3)}, {"name": "y"}],
        "dynamic_batching": {"preserve_ordering": True},
    }
    config = text_format.Parse(pbtxt(message), pb.ModelConfig())
    assert config.name == 'a "quoted"\\name\n'
    assert [tensor.name for tensor in config.input] == ["x", "y"]
    assert list(config.input[0].dims) == [-1, 3]
    assert config.dynamic_batching.preserve_ordering


def test_the_command_line_adds_a_bundle_to_a_repository(tiny, repository, foveal_train):
    code, printed = foveal_train("export", tiny.path, "--triton", repository)
    assert code == 0, printed
    assert f"{repository}/tiny version 1" in printed
    assert parameters(read(repository / "tiny" / "config.pbtxt"))["digest"] in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--triton"),
        (("--triton", "models", "--plan"), "--data"),
        (("--plan", "--data", "pictures"), "--triton"),
    ],
)
def test_the_command_line_names_what_is_missing(arguments, says, tiny, foveal_train):
    code, printed = foveal_train("export", tiny.path, *arguments)
    assert code == 2
    assert says in printed


def test_a_checkpoint_needs_all_that_makes_a_bundle(foveal_train, tmp_path):
    code, printed = foveal_train("export", tmp_path / "last.pt", "--triton", tmp_path / "models")
    assert code == 2
    assert "--out, --data" in printed


def infer(url, name, images, outputs):
    tensor = InferInput("images", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    with InferenceServerClient(url) as client:
        answer = client.infer(name, [tensor])
    return {output: answer.as_numpy(output) for output in outputs}


def expected(bundle: Bundle, images, outputs):
    async def run():
        engine = OnnxEngine(bundle, threads=1)
        found = await engine.infer(images, outputs)
        await engine.close()
        return found

    return asyncio.run(run())


def test_triton_serves_what_was_written_and_follows_a_new_version(tiny, repository, tmp_path):
    """The real server, with the stand-in backend, polling while versions change."""
    outputs = tiny.manifest.outputs
    other = make_bundle(tmp_path / "other", seed=1)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), np.uint8)
    write_repository(tiny, repository)
    options = ("--model-config-name=cpu", "--model-control-mode=poll", "--repository-poll-secs=1")
    with running(repository, tmp_path, *options) as server:
        for bundle, version in ((tiny, "1"), (other, "2"), (tiny, "1")):
            write_repository(bundle, repository)
            with InferenceServerClient(server.url) as client:
                wait_for(client, version, bundle.digest)
            given = infer(server.url, "tiny", images, outputs)
            truth = expected(bundle, images, outputs)
            for name in outputs:
                np.testing.assert_allclose(given[name], truth[name], atol=1e-5, rtol=0)
        assert "failed to load" not in server.log.read_text()


def wait_for(client, version, digest):
    """Wait until the bundle of the digest is what answers, as this version."""

    def answers():
        config = client.get_model_config("tiny").config
        same = config.parameters["digest"].string_value == digest
        return same and client.is_model_ready("tiny", version)

    wait_until(answers, 300)
