"""The command line as a user runs it."""

import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from service.bundle import Bundle
from service.guards.keys import KeyRing
from service.settings import Settings
from tests.service.gateways import PNG, photograph
from tests.service.processes import foveal, serving


def test_serve_says_where_it_listens_and_answers(bundle: Bundle, tmp_path: Path) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        assert httpx.get(f"{server.address}/readyz", timeout=60).json()["model"] == "tiny"
        url = f"{server.address}/embed"
        answer = httpx.post(url, content=photograph(), headers=PNG, timeout=60)
        assert answer.is_success
        assert server.end() == 0
        assert server.log == ""


def test_ctrl_c_ends_it_without_a_traceback(bundle: Bundle, tmp_path: Path) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert server.log == ""


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    bundle: Bundle, tmp_path: Path
) -> None:
    config = tmp_path / "foveal.toml"
    config.write_text(f'max_images = 1\nmodel = "{bundle.path}"\ndata = "/nowhere"\n')
    environment = {"FOVEAL_CONFIG": str(config), "FOVEAL_MAX_IMAGES": "2", "FOVEAL_HOST": "::1"}
    arguments = ("--data", tmp_path / "data", "--host", "127.0.0.1")
    with serving(*arguments, **environment) as server:
        assert server.address.startswith("http://127.0.0.1:")
        for count, status in ((2, 200), (3, 413)):
            files = [("images", photograph())] * count
            answer = httpx.post(f"{server.address}/embed", files=files, timeout=60)
            assert answer.status_code == status


def test_show_config_prints_every_setting_with_its_origin_and_no_secret(tmp_path: Path) -> None:
    config = tmp_path / "foveal.toml"
    config.write_text('max_images = 7\nredis_url = "redis://me:geheim@cache:6379"\n')
    shown = foveal(
        "serve",
        *("--port", 81, "--show-config"),
        FOVEAL_CONFIG=str(config),
        FOVEAL_CORS_ORIGINS="https://a.example,https://b.example",
    ).stdout
    assert "geheim" not in shown
    values = tomllib.loads(shown)
    assert values["port"] == 81
    assert values["max_images"] == 7
    assert values["cors_origins"] == ["https://a.example", "https://b.example"]
    named = {
        re.match(r"(?:# )?(\w+)", line)[1]: line.split("# ")[-1] for line in shown.splitlines()
    }
    assert named.keys() == Settings.model_fields.keys()
    origins = {"port": "flag", "cors_origins": "environment", "max_images": "file"}
    assert {name: named[name] for name in origins} == origins
    assert named["host"] == "default"


def test_each_start_up_error_is_one_clear_line(bundle: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "bundle.json").write_bytes((bundle.path / "bundle.json").read_bytes())
    (damaged / "model.onnx").write_bytes(b"damaged")
    keys = tmp_path / "keys"
    keys.write_text("alice read\n")
    model = ("--port", 0, "--model", bundle.path, "--data", tmp_path / "data")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            f"127.0.0.1:{port}": foveal("serve", *model, "--port", port),
            "damaged": foveal("serve", *model, "--model", damaged),
            "holds no bundle.json": foveal("serve", *model, "--model", tmp_path),
            "model.onnx is not a bundle": foveal(
                "serve", *model, "--model", damaged / "model.onnx"
            ),
            "repository: /nowhere": foveal("serve", *model, FOVEAL_REPOSITORY="/nowhere"),
            "cannot be kept": foveal("serve", *model, "--data", "/proc/nothing"),
            "keys_file: line 1": foveal("serve", *model, FOVEAL_KEYS_FILE=str(keys)),
            "keys_file: /nowhere": foveal("serve", *model, FOVEAL_KEYS_FILE="/nowhere"),
            "mean FOVEAL_MAX_IMAGES?": foveal("serve", FOVEAL_MAX_IMAGS="3"),
            "share cache and index": foveal("serve", "--workers", 2),
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


def test_beyond_the_loopback_without_keys_it_warns(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("--model", bundle.path, "--data", tmp_path, "--host", "0.0.0.0")  # noqa: S104
    with serving(*arguments) as server:
        assert "no keys_file" in server.log
        assert server.log.count("\n") == 1


def test_a_key_made_opens_the_door_and_its_file_does_not_hold_it(
    bundle: Bundle, tmp_path: Path
) -> None:
    made = foveal("key", "alice", "--scopes", "read")
    secret = made.stderr.split()[-1]
    file = tmp_path / "keys"
    file.write_text(made.stdout)
    assert secret not in made.stdout
    assert KeyRing(file).find(secret.encode()).name == "alice"
    arguments = ("--model", bundle.path, "--data", tmp_path / "data")
    with serving(*arguments, FOVEAL_KEYS_FILE=str(file)) as server:
        url = f"{server.address}/embed"
        refused = httpx.post(url, content=photograph(), headers=PNG, timeout=60)
        assert refused.status_code == 401
        key = {"Authorization": f"Bearer {secret}"}
        answer = httpx.post(url, content=photograph(), headers=PNG | key, timeout=60)
        assert answer.status_code == 200


def test_no_key_is_made_with_an_unknown_scope_or_an_odd_name() -> None:
    for arguments in (("alice", "--scopes", "all"), ("two words",)):
        ended = foveal("key", *arguments)
        assert ended.returncode == 1
        assert not ended.stdout


@pytest.mark.parametrize("word", ["tiny", "convolution", "Apache-2.0", "random weights"])
def test_bundle_prints_the_card(bundle: Bundle, word: str) -> None:
    assert word in foveal("bundle", bundle.path).stdout


def test_bundle_tells_what_is_damaged(tmp_path: Path) -> None:
    ended = foveal("bundle", tmp_path)
    assert ended.returncode == 1
    assert "bundle.json" in ended.stderr


def test_the_gateway_imports_neither_torch_nor_training() -> None:
    check = (
        "import sys, service.app, service.cli, service.server; "
        "heavy = {'torch', 'training', 'opentelemetry.exporter'}.intersection(sys.modules); "
        "sys.exit(' '.join(heavy) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
