"""From a published checkpoint to a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from service.bundle import Bundle
from training.export.onnx import input_spec, write_bundle
from training.models.checkpoints import read_backbone


def import_bundle(
    path: Path, out: Path, *, name: str | None, size: int, licence: str, source: str
) -> Bundle:
    """Write a bundle of a checkpoint in any layout that `read_backbone` knows.

    Args:
        path: The file, or a folder with the weights in it.
        out: Folder of the bundle.
        name: The model's name in requests and answers; None takes it from the source.
        size: Side of the default centre crop in pixels.
        licence: Of the weights.
        source: What the user named: a published name or an address, which the card keeps, or a
            path, of which it keeps the last part only.

    Returns:
        The bundle; its `training` says the source, the layout and what was `left_over`.

    Raises:
        CheckpointError: The checkpoint cannot be read or fits no model.
        BundleError: Name or size do not suit; nothing is written then.
    """
    imported = read_backbone(path)
    return write_bundle(
        out,
        imported.backbone,
        name=name or bundle_name(source),
        architecture=imported.architecture,
        spec=input_spec(imported.backbone, size),
        training={
            "source": origin(source),
            "layout": imported.source,
            "left_over": list(imported.left_over),
        },
        evaluation=(),
        licence=licence,
    )


def origin(source: str) -> str:
    """What a card may say of a source: of a path on this machine the last part only."""
    return Path(source).resolve().name if Path(source).exists() else source


def bundle_name(source: str) -> str:
    """A bundle's name for a source: its last part without the ending, in letters that may be used.

    >>> bundle_name("https://example.org/models/My%20ViT.pth?download=1")
    'my-20vit'
    """
    last = Path(urlsplit(source).path if "://" in source else source).resolve().name
    stem = re.sub(r"\.(?:pth|pt|bin|safetensors)$", "", last.lower())
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:64] or "imported"
