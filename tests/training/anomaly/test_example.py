from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from examples.anomaly import CLASSES, SIDE, Steel, inside, measure, normal_corners, picture, squares
from tests.data import dataset


@pytest.fixture(scope="module")
def steel():
    return Steel.read(dataset("neu_det300"), "val")


def test_the_boxes_of_dark_patches_are_dark(steel):
    assert steel.pixels.shape == (75, 200, 200)
    assert steel.defect.any(axis=(1, 2)).all()
    dark = [steel.pixels[i][steel.defect[i]].mean() for i in np.flatnonzero(steel.kinds == 2)]
    clear = [steel.pixels[i][~steel.defect[i]].mean() for i in np.flatnonzero(steel.kinds == 2)]
    assert np.mean(dark) < np.mean(clear) - 40


def test_a_box_counts_from_one_and_includes_its_corners():
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>"
    tree = ElementTree.fromstring(f"<a><bndbox>{corners}</bndbox></a>")  # noqa: S314  (our own text)
    assert np.argwhere(inside(tree, (5, 5))).tolist() == [
        [y, x] for y in (1, 2, 3) for x in (0, 1, 2)
    ]


def test_normal_squares_are_free_of_boxes_and_none_is_missed(steel):
    few = Steel(steel.pixels[30:32], steel.defect[30:32], steel.kinds[30:32])
    found = {tuple(corner) for corners in normal_corners(few) for corner in corners}
    expected = {
        (i, y, x)
        for i in range(2)
        for y in range(201 - SIDE)
        for x in range(201 - SIDE)
        if not few.defect[i, y : y + SIDE, x : x + SIDE].any()
    }
    assert found == expected
    assert found


def test_a_perfect_map_scores_one_and_a_constant_one_half(steel):
    truth = torch.from_numpy(steel.defect.reshape(75, 25, 8, 25, 8).mean(axis=(2, 4))).float()
    figures = measure([truth, torch.zeros(75, 25, 25)], steel)
    assert figures["pixels"][0] > 0.97
    assert figures["pixels"][1] == 0.5
    assert figures["squares"] == [pytest.approx(1.0), 0.5]


def test_squares_are_scored_by_their_part_of_the_map(steel):
    maps = torch.rand(75, 25, 25, generator=torch.Generator().manual_seed(0))
    truth, scores = [], []
    for image, drawn in zip(steel.defect, maps.numpy(), strict=True):
        for y in (0, 8, 16):
            for x in (0, 8, 16):
                covered = image[8 * y : 8 * y + 64, 8 * x : 8 * x + 64].mean()
                if covered == 0 or covered >= 0.25:
                    truth.append(covered > 0)
                    scores.append(drawn[y : y + 8, x : x + 8].max())
    assert squares(maps, steel) == pytest.approx(roc_auc_score(truth, scores))


def test_the_picture_shows_each_class_beside_its_maps(steel):
    sheet = picture(steel, [torch.rand(75, 25, 25)] * 2, each=1)
    assert sheet.size == (3 * 204, len(CLASSES) * 204)
    assert (np.asarray(sheet)[:200, :200] == (255, 0, 0)).all(axis=-1).any()


def test_a_folder_without_the_photographs_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"no images in .*crazing: give --data neu_det300"):
        Steel.read(tmp_path, "train")
