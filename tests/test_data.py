"""Every data source, on real files, and what each says to a file it cannot use."""

import importlib.metadata
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ccdlib.base import paths
from ccdlib.base.registry import CcdError
from ccdlib.base.vision import torchvision
from ccdlib.data import DATASETS, arrays, load_data, sources
from ccdlib.data.dataset import content_of


def npz(path, **changes):
    """A small colour data set of three classes as an npz file; returns its name for load_data."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (12, 10, 10, 3), dtype=np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": rng.integers(0, 256, (6, 10, 10, 3), dtype=np.uint8),
        "test_labels": np.arange(6) % 3,
    } | changes
    np.savez(path / "d.npz", **{name: value for name, value in arrays.items() if value is not None})
    return f"npz:{path / 'd.npz'}"


def folder(path, classes=("cat", "dog"), parts=("train", "val"), count=2):
    """A small image folder; returns its name for load_data."""
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (path / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / part / name / f"{k}.png")
    return f"folder:{path}"


def test_digits_are_the_1797_scans_in_a_fixed_split():
    data = load_data("digits")
    assert data.train_images.shape == (1000, 1, 16, 16)
    assert data.test_images.shape == (797, 1, 16, 16)
    assert data.train_images.dtype == torch.uint8
    assert (data.classes, data.channels, data.pad, data.flip) == (10, 1, 2, False)
    assert data.train_labels.bincount().min() >= 97
    assert data.test_labels.bincount().min() >= 77
    # The pixels themselves: another Pillow, scikit-learn or split would change every result.
    assert data.fingerprint.startswith("816b003ef15b5c0e")
    pixels = data.train_images.double() / 255
    assert data.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-4)
    assert data.std[0] == pytest.approx(pixels.std().item(), abs=1e-4)


def test_no_training_scan_is_in_the_test_set():
    data = load_data("digits")
    train = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in train for image in data.test_images)


@pytest.mark.parametrize("shape", [(10, 10), (10, 10, 1), (10, 10, 3), (9, 14, 3)])
def test_npz_grey_and_colour(tmp_path, shape):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, *shape), dtype=np.uint8) for n in (12, 6))
    data = load_data(npz(tmp_path, train_images=train, test_images=test))
    height, width, channels = (*shape, 1)[:3]
    assert data.train_images.shape == (12, channels, height, width)
    assert np.array_equal(data.test_images.permute(0, 2, 3, 1).numpy(), test.reshape(6, height, width, channels))
    assert data.train_labels.dtype == torch.int64


def test_a_constant_channel_is_not_blown_up(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 10, 10, 3), dtype=np.uint8)
    images[..., 1] = 7
    data = load_data(npz(tmp_path, train_images=images))
    assert data.std[1] == 1.0
    assert data.std[0] == pytest.approx(np.std(images[..., 0] / 255), abs=1e-4)


def test_npz_class_names_and_column_labels(tmp_path):
    name = npz(tmp_path, train_labels=(np.arange(12) % 3)[:, None], label_names=np.array(["a", "b", "c"]))
    data = load_data(name)
    assert data.class_names == ("a", "b", "c")
    assert data.train_labels.shape == (12,)


def test_a_changed_file_is_read_again(tmp_path):
    before = load_data(npz(tmp_path)).fingerprint
    changed = np.zeros((12, 10, 10, 3), dtype=np.uint8)
    path = tmp_path / "d.npz"
    stamp = path.stat().st_mtime_ns
    name = npz(tmp_path, train_images=changed)
    assert path.stat().st_mtime_ns != stamp
    assert load_data(name).fingerprint != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, r"lacks test_labels; it has train_images, train_labels, test_images"),
        ({"train_images": np.zeros((12, 10, 10, 3))}, "train_images .* is float64; images must be uint8"),
        ({"train_images": np.zeros((12, 10, 10, 2), np.uint8)}, r"has shape \(12, 10, 10, 2\); allowed are"),
        ({"train_labels": np.zeros(12)}, "labels must be whole numbers"),
        ({"train_labels": np.arange(11) % 3}, "12 train images and 11 labels"),
        ({"test_labels": np.array([0, 1, 2, 3, 0, 1])}, "test labels go from 0 to 3; allowed are 0 to 2"),
        ({"train_labels": np.arange(12) % 3 - 1}, "train labels go from -1 to 1; allowed are 0 to"),
        ({"train_labels": np.arange(12) % 2 * 2}, r"of 3 classes, 1 have no training image \(1\)"),
        ({"train_labels": np.arange(12) % 3 + 10**13}, "classes are more than the 12 training images"),
        ({"train_labels": np.zeros(12, int), "test_labels": np.zeros(6, int)}, "at least two"),
        ({"test_images": np.zeros((6, 8, 8, 3), np.uint8)}, "they must be equal"),
        ({"train_images": np.array([None] * 12)}, "cannot be read as an npz archive"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, changes, message):
    with pytest.raises(CcdError, match=message):
        load_data(npz(tmp_path, **changes))


def test_npz_missing_or_torn(tmp_path):
    with pytest.raises(CcdError, match="there is no .*nothing.npz"):
        load_data(f"npz:{tmp_path}/nothing.npz")
    name = npz(tmp_path)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CcdError, match="cannot be read as an npz archive"):
        load_data(name)


def test_folder(tmp_path):
    data = load_data(folder(tmp_path), side=16)
    assert data.train_images.shape == (4, 3, 16, 16)
    assert data.class_names == ("cat", "dog")
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    expected = Image.open(tmp_path / "val" / "dog" / "1.png").resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(data.test_images[3].permute(1, 2, 0).numpy(), np.array(expected))


def test_a_changed_image_is_read_again(tmp_path):
    name = folder(tmp_path)
    before = load_data(name).fingerprint
    Image.new("RGB", (20, 30)).save(tmp_path / "train" / "cat" / "0.png")
    assert load_data(name).fingerprint != before


def test_examples_are_of_different_classes_as_far_as_there_are_any(tmp_path):
    assert load_data("digits").test_labels[load_data("digits").examples(4)].tolist() == [0, 1, 2, 3]
    data = load_data(npz(tmp_path, test_labels=np.array([2, 2, 0, 2, 0, 0])))
    assert data.examples(4) == [2, 0]


def test_folder_that_cannot_be_used(tmp_path):
    with pytest.raises(CcdError, match="there is no"):
        load_data(f"folder:{tmp_path}/nothing")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CcdError, match=r"A folder data set has train/CLASS"):
        load_data(f"folder:{tmp_path}/file")
    (tmp_path / "a").mkdir()
    with pytest.raises(CcdError, match=r"A folder data set has train/CLASS"):
        load_data(f"folder:{tmp_path}/a")
    name = folder(tmp_path / "b")
    (tmp_path / "b" / "train" / "bird").mkdir()
    with pytest.raises(CcdError, match="bird"):
        load_data(name)
    name = folder(tmp_path / "c")
    (tmp_path / "c" / "val" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(CcdError, match=r"val/dog/1.png cannot be read as an image"):
        load_data(name)
    folder(tmp_path / "d", parts=("train",))
    folder(tmp_path / "d", parts=("val",), classes=("cat", "cow"))
    with pytest.raises(CcdError, match="they must be the same"):
        load_data(f"folder:{tmp_path}/d")
    with pytest.raises(CcdError, match="side = 4"):
        load_data(folder(tmp_path / "e"), side=4)


def cifar_files(root, name):
    """Files in the format of the real archives, with random pixels."""
    rng = np.random.default_rng(0)
    base, key, parts, classes = {
        "cifar10": ("cifar-10-batches-py", "labels", [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"], 10),
        "cifar100": ("cifar-100-python", "fine_labels", ["train", "test"], 100),
    }[name]
    (root / base).mkdir(parents=True)
    for part in parts:
        content = {"data": rng.integers(0, 256, (200, 3072), dtype=np.uint8), key: [k % classes for k in range(200)]}
        (root / base / part).write_bytes(pickle.dumps(content))
    meta, names = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    (root / base / meta).write_bytes(pickle.dumps({names: [f"class {k}" for k in range(classes)]}))
    return root / base / parts[-1]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_through_torchvision(tmp_path, monkeypatch, name):
    monkeypatch.setenv("CCD_DATA", str(tmp_path))
    # The real archives' checksums cannot match files made here; everything after them is the real code.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    test_file = cifar_files(tmp_path, name)

    sources._load.cache_clear()
    data = load_data(name)
    sources._load.cache_clear()
    assert data.test_images.shape == (200, 3, 32, 32)
    assert data.classes == int(name.removeprefix("cifar"))
    content = pickle.loads(test_file.read_bytes())
    stored = {pixels.tobytes(): label for pixels, label in zip(content["data"], list(content.values())[1], strict=True)}
    named = [f"class {stored[image.numpy().tobytes()]}" for image in data.test_images]
    assert [data.class_names[label] for label in data.test_labels] == named
    assert data.flip
    assert data.pad == 4


def test_copies_of_a_data_set_become_equal():
    rng = np.random.default_rng(0)
    one = {f"{split}_images": rng.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8) for split in ("train", "test")}
    one |= {f"{split}_labels": np.arange(30) % 3 for split in ("train", "test")}
    rows, other = rng.permutation(30), {}
    for split in ("train", "test"):
        other[f"{split}_images"] = one[f"{split}_images"][rows]
        other[f"{split}_labels"] = (2 - one[f"{split}_labels"])[rows]
    (a, names), (b, same) = arrays.in_order(one, list("abc")), arrays.in_order(other, list("cba"))
    assert names == same == ("a", "b", "c")
    assert content_of(a) == content_of(b) != content_of(one)
    pairs = {(image.tobytes(), label) for image, label in zip(one["train_images"], one["train_labels"], strict=True)}
    assert {(image.tobytes(), label) for image, label in zip(a["train_images"], a["train_labels"], strict=True)} == pairs
    swapped = one | {"train_labels": one["train_labels"][::-1].copy()}
    assert content_of(arrays.in_order(swapped, list("abc"))[0]) != content_of(a)


def test_cifar_from_an_npz_file_is_known_by_its_content(tmp_path, monkeypatch, cifar100_slice):
    monkeypatch.setenv("CCD_DATA", str(tmp_path))
    np.savez(tmp_path / "cifar100.npz", **cifar100_slice)
    with pytest.raises(
        CcdError, match=r"cifar100.npz does not hold CIFAR100: the SHA-256 .*label_names; remove it, or name it with"
    ):
        load_data("cifar100")
    # The content of this part of CIFAR-100 in the place of that of all of it.
    content = content_of(arrays.in_order(*arrays.npz(tmp_path / "cifar100.npz"))[0])
    monkeypatch.setitem(arrays.CIFAR, "CIFAR100", arrays.Known("", content))
    assert load_data("cifar100").train_images.shape == (2000, 3, 32, 32)
    sources._load.cache_clear()


@pytest.mark.drill
def test_the_content_of_cifar100(cifar100):
    assert content_of(arrays.in_order(cifar100, cifar100["label_names"])[0]) == arrays.CIFAR["CIFAR100"].content


def test_an_archive_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CCD_DATA", str(tmp_path))

    def download(self):
        if not (tmp_path / self.filename).exists():
            (tmp_path / self.filename).write_bytes(b"another archive")
            cifar_files(tmp_path, "cifar100")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(CcdError, match=r"has the SHA-256 \w+ instead of 85cd44d0\w+; remove it and the folder"):
        load_data("cifar100")
    with pytest.raises(CcdError, match=r"has the SHA-256 \w+ instead of"):  # also when it is there already
        load_data("cifar100")
    sources._load.cache_clear()


def test_no_network_for_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("CCD_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(CcdError, match=r"CIFAR100 is not in .*empty and could not be downloaded .*CCD_DATA"):
        load_data("cifar100")


@pytest.mark.parametrize("name", ["digit", "npz", "npz:", "digits:here", "imagenet"])
def test_unknown_names_list_what_is_there(name):
    every = "Allowed: objects, digits, cifar10, cifar100, npz:PATH, folder:PATH, imagenet:PATH, scenes, coco:PATH, photos"
    with pytest.raises(CcdError, match=f"unknown dataset .*{every}"):
        load_data(name)
    known = {"objects", "digits", "cifar10", "cifar100", "npz", "folder", "imagenet", "scenes", "coco", "photos"}
    assert set(DATASETS) == known


def test_subsets_are_stratified_nested_and_repeatable():
    data = load_data("digits")
    small, large = data.subset(50, seed=3), data.subset(200, seed=3)
    assert small.train_labels.bincount().tolist() == [5] * 10
    assert large.train_labels.bincount().tolist() == [20] * 10
    in_large = {image.numpy().tobytes() for image in large.train_images}
    assert all(image.numpy().tobytes() in in_large for image in small.train_images)
    assert torch.equal(small.train_images, data.subset(50, seed=3).train_images)
    assert not torch.equal(small.train_images, data.subset(50, seed=4).train_images)
    assert torch.equal(small.test_images, data.test_images)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 1.0])
def test_subsets_by_fraction_keep_the_class_proportions(fraction):
    data = load_data("digits")
    part = data.subset(fraction)
    assert len(part.train_labels) == round(fraction * 1000)
    exact = data.train_labels.bincount() * fraction
    assert (part.train_labels.bincount() - exact).abs().max() <= 1


def test_an_uneven_data_set_keeps_every_class(tmp_path):
    data = load_data(npz(tmp_path, train_labels=np.array([0] * 9 + [1] * 2 + [2])))
    assert data.subset(3).train_labels.tolist() == [0, 1, 2]
    assert data.subset(6).train_labels.bincount().min() >= 1


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (1001, "1001 training images were asked for; the data has 1000"),
        (9, "leave some of the 10 classes empty"),
        (0, "leave some of the 10 classes empty"),
        (0.0, "allowed are fractions above 0 up to 1"),
        (1.5, "allowed are fractions above 0 up to 1"),
        ("many", "give a whole number"),
        (True, "give a whole number"),
    ],
)
def test_impossible_subsets(amount, message):
    with pytest.raises(CcdError, match=message):
        load_data("digits", n_train=amount)


def test_downloads_go_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("CCD_DATA", raising=False)
    assert paths.downloads() == paths.ROOT / "data"
    monkeypatch.setenv("CCD_DATA", str(tmp_path))
    assert paths.downloads() == tmp_path


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"words"], ids=["none", "empty", "cut off", "words"])
def test_the_kept_digits_are_the_digits_and_are_made_again_when_damaged(tmp_path, monkeypatch, content):
    monkeypatch.setenv("CCD_DATA", str(tmp_path / "data"))
    fingerprint = load_data("digits").fingerprint
    if content is not None:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"digits-{importlib.metadata.version('scikit-learn')}.npz").write_bytes(content)
    for _ in range(2):  # made, then read
        found, names = arrays.digits()
        assert len(found["train_images"]) == 1000
        assert len(names) == 10
    made, kept = arrays._digits_of_sklearn(), arrays.digits()[0]
    assert all(np.array_equal(made[name], kept[name]) for name in made)
    assert load_data("digits").fingerprint == fingerprint
    assert [path.name for path in (tmp_path / "data").iterdir()] == [f"digits-{importlib.metadata.version('scikit-learn')}.npz"]


def test_digits_without_a_place_to_keep_them(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CCD_DATA", str(tmp_path / "file" / "data"))
    assert len(arrays.digits()[0]["test_images"]) == 797
