import errno
import fcntl
import os
import pickle
import subprocess
import sys

import pytest
import torch

from tests.data import ROOT
from training import checkpoint
from training.checkpoint import CheckpointError


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_comes_back_as_it_was(tmp_path):
    state = {"weights": torch.arange(4.0), "step": 3, "recipe": {"name": "x"}}
    checkpoint.save(tmp_path / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state


def plain_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("write", [torch.save, plain_pickle])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, write):
    target = tmp_path / "owned"
    write({"model": Malicious(str(target))}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "bad.pt")
    assert not target.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "last.pt")


FULL = """
import resource, sys, torch
from pathlib import Path
from training import checkpoint

checkpoints = checkpoint.Checkpoints(Path(sys.argv[1]), keep=1)
checkpoints.save({"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    checkpoints.save({"step": 2, "weights": torch.zeros(100_000)}, best=True)
except checkpoint.CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("most", [0, 4_000, 399_000])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, most):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(most)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    path = tmp_path / "step-00000002.pt"
    assert f"could not write {path} ([Errno 27] File too large)" in done.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "step-00000001.pt"]
    assert checkpoint.load(tmp_path / "last.pt") == {"step": 1}


def test_the_last_ones_are_kept_and_the_best_beside_them(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save({"step": step}, best=step == 2)
    found = {path.name: checkpoint.load(path)["step"] for path in tmp_path.iterdir()}
    assert found == {"step-00000003.pt": 3, "step-00000004.pt": 4, "last.pt": 4, "best.pt": 2}


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError("links are unknown here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save({"step": 1}, best=True)
    checkpoints.save({"step": 2})
    assert checkpoint.load(checkpoints.last) == {"step": 2}
    assert checkpoint.load(tmp_path / "best.pt") == {"step": 1}


def test_a_file_system_without_locks_lets_a_run_go_on(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "locks are unknown here")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with checkpoint.alone(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
