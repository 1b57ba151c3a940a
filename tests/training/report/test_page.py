"""The page, read back by an HTML parser and its plots by an XML parser and Pillow."""

import base64
import io
import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from training.journal import Journal
from training.report import write_report

STEPS = 12


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.images, self.outside, self.words, self._hidden = {}, [], [], False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self._hidden = tag == "style"
        if tag == "img":
            self.images[attrs["alt"]] = attrs["src"]
        self.outside += [attrs[key] for key in ("src", "href") if key in attrs]

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)

    def image(self, beginning):
        [source] = [src for alt, src in self.images.items() if alt.startswith(beginning)]
        head, data = source.split(",", 1)
        return head, base64.b64decode(data)


def record(step, **more):
    return {
        "step": step,
        "steps": STEPS,
        "epoch": (step - 1) // 3,
        "loss": 7.0 - 0.25 * step,
        "lr": 1e-3,
        "weight_decay": 0.04,
        "momentum": 0.99,
        "temperature": 0.04,
        "images_per_second": 40.0,
        "deviation": 0.5,
        **more,
    }


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "name: small <run>\nepochs: 4\nhead:\n  prototypes: 1024\n"
    )
    with Journal(tmp_path, 0) as journal:
        for step in range(1, STEPS + 1):
            journal.step(record(step, entropy=5.0 - 0.25 * step, kl=2.0))
        for epoch, knn in ((1, 40.0), (2, 62.25), (4, 55.5)):
            journal.evaluation({"step": 3 * epoch, "epoch": epoch, "knn": knn})
    folder = tmp_path / "attention"
    folder.mkdir()
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, 32, 32, 3), np.uint8)
    np.savez(folder / "photographs.npz", images=images)
    for epoch in (1, 2, 10):
        np.savez(folder / f"{epoch}.npz", maps=random.random((2, 3, 4, 4), np.float32))
    return tmp_path


def test_says_how_the_run_went_in_numbers(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    assert "small <run>" in page.text  # so it was escaped
    assert "Finished" in page.text
    assert "best k-NN 62.2 %" in page.text
    assert "5.375" in page.text  # the mean loss of all 12 steps
    assert "The collapse monitor has warned of nothing." in page.text
    assert "prototypes: 1024" in page.text


def test_every_plot_says_in_words_what_it_shows(run):
    page = Page(write_report(run))
    loss, *others = page.images
    assert loss.startswith("loss: 6.75 at step 1, 4 at 12, least 4, most 6.75.")
    assert f"ln 1,024 = {math.log(1024):.2f}" in loss
    assert [text.split(":")[0] for text in others] == [
        "entropy",
        "deviation",
        "k-NN accuracy",
        "Learning rate",
        "Weight decay",
        "Teacher's momentum",
        "Teacher's temperature",
        others[-1].split(":")[0],
    ]
    assert "KL of student and targets: 2 at step 1" in others[0]
    assert "best 62.25 % at epoch 2, last 55.50 %" in others[2]
    assert "2 photographs in rows, epochs 1, 2, 10 in columns" in others[-1]


def test_the_page_stands_alone_and_its_pictures_are_pictures(run):
    page = Page(write_report(run))
    assert all(address.startswith("data:image/") for address in page.outside)
    head, svg = page.image("loss")
    assert "svg" in head
    assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314  (our own text)
    head, png = page.image("Attention")
    assert "png" in head
    width, height = Image.open(io.BytesIO(png)).size
    assert width > height  # two photographs; themselves and three epochs


def test_the_same_run_gives_the_same_page(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_warnings_are_listed(run):
    with Journal(run, STEPS) as journal:
        journal.warning(9, "all images look alike: 0.01 < 0.1")
    text = Page(write_report(run)).text
    assert "After step 9: all images look alike: 0.01 < 0.1." in text
    assert "warned of nothing" not in text


def test_a_run_without_distributions_and_without_evaluations(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.step(record(1))
    page = Page(write_report(tmp_path))
    assert "Not finished" in page.text
    assert "No evaluation was logged yet" in page.text
    assert not any("entropy" in text or "ln " in text for text in page.images)
    assert tmp_path.name in page.text


@pytest.mark.parametrize("log", [None, "", '{"step": 1, "lo'])
def test_an_empty_log_is_said(tmp_path, log):
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    page = Page(write_report(tmp_path))
    assert "Nothing was logged" in page.text
    assert page.images == {}


def test_a_measure_that_comes_late_leaves_a_gap(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.step(record(1))
        journal.step(record(2, entropy=4.0, kl=1.0))
        journal.step(record(3, entropy=3.0, kl=1.0))
    page = Page(write_report(tmp_path))
    assert any("entropy: 4 at step 2, 3 at 3" in text for text in page.images)


def test_a_long_log_is_drawn_with_its_extremes_and_stays_small(tmp_path):
    with (tmp_path / "log.jsonl").open("w") as log:
        for step in range(1, 20_001):
            loss = 100.0 if step == 7777 else 1.0
            log.write(f'{{"step": {step}, "steps": 20000, "loss": {loss}, "epoch": 0, ')
            log.write('"deviation": 0.5, "images_per_second": 40.0}\n')
    page = Page(write_report(tmp_path))
    _, svg = page.image("loss")
    assert len(svg) < 200_000
    # The extreme is within the drawn range: an axis up to 100.
    assert b"<!-- 100 -->" in svg


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run at"):
        write_report(tmp_path / "none")
