"""Published checkpoints: which model a file holds, and that model with its weights.

Everything is read off the names and shapes of the tensors and, what they do not say, from the
`config.json` beside them; no other object in a file is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoint import CheckpointError, load
from training.models.backbone import Backbone
from training.models.config_files import read_config
from training.models.layouts import Weights, official
from training.models.shapes import fitting, some

FILES = ("model.safetensors", "pytorch_model.bin")
WRAPPERS = ("teacher", "state_dict", "model")
USELESS = r"(?:head|head_dense|classifier|pooler|fc)\.|mask_token$|.*\.attn_mask$"
DERIVED = r"relative_position_index$|num_batches_tracked$"
FOREIGN = {
    "a Swin transformer in Hugging Face's layout": r"encoder\.layers\.\d+\.blocks\.",
    "a ResNet in Hugging Face's layout": r"encoder\.stages\.",
    "a transformer with rotary positions, as DINOv3 is": r"\brope|storage_tokens|bias_mask",
}


class Imported(NamedTuple):
    """A published model.

    Attributes:
        architecture: `vit_small`, `swin_tiny`, `resnet50` and so on; `vit_WIDTHxDEPTH` or
            `swin_WIDTHxDEPTH` for a size that has no name.
        backbone: The model with its weights, in evaluation mode.
        source: What was found in the file, in words.
        left_over: Names in the file that no embedding needs: heads, poolers, mask tokens.
    """

    architecture: str
    backbone: Backbone
    source: str
    left_over: tuple[str, ...]


class Ignored:
    """Stands for the settings and scalars beside a checkpoint's weights, whatever they are."""

    def __new__(cls, *_: object) -> Ignored:
        """Take a constructor's arguments and forget them."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Take a pickled state and forget it."""


# The objects that DINO's and EsViT's full checkpoints hold: the command line's arguments, and the
# learning rates as numpy's scalars. Nothing of either is called.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Ignored, "argparse.Namespace"),
    (Ignored, "numpy.dtype"),
    (Ignored, "numpy.core.multiarray.scalar"),
    (Ignored, "numpy._core.multiarray.scalar"),
]


def read_backbone(path: Path, heads: int | None = None) -> Imported:
    """Read a backbone as its authors, timm or Hugging Face publish it.

    Of a full training checkpoint it is the teacher's, as in every published figure. Norms take
    their epsilon from this package (1e-6), whatever a library's default is.

    Args:
        path: A `.pth`, `.bin` or `.safetensors` file, or a folder with `model.safetensors` or
            `pytorch_model.bin` in it.
        heads: Of every block; None takes them from the `config.json` beside the weights or, of the
            published widths, from the width.

    Raises:
        CheckpointError: The file is missing, damaged or holds objects that weights do not need,
            or what it holds is not exactly one of this package's models.
    """
    weights, wrapper = _read(path)
    for kind, pattern in FOREIGN.items():
        if any(re.search(pattern, name) for name in weights):
            raise CheckpointError(f"{path} holds {kind}, which cannot be imported")
    named = official(weights)
    config = read_config(path)
    if heads is not None:
        config = config.model_copy(update={"heads": heads})
    try:
        architecture, backbone = fitting(named, config)
        if heads not in (None, backbone.heads):
            raise ValueError(f"its heads are {backbone.heads} by its weights, not {heads}")
        left_over = _load(backbone, named)
    except ValueError as error:
        raise CheckpointError(f"{path} holds no model that can be imported: {error}") from None
    source = f"{_layout(weights)}, `{wrapper}` of a checkpoint" if wrapper else _layout(weights)
    return Imported(architecture, backbone.eval(), source, left_over)


def _read(path: Path) -> tuple[Weights, str | None]:
    """The tensors of a file, and the key under which it holds them if it holds more."""
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path} holds neither {' nor '.join(FILES)}")
        path = found[0]
    state: Any
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except FileNotFoundError:
            raise CheckpointError(f"no checkpoint at {path}") from None
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from None
    else:
        with torch.serialization.safe_globals(STAND_INS):
            state = load(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no weights under names")
    if "recipe" in state:
        raise CheckpointError(f"{path} is a checkpoint of `foveal-train run`; export it instead")
    wrapper = next((key for key in WRAPPERS if isinstance(state.get(key), dict)), None)
    inner = state[wrapper] if wrapper else state
    weights = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    return weights, wrapper


def _load(backbone: Backbone, named: Weights) -> tuple[str, ...]:
    """Fill the model; what is left over must not have been able to change its numbers.

    Returns:
        The names that are left over.

    Raises:
        ValueError: A weight is missing, of another shape, or of something the model has not.
    """
    own = backbone.state_dict()
    left_over = [name for name in named if name not in own]
    missing = [name for name in own if name not in named and not re.search(DERIVED, name)]
    unknown = [name for name in left_over if not re.match(USELESS, name)]
    other = [n for n in own if n in named and own[n].shape != named[n].shape]
    if missing or unknown or other:
        faults = {"it lacks": missing, "it also has": unknown, "of another shape:": other}
        raise ValueError(
            "; ".join(f"{say} {some(names)}" for say, names in faults.items() if names)
        )
    backbone.load_state_dict(own | {name: named[name] for name in own if name in named})
    return tuple(left_over)


def _layout(weights: Weights) -> str:
    theirs = any("embeddings." in name for name in weights)
    return "Hugging Face's layout" if theirs else "the authors' layout"
