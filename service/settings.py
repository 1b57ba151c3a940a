"""Every setting of the gateway, in one frozen model.

A setting comes from, in this order: a flag, the environment (`FOVEAL_PORT` and so on), the TOML
file that `FOVEAL_CONFIG` names, the default here.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service import bundle

MEGABYTE = 1_000_000


class Settings(BaseSettings):
    """The gateway's settings; the description of each says when to change it."""

    model_config = SettingsConfigDict(env_prefix="FOVEAL_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 to be reachable.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    model: Path = Field(bundle.DEFAULT, description="Folder of the bundle to serve.")
    repository: Path | None = Field(
        None, description="Folder of further bundles, to serve several models at once."
    )
    data: Path = Field(
        Path.home() / ".local/share/foveal", description="Folder of the local index."
    )
    threads: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        description="Processor cores to use for decoding and for the model.",
    )
    max_image_bytes: int = Field(20 * MEGABYTE, gt=0, description="Largest encoded image.")
    max_body_bytes: int = Field(64 * MEGABYTE, gt=0, description="Largest request body.")
    max_pixels: int = Field(64 * MEGABYTE, gt=0, description="Most pixels of an image, by header.")
    max_patches: int = Field(
        4096, gt=0, description="Most patches of a fitted image; attention costs their square."
    )
    max_images: int = Field(64, gt=0, description="Most images in one request.")
    max_queue: int = Field(1024, gt=0, description="Most images waiting for the model.")
    body_timeout: float = Field(10.0, gt=0, description="Seconds for a request's bytes to arrive.")
    request_timeout: float = Field(30.0, gt=0, description="Seconds for a request's answer.")
    cache_bytes: int = Field(256 * MEGABYTE, ge=0, description="Memory for cached outputs.")

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
        path = os.environ.get("FOVEAL_CONFIG")
        if path and not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
        file = TomlConfigSettingsSource(settings_cls, path)
        return init_settings, env_settings, file
