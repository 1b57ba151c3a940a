"""Bundles of models that were never trained."""

from pathlib import Path

from service.bundle import Bundle
from training.export.onnx import card_of, input_spec, write_bundle
from training.models.backbone import Backbone


def seeded_bundle(folder: Path, model: Backbone, architecture: str) -> Bundle:
    """Export a model at 64 px."""
    return write_bundle(
        folder,
        model,
        card_of(
            model,
            name="seeded",
            architecture=architecture,
            spec=input_spec(model, 64),
            training={},
            evaluation=(),
            licence="Apache-2.0",
        ),
    )
