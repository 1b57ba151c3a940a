"""The messages of the Open Inference Protocol: a JSON header, and tensors in it or after it.

The binary tensor data extension puts the tensors after the header, in the order in which it names
them; `Inference-Header-Content-Length` tells where the header ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.errors import InvalidOption, MalformedRequest, TooLarge
from service.routes.inputs import Link, Source
from service.routes.json_body import PIXEL, parse_json, source_of

HEADER_LENGTH = "Inference-Header-Content-Length"
LENGTH = re.compile("[0-9]{1,18}")
MAX_VALUES = 2_000_000  # in JSON: those of ten images of 224 x 224 pixels
OutputName = Literal["embedding", "patches", "attention"]
Shape = Annotated[list[Annotated[int, Field(ge=1, le=2**31)]], Field(min_length=1, max_length=4)]


class InputParameters(BaseModel):
    """How an input travels."""

    binary_data_size: int | None = Field(
        None, ge=0, description="Bytes of this tensor after the JSON, in the order of the inputs."
    )


class OutputParameters(BaseModel):
    """How an output shall travel."""

    binary_data: bool | None = Field(None, description="After the JSON instead of in it.")


class RequestParameters(BaseModel):
    """What holds for the whole request; Triton's other parameters are ignored."""

    binary_data_output: bool = Field(False, description="Send every output after the JSON.")


class InputTensor(BaseModel):
    """One input: `images` UINT8 [n, height, width, 3], or `bytes` BYTES [n]."""

    name: Literal["images", "bytes"] = Field(
        description="images: fitted pixels, RGB. bytes: encoded images; in JSON as base64."
    )
    shape: Shape
    datatype: Literal["UINT8", "BYTES"]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(None, description="The numbers or texts, nested or flat.")


class OutputTensor(BaseModel):
    """One output that is asked for."""

    model_config = ConfigDict(frozen=True)

    name: OutputName
    parameters: OutputParameters = OutputParameters()


class InferenceRequest(BaseModel):
    """Body of `POST /v2/models/{model}/infer`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "inputs": [{"name": "bytes", "shape": [1], "datatype": "BYTES", "data": [PIXEL]}]
            }
        }
    )

    id: str | None = Field(None, description="Comes back in the answer.")
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: list[OutputTensor] | None = Field(
        None,
        max_length=len(get_args(OutputName)),
        fail_fast=True,
        description="All of them by default.",
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request.

    Attributes:
        id: Comes back in the answer.
        input: Name of the input that was sent.
        pixels: The fitted images, uint8 [n, height, width, 3], if `images` was sent.
        encoded: The encoded images, if `bytes` was sent; an error where one cannot be read.
        outputs: The outputs asked for, and whether each shall be binary.
    """

    id: str | None
    input: str
    pixels: NDArray[np.uint8] | None
    encoded: list[Source | Link]
    outputs: dict[str, bool]

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.encoded if self.pixels is None else self.pixels)


def parse(body: bytes, header_length: str | None, known: tuple[str, ...], max_images: int) -> Asked:
    """Read an inference request.

    Args:
        body: The request's body.
        header_length: Value of `Inference-Header-Content-Length`, if it was sent.
        known: The model's outputs.
        max_images: How many images there may be.

    Raises:
        MalformedRequest: The header is not JSON, or the binary data is shorter or longer than
            the header says.
        InvalidOption: A tensor has another name, type, shape or number of values than the model's.
        TooLarge: There are too many images, or values in the JSON.
    """
    split = len(body)
    if header_length is not None:
        if not LENGTH.fullmatch(header_length) or int(header_length) > split:
            raise MalformedRequest(
                f"{HEADER_LENGTH}: {header_length!r} is not a length within the body of {split} "
                "bytes."
            )
        split = int(header_length)
    asked = parse_json(body[:split], InferenceRequest, MAX_VALUES)
    (tensor,) = asked.inputs
    if (count := tensor.shape[0]) > max_images:
        raise TooLarge(
            f"{tensor.name}: {count} images; the limit is {max_images}. Send them in several "
            "requests."
        )
    outputs = _outputs(asked, known)
    raw = memoryview(body)[split:]
    size = tensor.parameters.binary_data_size
    if len(raw) != (size or 0):
        raise MalformedRequest(
            f"{len(raw)} bytes follow the JSON; binary_data_size of {tensor.name} is {size or 0}."
        )
    if (size is None) == (tensor.data is None):
        raise InvalidOption(
            f"{tensor.name}: send either data or binary_data_size; shared memory is not read."
        )
    if tensor.name == "images":
        pixels = _pixels(tensor, raw if tensor.data is None else _flat(tensor.data))
        return Asked(asked.id, tensor.name, pixels, [], outputs)
    return Asked(asked.id, tensor.name, None, _encoded(tensor, raw), outputs)


def render(
    head: dict[str, Any], arrays: dict[str, NDArray[np.float32]], binary: dict[str, bool]
) -> Response:
    """Write an inference answer.

    Args:
        head: Members beside `outputs`.
        arrays: The outputs by name, each [n, ...].
        binary: Whether each travels after the JSON.
    """
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, array in arrays.items():
        output = {"name": name, "datatype": "FP32", "shape": array.shape}
        if binary[name]:
            tail.append(array.astype("<f4", copy=False).tobytes())
            outputs.append(output | {"parameters": {"binary_data_size": array.nbytes}})
        else:
            outputs.append(output | {"data": array.ravel()})
    header = orjson.dumps(head | {"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return Response(header, media_type="application/json")
    return Response(
        b"".join((header, *tail)),
        headers={HEADER_LENGTH: str(len(header))},
        media_type="application/octet-stream",
    )


def _outputs(asked: InferenceRequest, known: tuple[str, ...]) -> dict[str, bool]:
    default = asked.parameters.binary_data_output
    if not asked.outputs:
        return dict.fromkeys(known, default)
    chosen: dict[str, bool] = {}
    for output in asked.outputs:
        if output.name not in known:
            raise InvalidOption(f"outputs: the model has no {output.name!r}; it has {known}.")
        wanted = output.parameters.binary_data
        chosen[output.name] = default if wanted is None else wanted
    return chosen


def _flat(data: list[Any]) -> bytes:
    """Numbers from 0 to 255, nested or flat, as bytes."""
    try:
        while data and isinstance(data[0], list):
            # A text among the lists would be taken apart, letter by letter.
            if not all(isinstance(row, list) for row in data):
                raise TypeError
            data = list(chain.from_iterable(data))
        return bytes(data)
    except (TypeError, ValueError):
        raise InvalidOption(
            "images: data must be whole numbers from 0 to 255, nested as shape says or flat."
        ) from None


def _pixels(tensor: InputTensor, values: bytes | memoryview) -> NDArray[np.uint8]:
    shape = tensor.shape
    if tensor.datatype != "UINT8" or len(shape) != 4 or shape[3] != 3:
        raise InvalidOption(
            f"images: must be UINT8 [n, height, width, 3], RGB; it is {tensor.datatype} {shape}."
        )
    if len(values) != (size := int(np.prod(shape, dtype=object))):
        raise InvalidOption(f"images: shape {shape} has {size} values; {len(values)} were sent.")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _texts(raw: memoryview, shape: list[int]) -> list[bytes]:
    """Split BYTES elements: a length of four bytes, little-endian, before each."""
    found: list[bytes] = []
    start = 0
    while start < len(raw):
        if len(found) == shape[0]:
            raise InvalidOption(f"bytes: shape {shape}, but more elements were sent.")
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw):
            raise MalformedRequest("bytes: an element is longer than binary_data_size says.")
        found.append(bytes(raw[start + 4 : end]))
        start = end
    return found


def _encoded(tensor: InputTensor, raw: memoryview) -> list[Source | Link]:
    count = tensor.shape[0]
    if tensor.datatype != "BYTES" or tensor.shape not in ([count], [count, 1]):
        raise InvalidOption(f"bytes: must be BYTES [n]; it is {tensor.datatype} {tensor.shape}.")
    elements = _texts(raw, tensor.shape) if tensor.data is None else tensor.data
    if len(elements) != count:
        raise InvalidOption(f"bytes: shape {tensor.shape}, but {len(elements)} elements were sent.")
    return [e if isinstance(e, bytes) else source_of(e) for e in elements]
