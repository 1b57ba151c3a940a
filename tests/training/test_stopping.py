"""A run of the command line in a process of its own, which signals and full disks reach."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.data import ROOT
from tests.training.runs import Interrupted, changed, equal, logged, photographs, run, small, write
from training import checkpoint
from training.checkpoint import CheckpointError
from training.stopping import Stopping

LONG = {"epochs": 12}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("data"))


@pytest.fixture
def start(data, tmp_path):
    """Start `foveal-train run`, with files of so many bytes at most."""
    path = tmp_path / "small.yaml"
    write(path, changed(LONG, {"data": data}))

    def start(out, most=None):
        command = ["run", str(path), "--out", str(out), "--device", "cpu", "--save-every", "5"]
        return subprocess.Popen(
            [sys.executable, "-m", "training.cli", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=most and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))),
        )

    return start


def after(steps, child, out):
    """The child, when it has done some steps."""
    while not (out / "log.jsonl").exists() or len(logged(out)) < steps:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    return child


def test_a_run_whose_processes_are_told_to_end_saves_says_so_and_goes_on(data, start, tmp_path):
    out = tmp_path / "run"
    child = after(3, start(out), out)
    # The workers, too, as timeout, systemd and clusters do.
    os.killpg(child.pid, signal.SIGTERM)
    _, said = child.communicate(timeout=100)
    assert child.returncode == 128 + signal.SIGTERM
    step = checkpoint.load(out / "last.pt")["step"]
    assert 3 <= step < 36
    assert [line["step"] for line in logged(out)] == list(range(1, step + 1))
    line = said.splitlines()[-1]
    assert line.startswith(f"stopped after step {step} of 36; the checkpoint is {out}/last.pt")
    assert "Traceback" not in said

    child = start(out)
    said, _ = child.communicate(timeout=100)
    assert child.returncode == 0
    assert said.strip() == str(out / "last.pt")
    whole = run(small(data, **LONG), tmp_path / "whole")
    assert equal(checkpoint.load(whole), checkpoint.load(out / "last.pt"))


@pytest.mark.parametrize(
    ("most", "message"),
    [(200_000, "could not write {}/step-00000005.pt"), (500, "File too large")],
)
def test_a_full_disk_ends_the_run_and_leaves_the_previous_checkpoint(
    data, start, tmp_path, most, message
):
    with pytest.raises(Interrupted):
        run(small(data, **LONG), tmp_path / "run", 3)
    before = (tmp_path / "run/last.pt").read_bytes()
    child = start(tmp_path / "run", most)
    _, said = child.communicate(timeout=100)
    assert child.returncode == 1
    assert "error:" in said
    assert message.format(tmp_path / "run") in said
    assert "Traceback" not in said
    assert (tmp_path / "run/last.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(data, start, tmp_path):
    out = tmp_path / "run"
    child = after(1, start(out), out)
    os.killpg(child.pid, signal.SIGSTOP)
    try:
        before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
        for recipe in (small(data, **LONG), small(data, **LONG, seed=1)):
            with pytest.raises(CheckpointError, match=f"another run goes on in {out}; .*--out"):
                run(recipe, out)
        assert before == {path: path.read_bytes() for path in before}
    finally:
        os.killpg(child.pid, signal.SIGCONT)
        os.killpg(child.pid, signal.SIGTERM)
        child.communicate(timeout=100)
    run(small(data, **LONG), out, workers=0)


def test_a_second_signal_takes_its_usual_course():
    # A shell starts what runs in the background with SIGINT ignored.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        the_second_signal_interrupts()
    finally:
        signal.signal(signal.SIGINT, usual)


def the_second_signal_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        assert stopping.signal == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
