"""What the benchmark sends the gateway and Triton: the same pixels, in the forms that they take."""

import asyncio

import numpy as np

from benchmarks.serving.direct import drive
from benchmarks.serving.wire import layout
from service.routes import tensors


def test_pixels_are_laid_out_as_the_gateway_reads_them():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    head, _, body = layout("pixels", "/v2/models/tiny/infer", image.tobytes()).partition(
        b"\r\n\r\n"
    )
    lines = head.decode().splitlines()
    assert lines[0] == "POST /v2/models/tiny/infer HTTP/1.1"
    headers = dict(line.split(": ") for line in lines[1:])
    assert int(headers["Content-Length"]) == len(body)
    asked = tensors.parse(body, headers[tensors.HEADER_LENGTH], ("embedding", "patches"), 1)
    np.testing.assert_array_equal(asked.pixels, image[None])
    assert asked.outputs == {"embedding": True}


def test_triton_is_asked_directly_in_batches(triton, monkeypatch):
    monkeypatch.setattr("benchmarks.serving.direct.RAMP", 0.2)
    pixels = np.zeros((3, 64, 64, 3), np.uint8)
    rate = asyncio.run(drive(triton.url, "tiny", pixels, 4, 2, 4.0))
    assert rate > 0
    assert (rate * 4.0) % 4 == 0
