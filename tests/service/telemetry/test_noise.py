"""What strangers send does not fill the log: it is in their answers."""

import io
import struct
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from service.bundle import Bundle
from tests.data import dataset
from tests.redis_servers import RedisServer
from tests.service.processes import Serving, foveal, serving

PARTS = {"Content-Type": "multipart/form-data; boundary=x"}


def fax(scheme: int, rows: int, *tags: tuple[int, int, int, int]) -> bytes:
    """A TIFF of 800 columns, compressed as faxes are, whose code words are random."""
    words = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    entries = [
        (256, 4, 1, 800),
        (257, 4, 1, rows),
        (258, 3, 1, 1),
        (259, 3, 1, scheme),
        (262, 3, 1, 0),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, rows),
        (279, 4, 1, len(words)),
        *tags,
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = struct.pack("<I", 8 + len(words))
    return b"II*\0" + start + words + struct.pack("<H", len(entries)) + directory + bytes(4)


def damaged_strip() -> bytes:
    """A TIFF whose compressed data are partly zero."""
    file = io.BytesIO()
    Image.radial_gradient("L").save(file, "TIFF", compression="tiff_adobe_deflate")
    return file.getvalue().replace(file.getvalue()[20:60], bytes(40))


def pictures() -> list[bytes]:
    """What codecs find much to say about."""
    return [
        *(fax(scheme, 2000) for scheme in (2, 3, 4)),
        fax(4, 800, *((tag, 0, 1, 1) for tag in range(40_000, 40_500))),
        fax(4, 800, *((tag, 7, 1, 1) for tag in range(40_000, 40_500))),
        damaged_strip(),
        *(path.read_bytes() for path in sorted(dataset("odd_public").glob("pub_*.tif*"))),
    ]


def hostile(server: Serving) -> list[int]:
    """Send what libraries find much to say about, and give the statuses of the answers."""
    forms = [
        b"no boundary",
        b"--x\r\nno header\r\n\r\n",
        b"--x\r\n\r\n",
        b"--x\r\nA: b\r\n\r\n1--x-",
    ]
    with httpx.Client(base_url=server.address, timeout=60) as client:
        tiff = {"Content-Type": "image/tiff"}
        answers = [client.post("/embed", content=data, headers=tiff) for data in pictures()]
        answers += [client.post("/embed", content=form, headers=PARTS) for form in forms]
    return [answer.status_code for answer in answers]


def assert_silent(server: Serving) -> None:
    before = server.log
    assert {status // 100 for status in hostile(server)} == {2, 4}
    assert server.log == before


def test_hostile_uploads_leave_no_line(bundle: Bundle, tmp_path: Path) -> None:
    with serving("--model", bundle.path, "--data", tmp_path) as server:
        assert_silent(server)


def test_nor_do_they_where_workers_serve(bundle: Bundle, redis8: RedisServer) -> None:
    shared = {"FOVEAL_REDIS_URL": redis8.url, "FOVEAL_INDEX": "redis", "FOVEAL_THREADS": "1"}
    with serving("--workers", 2, "--model", bundle.path, **shared) as server:
        assert_silent(server)


def test_nor_does_a_folder_of_them_on_the_command_line(bundle: Bundle, tmp_path: Path) -> None:
    for number, data in enumerate(pictures()):
        (tmp_path / f"{number}.tiff").write_bytes(data)
    out = tmp_path / "vectors.npz"
    ended = foveal("embed", tmp_path, "--out", out, "--model", bundle.path)
    assert ended.returncode == 0, ended.stderr
    said = ended.stderr.splitlines()
    assert not [line for line in said if "TIFF" in line or "Warning" in line]
