"""Every test has an output folder of its own; what was computed by hand is never touched."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scheduling import TestByTest

from ccdlib.base import arithmetic, paths
from ccdlib.training import RunConfig, fit

if arithmetic.can_be_portable():
    arithmetic.make_portable()
os.environ.setdefault("CCD_DEVICE", "cpu")  # golden numbers are a CPU's; tests of CUDA name it


def pytest_xdist_make_scheduler(config, log):
    """What `--dist loadscope` means here."""
    return TestByTest(config, log)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """The folder that stands for outputs/ in this test."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("CCD_OUTPUTS", str(folder))
    for name in ("CCD_REPAIR", "CCD_FROM"):  # the second is set for the check of the notebooks
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CCD_SAVE_EVERY", "0")
    return folder


@pytest.fixture(scope="session")
def _store(tmp_path_factory):
    """Outputs that all tests of a process share."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def once(_store, monkeypatch):
    """A function that fits configurations once for all tests: their results, in a store that tests only read."""

    def fitted(*configs):
        with monkeypatch.context() as patch:
            patch.setenv("CCD_OUTPUTS", str(_store))
            return [fit(config, show="none") for config in configs]

    return fitted


@pytest.fixture
def trained(once, outputs):
    """A function that fits once as well, and puts copies of the runs and of their teachers' where the test may damage them;
    returns the folders of the copies."""

    def copied(*configs):
        taught = [config.teacher for config in configs if isinstance(config.teacher, RunConfig)]
        found = [result.folder for result in once(*configs, *taught)]
        copies = [shutil.copytree(folder, outputs / "runs" / folder.name, dirs_exist_ok=True) for folder in found]
        return copies[: len(configs)]

    return copied


@pytest.fixture(autouse=True)
def _untouched_global_generator():
    """Nothing in the kit draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was touched"


@pytest.fixture(scope="session")
def cifar100_slice():
    """Arrays of 2,000 training and 200 test images of the real CIFAR-100, as an npz data set has them."""
    return _cifar100(20, 2)


@pytest.fixture
def cifar100():
    """Arrays of the whole real CIFAR-100, with images (N, C, H, W)."""
    arrays = _cifar100(500, 100)
    return arrays | {name: arrays[name].transpose(0, 3, 1, 2) for name in ("train_images", "test_images")}


def _cifar100(train, test):
    """So many mosaics of a hundred images from each split."""
    folder = Path(os.environ.get("CCD_TEST_DATA") or paths.ROOT.parent / "shared" / "data")
    file = folder / "cifar100_webp.npz"
    if not file.exists():
        pytest.skip(f"the real CIFAR-100 is not at {file}; set CCD_TEST_DATA to its folder")
    with np.load(file) as archive:
        arrays = {"label_names": archive["fine_label_names"]}
        for split, count in (("train", train), ("test", test)):
            blob, offsets = archive[f"{split}_webp"].tobytes(), archive[f"{split}_offsets"]
            # Each WebP is a lossless mosaic of ten by ten images, row by row.
            mosaics = [np.array(Image.open(io.BytesIO(blob[offsets[k] : offsets[k + 1]]))) for k in range(count)]
            tiles = [m.reshape(10, 32, 10, 32, 3).swapaxes(1, 2).reshape(100, 32, 32, 3) for m in mosaics]
            arrays[f"{split}_images"] = np.concatenate(tiles)
            arrays[f"{split}_labels"] = archive[f"{split}_labels"][: 100 * count].astype(np.int64)
    return arrays
