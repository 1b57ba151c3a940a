"""A run of the command line in a process of its own, which signals and full disks reach."""

import os
import signal
import subprocess
import sys

import pytest

from tests.data import ROOT
from tests.training.runs import Interrupted, changed, equal, logged, photographs, run, small, write
from tests.waiting import wait_until
from training import checkpoint
from training.checkpoint import CheckpointError
from training.journal import read
from training.stopping import Stopping

LONG = {"epochs": 12}
# Most seconds that a process may take; a slow machine takes a minute to load what it imports.
PATIENCE = 600

COMMAND = "from training.cli import main; main()"
# After a step the run waits for its signal: it would come to its end before a slow test sees it.
HELD = """
import time
from training import stopping
from training.journal import Journal

step = Journal.step

def held(self, record):
    step(self, record)
    while record["step"] == {} and not stopping._entered[0].signal:
        time.sleep(0.01)

Journal.step = held
"""
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("data"))


@pytest.fixture
def start(data, tmp_path):
    """Start `foveal-train run` in a process that first does something else."""
    path = tmp_path / "small.yaml"
    write(path, changed(LONG, {"data": data}))
    children = []

    def start(out, first=""):
        command = ["run", str(path), "--out", str(out), "--device", "cpu", "--save-every", "5"]
        child = subprocess.Popen(
            [sys.executable, "-c", f"{first}\n{COMMAND}", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:  # the test has failed
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def held(child, out, steps):
    """The child, when it has done the steps after which it waits."""

    def done():
        assert child.poll() is None, child.stderr.read()
        return len(list(read(out / "log.jsonl"))) == steps

    wait_until(done, PATIENCE)
    return child


def test_a_run_whose_processes_are_told_to_end_saves_says_so_and_goes_on(data, start, tmp_path):
    out = tmp_path / "run"
    child = held(start(out, HELD.format(3)), out, 3)
    # The workers, too, as timeout, systemd and clusters do.
    os.killpg(child.pid, signal.SIGTERM)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 128 + signal.SIGTERM
    assert checkpoint.load(out / "last.pt")["step"] == 3
    assert [line["step"] for line in logged(out)] == [1, 2, 3]
    line = said.splitlines()[-1]
    assert line.startswith(f"stopped after step 3 of 36; the checkpoint is {out}/last.pt")
    assert "Traceback" not in said

    child = start(out)
    said, _ = child.communicate(timeout=PATIENCE)
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
    child = start(tmp_path / "run", LIMITED.format(most))
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert "error:" in said
    assert message.format(tmp_path / "run") in said
    assert "Traceback" not in said
    assert (tmp_path / "run/last.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(data, start, tmp_path):
    out = tmp_path / "run"
    child = held(start(out, HELD.format(1)), out, 1)
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for recipe in (small(data, **LONG), small(data, **LONG, seed=1)):
        with pytest.raises(CheckpointError, match=f"another run goes on in {out}; .*--out"):
            run(recipe, out)
    assert before == {path: path.read_bytes() for path in before}
    os.killpg(child.pid, signal.SIGTERM)
    child.communicate(timeout=PATIENCE)
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
