"""load(): every source gives the same kind of Splits; the documented file layout, and what is said of other files."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from labkit import load
from labkit.data import ImageSet, benchmarks
from labkit.data.loading import to_images


@pytest.fixture
def layout():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (100, 9, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(100) % 5,
        "test_images": rng.integers(0, 256, (20, 9, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(20) % 5,
        "class_names": np.array(list("vwxyz")),
    }


def saved(folder, arrays, name="own.npz"):
    np.savez(folder / name, **arrays)
    return folder / name


def overlap(a: ImageSet, b: ImageSet) -> int:
    rows = {image.numpy().tobytes() for image in a.images}
    return sum(image.numpy().tobytes() in rows for image in b.images)


def test_own_files_load_exactly(tmp_path, layout):
    data = load(saved(tmp_path, layout))
    assert data.classes == tuple("vwxyz") and data.name == "own"
    assert len(data.train) == 95 and len(data.clean) == 5 and len(data.test) == 20
    assert data.test.images.dtype == torch.float32 and data.test.images.shape == (20, 3, 9, 8)
    assert np.array_equal((data.test.images * 255).round().byte().permute(0, 2, 3, 1).numpy(), layout["test_images"])
    everything = torch.cat([data.train.images, data.clean.images]).flatten(1).sum(1).sort().values
    assert torch.allclose(everything, to_images(layout["train_images"]).flatten(1).sum(1).sort().values)
    assert overlap(data.train, data.clean) == 0


def test_grey_files_and_numbered_classes(tmp_path, layout):
    grey = {k: v[..., 0] if v.ndim == 4 else v for k, v in layout.items() if k != "class_names"}
    data = load(str(saved(tmp_path, grey)))
    assert data.train.images.shape[1:] == (1, 9, 8) and data.classes == ("0", "1", "2", "3", "4")


def test_the_defenders_images_depend_on_the_seed_and_repeat(tmp_path, layout):
    path = saved(tmp_path, layout)
    assert load(path, seed=1).clean.fingerprint == load(path, seed=1).clean.fingerprint
    assert load(path, seed=1).clean.fingerprint != load(path, seed=2).clean.fingerprint


def test_a_file_in_labkit_data_comes_before_the_network(tmp_path, layout, monkeypatch):
    saved(tmp_path, layout, "gtsrb.npz")
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
    assert load("gtsrb").classes == tuple("vwxyz")


def test_digits_need_nothing():
    data = load("digits")
    assert (len(data.train), len(data.clean), len(data.test)) == (1366, 72, 359)
    assert data.train.images.shape[1:] == (1, 8, 8) and data.train.images.max() == 1
    assert overlap(data.train, data.test) == 0


@pytest.mark.slow
def test_signs_are_drawn_once_and_a_damaged_copy_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    data = load("signs")
    assert (len(data.train), len(data.test), len(data.clean)) == (8000, 2000, 400) and len(data.classes) == 12
    kept = next((tmp_path / "data").glob("signs-*.npz"))
    kept.write_bytes(kept.read_bytes()[:1000])
    assert load("signs").train.fingerprint == data.train.fingerprint
    assert not list((tmp_path / "data").glob("*.part"))


def test_mnist_from_torchvisions_own_files(tmp_path, monkeypatch):
    raw = tmp_path / "data" / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 12)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.tobytes())
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    data = load("mnist")
    assert (len(data.train) + len(data.clean), len(data.test)) == (60, 12)
    assert np.array_equal((data.test.images * 255).round().byte()[:, 0].numpy(), images)


def test_torchvision_is_imported_only_when_its_data_are_asked_for():
    code = "import sys, labkit; labkit.load('digits'); sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gtsrb_photographs_are_resized(monkeypatch, tmp_path):
    from PIL import Image

    photos = [(Image.new("RGB", (30 + i, 45), (255, 0, i)), i % 43) for i in range(50)]
    monkeypatch.setattr(benchmarks.datasets, "GTSRB", lambda *args, **kwargs: photos)
    arrays = benchmarks.download("gtsrb", tmp_path)
    assert arrays["train_images"].shape == (50, 32, 32, 3) and arrays["train_images"][3, 5, 5].tolist() == [255, 0, 3]
    assert len(arrays["class_names"]) == 43


@pytest.mark.parametrize("name", ["mnist", "cifar10", "gtsrb"])
def test_no_network_and_no_file_says_what_to_do(name, tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def refused(*args, **kwargs):
        raise OSError("Name or service not known")

    for module in ("mnist", "cifar", "gtsrb", "utils"):
        for function in ("download_and_extract_archive", "download_url", "urlretrieve", "_urlretrieve"):
            where = utils if module == "utils" else __import__(f"torchvision.datasets.{module}", fromlist=["x"])
            if hasattr(where, function):
                monkeypatch.setattr(where, function, refused)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    with pytest.raises(ConnectionError, match=rf"LABKIT_DATA/{name}.npz.*Connect once, or set LABKIT_DATA"):
        load(name)


def without(key):
    return lambda a: {k: v for k, v in a.items() if k != key}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("test_labels"), "Add test_labels"),
        (lambda a: a | {"train_images": a["train_images"] / 255.0}, "train_images: expected uint8 .* got float64"),
        (lambda a: a | {"train_images": a["train_images"][..., :2]}, "got uint8 \\(100, 9, 8, 2\\)"),
        (lambda a: a | {"train_images": a["train_images"].reshape(100, -1)}, "got uint8 \\(100, 216\\)"),
        (lambda a: a | {"test_labels": a["test_labels"] + 0.5}, "test_labels: expected 20 integers"),
        (lambda a: a | {"test_labels": a["test_labels"][:-1]}, "got int64 \\(19,\\)"),
        (lambda a: a | {"test_labels": a["test_labels"] + 1}, "expected 0 to 4 for 5 classes; got 1 to 5"),
        (lambda a: a | {"train_labels": a["train_labels"] - 1}, "got -1 to 3"),
        (lambda a: a | {"test_images": a["test_images"][:0], "test_labels": a["test_labels"][:0]}, "at least one"),
        (lambda a: a | {"train_images": np.array([None] * 100)}, "numpy can't read"),
    ],
)
def test_a_wrong_file_is_named_with_expected_got_and_what_to_do(tmp_path, layout, damage, words):
    with pytest.raises(ValueError, match=words):
        load(saved(tmp_path, damage(layout)))


def test_no_file_unknown_name_and_no_npz(tmp_path):
    with pytest.raises(ValueError, match="no file at"):
        load(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match=r"expected one of signs, digits, mnist, cifar10, gtsrb.*got 'imagenet'"):
        load("imagenet")
    (tmp_path / "text.npz").write_text(json.dumps({"no": "npz"}))
    with pytest.raises(ValueError, match="numpy can't read"):
        load(tmp_path / "text.npz")


def test_an_image_set_selects_moves_and_refuses():
    data = ImageSet(torch.rand(6, 1, 2, 2), torch.arange(6) % 3, ("a", "b", "c"), "x")
    assert len(data[2]) == 1 and torch.equal(data[-1].images, data.images[5:])
    assert len(data[1:4]) == 3 and len(data[data.labels == 1]) == 2 and data[:2].classes == ("a", "b", "c")
    assert data.to("cpu").fingerprint == data.fingerprint != data[:5].fingerprint
    assert ImageSet(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0]), ("a",)).images.max() == 1
    with pytest.raises(AttributeError):
        data.labels = data.labels + 1
    for images, labels, words in (
        (torch.rand(6, 2, 2), torch.zeros(6).long(), "expected a float tensor"),
        (torch.rand(6, 1, 2, 2) + 1, torch.zeros(6).long(), "values in"),
        (torch.rand(6, 1, 2, 2), torch.zeros(5).long(), "expected 6 integers"),
        (torch.rand(6, 1, 2, 2), torch.full((6,), 3), "expected 0 to 2 for 3 classes; got 3 to 3"),
    ):
        with pytest.raises(ValueError, match=words):
            ImageSet(images, labels, ("a", "b", "c"))
