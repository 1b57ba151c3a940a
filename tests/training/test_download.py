"""Downloads from a real server on this machine that fails in every way a server can."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from training import download
from training.download import PUBLISHED, DownloadError, fetch, obtain, recorded

BODY = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `body` at every path but /missing; `breaks` answers end early, after `cut` bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.etag = '"1"'
        self.ranges = True
        self.announces = True
        self.breaks = 0
        self.cut = 100_000
        self.requests = []

    def url(self, name="weights.pth"):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers["Range"]
        server.requests.append((asked, self.headers["If-Range"]))
        if self.path == "/missing":
            self.send_error(404)
            return
        start = 0
        if server.ranges and asked and self.headers["If-Range"] == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            last = len(server.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.body)}")
        if server.announces:
            self.send_header("Content-Length", str(len(rest)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            rest = rest[: server.cut]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "CHUNK", 1 << 14)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def leave_part(folder, content, version=None):
    part = folder / "127.0.0.1" / "weights.pth.part"
    part.parent.mkdir()
    part.write_bytes(content)
    if version:
        part.with_name("weights.pth.part.version").write_text(version)


def test_a_file_comes_whole_with_its_sum_beside_it(server, tmp_path):
    reports = []
    path = fetch(server.url(), tmp_path / "new", report=lambda *seen: reports.append(seen))
    assert path.read_bytes() == BODY
    assert recorded(path) == DIGEST
    assert path.with_name("weights.pth.sha256").read_text() == f"{DIGEST}  weights.pth\n"
    assert names(tmp_path / "new") == ["weights.pth", "weights.pth.sha256"]
    assert reports[-1] == (300_000, 300_000)
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})


def test_what_is_there_is_not_asked_for_again(server, tmp_path):
    first = fetch(server.url(), tmp_path)
    assert fetch(server.url(), tmp_path) == first
    assert len(server.requests) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = 2
    assert fetch(server.url(), tmp_path).read_bytes() == BODY
    assert server.requests == [
        (None, None),
        ("bytes=100000-", '"1"'),
        ("bytes=200000-", '"1"'),
    ]


def test_the_next_call_goes_on_after_one_that_gave_up(server, tmp_path):
    server.ranges = False  # the second answer starts over and brings nothing more
    server.breaks = 2
    with pytest.raises(DownloadError, match=r"broke at 100000 bytes \(300000 were announced\)"):
        fetch(server.url(), tmp_path)
    assert names(tmp_path) == ["weights.pth.part", "weights.pth.part.version"]
    server.ranges = True
    assert fetch(server.url(), tmp_path).read_bytes() == BODY
    assert server.requests[-1] == ("bytes=100000-", '"1"')
    assert names(tmp_path) == ["weights.pth", "weights.pth.sha256"]


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    server.breaks = 1
    assert fetch(server.url(), tmp_path).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_file_that_changed_in_between_starts_over(server, tmp_path):
    leave_part(tmp_path, b"old" * 1000, '"0"')
    assert fetch(server.url(), tmp_path).read_bytes() == BODY
    assert server.requests == [("bytes=3000-", '"0"')]


def test_a_part_of_unknown_version_is_not_built_upon(server, tmp_path):
    server.etag = None
    leave_part(tmp_path, b"what is this")
    assert fetch(server.url(), tmp_path).read_bytes() == BODY
    assert server.requests == [(None, None)]


def test_a_part_that_is_whole_is_only_checked(server, tmp_path):
    leave_part(tmp_path, BODY, '"1"')
    assert fetch(server.url(), tmp_path).read_bytes() == BODY
    assert server.requests == [("bytes=300000-", '"1"')]


def test_a_wrong_sum_leaves_no_file(server, tmp_path):
    with pytest.raises(DownloadError, match=f"{DIGEST}, but you expect {'0' * 64}"):
        fetch(server.url(), tmp_path, expected="0" * 64)
    assert names(tmp_path) == []
    assert recorded(fetch(server.url(), tmp_path, expected=DIGEST.upper())) == DIGEST


def test_something_that_is_no_sum_is_refused_before_any_request(server, tmp_path):
    with pytest.raises(DownloadError, match="64 hex digits"):
        fetch(server.url(), tmp_path, expected="abc")
    assert server.requests == []


@pytest.mark.parametrize("digits", ["deadbeef", "0123456789abcdef"])
def test_a_sum_in_the_name_is_held_to(server, tmp_path, digits):
    with pytest.raises(DownloadError, match=f"its name says {digits}"):
        fetch(server.url(f"weights-{digits}.pth"), tmp_path)
    right = f"weights-{DIGEST[:8]}.pth"
    assert re.search("[a-f]", DIGEST[:8])
    assert fetch(server.url(right), tmp_path).name == right


def test_a_date_in_the_name_is_no_sum(server, tmp_path):
    assert fetch(server.url("weights-20240131.pth"), tmp_path).read_bytes() == BODY


def test_another_file_at_the_same_address_is_refused_later(server, tmp_path):
    fetch(server.url(), tmp_path).unlink()
    server.body = BODY[::-1]
    with pytest.raises(DownloadError, match=f"when it was first fetched it was {DIGEST}"):
        fetch(server.url(), tmp_path)
    assert names(tmp_path) == ["weights.pth.sha256"]


def test_a_file_that_was_damaged_since_is_named(server, tmp_path):
    path = fetch(server.url(), tmp_path)
    path.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match=f"first fetched it was {DIGEST}"):
        fetch(server.url(), tmp_path)


@pytest.mark.parametrize("announces", [True, False])
def test_a_file_over_the_limit_is_refused(server, tmp_path, announces):
    server.announces = announces
    with pytest.raises(DownloadError, match="longer than the limit of 299999 bytes"):
        fetch(server.url(), tmp_path, limit=299_999)
    assert names(tmp_path) == []
    assert fetch(server.url(), tmp_path, limit=300_000).read_bytes() == BODY


def test_a_missing_file_is_the_servers_word(server, tmp_path):
    with pytest.raises(DownloadError, match="missing: HTTP Error 404"):
        fetch(server.url("missing"), tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_is_not_there_is_one_clear_error(server, tmp_path):
    with pytest.raises(DownloadError, match="refused"):
        fetch("http://127.0.0.1:9/weights.pth", tmp_path)


def test_a_full_disk_is_one_clear_error(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_keep_version", full)
    with pytest.raises(DownloadError, match="No space left on device"):
        fetch(server.url(), tmp_path)


def test_two_models_of_one_file_name_are_kept_apart(server, tmp_path):
    small = fetch(server.url("small/model.safetensors"), tmp_path)
    base = fetch(server.url("base/model.safetensors"), tmp_path)
    assert small != base
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "source",
    [
        "dino_vits32",
        "weights.pth",
        "file:///etc/passwd",
        "https://example.org/",
        "https://example.org/a/%2e%2e/%2e%2e/x.pth",
    ],
)
def test_what_is_neither_name_nor_address_is_answered_with_the_names(source, tmp_path):
    with pytest.raises(DownloadError, match="known: dino_vits16, dino_vits8, dino_vitb16"):
        fetch(source, tmp_path)


def test_a_file_of_this_machine_is_taken_where_it_is(tmp_path):
    path = tmp_path / "weights-deadbeef.pth"
    path.write_bytes(BODY)
    assert obtain(str(path), tmp_path / "cache") == path
    assert obtain(str(path), tmp_path / "cache", expected=DIGEST.upper()) == path
    assert names(tmp_path) == ["weights-deadbeef.pth"]
    with pytest.raises(DownloadError, match=f"{DIGEST}, but you expect {'0' * 64}"):
        obtain(str(path), tmp_path / "cache", expected="0" * 64)
    with pytest.raises(DownloadError, match="64 hex digits"):
        obtain(str(path), tmp_path / "cache", expected=DIGEST[:8])


def test_a_folder_has_no_sum(tmp_path):
    assert obtain(str(tmp_path), tmp_path / "cache") == tmp_path
    with pytest.raises(DownloadError, match="is a folder and has no sha256; name the file in it"):
        obtain(str(tmp_path), tmp_path / "cache", expected=DIGEST)


def test_what_is_not_on_this_machine_is_fetched_and_summed_once(server, tmp_path, monkeypatch):
    sums = []
    monkeypatch.setattr(download, "sha256", lambda path: sums.append(path) or DIGEST)
    path = obtain(server.url(), tmp_path, expected=DIGEST)
    assert path.read_bytes() == BODY
    assert len(sums) == 1


def test_the_names_of_the_published_models():
    base = "https://dl.fbaipublicfiles.com/dino"
    small, full = "dino_deitsmall16_pretrain", "dino_deitsmall16_pretrain_full_checkpoint"
    assert PUBLISHED["dino_vits16"] == f"{base}/{small}/{small}.pth"
    assert PUBLISHED["dino_vits16_full"] == f"{base}/{small}/{full}.pth"
    models = ("vits16", "vits8", "vitb16", "vitb8", "resnet50")
    assert set(PUBLISHED) == {f"dino_{m}{end}" for m in models for end in ("", "_full")}
