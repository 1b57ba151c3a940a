"""Anomaly maps of steel surfaces from normal pieces of steel only.

Trains the two stages of Bozorgtabar & Mahapatra (AAAI 2023) twice from the embedded default, once
guided by attention and once by chance, and measures both against maps that need no training.

    python examples/anomaly.py --data PATH/neu_det300 --out runs/anomaly
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from training.anomaly.guidance import Guidance
from training.anomaly.pretrained import from_bundle, from_run
from training.anomaly.scoring import PatchDensity, image_scores, windowed
from training.anomaly.train import finetune, pretrain
from training.data.pixels import normalise
from training.models.backbone import Backbone

BUNDLE = Path(__file__).parents[1] / "service" / "bundles" / "imagenette-vitt8"
# Boxes cover 81 % of the pitted surfaces: two of 35 training images have a normal piece.
CLASSES = ("crazing", "inclusion", "patches", "rolled-in_scale", "scratches")
PATCH = 8
SIDE = 64
OVERLAP = 16
BANK_TILES = 400
DEFECTIVE = 0.25

MapOf = Callable[[Tensor], Tensor]


class Steel(NamedTuple):
    """Photographs of one split, all 200 x 200 pixels.

    Attributes:
        pixels: uint8 [n, height, width].
        defect: Whether a pixel lies in a box, [n, height, width].
        kinds: Index into CLASSES of each photograph.
    """

    pixels: NDArray[np.uint8]
    defect: NDArray[np.bool_]
    kinds: NDArray[np.int64]

    @classmethod
    def read(cls, root: Path, split: str) -> Steel:
        """Read ROOT/SPLIT/CLASS/*.jpg with the boxes of ROOT/annotations."""
        pixels, defect, kinds = [], [], []
        for kind, name in enumerate(CLASSES):
            files = sorted((root / split / name).glob("*.jpg"))
            if not files:
                raise SystemExit(f"no images in {root / split / name}: give --data neu_det300")
            for file in files:
                photograph = np.asarray(Image.open(file).convert("L"))
                pixels.append(photograph)
                text = (root / "annotations" / f"{file.stem}.xml").read_text()
                boxes = ElementTree.fromstring(text)  # noqa: S314
                defect.append(inside(boxes, photograph.shape))
                kinds.append(kind)
        return cls(np.stack(pixels), np.stack(defect), np.array(kinds))

    def images(self) -> Tensor:
        """Normalised, [n, 3, height, width]."""
        return grey(self.pixels)


def inside(boxes: ElementTree.Element, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels in any of a VOC file's boxes, whose corners count from 1 and are included."""
    defect = np.zeros(shape, dtype=bool)
    for box in boxes.iter("bndbox"):
        x0, y0, x1, y1 = (int(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
        defect[y0 - 1 : y1, x0 - 1 : x1] = True
    return defect


def grey(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [n, height, width] -> normalised [n, 3, height, width]."""
    return normalise(torch.from_numpy(pixels)[..., None].expand(-1, -1, -1, 3))


def normal_corners(steel: Steel) -> list[NDArray[np.int64]]:
    """Corners (index, y, x) of the box-free squares of each photograph that has any."""
    area = np.pad(steel.defect.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    hits = area[:, SIDE:, SIDE:] - area[:, :-SIDE, SIDE:]
    hits = hits - area[:, SIDE:, :-SIDE] + area[:, :-SIDE, :-SIDE]
    corners = np.argwhere(hits == 0)
    return [corners[corners[:, 0] == index] for index in np.unique(corners[:, 0])]


def tiles(
    steel: Steel, corners: list[NDArray[np.int64]], count: int, random: np.random.Generator
) -> Tensor:
    """Normal squares: a random one of a random photograph, mirrored by halves."""
    cut = []
    for index in random.integers(len(corners), size=count):
        i, y, x = random.choice(corners[index])
        cut.append(steel.pixels[i, y : y + SIDE, x : x + SIDE][:, :: random.choice((-1, 1))])
    return grey(np.stack(cut))


def main() -> None:
    """Train, measure, draw."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train, val = Steel.read(arguments.data, "train"), Steel.read(arguments.data, "val")
    start = (from_run(arguments.checkpoint) if arguments.checkpoint else from_bundle(BUNDLE)).eval()

    maps = floors(train, val)
    maps["frozen, density"] = [density(start, train, val, seed) for seed in arguments.seeds]
    for seed in arguments.seeds:
        for guidance in Guidance:
            stage1, stage2 = learn(start, train, val, guidance, seed, arguments)
            maps.setdefault(f"{guidance}, stage 1, density", []).append(stage1)
            maps.setdefault(f"{guidance}, stage 2, detector", []).append(stage2)
            figures = {name: measure(drawn, val) for name, drawn in maps.items()}
            (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, figure in figures.items():
        values = "  ".join(f"{key} {np.mean(value):.3f}" for key, value in figure.items())
        print(f"{name:30} {values}")
    shown = ("raw pixels", "frozen, density", *(n for n in maps if n.startswith("attention")))
    picture(val, [maps[name][0] for name in shown]).save(arguments.out / "anomaly.png")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder neu_det300, unpacked")
    add("--out", type=Path, default=Path("runs/anomaly"), help="for figures.json and anomaly.png")
    add("--checkpoint", type=Path, help="a ViT of `foveal-train run` instead of the default bundle")
    add("--seeds", type=int, nargs="+", default=[0], help="more seeds tell a gain from luck")
    add("--pretrain-steps", type=int, default=40, help="raise it with more data than 150 images")
    add("--finetune-steps", type=int, default=100, help="raise it if the loss still falls")
    add("--batch-size", type=int, default=16, help="lower it if memory runs out")
    add("--threads", type=int, default=1, help="processor cores to use")
    return parser.parse_args()


def learn(
    start: Backbone,
    train: Steel,
    val: Steel,
    guidance: Guidance,
    seed: int,
    arguments: argparse.Namespace,
) -> tuple[Tensor, Tensor]:
    """Both stages; the maps of `val` after each."""
    torch.manual_seed(seed)
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    corners, began = normal_corners(train), time.monotonic()

    def batches() -> Tensor:
        return tiles(train, corners, arguments.batch_size, random)

    def report(step: int, loss: float) -> None:
        if step % 20 == 0:
            past = time.monotonic() - began
            print(f"{guidance} {seed}  step {step}  loss {loss:.3f}  {past:.0f} s", flush=True)

    backbone = pretrain(
        start, batches, guidance, generator, steps=arguments.pretrain_steps, report=report
    ).eval()
    stage1 = density(backbone, train, val, seed)
    detector = finetune(
        backbone, batches, guidance, generator, steps=arguments.finetune_steps, report=report
    ).eval()
    return stage1, slide(lambda images: detector(images).sigmoid(), val.images())


def density(backbone: Backbone, train: Steel, val: Steel, seed: int) -> Tensor:
    """Maps of distances to the normal patches of the training split."""
    normal = tiles(train, normal_corners(train), BANK_TILES, np.random.default_rng(seed))
    with torch.inference_mode():
        features = torch.cat([backbone.features(part).patches for part in normal.split(50)])
    score = PatchDensity(features.flatten(0, 2), torch.Generator().manual_seed(seed))
    return slide(lambda images: score(backbone.features(images).patches), val.images())


@torch.inference_mode()
def slide(score: MapOf, images: Tensor) -> Tensor:
    """A map of every photograph."""
    parts = [windowed(score, part, SIDE, PATCH, OVERLAP) for part in images.split(25)]
    return torch.cat(parts)


def floors(train: Steel, val: Steel) -> dict[str, list[Tensor]]:
    """What needs no network: the distance to the centre, and the density of raw patches."""
    rows = val.pixels.shape[1] // PATCH
    axis = torch.arange(rows) - (rows - 1) / 2
    centre = -torch.hypot(axis[:, None], axis).expand(len(val.pixels), -1, -1)

    def patches(images: Tensor) -> Tensor:
        cut = F.unfold(images[:, :1], PATCH, stride=PATCH)
        grid: Tensor = cut.mT.unflatten(1, (images.shape[2] // PATCH, -1))
        return grid

    zero = normalise(torch.zeros(1, 1, 1, 3, dtype=torch.uint8))  # cosines of brightness, black = 0
    normal = tiles(train, normal_corners(train), BANK_TILES, np.random.default_rng(0))
    bank = patches(normal - zero)
    score = PatchDensity(bank.flatten(0, 2), torch.Generator().manual_seed(0))
    return {"centre": [centre], "raw pixels": [score(patches(val.images() - zero))]}


def measure(maps: list[Tensor], val: Steel) -> dict[str, list[float]]:
    """Areas under the ROC curve, one a seed.

    `pixels`: inside against outside the boxes, over all pixels of a class, mean over classes.
    `squares`: 64 px squares with a quarter or more in boxes against squares without any, by the
    score of their part of the map.
    """
    figures: dict[str, list[float]] = {"pixels": [], "squares": []}
    for drawn in maps:
        fine = F.interpolate(drawn[:, None], scale_factor=PATCH, mode="bilinear")[:, 0].numpy()
        areas = [
            roc_auc_score(val.defect[val.kinds == kind].ravel(), fine[val.kinds == kind].ravel())
            for kind in range(len(CLASSES))
        ]
        figures["pixels"].append(float(np.mean(areas)))
        figures["squares"].append(squares(drawn, val))
    return figures


def squares(drawn: Tensor, val: Steel) -> float:
    """See `measure`."""
    side, truth, scores = SIDE // PATCH, [], []
    for y in (0, 8, 16):
        for x in (0, 8, 16):
            top, left = PATCH * y, PATCH * x
            truth.append(val.defect[:, top : top + SIDE, left : left + SIDE].mean(axis=(1, 2)))
            scores.append(image_scores(drawn[:, y : y + side, x : x + side]).numpy())
    covered, score = np.concatenate(truth), np.concatenate(scores)
    clear = (covered == 0) | (covered >= DEFECTIVE)
    return float(roc_auc_score(covered[clear] > 0, score[clear]))


def picture(val: Steel, columns: list[Tensor], each: int = 1) -> Image.Image:
    """The first photographs of each class, their boxes, and the maps beside them."""
    rows = [
        index for kind in range(len(CLASSES)) for index in np.flatnonzero(val.kinds == kind)[:each]
    ]
    side = val.pixels.shape[1]
    sheet = Image.new("RGB", ((1 + len(columns)) * (side + 4), len(rows) * (side + 4)), "white")
    for row, index in enumerate(rows):
        panels = [outlined(val.pixels[index], val.defect[index])]
        panels += [heat(column[index], side) for column in columns]
        for column, panel in enumerate(panels):
            sheet.paste(panel, (column * (side + 4), row * (side + 4)))
    return sheet


def outlined(pixels: NDArray[np.uint8], defect: NDArray[np.bool_]) -> Image.Image:
    """A photograph with the edges of its boxes in red."""
    inner = defect.copy()
    inner[1:-1, 1:-1] = defect[:-2, 1:-1] & defect[2:, 1:-1] & defect[1:-1, :-2] & defect[1:-1, 2:]
    colours = np.stack([pixels] * 3, axis=-1)
    colours[defect & ~inner] = (255, 0, 0)
    return Image.fromarray(colours)


def heat(drawn: Tensor, side: int) -> Image.Image:
    """A map from black by red and yellow to white, stretched from its least to its greatest."""
    scaled = ((drawn - drawn.min()) / (drawn.max() - drawn.min())).numpy()
    channels = np.clip(3 * scaled[..., None] - np.arange(3), 0, 1)
    image = Image.fromarray((255 * channels).astype(np.uint8))
    return image.resize((side, side), Image.Resampling.BILINEAR)


if __name__ == "__main__":
    main()
