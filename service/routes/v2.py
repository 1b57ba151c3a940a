"""The answers under `/v2`, as clients see them in /docs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ServerMetadata(BaseModel):
    """Answer of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor; -1 in its shape is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Answer of `GET /v2/models/{model}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(BaseModel):
    """A tensor without its first dimension; -1 is any size."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(BaseModel):
    """Answer of `GET /v2/models/{model}/config`."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]


class AnswerTensor(BaseModel):
    """One output; its values are in `data`, row by row, or after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | None = None


class InferenceAnswer(BaseModel):
    """Answer of `POST /v2/models/{model}/infer`; the version is the model's digest."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[AnswerTensor]


class RepositoryEntry(BaseModel):
    """A bundle of the repository, or a model in service."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class ErrorAnswer(BaseModel):
    """Every refusal under `/v2`."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "Refused", "model": ErrorAnswer} for status in ("4XX", "5XX")
}
NOTHING: dict[int | str, dict[str, Any]] = {200: {"description": "Yes"}}
