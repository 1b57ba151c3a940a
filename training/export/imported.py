"""From a published checkpoint to a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from service.bundle import Bundle
from training.export.onnx import card_of, input_spec, write_bundle
from training.models.checkpoints import read_backbone
from training.models.config_files import Colours, read_normalisation


def import_bundle(
    path: Path,
    out: Path,
    *,
    name: str | None,
    size: int,
    licence: str,
    source: str,
    heads: int | None = None,
    normalisation: tuple[Colours, Colours] | None = None,
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
        heads: Of every block; None takes them from beside the weights.
        normalisation: Mean and deviation of each channel in [0, 1]; None takes them from beside
            the weights, or ImageNet's.

    Returns:
        The bundle; its `training` says the source, the layout and what was `left_over`.

    Raises:
        CheckpointError: The checkpoint cannot be read or fits no model, or what lies
            beside it asks for what no bundle can do.
        BundleError: Name, size or normalisation do not suit; nothing is written then.
    """
    imported = read_backbone(path, heads)
    mean, std = normalisation or read_normalisation(path)
    return write_bundle(
        out,
        imported.backbone,
        card_of(
            imported.backbone,
            name=name or bundle_name(source),
            architecture=imported.architecture,
            spec=input_spec(imported.backbone, size, mean, std),
            training={
                "source": origin(source),
                "layout": imported.source,
                "left_over": list(imported.left_over),
            },
            evaluation=(),
            licence=licence,
        ),
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
    return usable_name(stem) or "imported"


def usable_name(name: str) -> str:
    """A name in the letters that a bundle's may have; empty if there are none in it.

    >>> usable_name("My_Run (2)")
    'my_run-2'
    """
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64]
