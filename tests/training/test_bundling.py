"""A run evaluated and exported by the command line, by default as the run evaluates."""

import http.server
import threading

import pytest
import torch

from service.bundle import Bundle
from tests.training.runs import logged, photographs, run, small
from training import checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that evaluates at another size than its crops', and the archive of its images."""
    folder = tmp_path_factory.mktemp("trained")
    archive = photographs(folder)
    evaluation = {"data": f"{archive}#test", "every": 1, "resize": 40, "size": 40}
    recipe = small(f"{archive}#train", name="My_Run", epochs=1, evaluation=evaluation)
    run(recipe, folder / "run")
    return folder / "run", archive


def export(foveal_train, source, data, out, *options):
    return foveal_train(
        "export", source, "--data", data, "--out", out, "--licence", "MIT", *options
    )


@pytest.mark.parametrize("options", [(), ("--size", 40), ("--size", 40, "--resize", 40)])
def test_evaluate_finds_what_the_run_found(foveal_train, trained, options):
    folder, archive = trained
    code, printed = foveal_train("evaluate", folder / "last.pt", "--data", archive, *options)
    (found,) = logged(folder, "evaluations")
    assert (code, printed.split()[0]) == (0, f"{found['knn']:.2f}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--size", 100), "size 100 is no multiple of the patch, 8 px; try 96"),
        (("--size", 4), "try 8"),
        (("--resize", 39), "resize 39 is less than the crop's side; name 40 or more"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_size_that_does_not_suit_is_one_line(
    foveal_train, trained, tmp_path, command, options, says
):
    folder, archive = trained
    bundle = ("--out", tmp_path / "out", "--licence", "MIT") if command == "export" else ()
    code, printed = foveal_train(command, folder / "last.pt", "--data", archive, *options, *bundle)
    assert code == 1
    assert says in printed


def test_a_bundle_is_of_the_size_and_the_figure_of_its_run(foveal_train, trained, tmp_path):
    folder, archive = trained
    code, printed = export(foveal_train, folder / "last.pt", archive, tmp_path / "bundle")
    assert code == 0, printed
    card = Bundle.load(tmp_path / "bundle").manifest
    (found,) = logged(folder, "evaluations")
    assert card.name == "my_run"
    assert (card.input.resize, card.input.crop) == (40, 40)
    assert card.evaluation[0].value == round(found["knn"], 2)
    assert card.evaluation[0].command.endswith("--size 40 --resize 40")


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [({}, ("--name", "My model"), "name: String should match"), ({"grey": True}, (), "1 channels")],
)
def test_what_no_bundle_can_be_is_told_before_the_data_are_looked_at(
    foveal_train, tmp_path, changes, options, says
):
    grey = {"pixels": {"channels": 1, "mean": [0.5], "std": [0.2]}} if changes else {}
    archive = photographs(tmp_path)
    run(small(f"{archive}#train", epochs=1, **grey), tmp_path / "run")
    code, printed = export(
        foveal_train, tmp_path / "run/last.pt", tmp_path / "missing", tmp_path / "out", *options
    )
    assert code == 1
    assert says in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("state", [[torch.zeros(1)], torch.zeros(1), {"objective": {}}])
def test_a_file_of_something_else_is_one_line(foveal_train, tmp_path, state):
    torch.save(state, tmp_path / "other.pt")
    code, printed = foveal_train("evaluate", tmp_path / "other.pt", "--data", tmp_path)
    assert code == 1
    assert "is no checkpoint of `foveal-train run`" in printed


@pytest.mark.parametrize("change", ["less", "more", "shape", "kind"])
def test_a_checkpoint_of_another_version_is_one_line(foveal_train, trained, tmp_path, change):
    folder, archive = trained
    state = checkpoint.load(folder / "last.pt")
    weights = state["objective"]
    name = next(iter(weights))
    if change == "less":
        del weights[name]
    elif change == "more":
        weights["more"] = torch.zeros(1)
    elif change == "shape":
        weights[name] = torch.zeros(3, 3, 3)
    else:
        state["objective"] = 3
    torch.save(state, tmp_path / "other.pt")
    code, printed = foveal_train("evaluate", tmp_path / "other.pt", "--data", archive)
    assert code == 1
    assert "other.pt is of another version" in printed


def test_a_value_keeps_its_brackets(foveal_train):
    code, printed = foveal_train("explain", "fashion-vitn4", "data=x[/b]/x", "name=a[b]c")
    assert code == 0
    assert "x[/b]/x" in printed
    assert "a[b]c" in printed


def test_an_address_keeps_its_brackets(foveal_train, tmp_path, monkeypatch):
    (tmp_path / "a[").mkdir()
    (tmp_path / "a[/b].pth").write_bytes(b"no weights" * 1000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
    address = f"http://127.0.0.1:{server.server_port}/a[/b].pth"
    try:
        code, printed = foveal_train(
            "import", address, "--licence", "MIT", "--cache", tmp_path / "cache", "--out", "out"
        )
    finally:
        server.shutdown()
        server.server_close()
    assert code == 1
    assert "b].pth is not a readable checkpoint" in printed


@pytest.mark.parametrize("option", ["--mean", "--std"])
def test_half_a_normalisation_is_refused(foveal_train, tmp_path, option):
    (tmp_path / "weights.pth").touch()
    code, printed = foveal_train(
        *("import", tmp_path / "weights.pth", "--licence", "MIT", "--out", tmp_path / "out"),
        *(option, 0.5, 0.5, 0.5),
    )
    assert code == 2
    assert "name both or neither" in printed
