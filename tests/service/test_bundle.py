import json
import shutil

import pytest

from service.bundle import GRAPH, MANIFEST, Bundle, BundleError, sha256


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle.path, tmp_path / "copy")


def change(folder, **fields):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | fields))


def test_a_copy_elsewhere_has_the_same_digest(bundle, copy):
    assert Bundle.load(copy).digest == bundle.digest


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"name": "another", "licence": "MIT", "training": {"data": "x"}}, True),
        ({"input": {"resize": 72, "crop": 64, "multiple": 8, "std": [1, 1, 1]}}, False),
        ({"input": {"resize": 80, "crop": 64, "multiple": 8}}, False),
        ({"outputs": ["embedding"]}, False),
    ],
)
def test_the_digest_names_the_numbers_and_nothing_else(bundle, copy, fields, same):
    change(copy, **fields)
    assert (Bundle.load(copy).digest == bundle.digest) is same


def test_another_graph_has_another_digest(bundle, copy):
    with (copy / GRAPH).open("ab") as file:
        file.write(b"\0")
    change(copy, files={GRAPH: sha256(copy / GRAPH)})
    assert Bundle.load(copy).digest != bundle.digest


def test_a_damaged_graph_is_told_with_both_sums(copy):
    with (copy / GRAPH).open("r+b") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx is damaged: its sha256 is \w{64}"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": 2}, "format"),
        ({"colour": "blue"}, "colour"),
        ({"name": "../x"}, "name"),
        ({"files": {}}, "lists no model.onnx"),
        ({"files": {GRAPH: "0", "../secret": "0"}}, "damaged|outside the bundle"),
        ({"input": {"resize": 72, "crop": 60, "multiple": 8}}, "multiple of 8"),
        ({"input": {"resize": 60, "crop": 64, "multiple": 8}}, "at most resize"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(copy, fields, words):
    change(copy, **fields)
    with pytest.raises(BundleError, match=words):
        Bundle.load(copy)


def test_a_file_outside_the_bundle_is_never_read(copy):
    change(copy, files={GRAPH: sha256(copy / GRAPH), "../secret": "0"})
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.load(copy)


def test_a_missing_folder_or_file_is_named(copy, tmp_path):
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        Bundle.load(tmp_path)
    with pytest.raises(BundleError, match=r"model\.onnx is not a bundle"):
        Bundle.load(copy / GRAPH)
    (copy / GRAPH).unlink()
    with pytest.raises(BundleError, match=r"lacks model\.onnx"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", [MANIFEST, GRAPH])
def test_a_file_that_cannot_be_read_is_told_with_the_reason(copy, name):
    (copy / name).unlink()
    (copy / name).mkdir()  # no mode keeps root from reading a file
    with pytest.raises(BundleError, match=f"{copy / name}: Is a directory"):
        Bundle.load(copy)
