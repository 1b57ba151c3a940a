"""Precisions of a small ViT, measured on real images."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from service.bundle import INT8_GRAPH, MANIFEST, Bundle
from service.engines.choose import instructions
from tests.data import dataset
from training.commands import app
from training.export.onnx import card_of, input_spec, write_bundle
from training.export.precision import add_int8
from training.models.vit import VisionTransformer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    model = VisionTransformer(8, 64, 2, 2, image_size=32).eval()
    return write_bundle(
        tmp_path_factory.mktemp("bundle") / "plain",
        model,
        card_of(
            model,
            name="seeded",
            architecture="vit",
            spec=input_spec(model, 32),
            training={},
            evaluation=(),
            licence="Apache-2.0",
        ),
    )


@pytest.fixture(scope="module")
def measured(plain: Bundle) -> Bundle:
    told = CliRunner().invoke(
        app,
        ["measure", str(plain.path), "--data", str(dataset("imagenette128")), "--most", "40"],
        catch_exceptions=False,
    )
    assert told.exit_code == 0, told.output
    return Bundle.load(plain.path)


def test_what_runs_here_is_measured_against_onnx_runtime_at_fp32(measured: Bundle) -> None:
    expected = {("onnx", "fp32"), ("openvino", "fp32")}
    if "avx512_bf16" in instructions():
        expected.add(("openvino", "bf16"))
    if instructions() & {"avx512_vnni", "avx_vnni"}:
        expected.add(("onnx", "int8"))
    records = {(p.engine, p.precision): p for p in measured.manifest.precisions}
    assert records.keys() == expected
    base = records["onnx", "fp32"]
    assert base.least_cosine == pytest.approx(1, abs=1e-6)
    assert (base.knn_change, base.speed) == (0, 1)
    for record in records.values():
        assert record.least_cosine <= record.cosine
        assert record.least_cosine > 0.99
        assert record.images == 80
        assert record.command == "foveal-train measure BUNDLE --data imagenette128 --most 40"


def test_measuring_leaves_the_digest_and_the_rest_of_the_card(
    plain: Bundle, measured: Bundle
) -> None:
    assert measured.digest == plain.digest
    changed = {"precisions", "files"}
    assert measured.manifest.model_dump(exclude=changed) == plain.manifest.model_dump(
        exclude=changed
    )


def test_measuring_again_gives_the_same_bundle_but_for_the_speeds(measured: Bundle) -> None:
    before = json.loads((measured.path / MANIFEST).read_text())
    again = add_int8(measured)
    assert json.loads((again.path / MANIFEST).read_text()) == before


def test_products_with_weights_are_int8_with_a_scale_for_each_column(
    plain: Bundle, tmp_path: Path
) -> None:
    quantised = onnx.load(add_int8(plain).path / INT8_GRAPH).graph
    arrays = {array.name: numpy_helper.to_array(array) for array in quantised.initializer}
    original = {
        array.name: numpy_helper.to_array(array)
        for array in onnx.load(plain.graph).graph.initializer
    }
    found = {
        name.removesuffix("_quantized"): array
        for name, array in arrays.items()
        if name.endswith("_quantized")
    }
    # Queries, keys and values; output; two of the MLP: four in each of two blocks.
    assert len(found) >= 8
    assert len(found.keys() & original.keys()) >= 4
    for name, array in found.items():
        scale = arrays[f"{name}_scale"]
        assert array.dtype == np.int8
        assert scale.shape == (array.shape[1],)
        if name in original:  # the transposed have new names
            assert np.abs(array * scale - original[name]).max() <= 0.51 * scale.max()
    # What is left are products of activations, not of a weight nor of a weight transposed.
    left = [node for node in quantised.node if node.op_type == "MatMul"]
    made = {name: node for node in quantised.node for name in node.output}
    factors = [name for node in left for name in node.input]
    factors += [made[name].input[0] for name in factors if name in made]
    assert factors
    assert not arrays.keys() & set(factors)
