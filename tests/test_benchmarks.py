"""The benchmark compares like with like: the usual step learns what ours learns, from pairs of the same kind."""

import json
import os
import subprocess
import sys

import pytest
import torch
from stepping import step

from ccdlib.base import paths
from ccdlib.base.arithmetic import processor
from ccdlib.base.paths import ROOT
from ccdlib.data import load_data
from ccdlib.training import RunConfig, TaughtBy, prepare
from ccdlib.views import POLICIES, EpochViews

SMALL = {"n_train": 20, "batch": 10, "epochs": 1, "model": "resnet8"}


@pytest.fixture
def usual(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import usual

    with torch.random.fork_rng():  # the usual way draws from the global generator
        yield usual


@pytest.mark.parametrize("method", ["kd", "ccd"])
def test_the_usual_step_is_our_step(usual, method):
    config = RunConfig(**SMALL, method=method, views="cifar100", teacher=RunConfig(**SMALL, seed=1), weight_decay=5e-4)
    data = load_data("digits", n_train=20)
    teacher, student, optimiser = usual.networks(("resnet8", "resnet8"), data)
    ours = prepare([config], data, torch.device("cpu"), TaughtBy(teacher))[0]
    before, begun = ([part.clone() for part in network.state_dict().values()] for network in (teacher, student))
    batch = next(EpochViews(config, data, 0).batches())
    terms, *_ = step(ours, batch)
    loss = usual.distil(teacher, student, optimiser, batch.inputs.contiguous(), batch.labels[:10], method == "ccd")
    assert loss == pytest.approx(sum(terms.values()).item(), rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.state_dict().values(), strict=True))
    for mine, theirs in zip(ours.network.parameters(), student.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    assert not any(torch.equal(a, b) for a, b in zip(begun, student.state_dict().values(), strict=True))


def test_the_usual_views_are_pairs_and_every_op_of_a_policy_is_there(usual):
    data = load_data("digits", n_train=20)
    assert {name for policy in POLICIES.values() for name, _ in policy.steps} <= usual.PILLOW.keys()
    original, twin, labels = next(iter(usual.loader(data, "cifar100", 20, 0)))
    assert original.shape == twin.shape == (20, 1, 16, 16)
    assert not torch.equal(original, twin)
    assert labels.bincount().tolist() == [2] * 10


def test_the_table_is_printed_and_other_sections_are_kept(usual, tmp_path, monkeypatch, capsys):
    import bench

    file = tmp_path / "results.json"
    file.write_text('{"another": {"views": "as before"}}')
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "rate", "--repeats", "1", "--out", str(file)])
    bench.main()
    kept = json.loads(file.read_text())
    assert kept["another"]["views"] == "as before"
    assert kept[processor()]["rate"]["rows"][0]["GFLOP/s"] > 0
    assert "matrix product" in capsys.readouterr().out


def test_make_gpu_is_tests_benchmark_and_a_batch(usual):
    import gpu

    tests, bench, batch = gpu.steps(dry=False, hours=0.5, profile="paper")
    assert tests[-3:] == ["-m", "cuda", "tests"]
    assert {*bench[-1].split(",")} <= {*__import__("bench").SECTIONS}
    assert batch[-4:] == ["--hours", "0.5", "--profile", "paper"]
    assert (paths.PARAMS / "paper").is_dir()


@pytest.mark.drill
def test_the_dry_run_of_make_gpu_executes_what_needs_no_gpu(tmp_path):
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu.py")]
    environment = os.environ | {"CCD_OUTPUTS": str(tmp_path), "CCD_DEVICE": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no GPU: " in done.stdout
    for said in (" passed", "images/s", "overhead %", "hours would add: ", "jobs done in "):
        assert said in done.stdout, said
