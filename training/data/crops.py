"""What a recipe says of its crops."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class CropConfig(BaseModel):
    """How many crops of an image, how large, how much of it each shows, and how they are distorted.

    The defaults are the published ones for ViTs on ImageNet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    global_size: int = Field(
        224,
        gt=0,
        description="Side of the two global crops in pixels; no more than the images have.",
    )
    local_size: int = Field(
        96, gt=0, description="Side of the local crops in pixels; about 3/7 of the global side."
    )
    local_count: int = Field(
        8, ge=0, description="Local crops an image; fewer for speed, 0 turns multi-crop off."
    )
    global_scale: tuple[float, float] = Field(
        (0.4, 1.0),
        description="Share of the image's area in a global crop; (0.14, 1) without local crops "
        "and for ResNets.",
    )
    local_scale: tuple[float, float] = Field(
        (0.05, 0.4),
        description="Share of the image's area in a local crop; (0.05, 0.14) for ResNets, more "
        "where a small part of an image says nothing.",
    )
    flip: float = Field(
        0.5, ge=0, le=1, description="Chance of mirroring; 0 where sides differ, as in digits."
    )
    jitter: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Chance of changing brightness, contrast, saturation and hue (the last two in "
        "RGB only); 0 where intensity is the signal.",
    )
    grey: float = Field(
        0.2, ge=0, le=1, description="Chance of losing colour; 0 where colour is the signal."
    )
    blur: tuple[float, float] = Field(
        (0.1, 2.0), description="Radius of the blur in pixels; scale it with crops below 224 px."
    )
    blur_chance: tuple[float, float, float] = Field(
        (1.0, 0.1, 0.5),
        description="Chance of blur in the first global, second global and local crops; zeros "
        "where fine texture is the signal.",
    )
    solarize: float = Field(
        0.2, ge=0, le=1, description="Chance in the second global crop; 0 for grey images."
    )

    @field_validator("global_scale", "local_scale", "blur", "blur_chance")
    @classmethod
    def _shares(cls, value: tuple[float, ...], info: object) -> tuple[float, ...]:
        name = getattr(info, "field_name", "")
        if name != "blur" and not all(0 <= share <= 1 for share in value):
            raise ValueError(f"{name} = {value} must lie between 0 and 1")
        if len(value) == 2 and not 0 < value[0] <= value[1]:
            raise ValueError(f"{name} = {value} must be two positive numbers, the lesser first")
        return value

    @model_validator(mode="after")
    def _blur_stays_within(self) -> CropConfig:
        if not self.blur[1] <= self.global_size:
            raise ValueError(
                f"blur = {self.blur} is wider than the crops; global_size = {self.global_size} "
                "is the most"
            )
        return self

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of each crop of an image; the two global crops come first."""
        return (self.global_size,) * 2 + (self.local_size,) * self.local_count
