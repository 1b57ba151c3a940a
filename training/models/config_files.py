"""What published weights do not say of themselves: Hugging Face's and timm's JSON files.

`config.json` has the number of heads and the image size, `preprocessor_config.json` or timm's
`config.json` the normalisation. They are read from beside the weights and from nowhere else.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
)

from training.checkpoint import CheckpointError
from training.data.pixels import MEAN, STD

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

Colours = tuple[float, float, float]
Model = TypeVar("Model", bound=BaseModel)


def _alias(*names: str | AliasPath) -> Any:
    return Field(None, validation_alias=AliasChoices(*names))


class Config(BaseModel):
    """A `config.json`, as far as the numbers depend on it; None is what it does not say.

    Attributes:
        width: Of a token.
        heads: Of every block.
        activation: Between the two layers of an MLP.
        epsilon: Of the norms.
        image_size: Side of the images that it was trained with, in pixels.
        mean: Of each channel, in [0, 1]; timm's only.
        std: Their deviation.
    """

    width: int | None = _alias("hidden_size", "num_features")
    heads: PositiveInt | None = _alias("num_attention_heads", AliasPath("model_args", "num_heads"))
    activation: str | None = _alias("hidden_act", AliasPath("model_args", "act_layer"))
    epsilon: float | None = _alias("layer_norm_eps")
    image_size: PositiveInt | None = _alias("image_size", AliasPath("pretrained_cfg", "input_size"))
    mean: Colours | None = _alias(AliasPath("pretrained_cfg", "mean"), "mean")
    std: Colours | None = _alias(AliasPath("pretrained_cfg", "std"), "std")

    @field_validator("heads", mode="before")
    @classmethod
    def _of_every_block(cls, value: Any) -> Any:
        # A Swin's are listed by stage; its weights say them, too.
        return None if isinstance(value, list) else value

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        """A side, of Hugging Face's height and width or timm's channels, height and width."""
        if not isinstance(value, list):
            return value
        if len(set(value[-2:])) != 1:
            raise ValueError(f"{value} is no square; only squares can be imported")
        return value[-1]


class _Preprocessor(BaseModel):
    do_normalize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    image_mean: Colours | None = None
    image_std: Colours | None = None


def read_config(path: Path) -> Config:
    """The `config.json` beside weights; without one it says nothing.

    Args:
        path: Of the weights, a file or a folder.

    Raises:
        CheckpointError: It cannot be read, or a field is of the wrong kind.
    """
    return _read(path, CONFIG, Config) or Config()


def read_normalisation(path: Path) -> tuple[Colours, Colours]:
    """Mean and deviation of each channel in [0, 1], by default ImageNet's.

    Args:
        path: Of the weights, a file or a folder.

    Raises:
        CheckpointError: The files beside the weights cannot be read, or ask for what a bundle
            cannot do.
    """
    said = _read(path, PREPROCESSOR, _Preprocessor)
    if said is None:
        config = read_config(path)
        return config.mean or MEAN, config.std or STD
    if not said.do_rescale or not math.isclose(said.rescale_factor, 1 / 255, rel_tol=1e-4):
        fault = "pixels are not divided by 255"
    elif not said.do_normalize:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif said.image_mean is None or said.image_std is None:
        fault = "it lacks image_mean or image_std"
    else:
        return said.image_mean, said.image_std
    raise CheckpointError(f"{_beside(path, PREPROCESSOR)}: {fault}; name --mean and --std instead")


def _read(path: Path, name: str, model: type[Model]) -> Model | None:
    file = _beside(path, name)
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds no settings of a model")
    try:
        # Null is what a library leaves to its default.
        return model.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{file}: {'; '.join(faults)}") from None


def _beside(path: Path, name: str) -> Path:
    return (path if path.is_dir() else path.parent) / name
