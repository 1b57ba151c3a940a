"""`foveal embed` as a user runs it, in this process and by a server."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from service import embedding_files
from service.bulk import NothingFound, find_images
from service.bundle import Bundle
from service.cli import cli
from service.client import Embedding, Foveal, stack
from service.embedding_files import EmbeddingFile, FileRefused
from service.engines.base import Outputs
from service.engines.onnx import Graph
from tests.bundles import DIM
from tests.service.gateways import photograph


def foveal(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


Vectors = tuple[list[str], np.ndarray, str, str]


def parquet(path: Path) -> Vectors:
    table = pq.read_table(path)
    metadata = pq.ParquetFile(path).metadata.metadata
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    model, digest = (metadata[f"foveal.{name}".encode()].decode() for name in ("model", "digest"))
    return table["path"].to_pylist(), vectors, model, digest


def npz(path: Path) -> Vectors:
    file = np.load(path)
    return list(file["paths"]), file["embeddings"], str(file["model"]), str(file["digest"])


def jsonl(path: Path) -> Vectors:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ((model, digest),) = {(line["model"], line["digest"]) for line in lines}
    vectors = np.array([line["embedding"] for line in lines], np.float32)
    return [line["path"] for line in lines], vectors, model, digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images and one that is broken."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(["a.png", "b.png", "more/c.png"]):
        (folder / name).write_bytes(photograph(index))
    (folder / "broken.png").write_bytes(photograph()[:200])
    return folder


@pytest.mark.parametrize("read", [parquet, npz, jsonl], ids=["parquet", "npz", "jsonl"])
@pytest.mark.parametrize("by", ["server", "process"])
def test_a_folder_becomes_a_file_of_vectors(
    bundle: Bundle,
    client: httpx.Client,
    folder: Path,
    by: str,
    read: Callable[[Path], Vectors],
) -> None:
    out = folder.parent / f"vectors.{read.__name__}"
    how = ["--url", client.base_url] if by == "server" else ["--model", bundle.path]
    ended = foveal("embed", folder, "--out", out, *how)
    assert ended.exit_code == 0, ended.stderr
    assert "1 of 4 images have no embedding" in ended.stderr
    assert ended.stdout == f"3 embeddings in {out}\n"

    paths, vectors, model, digest = read(out)
    images = [folder / "a.png", folder / "b.png", folder / "more/c.png"]
    assert paths == [str(image) for image in images]
    assert (model, digest) == ("tiny", bundle.digest)
    with Foveal(str(client.base_url)) as server:
        assert np.allclose(vectors, stack(server.embed(images)), atol=1e-6)

    (failure,) = map(json.loads, Path(f"{out}.errors.jsonl").read_text().splitlines())
    assert failure["path"] == str(folder / "broken.png")
    assert "truncated" in failure["error"]
    assert {path.name for path in folder.parent.iterdir()} == {
        "photos",
        out.name,
        f"{out.name}.errors.jsonl",
    }


def test_an_image_that_the_model_fails_on_is_left_out_and_listed(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (80, 120), "white").save(folder / "white.png")
    run = Graph.__call__

    def failing(graph: Graph, images: np.ndarray, outputs: tuple[str, ...]) -> Outputs:
        if (images.min(axis=(1, 2, 3)) == 255).any():  # whatever it shares a batch with
            raise MemoryError("no room")
        return run(graph, images, outputs)

    monkeypatch.setattr(Graph, "__call__", failing)
    out = folder.parent / "vectors.npz"
    ended = foveal("embed", folder, "--out", out, "--model", bundle.path)
    assert ended.exit_code == 0, ended.stderr
    assert len(npz(out)[0]) == 3
    listed = map(json.loads, Path(f"{out}.errors.jsonl").read_text().splitlines())
    assert {Path(failure["path"]).name for failure in listed} == {"broken.png", "white.png"}


def test_options_change_the_vectors(bundle: Bundle, folder: Path) -> None:
    out = folder.parent / "vectors.npz"
    options = ("--size", 96, "--fit", "whole", "--pooling", "gem")
    ended = foveal("embed", folder / "a.png", "--out", out, "--model", bundle.path, *options)
    assert ended.exit_code == 0, ended.stderr
    assert not Path(f"{out}.errors.jsonl").exists()
    plain = folder.parent / "plain.npz"
    foveal("embed", folder / "a.png", "--out", plain, "--model", bundle.path)
    vectors = [npz(path)[1] for path in (out, plain)]
    assert vectors[0].shape == (1, DIM)
    assert np.linalg.norm(vectors, axis=-1) == pytest.approx(1)
    assert not np.allclose(*vectors, atol=0.01)


def test_parquet_is_written_in_groups(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "ROW_GROUP", 4)
    vectors = np.random.default_rng(0).normal(size=(10, DIM)).astype(np.float32)
    with embedding_files.EmbeddingFile(tmp_path / "v.parquet") as file:
        for index, vector in enumerate(vectors):
            file.add(str(index), Embedding(vector, "tiny", bundle.digest))
    written = pq.ParquetFile(tmp_path / "v.parquet")
    assert [written.metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 2]
    assert str(written.schema_arrow.field("embedding").type).startswith("fixed_size_list<")
    assert np.array_equal(parquet(tmp_path / "v.parquet")[1], vectors)


def test_no_vector_at_all_is_a_failure_and_leaves_no_file(bundle: Bundle, folder: Path) -> None:
    out = folder.parent / "vectors.parquet"
    ended = foveal("embed", folder / "broken.png", "--out", out, "--model", bundle.path)
    assert ended.exit_code == 1
    assert "1 of 1 images have no embedding" in ended.stderr
    assert {path.name for path in folder.parent.iterdir()} == {
        "photos",
        "vectors.parquet.errors.jsonl",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}/*.tiff", "--out", "v.npz"], ["no image is there"]),
        (["{folder}", "--out", "v.csv"], [".parquet, .npz, .jsonl"]),
        (["{folder}", "--out", "{folder}/none/v.npz"], ["No such file or directory"]),
        (["{folder}", "--out", "{folder}/v.npz", "--model", "{folder}"], ["is not a bundle"]),
        (["{folder}", "--out", "{folder}/v.npz", "--size", "7"], ["size", "multiple of"]),
        (
            ["{folder}", "--out", "{folder}/v.npz", "--url", "localhost"],
            ["no answer from localhost", "http://"],
        ),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    folder: Path, arguments: list[str], words: list[str]
) -> None:
    ended = foveal("embed", *(argument.format(folder=folder) for argument in arguments))
    assert ended.exit_code == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("foveal: ")
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in last
    assert not list(folder.glob("v.*"))


def test_parquet_without_pyarrow_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ended = foveal("embed", folder, "--out", folder / "v.parquet")
    assert ended.exit_code == 1
    install = "in the checkout, pip install -e '.[parquet]'; or write .npz or .jsonl"
    assert ended.stderr == f"foveal: Parquet needs pyarrow: {install}\n"
    assert not list(folder.glob("v.*"))


def test_files_folders_and_patterns_are_found_once(folder: Path) -> None:
    odd = folder / "odd.bin"
    odd.touch()
    found = find_images([str(odd), str(folder / "**" / "*.png"), str(folder)])
    assert found[0] == odd
    assert sorted(found[1:]) == sorted(folder.rglob("*.png"))
    with pytest.raises(NothingFound, match=r"nowhere\.png"):
        find_images([str(folder), "nowhere.png"])


def test_vectors_of_two_models_do_not_share_a_file(tmp_path: Path) -> None:
    def write(file: Any) -> None:
        with file:
            for digest in ("one", "two"):
                file.add("a", Embedding(np.zeros(3, np.float32), "tiny", digest))

    with pytest.raises(FileRefused, match="start again"):
        write(EmbeddingFile(tmp_path / "v.npz"))
    assert list(tmp_path.iterdir()) == []
