"""One photograph all the way: train, export, serve, ask; every part as a user runs it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.commands import run
from tests.data import dataset

BIN = Path(sys.executable).parent
TINY = [
    "epochs=1",
    "batch_size=4",
    "model.patch_size=16",
    "crops.global_size=32",
    "crops.local_size=16",
    "crops.local_count=2",
    "head.prototypes=16",
    "head.hidden=16",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A dozen photographs as train/ and val/, in two classes."""
    root = tmp_path_factory.mktemp("photographs")
    photos = sorted(dataset("photos").glob("*.jpg"))[:12]
    for number, photo in enumerate(photos):
        folder = root / ("train" if number < 8 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder)
    return root


def foveal_train(*arguments):
    ended = run([BIN / "foveal-train", *arguments], timeout=900)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_model_is_trained_exported_served_and_asked(photographs, tmp_path):
    out = tmp_path / "run"
    data = f"data={photographs / 'train'}"
    printed = foveal_train("run", "imagenette-vitt8", *TINY, data, "--out", out, "--workers", 0)
    checkpoint = out / "last.pt"
    assert printed.strip() == str(checkpoint)
    accuracy = foveal_train("evaluate", checkpoint, "--data", photographs, "--size", 32)
    assert 0 <= float(accuracy) <= 100
    bundle = tmp_path / "bundle"
    options = ("--data", photographs, "--size", 32, "--licence", "MIT")
    foveal_train("export", checkpoint, "--out", bundle, *options)
    assert not re.search(rb"site-packages|/training/", (bundle / "model.onnx").read_bytes())

    command = [BIN / "foveal", "serve", "--port", "0", "--model", bundle, "--data", tmp_path / "i"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline()).group()
            ask(address, dataset("photos") / "kodak01.jpg")
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0


def ask(address, photo):
    jpeg = {"content": photo.read_bytes(), "headers": {"Content-Type": "image/jpeg"}}
    with httpx.Client(base_url=address, timeout=120) as client:
        embedded = client.post("/embed", **jpeg).json()
        vector = embedded["embeddings"][0]["embedding"]
        assert len(vector) == embedded["dim"] == 192
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        seen = client.post("/attention", **jpeg).json()["images"][0]
        assert seen["grid"] == [2, 3]  # 768 x 512 pixels at a short side of 32, patches of 16
        assert np.shape(seen["attention"]) == (3, 2, 3)
        assert client.put("/collections/default/items/one", **jpeg).is_success
        found = client.post("/similar", **jpeg).json()["results"]
        assert [match["id"] for match in found] == ["one"]
        assert found[0]["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nonesuch"], "no recipe 'nonesuch'"),
        (
            ["run", "imagenette-vitt8", "epoch=3"],
            "epoch: a recipe has no such key; did you mean epochs",
        ),
        (["run", "imagenette-vitt8", "data=/nowhere"], "there is nothing at /nowhere"),
        (["evaluate", "/nowhere/last.pt", "--data", "/nowhere"], "no checkpoint at"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_a_failure(arguments, words, tmp_path):
    ended = run([BIN / "foveal-train", *arguments], timeout=300, cwd=tmp_path)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
