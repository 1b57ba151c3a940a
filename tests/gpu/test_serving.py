"""What a GPU serves in fp16 is what the graph says in fp32."""

import importlib.util

import pytest
import torch
from torch.nn import functional as F

from benchmarks.serving.gpu import MODELS
from tests.data import dataset
from training.build import build_backbone
from training.data.sources import open_source
from training.export.onnx import card_of, input_spec, write_bundle

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", MODELS)
def test_the_models_whose_speed_is_measured_keep_their_directions_in_fp16(name, device):
    torch.manual_seed(0)
    backbone = build_backbone(MODELS[name], 224, 3).eval()
    images = torch.randn(4, 3, 224, 224)
    with torch.inference_mode():
        expected = backbone(images)
        given = backbone.half().to(device)(images.half().to(device)).float().cpu()
    assert F.cosine_similarity(given, expected).min() > 0.999


if importlib.util.find_spec("tensorrt"):  # which no extra installs: it is two gigabytes

    @pytest.mark.parametrize("name", MODELS)
    def test_a_plan_is_faithful_at_every_batch(name, device, tmp_path):
        from training.export.tensorrt import TensorRT, cached_plan, fidelity

        torch.manual_seed(0)
        backbone = build_backbone(MODELS[name], 224, 3).eval()
        bundle = write_bundle(
            tmp_path / "bundle",
            backbone,
            card_of(
                backbone,
                name="seeded",
                architecture=MODELS[name].architecture,
                spec=input_spec(backbone, 224),
                training={},
                evaluation=(),
                licence="Apache-2.0",
            ),
        )
        builder = TensorRT()
        run = builder.load(cached_plan(bundle, builder, tmp_path / "plans").read_bytes())
        measured = fidelity(bundle, run, open_source(dataset("photos")))
        assert measured.cosine > 0.999
        images = torch.randint(0, 256, (64, 224, 224, 3), dtype=torch.uint8).numpy()
        one, many = run(images[:1]), run(images)
        assert many["embedding"].shape == (64, bundle.manifest.dim)
        assert (
            F.cosine_similarity(*(torch.from_numpy(r["embedding"][:1]) for r in (one, many)))
            > 0.999
        )
