"""The bundle: a model on disk, and the only contract between training and serving.

A bundle is a folder with `bundle.json` and `model.onnx`. The graph takes `images`, uint8
[batch, height, width, 3], RGB, already resized and cropped; normalisation is inside. It gives
`embedding` [batch, dim], `patches` [batch, rows, columns, dim] and `attention`
[batch, heads, rows, columns], all float32.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MANIFEST = "bundle.json"
GRAPH = "model.onnx"
INT8_GRAPH = "model.int8.onnx"
LEAST_COSINE = 0.999
MOST_LOST = 0.1
DEFAULT = Path(__file__).parent / "bundles" / "imagenette-vitt8"


class BundleError(Exception):
    """The folder is not a usable bundle; the message says what is wrong with which file."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Frozen):
    """How a photograph becomes the model's input.

    Attributes:
        resize: Length of the short side before the centre crop, in pixels.
        crop: Side of the square centre crop, in pixels; the model's default size.
        multiple: Every side handed to the graph is a multiple of this (the patch size).
        interpolation: Filter of the resize.
        mean: Per-channel mean subtracted inside the graph, of values in [0, 1].
        std: Per-channel deviation divided by inside the graph.
    """

    resize: int = Field(gt=0)
    crop: int = Field(gt=0)
    multiple: int = Field(gt=0)
    interpolation: Literal["bicubic"] = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _the_crop_fits(self) -> InputSpec:
        if self.resize < self.crop or self.crop % self.multiple:
            raise ValueError(
                f"crop {self.crop} must be a multiple of {self.multiple} and at most resize, "
                f"{self.resize}"
            )
        return self


class AttentionSpec(_Frozen):
    """What the `attention` output means: whose view of the patches, and in which layer."""

    query: Literal["cls", "mean"]
    layer: int


class Evaluation(_Frozen):
    """One measured figure and the command that measures it again."""

    name: str
    value: float
    command: str


class Precision(_Frozen):
    """What one engine at one precision costs and gains, beside ONNX Runtime at fp32.

    Attributes:
        engine: Who ran it.
        precision: Of the matrix products.
        cosine: Mean cosine of the embeddings of real images to those at fp32.
        least_cosine: The least of them.
        knn_change: Change of the k-NN accuracy in percentage points; negative is worse.
        speed: Images a second over those at fp32, both by all cores of one machine.
        images: How many images were embedded.
        command: Measures it again.
    """

    engine: Literal["onnx", "openvino"]
    precision: Literal["fp32", "bf16", "int8"]
    cosine: float
    least_cosine: float
    knn_change: float
    speed: float = Field(gt=0)
    images: int = Field(gt=0)
    command: str

    @property
    def faithful(self) -> bool:
        """Whether it may stand in for fp32 without being asked for."""
        return self.cosine >= LEAST_COSINE and self.knn_change >= -MOST_LOST


class Manifest(_Frozen):
    """The contents of `bundle.json`."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    architecture: str
    patch_size: int
    dim: int
    heads: int
    prefix_tokens: int
    input: InputSpec
    outputs: tuple[Literal["embedding", "patches", "attention"], ...] = (
        "embedding",
        "patches",
        "attention",
    )
    attention: AttentionSpec
    precisions: tuple[Precision, ...] = ()
    training: dict[str, Any]
    evaluation: tuple[Evaluation, ...] = ()
    licence: str
    files: dict[str, str]

    @model_validator(mode="after")
    def _takes_rgb(self) -> Manifest:
        if not len(self.input.mean) == len(self.input.std) == 3:
            raise ValueError("input.mean and input.std must have three numbers: images are RGB")
        return self

    @cached_property
    def digest(self) -> str:
        """The sha256 of the graph and of the fields that change its numbers."""
        numbers = {
            "graph": self.files[GRAPH],
            "input": self.input.model_dump(mode="json"),
            "outputs": list(self.outputs),
        }
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its folder and what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """Path of the ONNX file."""
        return self.path / GRAPH

    @property
    def int8_graph(self) -> Path | None:
        """Path of the same graph with weights and products in int8, where the bundle has it."""
        return self.path / INT8_GRAPH if INT8_GRAPH in self.manifest.files else None

    @property
    def digest(self) -> str:
        """The name of this model's numbers, in cache keys, indexes and answers."""
        return self.manifest.digest

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read the manifest and check every file against its sha256.

        Raises:
            BundleError: The folder, the manifest or a file is missing, invalid, damaged or may not
                be read.
        """
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST}") from None
        except OSError as error:
            raise BundleError(f"{path / MANIFEST}: {error.strerror}") from None
        except ValidationError as error:
            raise BundleError(f"{path / MANIFEST} is not valid: {error}") from None
        if GRAPH not in manifest.files:
            raise BundleError(f"{path / MANIFEST} lists no {GRAPH} among its files")
        for name, expected in manifest.files.items():
            if Path(name).name != name:
                raise BundleError(f"{path / MANIFEST} names a file outside the bundle: {name!r}")
            try:
                actual = sha256(path / name)
            except FileNotFoundError:
                raise BundleError(f"{path} lacks {name}") from None
            except OSError as error:
                raise BundleError(f"{path / name}: {error.strerror}") from None
            if actual != expected:
                raise BundleError(
                    f"{path / name} is damaged: its sha256 is {actual}, {MANIFEST} says {expected}"
                )
        return cls(path=path, manifest=manifest)


def sha256(path: Path) -> str:
    """Hash a file in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
