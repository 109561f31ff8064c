"""Several processes that train one network, and batches that are seen in parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_batch import processes

from ccdlib import training
from ccdlib.base.registry import CcdError
from ccdlib.data import load_data
from ccdlib.methods import ANSWERS, LOSSES, METHODS, TWINS, WEIGHTS
from ccdlib.models import Output
from ccdlib.training import Diverged, RunConfig, TaughtBy, checks, fit, group, loop
from ccdlib.views import EpochViews

SMALL = {"n_train": 90, "batch": 45, "epochs": 2, "model": "resnet8"}
TEACHER = RunConfig(**SMALL, seed=7)
CCD = RunConfig(**SMALL, method="ccd", views="cifar100", teacher=TEACHER)

# One process of a group: a step on its part of the first batch; the first one keeps what the step has left.
STEP = """
import sys, torch
from test_group import after_one_step
from ccdlib import RunConfig
from ccdlib.training import group
with group.joined():
    left = after_one_step(RunConfig.model_validate_json(sys.argv[1]))
    if group.rank() == 0:
        torch.save(left, sys.argv[2])
"""


def after_one_step(config):
    """(gradients, batch norm statistics, mean terms and accuracy, evaluation) after a step on all parts of the first batch.

    In float64, so that what is left of a difference is no rounding: batch norms enlarge it.
    """
    build, forward = loop.build, training.Trainee._forward
    try:
        loop.build = lambda *given: build(*given).double()
        training.Trainee._forward = lambda self, network, inputs: network(inputs.double())
        return _after_one_step(config)
    finally:
        loop.build, training.Trainee._forward = build, forward


def _after_one_step(config):
    data = load_data(config.data, n_train=config.n_train)
    teacher = loop.build(config.teacher.model, data.classes, data.channels, 3).eval() if config.teacher else None
    (trainee,) = training.prepare([config], data, torch.device("cpu"), TaughtBy(teacher))
    trainee.begin(0)
    log = training.Log()
    for batch in EpochViews(config, data, 0, group.rank(), group.size()).batches():
        if batch.step == (0, 0):
            training.train_step([trainee], batch, [log])
    row = log.row(trainee, 0)
    gradients = {name: p.grad.clone() for name, p in trainee.network.named_parameters()}
    statistics = {name: b.clone() for name, b in trainee.network.named_buffers()}
    tested = training.evaluate(trainee.network.float(), data)
    return gradients, statistics, [row[key] for key in sorted(row)], [tested["accuracy"], tested["loss"]]


def torchrun(script, *arguments, processes=2):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), script]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


def close(given, expected, relative=1e-9):
    """Whether two dicts of tensors are equal to rounding, each tensor by its own size."""
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (given[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-12)
        assert error < relative, f"{name}: {error}"


@pytest.mark.drill
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "kd", "views": "rotation", "accumulate": 2, "clip": 0.5},
        {"method": "kd", "share": 0.5, "twins": 2},
        {"method": "ce", "teacher": None, "views": "mixup"},
        {"optimiser": "asam"},
    ],
    ids=lambda changes: changes.get("views", changes.get("method", changes.get("optimiser", "ccd"))),
)
def test_the_gradient_of_two_processes_is_that_of_one_on_the_joined_batch(changes, tmp_path):
    config = RunConfig(**dict(CCD) | changes)
    script = tmp_path / "step.py"
    script.write_text(STEP)
    torchrun(str(script), config.model_dump_json(), str(tmp_path / "left"))
    alone, two = after_one_step(config), torch.load(tmp_path / "left")
    close(two[0], alone[0])
    close(two[1], alone[1])
    assert two[2] == pytest.approx(alone[2], rel=1e-4)
    assert two[3] == pytest.approx(alone[3], rel=1e-4)
    assert all(gradient.norm() > 0 for gradient in alone[0].values())


# ---------------------------------------------------------------- parts of a batch


def outputs(n, classes=5):
    generator = torch.Generator().manual_seed(n)
    return [
        Output(torch.randn(n, classes, generator=generator), (torch.randn(n, 4, 3, 3, generator=generator),), torch.randn(n, 6))
        for _ in range(2)
    ]


def rows_of(output, rows):
    return Output(output.logits[rows], tuple(feature[rows] for feature in output.feats), output.pooled[rows])


CASES = [(name, {}) for name in LOSSES] + [("ccd", {"weight": weight}) for weight in WEIGHTS]
CASES += [("kd_twins", {"twins": row}) for row in TWINS] + [("kd_twins", {"answers": row, "hard": False}) for row in ANSWERS]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_losses_that_are_said_to_be_means_over_images_are(name, settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = outputs(12)
    labels = torch.arange(12) % 5
    some = torch.tensor([0, 1, 3])
    labels[some] = teacher.logits[6 + some].argmax(1)  # the teacher is right on these twins
    labels[6:] = labels[:6]
    loss = LOSSES[name]

    def value(rows):
        taught = () if name == "ce" else (rows_of(teacher, rows),)
        return sum(loss(rows_of(student, rows), *(taught or (None,)), labels[rows], **settings).values())

    first, second = torch.tensor([0, 1, 6, 7]), torch.tensor([2, 3, 4, 5, 8, 9, 10, 11])
    by_parts = (4 * value(first) + 8 * value(second)) / 12
    same = torch.allclose(by_parts, value(torch.arange(12)), rtol=1e-5)
    assert same == METHODS[name].by_image(settings)


def test_passes_and_parts_hold_every_image_once_and_weigh_by_their_inputs(monkeypatch):
    config = RunConfig(**dict(CCD) | {"accumulate": 3, "method": "kd", "share": 0.5})
    data = load_data("digits", n_train=90)
    seen = []
    for rank in range(2):
        parts = EpochViews(config, data, 1, rank, 2).parts()
        assert [(part.step, part.of) for part in parts] == [((1, s), (k, 3)) for s in range(2) for k in range(3)]
        seen += parts
    assert torch.cat([part.rows for part in seen]).sort().values.tolist() == list(range(90))
    for step in range(2):
        assert sum(part.weight for part in seen if part.step == (1, step)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "sp", "accumulate": 2}, "compares the images of a batch with each other, or trains heads"),
        ({"method": "crd", "processes": 2}, "Allowed methods: ce, kd, ccd"),
        ({"settings": {"weight": "shuffled"}, "processes": 2}, "a weight that is computed for each image alone"),
        ({"batch": 15, "accumulate": 2, "processes": 2}, "allowed are batches from 16 images"),
        ({"method": "kd", "views": "cutmixpick", "accumulate": 2}, "choose among all images of a step"),
        ({"processes": 0}, "processes = 0"),
        ({"clip": -1.0}, "clip = -1.0"),
        ({"teacher": TEACHER.but(batch=6), "processes": 2}, "batch = 6 with accumulate 1 and 2 processes"),
        ({"jda": "after"}, "jda = 'after'"),
    ],
)
def test_what_cannot_be_seen_in_parts_is_refused(changes, says):
    with pytest.raises(CcdError, match=says):
        RunConfig(**dict(CCD) | changes)


def test_parts_without_images_are_refused_before_training():
    config = RunConfig(**dict(CCD) | {"n_train": 10, "accumulate": 4, "processes": 2})
    with pytest.raises(CcdError, match="10 training images .batch 45. has fewer than two images for each of its 8 parts"):
        checks.check([config])


def test_processes_that_torchrun_started_are_checked_as_if_the_file_had_named_them(tmp_path, monkeypatch, capsys):
    from ccdlib import cli

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "run.yaml").write_text("method: sp\nteacher: {}\n")
    with pytest.raises(SystemExit):
        cli.main(["fit", str(tmp_path / "run.yaml")])
    assert "processes = 2: method 'sp'" in capsys.readouterr().err


def test_how_many_processes_there_are_names_no_run_and_later_fields_only_where_they_say_something():
    name = training.folder_of(CCD).path.name
    assert training.folder_of(CCD.but(processes=2)).path.name == name
    for change in ({"accumulate": 2}, {"clip": 1.0}, {"jda": "after crop"}):
        assert training.folder_of(CCD.but(**change)).path.name != name


def test_a_gradient_is_cut_to_the_norm_that_is_asked_for():
    (free, *_), (cut, *_) = after_one_step(CCD), after_one_step(CCD.but(clip=0.1))

    def norm(gradients):
        return torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()

    assert norm(free) > 0.2
    assert norm(cut) == pytest.approx(0.1, rel=1e-3)


# ---------------------------------------------------------------- groups that are started


@pytest.mark.drill
def test_a_run_of_two_processes_is_found_and_a_lost_process_costs_nothing(outputs, monkeypatch):
    config = RunConfig(**dict(CCD) | {"epochs": 80, "processes": 2})
    monkeypatch.setenv("CCD_OUTPUTS", str(outputs / "whole"))
    whole = fit(config, show="none")
    assert fit(config.but(processes=1), show="none").metrics == whole.metrics
    # The same with a process that is killed in the middle.
    monkeypatch.setenv("CCD_OUTPUTS", str(outputs / "killed"))
    file = outputs / "run.json"
    file.write_text(config.model_dump_json())
    begun = subprocess.Popen([sys.executable, "-m", "ccdlib", "fit", str(file)], stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list((outputs / "killed").glob("runs/ccd-*/resume.pt")):
        assert time.time() < deadline
        assert begun.poll() is None
        time.sleep(0.02)
    workers = [pid for pid in processes(None, "-m ccdlib fit", "runs.json") if "torch.distributed.run" not in command(pid)]
    os.kill(workers[-1], signal.SIGKILL)
    said = begun.communicate(timeout=200)[0]
    assert begun.returncode == 0
    killed = fit(config, show="none")
    assert said.count(f"{killed.accuracy:.2f} %") == 1
    assert killed.metrics["resumed"]
    assert killed.metrics["sha256"]["weights.safetensors"] == whole.metrics["sha256"]["weights.safetensors"]


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


@pytest.mark.drill
def test_a_mistake_in_a_group_is_one_clear_error_and_no_restart(outputs):
    config = RunConfig(**dict(CCD) | {"lr": 1e20, "processes": 2, "teacher": None, "method": "ce"})
    with pytest.raises(CcdError, match="not (a )?finite number") as error:
        fit(config, show="none")
    assert not isinstance(error.value, Diverged)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(("device", "started"), [("auto", "3"), ("cpu", "8")])
def test_on_fewer_gpus_fewer_processes_train_the_same_run(device, started, monkeypatch, capsys):
    monkeypatch.setenv("CCD_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(group.subprocess, "Popen", lambda command, **options: (_ for _ in ()).throw(InterruptedError(command)))
    with pytest.raises(InterruptedError) as begun:
        group.launch([CCD.but(processes=8, device=device)], "none")
    (command,) = begun.value.args
    assert command[command.index("--nproc-per-node") + 1] == started
    assert ("8 processes were asked for, but this machine has 3 GPUs" in capsys.readouterr().err) == (started == "3")


def test_files_of_runs_that_are_none_are_refused(tmp_path, capsys):
    from ccdlib import cli

    for text, says in {
        "[]": "does not describe a run",
        "a: [": "cannot be read as YAML",
        json.dumps({"modle": "x"}): "model",
    }.items():
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", str(tmp_path / "run.yaml")])
        assert stop.value.code == 2
        assert says in capsys.readouterr().err
