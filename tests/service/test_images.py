import io
import json
import resource
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle import InputSpec
from service.errors import (
    FovealError,
    InvalidOption,
    TooLarge,
    UndecodableImage,
    UnsupportedMediaType,
)
from service.headers import MAX_SCANS
from service.images import Limits, View, opaque, prepare
from tests.data import ROOT, dataset

SPEC = InputSpec(resize=128, crop=112, multiple=8)
LIMITS = Limits(bytes=20_000_000, pixels=64_000_000, patches=4096)
WHOLE = View("whole")


def encoded(image: Image.Image, format: str, **options) -> bytes:  # noqa: A002
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo() -> Image.Image:
    with Image.open(dataset("photos") / "kodak15.jpg") as image:
        return image.convert("RGB").crop((40, 30, 640, 430))


def shown(image: Image.Image | bytes, view: View = WHOLE) -> np.ndarray:
    data = image if isinstance(image, bytes) else encoded(image, "PNG")
    return prepare(data, SPEC, view, LIMITS)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of this header and these chunks, without pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks)
    )


def reference(path: Path, resize: int, crop: int) -> np.ndarray:
    """DINO's evaluation transform: torchvision's Resize(resize, bicubic) and CenterCrop(crop)."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        width, height = image.size
        if width <= height:
            new_width, new_height = resize, int(resize * height / width)
        else:
            new_width, new_height = int(resize * width / height), resize
        image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        top = round((new_height - crop) / 2.0)
        left = round((new_width - crop) / 2.0)
        return np.asarray(image)[top : top + crop, left : left + crop]


def assert_close(pixels: np.ndarray, expected: np.ndarray) -> None:
    """Rarely not equal, and then by a level or two."""
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 2
    assert np.mean(difference > 0) < 0.01


def test_crop_equals_dinos_evaluation_transform():
    spec = InputSpec(resize=256, crop=224, multiple=16)
    compared = 0
    for path in sorted(dataset("photos").glob("*.[jp][pn]g")):
        with Image.open(path) as image:
            if image.getexif().get(274, 1) != 1 or image.has_transparency_data:
                continue
        pixels = prepare(path.read_bytes(), spec, View(), LIMITS)
        assert_close(pixels, reference(path, 256, 224))
        assert pixels.dtype == np.uint8
        compared += 1
    assert compared > 40


def test_crop_of_another_size_keeps_the_share_of_the_photograph():
    path = dataset("photos") / "kodak15.jpg"
    pixels = prepare(path.read_bytes(), SPEC, View("crop", 224), LIMITS)
    assert_close(pixels, reference(path, 256, 224))


def test_whole_keeps_all_of_the_photograph():
    assert_close(shown(photo()), np.asarray(photo().resize((168, 112), Image.Resampling.BICUBIC)))


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    steps=st.integers(1, 20),
    multiple=st.sampled_from([1, 7, 8, 16]),
)
def test_whole_gives_multiples_near_the_aspect_or_names_the_limit(width, height, steps, multiple):
    spec = InputSpec(resize=multiple, crop=multiple, multiple=multiple)
    limits = Limits(bytes=10**6, pixels=10**6, patches=500)
    data = encoded(Image.new("L", (width, height)), "PNG")
    short = steps * multiple
    patches = steps * round(steps * max(width, height) / min(width, height))
    if patches > 500:
        with pytest.raises(InvalidOption, match="limit is 500"):
            prepare(data, spec, View("whole", short), limits)
        return
    rows, columns, _ = prepare(data, spec, View("whole", short), limits).shape
    assert rows % multiple == columns % multiple == 0
    assert rows * columns <= 500 * multiple**2
    assert min(rows, columns) == short
    assert abs(rows * min(width, height) - short * height) <= multiple * min(width, height) / 2
    assert abs(columns * min(width, height) - short * width) <= multiple * min(width, height) / 2


@pytest.mark.parametrize("fit", ["crop", "whole"])
@pytest.mark.parametrize("size", [0, -8, 4, 115])
def test_size_that_the_patch_does_not_divide_is_refused(fit, size):
    with pytest.raises(InvalidOption, match=r"size is .* multiple of 8"):
        shown(photo(), View(fit, size))


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_size_with_too_many_patches_is_refused(fit):
    with pytest.raises(InvalidOption, match=r"size 800 .*limit is 4096"):
        shown(photo(), View(fit, 800))


def test_thread_of_pixels_is_refused_before_it_is_stretched():
    thread = Image.new("L", (1, 60000))
    with pytest.raises(UndecodableImage, match="too narrow"):
        shown(thread, View("crop"))
    with pytest.raises(InvalidOption, match="limit is 4096"):
        shown(thread)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_picture(orientation, format):  # noqa: A002
    stored_as = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[274] = orientation
    stored = photo().transpose(stored_as[orientation]) if orientation > 1 else photo()
    lossless = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(shown(encoded(stored, format, exif=exif, **lossless)), shown(photo()))


@pytest.mark.parametrize(
    "pattern",
    ["g4_orientation_[1-8].tif", "hopper_orientation_[2-8].jpg", "hopper_orientation_[2-8].webp"],
)
def test_files_of_every_orientation_show_the_same_scene(pattern):
    paths = [*dataset("odd_public").glob(f"*__{pattern}")]
    first, *others = [shown(path.read_bytes(), View("crop")).astype(int) for path in paths]
    assert len(others) >= 6
    assert all(np.abs(first - other).mean() < 6 for other in others)


def test_damaged_exif_does_not_lose_the_photograph():
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert shown(data).shape == (112, 168, 3)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "keep_rgb": True}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("PNG", {}),
    ],
)
def test_accepted_formats_show_the_same_photograph(format, options):  # noqa: A002
    pixels = shown(encoded(photo(), format, **options)).astype(int)
    assert np.abs(pixels - shown(photo())).mean() < 1.5


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1", "YCbCr"])
def test_other_colours_come_out_as_in_a_viewer(mode):
    stored = photo().convert(mode)
    pixels = shown(encoded(stored, "TIFF"))
    assert np.array_equal(pixels, shown(stored.convert("RGB")))


def test_cmyk_jpegs_as_adobe_writes_them_are_not_negatives():
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(shown(data).astype(int) - shown(photo())).mean() < 1.5


def test_transparency_is_shown_over_white():
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 32, 64))
    image.paste((0, 0, 0, 128), (0, 0, 32, 32))
    pixels = shown(image)
    assert np.all(pixels[:40, :40] == 127)
    assert np.all(pixels[72:, :40] == 0)
    assert np.all(pixels[:, 72:] == 255)


def test_transparent_palette_entry_is_shown_over_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert np.all(shown(encoded(image, "PNG", transparency=1)) == 255)


def test_what_a_gifs_first_frame_leaves_open_is_white():
    red = Image.new("P", (30, 20), 0)
    red.putpalette([255, 0, 0, 0, 0, 255])
    data = encoded(red, "GIF")
    # The screen grows to 40 x 40, the frame moves to (10, 20).
    frame = data.index(b",", 13)
    data = (
        data[:6]
        + struct.pack("<HH", 40, 40)
        + data[10:frame]
        + struct.pack("<cHH", b",", 10, 20)
        + data[frame + 5 :]
    )
    pixels = shown(data, View("whole", 40))
    expected = np.full((40, 40, 3), 255)
    expected[20:, 10:] = (255, 0, 0)
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("clear", [0, 1000])
def test_transparent_shade_of_deep_grey_is_shown_over_white(clear):
    deep = np.full((8, 8), 40_000, np.uint16)
    deep[:, 4:] = clear
    data = encoded(Image.fromarray(deep), "PNG", transparency=clear)
    assert np.array_equal(np.unique(shown(data, View("whole", 8))), [round(40_000 / 257), 255])


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_greys_keep_their_shades(format):  # noqa: A002
    grey = np.asarray(photo().convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(shown(encoded(deep, format)), shown(Image.fromarray(grey)))


def test_floating_point_greys_span_black_to_white():
    ramp = Image.fromarray(np.tile(np.linspace(0, 1, 256, dtype=np.float32), (256, 1)))
    pixels = shown(encoded(ramp, "TIFF"))
    assert pixels.min() <= 1
    assert pixels.max() >= 254
    assert abs(int(pixels[56, 56, 0]) - 128) <= 2


def test_deep_greys_are_stretched_by_the_extremes_of_the_whole_picture():
    deep = np.random.default_rng(0).normal(0, 1, (2100, 1500)).astype(np.float32)
    deep[7, 7], deep[2090, 9], deep[3], deep[5] = 90_000, -30_000, np.inf, np.nan
    counted = np.where(np.isfinite(deep), deep, 0)
    expected = np.rint((counted + 30_000) * np.float32(255 / 120_000))
    assert np.array_equal(np.asarray(opaque(Image.fromarray(deep))), expected)


def test_transparency_of_a_large_picture_is_shown_over_white():
    image = Image.radial_gradient("L").resize((1500, 2100)).convert("RGB")
    image.putalpha(Image.linear_gradient("L").resize((1500, 2100)))
    expected = Image.new("RGB", image.size, "white")
    expected.paste(image, mask=image)
    assert np.array_equal(np.asarray(opaque(image)), np.asarray(expected))


def large(mode: str, file_format: str, **options) -> bytes:
    """A picture of 4096 x 4096 pixels, whose data are few."""
    grey = Image.radial_gradient("L").resize((4096, 4096))
    if mode in ("F", "I", "I;16"):
        kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]
        return encoded(Image.fromarray(np.asarray(grey).astype(kind)), file_format, **options)
    return encoded(Image.merge(mode, [grey] * len(mode)), file_format, **options)


PEAK = """
import sys
from tests.service.test_images import photo, shown

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

shown(photo())
before = memory("VmRSS")
shown(sys.stdin.buffer.read())
print(memory("VmHWM") - before)
"""

KEPT = """
import sys
from concurrent.futures import ThreadPoolExecutor

data = sys.stdin.buffer.read()
with ThreadPoolExecutor(1) as pool:
    for _ in range(3):
        pool.submit(shown, data).result()
    print(memory("VmRSS") - before)
"""


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGBA", "WEBP", {"method": 0}),
        ("RGB", "WEBP", {"method": 0}),
        ("F", "TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 2**30}),
        ("I", "TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 2**30}),
        ("I;16", "PNG", {"compress_level": 1}),
        ("LA", "PNG", {"compress_level": 1}),
        ("RGBA", "PNG", {"compress_level": 1}),
        ("CMYK", "JPEG", {"progressive": True}),
    ],
)
def test_decoding_holds_twelve_bytes_a_pixel_at_most(mode, file_format, options):
    child = subprocess.run(
        [sys.executable, "-c", PEAK],
        cwd=ROOT,
        input=large(mode, file_format, **options),
        capture_output=True,
        timeout=120,
        check=True,
    )
    # Beside these the file, and a band of rows in several copies.
    assert int(child.stdout) < 12 * 4096**2 + 20_000_000


def test_what_a_large_picture_took_is_given_back():
    turned = Image.Exif()
    turned[274] = 6
    data = large("RGBA", "PNG", compress_level=1, exif=turned)
    program = PEAK.replace("shown(sys.stdin.buffer.read())\n", "") + KEPT
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        input=data,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert int(child.stdout.split()[-1]) < 30_000_000


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several_is_shown(format):  # noqa: A002
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(shown(data).astype(int) - (255, 0, 0)).max() <= 2


def test_no_bytes_are_refused_in_words():
    with pytest.raises(UnsupportedMediaType, match="zero bytes"):
        shown(b"")


@pytest.mark.parametrize("data", [b"<html>", b"%PDF-1.7", b"PK\x03\x04", b"<svg/>", b"\0" * 99])
def test_what_is_no_accepted_image_is_refused_with_what_is(data):
    with pytest.raises(UnsupportedMediaType, match="Send JPEG, PNG"):
        shown(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_image_is_refused(format):  # noqa: A002
    data = encoded(photo(), format)
    with pytest.raises(UndecodableImage, match="truncated"):
        shown(data[: len(data) // 2])


def test_bytes_over_the_limit_are_refused():
    with pytest.raises(TooLarge, match="20000001 bytes; the limit is 20000000"):
        shown(b"\xff\xd8" + bytes(19_999_999))


@pytest.mark.parametrize("side", [8001, 10_000, 13_000, 60_000, 2**31 - 1])
def test_pixels_over_the_limit_are_refused_by_the_header(side):
    with pytest.raises(UndecodableImage, match=r"limit .*64000000"):
        shown(png(side, side, (b"IDAT", b"")))


def test_icon_that_hides_a_large_picture_is_refused():
    hidden = png(9000, 9000, (b"IDAT", b""))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(hidden), 22)
    with pytest.raises(UndecodableImage, match="81000000 pixels"):
        shown(struct.pack("<HHH", 0, 1, 1) + entry + hidden)


def test_tile_larger_than_its_picture_is_refused():
    data = bytearray(encoded(Image.new("L", (64, 64)), "TIFF", compression="tiff_deflate"))
    start = struct.unpack_from("<I", data, 4)[0]
    rows_per_strip = next(
        at for at in range(start + 2, len(data), 12) if data[at : at + 2] == b"\x16\x01"
    )
    planar = rows_per_strip + 24
    tiled = [(322, 100_000), (323, 100_000)]
    for at, (tag, value) in zip((rows_per_strip, planar), tiled, strict=True):
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    with pytest.raises(UndecodableImage, match="10000000000 pixels"):
        shown(bytes(data))


@pytest.mark.parametrize("compression", ["lzma", "zstd"])
def test_strip_that_is_held_twice_counts_twice(compression):
    limits = Limits(bytes=20_000_000, pixels=150_000, patches=4096)
    strips = [
        encoded(Image.new("L", (300, 300)), "TIFF", compression=compression, strip_size=size)
        for size in (3000, 90_000)
    ]
    assert prepare(strips[0], SPEC, View(), limits).shape == (112, 112, 3)
    with pytest.raises(UndecodableImage, match="180000 pixels"):
        prepare(strips[1], SPEC, View(), limits)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_chunk_that_unpacks_to_a_bomb_is_refused(name):
    bomb = (name, b"x\0\0" + zlib.compress(bytes(100_000_000)))
    with pytest.raises(UndecodableImage, match="large"):
        shown(png(64, 64, bomb, (b"IDAT", zlib.compress(bytes(65 * 64))), (b"IEND", b"")))


def test_jpeg_of_endless_scans_is_refused():
    data = encoded(photo(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert shown(data).shape == (112, 168, 3)
    with pytest.raises(UndecodableImage, match=f"more than {MAX_SCANS} scans"):
        shown(data[:-2] + scan * MAX_SCANS + b"\xff\xd9")


def test_video_behind_a_photograph_does_not_count_as_scans():
    assert shown(encoded(photo(), "JPEG") + b"\xff\xda\0\2" * 1000).shape == (112, 168, 3)


def test_threads_do_not_disturb_each_other():
    files = [path.read_bytes() for path in sorted(dataset("photos").glob("kodak0*.jpg"))] * 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(shown, files))
    assert all(np.array_equal(a, shown(b)) for a, b in zip(together, files, strict=True))


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0"])
)
def test_random_bytes_raise_nothing_but_our_errors(data, magic):
    with pytest.raises(FovealError):
        shown(magic + data)


@settings(deadline=None)
@given(st.data(), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO"]))
def test_mutated_images_raise_nothing_but_our_errors(data, format):  # noqa: A002
    original = bytearray(encoded(Image.radial_gradient("L").resize((40, 30)), format))
    places = st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=8)):
        original[place] = value
    cut = data.draw(st.integers(0, len(original)))
    try:
        pixels = shown(bytes(original[cut:] if data.draw(st.booleans()) else original))
    except FovealError as error:
        pixels, status = None, error.status
    assert pixels.shape[2] == 3 if pixels is not None else 400 <= status < 500


def outcomes(view: View) -> dict[str, str]:
    """What becomes of each odd image: "ok", or the status and detail of our error."""
    results = {}
    for path in sorted(dataset("odd_public").glob("pub_*")):
        try:
            pixels = prepare(path.read_bytes(), SPEC, view, LIMITS)
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            results[path.name] = "ok"
        except FovealError as error:
            results[path.name] = f"{error.status} {error.detail}"
    return results


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_odd_images_are_shown_or_refused_within_memory_and_time(fit):
    manifest = json.loads((dataset("odd_public") / "manifest.json").read_text())
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.service.test_images", fit],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    assert child.returncode == 0, child.stderr[-2000:].decode()
    results = json.loads(child.stdout)
    assert len(results) == manifest["count"]
    assert all(result == "ok" or result.startswith("4") for result in results.values())
    refused = set()
    for entry in manifest["files"]:
        result = results[entry["file"]]
        if entry["expect"] == "reject":
            assert result.startswith("4"), entry["file"]
        if entry["expect"] == "decode" and result != "ok":
            refused.add(entry["file"].split("__")[1])
    # Apple's own PNG variant, whose data is no zlib stream, and a thread of 1 x 4000 pixels.
    expected = {"sample_fried.png", "synthetic_1x4000.png"}
    if fit == "whole":
        # Strips of 256 x 10 pixels, whose default size has 5012 patches.
        expected |= {"bw_gradient.png", "hopper_rle8_grayscale.bmp"}
    assert refused == expected
    assert all(
        "limit" in results[f] for f in results if f.split("__")[1] in refused - {"sample_fried.png"}
    )


if __name__ == "__main__":
    json.dump(outcomes(View(sys.argv[1])), sys.stdout)
