"""The sections of a recipe that choose an objective, its head and its teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.objectives.teachers import Follows


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DINOConfig(Section):
    """Self-distillation; the rows 1 to 6 of the paper's Table 7."""

    name: Literal["dino"] = Field("dino", description="Best for a ViT, good for all.")
    temperature: float = Field(0.1, gt=0, description="The student's; 0.1 in every paper.")
    targets: Literal["centering", "sinkhorn"] = Field(
        "centering",
        description="sinkhorn needs no tuning of the teacher's temperature, and a batch of at "
        "least about as many images as prototypes are in use.",
    )
    loss: Literal["cross_entropy", "mse"] = Field(
        "cross_entropy", description="mse only to repeat the ablation: it is worse."
    )
    predictor: bool = Field(False, description="True only to repeat the ablation.")


class EsViTConfig(Section):
    """DINO's loss on views and on matching regions; for Swin and ResNet."""

    name: Literal["esvit"] = Field(description="For a Swin or a ResNet whose patches are used.")
    temperature: float = Field(0.1, gt=0, description="The student's; 0.1 in every paper.")
    view_epochs: int = Field(
        0, ge=0, description="Views alone until then; 200 of 300 for Swin-B and windows of 14."
    )


class BYOLConfig(Section):
    """Prediction of a momentum teacher's projection, by squared distance."""

    name: Literal["byol"] = Field(description="To compare; needs head.batch_norm.")


class MoCoConfig(Section):
    """Contrast with a queue of a momentum teacher's keys."""

    name: Literal["moco"] = Field(description="To compare; for small batches.")
    temperature: float = Field(0.2, gt=0, description="0.2 in MoCo-v2, 0.1 in DINO's comparison.")
    queue: int = Field(65536, gt=0, description="Keys; at most about the images of the data set.")


class SwAVConfig(Section):
    """Prediction of one view's code from another's scores."""

    name: Literal["swav"] = Field(description="To compare; has no teacher, which saves memory.")
    temperature: float = Field(0.1, gt=0, description="Of the scores; 0.1 in the paper.")
    epsilon: float = Field(
        0.05, gt=0, description="Of the codes; lower it if the entropy stays at ln K."
    )


class SimCLRConfig(Section):
    """Contrast within the batch."""

    name: Literal["simclr"] = Field(description="To compare; for batches of hundreds.")
    temperature: float = Field(0.1, gt=0, description="0.5 for a few hundred images a batch.")


ObjectiveConfig = Annotated[
    DINOConfig | EsViTConfig | BYOLConfig | MoCoConfig | SwAVConfig | SimCLRConfig,
    Field(discriminator="name"),
]


class HeadConfig(Section):
    """The projection head."""

    prototypes: Annotated[int, Field(gt=1)] | Literal["auto"] = Field(
        65536,
        description="K, of dino, esvit and swav. 65536 for ImageNet, 1024 below 20,000 images; "
        "auto scales it with the data.",
    )
    hidden: int = Field(2048, gt=0, description="Width of the hidden layers.")
    bottleneck: int = Field(
        256, gt=0, description="Width in front of the prototypes, or of a contrast's projection."
    )
    batch_norm: bool = Field(
        False, description="True leaves the uniform start sooner; for runs of a few epochs."
    )
    norm_last_layer: bool = Field(
        True, description="True is steadier and best for ViT-B; False is better for ViT-S and Swin."
    )


class TeacherConfig(Section):
    """The teacher and its targets; swav and simclr have none."""

    follows: Follows = Field(
        Follows.MOMENTUM, description="The others are the ablations of the paper's Figure 6."
    )
    momentum: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        0.996,
        description="Rises to 1 by a cosine. Lower it for short runs, raise it for small "
        "batches (0.9995 at 256 in long ones); auto scales it with the number of steps.",
    )
    temperature: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        0.04,
        description="Lower it if the entropy stays at ln K; raise it to 0.07, with a warm-up, in "
        "long runs.",
    )
    warmup_temperature: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        0.04, description="Of the first epoch; lower it if the loss does not fall."
    )
    warmup_epochs: int = Field(0, ge=0, description="30 in the best published runs.")
    center_momentum: float = Field(
        0.9, ge=0, lt=1, description="Raise it for batches below about 64."
    )
