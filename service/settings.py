"""Every setting of the gateway, in one frozen model.

A setting comes from, in this order: a flag, the environment (`FOVEAL_PORT` and so on), the TOML
file that `FOVEAL_CONFIG` names, the default here.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service import bundle
from service.guards.rates import Rate

MEGABYTE = 1_000_000


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("no home is known for this ~; write the path in full") from None


# No shell expands what stands in a file.
Location = Annotated[Path, AfterValidator(_expand)]


class Settings(BaseSettings):
    """The gateway's settings; the description of each says when to change it."""

    model_config = SettingsConfigDict(env_prefix="FOVEAL_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 to be reachable.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    model: Location = Field(bundle.DEFAULT, description="Folder of the bundle to serve.")
    repository: Location | None = Field(
        None, description="Folder of further bundles, to serve several models at once."
    )
    data: Location = Field(
        Path.home() / ".local/share/foveal", description="Folder of the local index."
    )
    workers: int = Field(
        1,
        ge=1,
        description="Processes on the one port; more where one event loop is the bottleneck. "
        "Cache and index must then be Redis.",
    )
    threads: int = Field(
        default_factory=lambda data: _cores(data.get("workers", 1)),
        ge=1,
        description="Processor cores to use for decoding and for the model, in each worker.",
    )
    engine: Literal["auto", "onnx", "openvino", "triton"] = Field(
        "auto",
        description="What runs the model; triton where servers of its own run it.",
    )
    triton_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Triton servers, host:port of their gRPC, joined by commas: triton:8001. A "
        "name may lead to several.",
    )
    triton_shared_memory: bool = Field(
        False,
        description="Hand pixels to Triton in shared memory; on where it runs on this machine and "
        "shares /dev/shm.",
    )
    triton_ca: Location | None = Field(
        None,
        description="File of the authority of Triton's certificates, PEM; where set, the gateway "
        "speaks TLS. A server's certificate must be for its name in triton_urls.",
    )
    triton_certificate: Location | None = Field(
        None,
        description="File of the gateway's own certificate, PEM; where Triton asks for one.",
    )
    triton_key: Location | None = Field(
        None, description="File of its private key, PEM without a password."
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Of the model; fp32 for the numbers of training to the last digits. auto is "
        "the fastest that the bundle records as faithful.",
    )
    gpu_bytes: int | None = Field(
        None, gt=0, description="Most GPU memory of a model; name it to share the GPU."
    )
    max_image_bytes: int = Field(20 * MEGABYTE, gt=0, description="Largest encoded image.")
    max_body_bytes: int = Field(64 * MEGABYTE, gt=0, description="Largest request body.")
    max_bodies_bytes: int = Field(
        256 * MEGABYTE,
        gt=0,
        description="Most bytes of the bodies of all requests under way; beyond it 503.",
    )
    max_pixels: int = Field(64 * MEGABYTE, gt=0, description="Most pixels of an image, by header.")
    max_patches: int = Field(
        4096, gt=0, description="Most patches of a fitted image; attention costs their square."
    )
    max_images: int = Field(64, gt=0, description="Most images in one request.")
    max_queue: int = Field(1024, gt=0, description="Most images waiting for the model.")
    body_timeout: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="Seconds for a request's bytes to arrive."
    )
    request_timeout: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="Seconds for a request's answer."
    )
    header_timeout: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds for headers to arrive; less under slow attacks.",
    )
    write_timeout: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds in which a client must take some of what waits for it.",
    )
    max_header_bytes: int = Field(
        32_768, gt=0, description="Largest headers, the path included; more for huge cookies."
    )
    max_connections: int = Field(
        4096,
        gt=0,
        description="Most open connections of a worker; beyond it requests are answered 503.",
    )
    keys_file: Location | None = Field(
        None,
        description="File of API keys, `name scopes sha256` in a line, as `foveal key` makes them; "
        "set it wherever strangers can connect.",
    )
    open_metrics: bool = Field(
        True, description="Whether /metrics needs no API key; off where strangers can connect."
    )
    rate_limit: str | None = Field(
        None,
        description="Most images of one API key, or of one address where there are no keys: "
        "100/s, 6000/m, 50000/h. As many may come at once. Redis, if set, counts for all gateways.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Pages of other sites that may call from a browser, joined by commas: "
        "https://app.example; * for all.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="json where a program reads the log."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged; debug to look for a fault."
    )
    access_log: bool = Field(
        False, description="A line in the log for each request; off where many are cache hits."
    )
    max_answer_bytes: int = Field(
        64 * MEGABYTE, gt=0, description="Largest pooling=patches answer, counted as float32."
    )
    url_fetch: bool = Field(
        False,
        description="Fetch images by URL; on only where clients may see whatever this server can.",
    )
    url_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="Networks that URLs may lead to, on any port, besides public addresses, joined "
        "by commas: 10.1.2.0/24 for a private image store.",
    )
    url_timeout: float = Field(
        5.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds for one URL; more if images come from far away.",
    )
    url_concurrency: int = Field(
        16, gt=0, description="Most URLs fetched at once; each may hold an image in memory."
    )
    cache_bytes: int = Field(256 * MEGABYTE, ge=0, description="Memory for cached outputs.")
    cache_ttl: float = Field(
        86_400.0, ge=0.001, description="Seconds that Redis keeps an output; less if it is full."
    )
    cache_redis_timeout: float = Field(
        0.05,
        gt=0,
        allow_inf_nan=False,
        description="Seconds a request waits for Redis; more if Redis is far away.",
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis that several gateways share: redis://user:password@host:6379/0."
    )
    index: Literal["local", "redis"] = Field(
        "local",
        description="Where collections are kept: in the folder `data`, or in the Redis 8 of "
        "redis_url, which several gateways may share.",
    )
    index_timeout: float = Field(
        5.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that Redis may take to search or to keep items.",
    )

    @model_validator(mode="after")
    def _redis_for_workers(self) -> Settings:
        if self.workers > 1 and (self.redis_url is None or self.index != "redis"):
            raise ValueError(
                f"workers: {self.workers} processes share cache and index through Redis; set "
                "redis_url and index = redis, or serve with one worker"
            )
        return self

    @field_validator("rate_limit")
    @classmethod
    def _is_rate(cls, rate: str | None) -> str | None:
        if rate is not None:
            Rate.parse(rate)
        return rate

    @field_validator("triton_urls")
    @classmethod
    def _are_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            host, _, port = url.rpartition(":")
            if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"{url!r} is no host:port of a gRPC service, such as triton:8001")
        return urls

    @model_validator(mode="after")
    def _urls_for_triton(self) -> Settings:
        if self.engine == "triton" and not self.triton_urls:
            raise ValueError("engine: triton needs triton_urls; set it, or use another engine")
        return self

    @model_validator(mode="after")
    def _certificates_for_triton(self) -> Settings:
        if (self.triton_certificate is None) != (self.triton_key is None):
            raise ValueError(
                "triton_certificate and triton_key: neither is of use without the other; set both, "
                "or none"
            )
        if self.triton_certificate and self.triton_ca is None:
            raise ValueError(
                "triton_certificate needs triton_ca: without it the gateway speaks in the clear; "
                "set it to the authority of Triton's certificates"
            )
        return self

    @field_validator("cors_origins", "triton_urls", "url_allow", mode="before")
    @classmethod
    def _from_commas(cls, origins: Any) -> Any:
        if isinstance(origins, str):
            return [origin.strip() for origin in origins.split(",") if origin.strip()]
        return origins

    @field_validator("redis_url")
    @classmethod
    def _well_formed(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_redis_url(url.get_secret_value()):
            raise ValueError(
                "write redis://[user:password@]host[:port][/database], rediss:// for TLS or "
                "unix:///path, with special characters of the password percent-encoded"
            )
        return url

    @model_validator(mode="after")
    def _redis_for_the_index(self) -> Settings:
        if self.index == "redis" and self.redis_url is None:
            raise ValueError("index: redis needs redis_url; set it, or use the local index")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources as the module says."""
        file = TomlConfigSettingsSource(settings_cls, os.environ.get("FOVEAL_CONFIG"))
        return init_settings, env_settings, file


def _cores(workers: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // workers)


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme == "unix":
        return bool(parts.path)
    database = parts.path.removeprefix("/")
    known = parts.scheme in ("redis", "rediss")
    return known and bool(parts.hostname) and (not database or database.isdecimal())
