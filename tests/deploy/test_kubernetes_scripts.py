"""The two scripts of the manifests, run as their containers run them."""

import hashlib
import http.server
import json
import os
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from service.bundle import Bundle
from service.settings import Settings
from tests.deploy.manifests import Manifest, one, pod, workload
from tests.ports import HeldPort


class Api(http.server.BaseHTTPRequestHandler):
    """What the script asks of an API server: whether a Secret may be created."""

    status: ClassVar[int] = 201
    seen: ClassVar[list[tuple[str, str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def listening(handler: Any, certificate: Path | None = None) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def script(name: str, container: Manifest, called: str, folder: Path) -> Path:
    """The script as the container finds it, out of the ConfigMap that it mounts."""
    (volume,) = (
        v
        for v in pod(workload(name, called))["volumes"]
        for mount in container["volumeMounts"]
        if mount["mountPath"] == "/etc/foveal" and mount["name"] == v["name"]
    )
    python, path, *_ = container["command"]
    assert python == "python"
    file = folder / Path(path).name
    file.write_text(one(name, "ConfigMap", volume["configMap"]["name"])["data"][file.name])
    return file


def run(file: Path, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    # Isolated: the image's Python has the script's own modules only.
    command = [sys.executable, "-I", file, *map(str, arguments)]
    environment |= {"PATH": os.environ["PATH"]}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def authority(folder: Path, name: str) -> tuple[str, str]:
    """A key, and a certificate for the loopback that it signs itself."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return key.read_text(), certificate.read_text()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What the projected volume has, and beside it the API server's own key."""
    folder = tmp_path / "account"
    folder.mkdir()
    key, certificate = authority(tmp_path, "cluster")
    (tmp_path / "server.pem").write_text(key + certificate)
    (folder / "ca.crt").write_text(certificate)
    (folder / "token").write_text("a-token\n")
    (folder / "namespace").write_text("foveal")
    return folder


@pytest.fixture
def make_password(tmp_path: Path) -> Path:
    (container,) = pod(workload("cpu", "foveal-redis-password"))["containers"]
    return script("cpu", container, "foveal-redis-password", tmp_path)


def ask(script: Path, account: Path, port: int) -> "subprocess.CompletedProcess[str]":
    where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
    return run(script, account, **where)


def test_the_volume_has_what_the_script_reads(account: Path) -> None:
    (volume,) = (
        v for v in pod(workload("cpu", "foveal-redis-password"))["volumes"] if "projected" in v
    )
    token, authority, downward = volume["projected"]["sources"]
    paths = [token["serviceAccountToken"], *authority["configMap"]["items"]]
    paths += downward["downwardAPI"]["items"]
    assert {found["path"] for found in paths} == {file.name for file in account.iterdir()}


def test_a_password_is_made_that_the_gateway_and_redis_can_use(
    make_password: Path, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api, "seen", [])
    with listening(Api, account.parent / "server.pem") as port:
        for _ in range(2):
            done = ask(make_password, account, port)
            assert (done.returncode, done.stdout) == (0, "made the Secret foveal-redis\n")
    (path, authorization, secret), (_, _, another) = Api.seen
    assert path == "/api/v1/namespaces/foveal/secrets"
    assert authorization == "Bearer a-token"
    assert secret["metadata"] == {"name": "foveal-redis"}
    password, url = secret["stringData"]["password"], secret["stringData"]["url"]
    assert len(password) >= 43  # 256 bits in base64
    assert password not in done.stdout + done.stderr
    assert password != another["stringData"]["password"]
    settings = Settings(redis_url=url, index="redis")
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == f"redis://:{password}@foveal-redis:6379/0"


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(409, 0, "stays as it is"), (403, 1, "refused to create the Secret foveal-redis")],
)
def test_a_secret_that_is_there_stays_and_a_refusal_is_one_line(
    make_password: Path,
    account: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr(Api, "status", status)
    with listening(Api, account.parent / "server.pem") as port:
        done = ask(make_password, account, port)
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_the_clusters_is_told_nothing(
    make_password: Path, account: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Api, "seen", [])
    with listening(Api, account.parent / "server.pem") as port:
        _, other = authority(tmp_path, "other")
        (account / "ca.crt").write_text(other)
        done = ask(make_password, account, port)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert Api.seen == []


@pytest.fixture
def download(tmp_path: Path) -> Path:
    (container,) = pod(workload("model-download", "foveal-gateway"))["initContainers"]
    assert container["command"][2:] == ["$(URL)", "$(SHA256)", "/models/current"]
    return script("model-download", container, "foveal-gateway", tmp_path)


@pytest.fixture
def archive(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle as the component tells a person to pack it."""
    file = tmp_path / "store" / "mine.tar.gz"
    file.parent.mkdir()
    with tarfile.open(file, "w:gz") as packed:
        packed.add(bundle.path, ".")
    return file


@contextmanager
def store(folder: Path) -> Iterator[str]:
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with listening(Files) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_bundle_with_the_right_checksum_is_unpacked(
    download: Path, archive: Path, bundle: Bundle, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    with store(archive.parent) as address:
        for _ in range(2):  # a container that is started anew finds what it left
            done = run(download, f"{address}/mine.tar.gz", checksum.upper(), models / "current")
            assert done.returncode == 0, done.stderr
    assert Bundle.load(models / "current").digest == bundle.digest
    assert [found.name for found in models.iterdir()] == ["current"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.tar.gz", "nothing was unpacked"),
        ("missing.tar.gz", "cannot be fetched"),
        ("notes.txt", "is no tar archive"),
    ],
)
def test_anything_else_is_one_line_and_leaves_nothing(
    download: Path, archive: Path, tmp_path: Path, name: str, words: str
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    notes = archive.with_name("notes.txt")
    notes.write_text("no archive")
    checksum = hashlib.sha256(notes.read_bytes()).hexdigest()
    with store(archive.parent) as address:
        done = run(download, f"{address}/{name}", checksum, models / "current")
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(models.iterdir())


def test_a_store_that_is_gone_is_one_line(download: Path, tmp_path: Path) -> None:
    with HeldPort() as port:
        address = f"http://127.0.0.1:{port.number}/mine.tar.gz"
        done = run(download, address, "0" * 64, tmp_path / "to")
    assert done.returncode == 1
    assert "cannot be fetched" in done.stderr
    assert len(done.stderr.splitlines()) == 1
