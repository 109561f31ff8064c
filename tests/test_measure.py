"""What methods cost: from the networks alone, against the published counts and against steps that were run."""

import pytest
import torch

from ccdlib.data import Sizes, load_data
from ccdlib.evidence.cost import CIFAR, PUBLISHED, cost_table, method_configs, readable, step_cost
from ccdlib.evidence.published import KD
from ccdlib.evidence.teacher_views import training_weights
from ccdlib.methods import confidence
from ccdlib.models import build
from ccdlib.training import RunConfig, fit, predict, teacher_of_method
from ccdlib.training.recipes import NAMES
from ccdlib.training.work import cost
from ccdlib.views import POLICIES

DIGITS = Sizes(10, 1, 50)
HERE = {"data": "digits", "n_train": 50}


def test_the_published_costs_of_a_step():
    found = {name: cost(config, *CIFAR) for name, config in method_configs("wrn_40_2", "wrn_16_2").items()}
    assert {row["inputs"] for name, row in found.items() if name in ("CCD", "KD + JDA", "SSKD", "HSAKD")} == {256}
    assert found["CCD"]["step_macs"] / 1e9 == pytest.approx(110, abs=0.5)  # methods.md, section 8
    assert found["HSAKD"]["step_macs"] / 1e9 == pytest.approx(259, abs=1.5)
    assert (found["HSAKD"]["teacher stored"], found["HSAKD"]["student trained"]) == (8_024_484, 2_631_588)
    assert (found["CCD"]["teacher stored"], found["CCD"]["student trained"]) == (2_255_156, 703_284)
    assert {row["student stored"] for row in found.values()} == {703_284}, "tested as a bare backbone"
    assert found["CRD"]["memory bank bytes"] == 2 * 50_000 * 128 * 4
    heads = 2 * (128 * 128 + 128)  # Linear(d, d) twice
    assert found["SSKD"]["student trained"] == 703_284 + heads == found["CCD"]["student trained"] + heads


def test_every_published_pair_has_a_cost():
    assert {pair for pair in PUBLISHED if pair != ("resnet34", "resnet18")} == set(KD)
    for pair, where in PUBLISHED.items():
        ccd, hsakd = cost_table(method_configs(*pair, only=("CCD", "HSAKD")), *where)
        assert ccd["teacher stored"] + ccd["student trained"] < hsakd["teacher stored"] + hsakd["student trained"]
        assert ccd["training_macs"] > ccd["step_macs"] > 0
    assert hsakd["teacher stored"] == 98_271_912


@pytest.mark.parametrize("name", ["KD + JDA", "CCD", *NAMES.values()])
def test_what_is_counted_is_what_a_step_does(name):
    (config,) = method_configs("resnet20", "resnet8", recipe="small", negatives=32, only=(name,), **HERE).values()
    counted, measured = cost(config, DIGITS, 16), step_cost(config, steps=1)
    assert counted["inputs"] == measured["inputs"]
    # The loss's own products, and the input's gradient that is not needed: a few per cent of such small networks.
    assert counted["training_macs"] == pytest.approx(measured["training_macs"], rel=0.02)
    assert measured["seconds"] > 0
    smallest = counted["inputs"] * 16 * 16 * 16 * 4  # one feature map of the first stage
    assert smallest < measured["peak_bytes"] < 100 * smallest


@pytest.mark.parametrize("method", ["sskd", "hsakd"])
def test_bytes_are_those_of_the_files(method):
    plain = RunConfig(model="resnet8", n_train=40, epochs=1, batch=20)
    made = fit(teacher_of_method(method, plain))
    config = RunConfig(model="resnet8", n_train=40, epochs=1, batch=20, method=method, teacher=made.config)
    files = sum((made.folder / name).stat().st_size for name in ("weights.safetensors", "heads.safetensors"))
    headers = 25_000  # names and places of the tensors
    assert 0 < files - cost(config, Sizes(10, 1, 40), 16)["teacher bytes"] < headers


def test_a_cost_table_reads_sizes_from_the_data_and_is_readable():
    configs = method_configs("resnet8", "resnet8", recipe="small", negatives=32, only=("CCD", "CRD"), **HERE)
    rows = cost_table(configs, steps=2)
    assert [row["student stored"] for row in rows] == [sum(p.numel() for p in build("resnet8", 10, 1).parameters())] * 2
    shown = readable(rows)
    assert list(shown.columns) == ["CCD", "CRD"]
    assert shown.loc["memory bank (MB)"].tolist() == ["0.0", "0.1"]
    assert "step, time (ms)" in shown.index
    assert "step, time (ms)" not in readable(cost_table(configs)).index


def test_the_weights_of_training_images():
    data, policy = load_data("digits", n_train=30), POLICIES["cifar100"]
    teacher = build("resnet8", 10, 1, seed=3).eval()
    weights, twins, fired = training_weights(teacher, data, policy, seed=4)
    untouched = [not ops for ops in fired]
    assert torch.equal((twins == data.train_images).flatten(1).all(1) | ~torch.tensor(untouched), torch.ones(30).bool())
    assert len(fired) == 30
    assert not all(untouched)
    assert list(weights) == ["JDA", *dict.fromkeys(op for op, _ in policy.effective(1))]
    again = confidence(torch.cat([predict(teacher, data, data.train_images), predict(teacher, data, twins)]))
    torch.testing.assert_close(weights["JDA"], again)
    assert all(len(found) == 30 and found.min() >= 0 and found.max() <= 2.0001 for found in weights.values())
    inverted = predict(teacher, data, 255 - data.train_images)
    torch.testing.assert_close(weights["invert"], confidence(torch.cat([predict(teacher, data, data.train_images), inverted])))
