"""What a person sees who mistypes, mismatches or brings broken data: one line and exit status 1."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from training.models.vit import vit

TINY = [
    "epochs=1",
    "batch_size=4",
    "model={architecture: vit_nano, patch_size: 8}",
    "crops.global_size=16",
    "crops.local_size=8",
    "crops.local_count=1",
    "head.prototypes=16",
    "head.hidden=16",
    "head.bottleneck=8",
    "precision=fp32",
    "evaluation.data=null",
    "--workers",
    "0",
    "--device",
    "cpu",
]


def pictures(folder, count, seed=0):
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def data(tmp_path):
    for number, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        pictures(tmp_path / "data" / place, 4, number)
    return tmp_path / "data"


@pytest.fixture
def run(foveal_train, data, tmp_path):
    """A finished run's folder."""
    out = tmp_path / "run"
    code, printed = foveal_train(
        "run", "imagenette-vitt8", f"data={data}/train", *TINY, "--out", out
    )
    assert code == 0, printed
    return out


def test_a_run_leaves_a_checkpoint_a_log_and_a_page(run):
    names = {path.name for path in run.iterdir()}
    assert {"last.pt", "log.jsonl", "recipe.yaml", "report.html", "tensorboard"} <= names


def test_an_empty_folder(foveal_train, tmp_path):
    (tmp_path / "empty").mkdir()
    code, printed = foveal_train("run", "imagenette-vitt8", f"data={tmp_path}/empty", *TINY)
    assert code == 1
    assert "nothing at" in printed
    assert "a folder of images" in printed


@pytest.mark.parametrize("field", ["data", "evaluation.data"])
def test_images_that_are_not_there_are_told_with_the_field_that_names_them(
    foveal_train, data, tmp_path, field
):
    given = {"data": f"{data}/train", field: f"{tmp_path}/missing"}
    fields = [f"{name}={value}" for name, value in given.items()]
    code, printed = foveal_train(
        "run", "imagenette-vitt8", *TINY, *fields, "--out", tmp_path / "out"
    )
    assert code == 1
    assert f"{field}: there is nothing at {tmp_path}/missing" in printed.replace("\n", " ")


def test_one_class_of_corrupt_files_is_named_and_left_out(foveal_train, data, tmp_path, caplog):
    for path in (data / "train/b").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    out = tmp_path / "out"
    code, _ = foveal_train("run", "imagenette-vitt8", f"data={data}/train", *TINY, "--out", out)
    assert code == 0
    assert "train/b/" in caplog.text


def test_nothing_but_corrupt_files(foveal_train, data):
    for path in data.rglob("*.png"):
        path.write_bytes(b"no picture")
    code, printed = foveal_train("run", "imagenette-vitt8", f"data={data}/train", *TINY)
    assert code == 1
    assert "none of 8 images" in printed


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("objective.name=esvit", "vit_nano"),
        ("crops.local_size=10", "no multiple of model.patch_size = 8"),
    ],
)
def test_a_recipe_that_cannot_be(foveal_train, data, override, says):
    code, printed = foveal_train(
        "run", "imagenette-vitt8", f"data={data}/train", *TINY[:-4], override
    )
    assert code == 1
    assert says in printed


def test_a_checkpoint_of_another_architecture(foveal_train, data, run):
    other = ["model={architecture: vit_micro, patch_size: 8}" if "model" in a else a for a in TINY]
    code, printed = foveal_train(
        "run", "imagenette-vitt8", f"data={data}/train", *other, "--out", run
    )
    assert code == 1
    assert "differs in model" in printed
    assert "another output folder" in printed


def test_a_checkpoint_of_somebody_else(foveal_train, data, tmp_path):
    torch.save(vit("vit_nano", 8, 16).state_dict(), tmp_path / "backbone.pth")
    code, printed = foveal_train("evaluate", tmp_path / "backbone.pth", "--data", data)
    assert code == 1
    assert "foveal-train import" in printed


def test_a_checkpoint_that_executes_code_is_refused(foveal_train, data, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"recipe": Hostile()}, tmp_path / "hostile.pt")
    code, printed = foveal_train("evaluate", tmp_path / "hostile.pt", "--data", data)
    assert code == 1
    assert "none was run" in printed
    assert not (tmp_path / "executed").exists()


def test_data_without_held_out_images(foveal_train, run, tmp_path):
    pictures(tmp_path / "alone/train/a", 4)
    code, printed = foveal_train("evaluate", run / "last.pt", "--data", tmp_path / "alone")
    assert code == 1
    assert "val, test" in printed


def test_a_device_that_is_not_there(foveal_train, data):
    absent = "xpu" if torch.cuda.is_available() else "cuda"
    code, printed = foveal_train(
        "run", "imagenette-vitt8", f"data={data}/train", *TINY[:-1], absent
    )
    assert code == 1
    assert "use auto or cpu" in printed


def test_evaluate_prints_a_percentage_for_the_model_and_its_floors(foveal_train, data, run):
    for instead in ((), ("--instead", "pixels"), ("--instead", "untrained")):
        code, printed = foveal_train(
            "evaluate", run / "last.pt", "--data", data, "--size", 16, "--k", 2, *instead
        )
        assert code == 0
        assert 0 <= float(printed.split()[0]) <= 100


def test_explain_says_when_to_change_a_key(foveal_train):
    code, printed = foveal_train("explain", "imagenette-vitt8", "epochs=3")
    assert code == 0
    assert "teacher.momentum 0.99" in printed
    assert "Lower it for" in printed


def test_explain_shows_the_arithmetic_of_auto(foveal_train):
    code, printed = foveal_train(
        "explain", "imagenette-vitt8", "head.prototypes=auto", "--images", 50000
    )
    assert code == 0
    assert "head.prototypes = 2048" in printed


@pytest.mark.parametrize("licence", [(), ("--licence", "MIT")])
def test_a_mistyped_name_is_answered_with_the_names(foveal_train, tmp_path, licence):
    code, printed = foveal_train("import", "dino_vits61", "--out", tmp_path / "out", *licence)
    assert code == 1
    assert "'dino_vits61' is no file" in printed
    assert "known: dino_vits16, dino_vits8," in printed


def test_what_is_known_is_asked_for_its_licence_before_it_is_fetched(foveal_train, tmp_path):
    code, printed = foveal_train("import", "http://127.0.0.1:9/x.pth", "--out", tmp_path / "out")
    assert code == 2
    assert "name the licence" in printed


def test_a_message_keeps_its_brackets(foveal_train, tmp_path):
    code, printed = foveal_train(
        "export",
        tmp_path / "a[cpu].pt",
        *("--out", tmp_path / "out", "--data", tmp_path, "--licence", "MIT"),
    )
    assert code == 1
    assert "a[cpu].pt" in printed


def test_without_torch_it_says_what_to_install():
    program = "import sys; sys.modules['torch'] = None; from training.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "torch" in ended.stderr
    assert "in the checkout, pip install -e '.[training]'" in ended.stderr
