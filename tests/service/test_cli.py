"""The command line as a user runs it: in a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.bundle import Bundle
from tests.service.routes.conftest import PNG, photograph

FOVEAL = [sys.executable, "-c", "from service.cli import main; main()"]


def foveal(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*FOVEAL, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server on a free port, and its address."""
    process = subprocess.Popen(
        [*FOVEAL, "serve", "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address, line
        yield process, address.group()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_serve_says_where_it_listens_and_answers(bundle: Bundle, tmp_path: Path) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as (process, address):
        assert httpx.get(f"{address}/readyz").json()["model"] == "tiny"
        assert httpx.post(f"{address}/embed", content=photograph(), headers=PNG).is_success
        process.terminate()
        assert process.wait(20) == 0


def test_sigterm_answers_what_is_in_flight(bundle: Bundle, tmp_path: Path) -> None:
    photo = photograph()
    with serving("--model", bundle.path, "--data", tmp_path) as (process, address):
        url = httpx.URL(address)
        with socket.create_connection((url.host, url.port)) as raw:
            raw.settimeout(20)
            raw.sendall(
                b"POST /embed HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(photo)
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 100")  # the handler has begun
            process.send_signal(signal.SIGTERM)
            finish = threading.Timer(0.5, raw.sendall, [photo])
            finish.start()
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
            finish.join()
        assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    bundle: Bundle, tmp_path: Path
) -> None:
    config = tmp_path / "foveal.toml"
    config.write_text(f'max_images = 1\nmodel = "{bundle.path}"\ndata = "/nowhere"\n')
    environment = {"FOVEAL_CONFIG": str(config), "FOVEAL_MAX_IMAGES": "2", "FOVEAL_HOST": "::1"}
    with serving("--data", tmp_path / "data", "--host", "127.0.0.1", **environment) as (_, address):
        assert address.startswith("http://127.0.0.1:")
        for count, status in ((2, 200), (3, 413)):
            files = [("images", photograph())] * count
            assert httpx.post(f"{address}/embed", files=files).status_code == status


def test_each_start_up_error_is_one_clear_line(bundle: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "bundle.json").write_bytes((bundle.path / "bundle.json").read_bytes())
    (damaged / "model.onnx").write_bytes(b"damaged")
    config = tmp_path / "broken.toml"
    config.write_text("port = ")
    model = ("--port", 0, "--model", bundle.path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            f"127.0.0.1:{port}": foveal("serve", "--port", port, "--model", bundle.path),
            "damaged": foveal("serve", "--port", 0, "--model", damaged, "--data", tmp_path / "d"),
            "holds no bundle.json": foveal("serve", "--port", 0, "--model", tmp_path),
            "threads": foveal("serve", "--threads", 0),
            "max_images": foveal("serve", FOVEAL_MAX_IMAGES="many"),
            "there is no file": foveal("serve", FOVEAL_CONFIG=str(tmp_path / "none.toml")),
            "FOVEAL_CONFIG": foveal("serve", FOVEAL_CONFIG=str(config)),
            "cannot be kept": foveal("serve", *model, "--data", "/proc/nothing"),
        }
    for word, ended in cases.items():
        assert ended.returncode == 1, word
        assert word in ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr


def test_an_index_in_use_is_told(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("--model", bundle.path, "--data", tmp_path)
    with serving(*arguments):
        second = foveal("serve", "--port", 0, *arguments)
    assert second.returncode == 1
    assert "open in another process" in second.stderr


@pytest.mark.parametrize("word", ["tiny", "convolution", "Apache-2.0", "random weights"])
def test_bundle_prints_the_card(bundle: Bundle, word: str) -> None:
    assert word in foveal("bundle", bundle.path).stdout


def test_bundle_tells_what_is_damaged(tmp_path: Path) -> None:
    ended = foveal("bundle", tmp_path)
    assert ended.returncode == 1
    assert "bundle.json" in ended.stderr


def test_the_gateway_imports_neither_torch_nor_training() -> None:
    check = (
        "import sys, service.app, service.cli; "
        "heavy = {'torch', 'training'}.intersection(sys.modules); sys.exit(' '.join(heavy) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
