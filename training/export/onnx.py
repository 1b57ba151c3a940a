"""From a trained backbone to a bundle: one graph for every batch and every image size."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import onnx
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from service.bundle import (
    GRAPH,
    MANIFEST,
    AttentionSpec,
    Bundle,
    BundleError,
    Evaluation,
    InputSpec,
    Manifest,
    sha256,
)
from training.data.pixels import MEAN, STD
from training.models.backbone import Backbone

OPSET = 20
COLOURS = 3
OUTPUTS = ("embedding", "patches", "attention")


class Graph(nn.Module):
    """The graph's signature around a backbone: raw pixels in, normalisation inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, spec: InputSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", 255.0 * torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(spec.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [batch, height, width, 3] -> embedding, patches, attention."""
        normalised = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return tuple(self.backbone.features(normalised))  # type: ignore[return-value]


def input_spec(
    backbone: Backbone,
    size: int,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    resize: int | None = None,
) -> InputSpec:
    """How photographs become a model's input.

    Args:
        backbone: The model.
        size: Side of the centre crop in pixels.
        mean: Of each channel of the training images, in [0, 1].
        std: Their deviation.
        resize: Length of the short side before the crop, at least `size`; by default the published
            evaluation's, which has 256 over 224 of the size.

    Raises:
        BundleError: The size is no positive multiple of the model's patch, or the normalisation
            gives no numbers.
    """
    if size <= 0 or size % backbone.patch_size:
        raise BundleError(f"size {size} is no positive multiple of {backbone.patch_size} px")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise BundleError(f"mean {mean} and std {std} must be finite, and std above 0")
    resize = resize or round(size * 256 / 224)
    return InputSpec(resize=resize, crop=size, multiple=backbone.patch_size, mean=mean, std=std)


def write_graph(backbone: Backbone, spec: InputSpec, path: Path) -> None:
    """Export the graph with free batch, height and width."""
    graph = Graph(backbone, spec).eval()
    # Unequal sides: the tracer must not take height and width for one number.
    example = torch.zeros(2, 3 * spec.multiple, 4 * spec.multiple, 3, dtype=torch.uint8)
    batch, rows, columns = (torch.export.Dim(n, min=1) for n in ("batch", "rows", "columns"))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=["images"],
        output_names=list(OUTPUTS),
        dynamic_shapes={"images": {0: batch, 1: spec.multiple * rows, 2: spec.multiple * columns}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    # The exporter notes the stack of source lines behind each node: paths of the machine it ran on.
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.checker.check_model(model)
    onnx.save(model, path)


def card_of(
    backbone: Backbone,
    *,
    name: str,
    architecture: str,
    spec: InputSpec,
    training: dict[str, Any],
    evaluation: tuple[Evaluation, ...],
    licence: str,
) -> Manifest:
    """The card of a graph that is not yet written.

    Args:
        backbone: The model.
        name: The model's name in requests and answers.
        architecture: For example `vit_tiny`.
        spec: How photographs become its input.
        training: Recipe and data.
        evaluation: Measured figures with their commands.
        licence: Of the weights.

    Raises:
        BundleError: The model does not take RGB, the input's sides need not be whole patches, or
            a field of the card is not valid.
    """
    if backbone.channels != COLOURS:
        raise BundleError(
            f"the model takes {backbone.channels} channels, but a bundle serves RGB; train with 3"
        )
    if spec.multiple % backbone.patch_size:
        raise BundleError(
            f"input.multiple is {spec.multiple}, which is no multiple of the model's patch, "
            f"{backbone.patch_size} px"
        )
    try:
        return Manifest(
            name=name,
            architecture=architecture,
            patch_size=backbone.patch_size,
            dim=backbone.dim,
            heads=backbone.heads,
            prefix_tokens=backbone.prefix_tokens,
            input=spec,
            attention=AttentionSpec(query=backbone.query, layer=backbone.depth - 1),
            training=training,
            evaluation=evaluation,
            licence=licence,
            files={},
        )
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}" for e in error.errors())
        raise BundleError(f"no bundle can be written: {'; '.join(faults)}") from None


def write_bundle(folder: Path, backbone: Backbone, card: Manifest) -> Bundle:
    """Write the graph and its card.

    Args:
        folder: Where; made if missing.
        backbone: The model.
        card: What `card_of` gives of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(backbone, card.input, folder / GRAPH)
    manifest = card.model_copy(update={"files": {GRAPH: sha256(folder / GRAPH)}})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return Bundle.load(folder)
