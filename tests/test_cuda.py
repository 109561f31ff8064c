"""What a GPU must do, for `make gpu`. Without a GPU the same lines run on the CPU, to find mistakes before one is rented."""

import pytest
import torch
from stepping import interrupt

from ccdlib.data import load_data
from ccdlib.methods import CLASSIFYING, METHODS
from ccdlib.training import RunConfig, evaluate, fit, fit_cohort, predict, teacher_of_method
from ccdlib.views import EpochViews

pytestmark = pytest.mark.cuda
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SMALL = {"n_train": 40, "batch": 20, "epochs": 2, "model": "resnet8", "device": DEVICE}
TEACHER = RunConfig(**SMALL, seed=7)
JDA = SMALL | {"views": "cifar100", "teacher": TEACHER}


@pytest.mark.parametrize(
    "method", CLASSIFYING if GPU else ["ccd", "crd", "hsakd"]
)  # tests/test_methods.py trains all on the CPU
def test_every_method_trains(method, trained):
    trained(TEACHER)
    teacher = teacher_of_method(method, TEACHER) if METHODS[method].teacher == "needed" else None
    settings = {"negatives": 8} if method == "crd" else {}
    result = fit(RunConfig(**JDA | {"teacher": teacher, "epochs": 1}, method=method, settings=settings), show="none")
    assert result.metrics["provenance"]["device"].startswith(DEVICE)
    assert result.metrics["provenance"]["precision"] == ("bfloat16" if GPU else "float32")


def test_a_detector_is_taught(trained):
    scenes = {"data": "scenes", "n_train": 12, "batch": 6, "epochs": 1, "device": DEVICE}
    teacher = RunConfig(**scenes, model="frcnn_resnet20", method="detection")
    config = RunConfig(**scenes, model="frcnn_resnet8", method="detection_ccd", views="detection", teacher=teacher)
    trained(config)
    row = fit(config, show="none").curves[-1]
    assert all(torch.isfinite(torch.tensor(row[name])) for name in ("ce", "box", "proposals", "kd"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_learns_in_every_precision(precision, trained):
    config = RunConfig(**JDA | {"n_train": 200, "epochs": 6, "precision": precision, "portable": True}, method="ccd")
    result = fit(config, show="none")
    assert result.accuracy > 20
    made = result.metrics["provenance"]
    assert made["precision"] == precision
    assert not (GPU and made["portable"]), "portable bits are a CPU's"


@pytest.mark.parametrize("views", ["cifar100", "cifar10", "mixup", "cutmix", "rotation", "randaugment"])
def test_views_have_the_pixels_of_the_cpu(views):
    data = load_data("objects", n_train=60)
    config = RunConfig(data="objects", n_train=60, batch=30, views=views)
    there = EpochViews(config, data.to(DEVICE), 0).batches()
    for ours, theirs in zip(there, EpochViews(config, data, 0).batches(), strict=True):
        assert ours.inputs.device.type == DEVICE
        assert torch.allclose(ours.inputs.cpu(), theirs.inputs, atol=1e-5)
        assert torch.allclose(ours.labels.cpu().float(), theirs.labels.float(), atol=1e-6)


def test_a_network_says_what_it_says_on_the_cpu(trained):
    trained(TEACHER)
    network, data = fit(TEACHER, show="none").model(), load_data("digits")
    images = data.test_images[:100]
    expected = predict(network, data, images)
    there = network.to(DEVICE)
    assert torch.allclose(predict(there, data.to(DEVICE), images, DEVICE, precision="float32").cpu(), expected, atol=1e-2)
    half = predict(there, data.to(DEVICE), images, DEVICE, precision="bfloat16").cpu()
    assert (half - expected).abs().max() < 0.1 * expected.abs().max()
    reached = evaluate(there, data.to(DEVICE), DEVICE, precision="float32")["accuracy"]
    assert abs(reached - evaluate(there.cpu(), data)["accuracy"]) < 0.5


def test_a_cohort_trains_together_and_goes_on(trained, monkeypatch):
    trained(TEACHER)
    configs = [RunConfig(**JDA | {"epochs": 4}, method=method) for method in ("kd", "ccd", "crd")]
    configs[2] = configs[2].but(settings={"negatives": 8})
    interrupt(configs, monkeypatch, epochs=2)
    results = fit_cohort(configs, show="none")
    assert all(result.metrics["resumed"] and len(result.curves) == 4 for result in results)


def test_images_in_files_train():
    what = {"data": "photos", "n_train": 48, "batch": 16, "model": "resnet8", "epochs": 1, "device": DEVICE}
    assert fit(RunConfig(**what, views="imagenet", jda="after crop"), show="none").curves


@pytest.mark.skipif(not GPU, reason="CUDA names its memory")
def test_nothing_of_a_training_stays_on_the_gpu(trained):
    fit(TEACHER, show="none")
    before = torch.cuda.memory_allocated()
    fit(RunConfig(**JDA, method="kd"), show="none")
    assert torch.cuda.memory_allocated() <= before + 2**22
