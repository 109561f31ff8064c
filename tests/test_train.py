"""The training loop and the run store: what a run is, that it is found again, and that it survives whatever happens to it."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from stepping import step

from ccdlib import training
from ccdlib.base import paths
from ccdlib.base.files import sha256
from ccdlib.base.registry import CcdError
from ccdlib.data import ARRAYS, arrays, load_data
from ccdlib.methods import LOSSES, METHODS
from ccdlib.models import MODELS, build
from ccdlib.training import (
    RECIPES,
    Checkpoint,
    DamagedRun,
    Diverged,
    RunConfig,
    cohort,
    evaluate,
    fit,
    folder_of,
    identity,
    prepare,
    recipe_of,
    store,
    teacher_of_method,
    untrained,
)
from ccdlib.training.checks import check, data_of
from ccdlib.training.identity import CHANGED_IN, PROTOCOL
from ccdlib.views import POLICIES, VIEWS, EpochViews, Policy, normalise

SMALL = {"n_train": 40, "batch": 20, "epochs": 2, "model": "resnet8"}
TEACHER = RunConfig(**SMALL, seed=7)

# A process of its own that fits the configuration in its argument and prints how many epochs it trained.
FIT = """
import sys
from ccdlib import RunConfig, fit
from ccdlib.training import cohort
epoch, trained = cohort.train_epoch, []
cohort.train_epoch = lambda *args: trained.append(1) or epoch(*args)
result = fit(RunConfig.model_validate_json(sys.argv[1]))
print(len(trained), result.accuracy)
"""


def start(config, **options):
    return subprocess.Popen(
        [sys.executable, "-c", FIT, config.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


def weights(result):
    return sha256(result.folder / "weights.safetensors")


def never(*args):
    raise AssertionError("something was trained again")


# ---------------------------------------------------------------- what a run is


def test_fit_learns_and_reports(outputs):
    result = fit(RunConfig(model="resnet8", n_train=200, epochs=8, batch=20))
    assert 60 < result.accuracy < 100
    assert result.best_on_test >= result.accuracy
    assert len(result.curves) == 8
    assert result.curves[-1]["test_accuracy"] == result.accuracy
    assert result.curves[-1]["ce"] < result.curves[0]["ce"]
    assert result.folder.parent == outputs / "runs"
    data = load_data("digits")
    assert evaluate(result.model(), data)["accuracy"] == pytest.approx(result.accuracy, abs=0.2)
    assert {path.name for path in result.folder.iterdir()} == {
        "config.json",
        "curves.csv",
        "weights.safetensors",
        "metrics.json",
    }
    facts = result.metrics["provenance"]
    assert {"git_commit", "git_dirty", "source", "versions", "device", "threads", "hardware", "date"} <= facts.keys()
    assert result.metrics["data"]["sha256"] == data.fingerprint
    assert result.seconds > 0


def test_a_finished_run_is_found_again(monkeypatch, capsys):
    first = fit(TEACHER, show="epochs")
    lines = capsys.readouterr().out
    assert lines.count("epoch ") == 2
    monkeypatch.setattr(cohort, "_train", never)
    again = fit(TEACHER, show="epochs")
    assert (again.accuracy, again.curves, again.folder) == (first.accuracy, first.curves, first.folder)
    assert capsys.readouterr().out == lines
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 8}, False),
        ({"lr": 0.04}, False),
        ({"views": "base"}, False),
        ({"subset_seed": 1}, False),
        ({"views": "cifar100"}, False),
        ({"data": "npz:elsewhere"}, False),
        ({"device": "cpu"}, True),
    ],
)
def test_everything_that_shapes_a_run_names_it(change, same):
    def name(config):
        return training.Folder(config, identity.identity(config, lambda c: c.data, "cpu")).path.name

    changed = TEACHER.but(**change)
    assert (name(TEACHER) == name(changed)) == same
    students = [RunConfig(**SMALL, method="kd", teacher=teacher) for teacher in (TEACHER, changed)]
    assert (name(students[0]) == name(students[1])) == same
    assert name(students[0]).startswith("kd-")


def test_the_precision_and_the_steps_of_a_policy_name_a_run(request):
    usual = VIEWS["cifar10"]
    request.addfinalizer(lambda: dict.__setitem__(VIEWS, "cifar10", usual))

    def name(device="cpu", **given):
        config = RunConfig(**SMALL, views="cifar10", **given)
        return training.Folder(config, identity.identity(config, lambda c: c.data, device)).path.name

    before = name()
    assert name("cuda") == name(precision="bfloat16") != before
    assert name(p=0.5) == before, "the policy's own p, given or not"
    assert len({before, name(p=0.4), name(twins=2), name(share=0.5), name(ops=("invert",))}) == 5
    dict.__setitem__(VIEWS, "cifar10", Policy("cifar10", 0.4, POLICIES["cifar10"].steps))
    assert name() == name(p=0.4) != before
    dict.__setitem__(VIEWS, "cifar10", Policy("cifar10", 0.5, (("invert", 0),)))
    assert name() != before


def test_the_data_names_a_run_by_content_not_by_path(tmp_path, monkeypatch):
    data = load_data("digits", n_train=40)
    arrays = {key: getattr(data, key).numpy() for key in ("train_labels", "test_labels")}
    arrays |= {key: getattr(data, key)[:, 0].numpy() for key in ("train_images", "test_images")}
    for place in ("a.npz", "b.npz"):
        np.savez(tmp_path / place, **arrays)
    config = RunConfig(data=f"npz:{tmp_path}/a.npz", batch=20, epochs=1)
    first = fit(config)
    monkeypatch.setattr(cohort, "_train", never)
    assert fit(config.but(data=f"npz:{tmp_path}/b.npz")).folder == first.folder
    # The same pixels as digits, but an npz file is flipped and digits are not.
    monkeypatch.undo()
    named = RunConfig(n_train=40, batch=20, epochs=1)
    whole = {key: getattr(load_data("digits"), key).numpy() for key in ARRAYS}
    whole |= {key: whole[key][:, 0] for key in ("train_images", "test_images")}
    np.savez(tmp_path / "digits.npz", **whole)
    copied = named.but(data=f"npz:{tmp_path}/digits.npz")
    assert load_data(copied.data).fingerprint == load_data("digits").fingerprint
    assert fit(copied).folder != fit(named).folder


@pytest.mark.parametrize("views", VIEWS)
def test_every_kind_of_views_trains(views, trained):
    trained(TEACHER)
    result = fit(RunConfig(**SMALL, method="kd", views=views, teacher=TEACHER))
    assert len(result.curves) == 2
    assert result.curves[0]["kd"] > 0


@pytest.mark.parametrize(
    ("model", "method", "views", "golden"),
    [
        ("resnet8", "ccd", "cifar100", (2.34408, 0.051864)),
        ("wrn_16_1", "kd", "rotation", (2.32016, 0.046447)),
        ("resnet20", "kd", "imagenet", (2.42780, 0.184080)),
    ],
)
def test_golden_numbers_of_a_short_training(model, method, views, golden, trained):
    # Four epochs, over the first milestone, of three networks, two losses and three kinds of views.
    # When this fails because the arithmetic of a training was changed on purpose: raise identity.PROTOCOL and write the new
    # numbers here, so that stored runs of the old arithmetic are not taken for the new one's.
    # The learning rate is small, so that the rounding of another processor does not grow in the few steps.
    short = {"n_train": 40, "batch": 20, "epochs": 4, "lr": 0.002}
    config = RunConfig(**short, model=model, method=method, views=views, teacher=RunConfig(**short, seed=7))
    trained(config.teacher)
    last = fit(config).curves[-1]
    assert PROTOCOL == 2
    assert (last["ce"], last["kd"]) == pytest.approx(golden, rel=5e-3)


def test_a_change_of_protocol_renames_only_the_runs_that_it_touches():
    def protocols(config):
        facts = folder_of(config).facts
        return facts["protocol"], facts.get("teacher", {}).get("protocol")

    kd = RunConfig(**SMALL, method="kd", teacher=TEACHER)
    assert protocols(TEACHER) == (1, None)
    assert protocols(kd) == (1, 1)
    assert protocols(kd.but(method="at")) == (2, 1)
    assert protocols(kd.but(teacher=TEACHER.but(model="wrn_16_1"))) == (1, 2)
    assert protocols(kd.but(views="trivialaugment")) == (2, 1)
    assert {*CHANGED_IN["model"], *CHANGED_IN["answers"]} <= {*MODELS}
    assert {*CHANGED_IN["method"]} <= {*METHODS}
    assert {*CHANGED_IN["recipe"]} <= {*RECIPES}
    assert max(number for names in CHANGED_IN.values() for number in names.values()) == PROTOCOL


def test_students_of_a_checkpoint_that_answers_otherwise_now_are_other_runs(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    protocols = []
    for model in ("mobilenet_v2", "shufflenet_v1", "wrn_16_1", "resnet8"):
        teacher = Checkpoint(model=model, file=str(tmp_path / "a.safetensors"))
        protocols.append(folder_of(RunConfig(**SMALL, method="kd", teacher=teacher)).facts["teacher"].get("protocol"))
    assert protocols == [2, 2, None, None]  # those of protocol 1 keep their names


def test_recipes_are_the_papers():
    assert RECIPES["paper"] == {"lr": 0.1, "weight_decay": 1e-4, "batch": 128, "epochs": 240}
    assert RECIPES["paper_teacher"]["weight_decay"] == 5e-4
    for name in RECIPES:  # of networks trained alone and jointly, and of SSKD's own code
        wanted = not name.startswith(("imagenet", "coco", "small_sskd", "paper_sskd"))
        assert RunConfig(**RECIPES[name] | {"settings": {}}).nesterov == wanted, name
    assert RECIPES["hsakd_teacher"] == {"lr": 0.05, "weight_decay": 5e-4, "batch": 64, "epochs": 240}
    assert RECIPES["hsakd_light"] == RECIPES["hsakd"] | {"lr": 0.01}
    for name in ("small", "small_at", "small_fitnet", "small_sskd", "small_hsakd"):
        assert RECIPES[name]["clip"] == 10
    cifar10 = RunConfig(**RECIPES["cifar10"])
    assert (cifar10.lr, cifar10.weight_decay, cifar10.batch, cifar10.epochs) == (0.1, 1e-4, 64, 182)
    assert [cifar10.lr_at(epoch) for epoch in (90, 91, 135, 136)] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    config = RunConfig(**RECIPES["paper"])
    rates = [config.lr_at(epoch) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert config.momentum == 0.9


@pytest.mark.parametrize("model", ["mobilenet_v2", "resnet20"])
def test_light_students_have_their_own_learning_rate_in_hsakds_recipe(model):
    rates = [recipe_of("hsakd", model, method)["lr"] for method in ("", "sskd", "hsakd")]
    assert rates == [0.01 if model == "mobilenet_v2" else 0.05] * 3
    assert recipe_of("paper", model)["lr"] == 0.1


def test_nesterovs_momentum_is_a_choice():
    def trained(**change):
        return weights(fit(RunConfig(**SMALL | {"epochs": 1}, **change)))

    assert trained(nesterov=False) != trained()
    assert trained(momentum=0.0) == trained(momentum=0.0, nesterov=False)  # without momentum there is no choice


def test_warm_up_lets_the_soft_terms_grow_and_leaves_cross_entropy_alone():
    config = RunConfig(**SMALL | {"epochs": 4}, method="kd", teacher=TEACHER, warmup=4)
    assert [config.soft_at(epoch) for epoch in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert RunConfig().soft_at(0) == 1.0
    data, taught_by = load_data("digits", n_train=40), untrained(config, load_data("digits", n_train=40))
    steps = {}
    for c in (config, config.but(warmup=0)):
        (trainee,) = prepare([c], data, torch.device("cpu"), taught_by)
        trainee.begin(1)
        steps[c.warmup], *_ = step(trainee, EpochViews(c, data, 1).batch(torch.arange(20)))  # of epoch 2
    assert steps[4]["ce"] == steps[0]["ce"]
    assert steps[4]["kd"].item() == pytest.approx(0.5 * steps[0]["kd"].item())


def test_statistics_of_another_data_set_normalise_the_images(tmp_path):
    colour = {f"{split}_{kind}": np.zeros((20, 16, 16, 3), np.uint8) if kind == "images" else np.arange(20) % 2
              for split in ("train", "test") for kind in ("images", "labels")}  # fmt: skip
    np.savez(tmp_path / "black.npz", **colour)
    config = RunConfig(data=f"npz:{tmp_path}/black.npz", epochs=1, batch=10, statistics="cifar100")
    inputs = EpochViews(config, data_of(config), 0).batch(torch.arange(4)).inputs
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([-0.5071 / 0.2675, -0.4867 / 0.2565, -0.4408 / 0.2761])
    assert fit(config).folder != fit(config.but(statistics="own")).folder
    with pytest.raises(CcdError, match="unknown statistics 'cifar'.*Allowed: own, cifar10, cifar100"):
        RunConfig(statistics="cifar")
    with pytest.raises(CcdError, match="have 3 channels, the images of digits have 1"):
        check([RunConfig(statistics="cifar100")])
    with pytest.raises(CcdError, match="images in files use ImageNet's statistics"):
        check([RunConfig(data="photos", statistics="cifar100")])
    with pytest.raises(CcdError, match="the teacher's are 'own'"):
        RunConfig(data="cifar10", statistics="cifar100", method="kd", teacher=RunConfig(data="cifar10"))


def test_eval_every_leaves_gaps_but_always_tests_the_last_epoch():
    result = fit(RunConfig(**SMALL | {"epochs": 5}, eval_every=2))
    assert [row["test_accuracy"] is not None for row in result.curves] == [False, True, False, True, True]


# ---------------------------------------------------------------- pairing


def test_arms_of_one_seed_see_the_same_originals_and_twins():
    data, rows = load_data("digits", n_train=40), torch.arange(40)

    def views(epoch=3, **settings):
        return EpochViews(RunConfig(**SMALL | settings), data, epoch).batch(rows)[0]

    alone, base, jda = views(), views(views="base"), views(views="cifar100")
    assert torch.equal(alone, base[:40])
    assert torch.equal(alone, jda[:40])
    assert not torch.equal(jda[40:], base[40:])
    assert torch.equal(jda, views(views="cifar100", lr=0.3, model="wrn_16_1"))
    assert not torch.equal(jda, views(views="cifar100", epoch=4))
    assert not torch.equal(jda, views(views="cifar100", seed=1))
    # An image's draws are its own, whichever batch it comes in.
    assert torch.equal(EpochViews(RunConfig(**SMALL), data, 3).batch(rows[10:20])[0], alone[10:20])


def test_more_twins_a_share_of_twins_and_fewer_ops_stay_paired():
    data, rows = load_data("digits", n_train=40), torch.arange(40)

    def batch(**settings):
        made = EpochViews(RunConfig(**SMALL, views="cifar100", **settings), data, 3).batch(rows)
        assert torch.equal(made.labels[:40], data.train_labels)
        assert torch.equal(data.train_labels[made.images], made.labels)
        assert sum(made.sizes) == len(made.inputs)
        return made.inputs, made.labels

    one, _ = batch()
    three, labels = batch(twins=3)
    assert torch.equal(three[:80], one)
    assert len({tuple(three[k * 40 + 7].flatten().tolist()) for k in range(4)}) == 4
    assert torch.equal(labels, data.train_labels.repeat(4))
    # The images with twins at q = 0.25 are among those at q = 0.75, and their twins are the same.
    small, few = batch(share=0.25)
    large, many = batch(share=0.75)
    assert (len(small), len(large)) == (50, 70)
    kept = [next(k for k in range(40, 70) if torch.equal(large[k], twin)) for twin in small[40:]]
    assert many[kept].tolist() == few[40:].tolist()
    assert torch.equal(batch(share=0.0)[0], one[:40])
    assert torch.equal(batch(share=1.0, twins=1)[0], one)
    # An op of a policy fires on the same images, with the same sign, whether the other ops are there or not.
    plain = EpochViews(RunConfig(**SMALL, views="base"), data, 3).batch(rows)[0]
    alone, without = (
        batch(ops=("invert",))[0],
        batch(ops=tuple(name for name, _ in POLICIES["cifar100"].steps if name != "invert"))[0],
    )
    fires = EpochViews(RunConfig(**SMALL, views="cifar100"), data, 3).draws[0].fires
    inverted = fires[:, [name for name, _ in POLICIES["cifar100"].steps].index("invert")]
    assert 0 < inverted.sum() < 40
    for k in range(40):
        assert torch.equal(alone[40 + k], plain[40 + k]) != inverted[k]
        assert torch.equal(without[40 + k], one[40 + k]) or inverted[k]
    assert torch.equal(batch(p=0.0)[0], plain)


def test_raw_views_are_the_images_themselves():
    data = load_data("digits", n_train=40)
    inputs = EpochViews(RunConfig(**SMALL, views="raw"), data, 0).batch(torch.arange(40)).inputs
    assert torch.equal(inputs, normalise(data.train_images, data.mean, data.std))


def test_views_per_image_counts_the_inputs_of_an_epoch():
    data, rows = load_data("digits", n_train=40), torch.arange(40)
    for views in VIEWS:
        needs = {"method": "kd", "teacher": TEACHER} if views == "cutmixpick" else {}
        config = RunConfig(**SMALL, **needs, views=views)
        candidates = 40 if views == "cutmixpick" else 0  # made, and left out when the teacher has seen them
        assert len(EpochViews(config, data, 0).batch(rows).inputs) == 40 * config.views_per_image + candidates
    config = RunConfig(**SMALL, views="cifar100", twins=2, share=0.5)
    assert len(EpochViews(config, data, 0).batch(rows)[0]) == 40 * config.views_per_image == 80


def test_the_teacher_sees_what_the_student_sees_and_learns_nothing(monkeypatch, trained):
    seen, loss = [], LOSSES["ccd"]  # what METHODS["ccd"] calls

    def spy(student, teacher, labels, **settings):
        seen.append((len(student.logits), len(teacher.logits), len(labels), teacher.logits.requires_grad))
        return loss(student, teacher, labels, **settings)

    monkeypatch.setattr(METHODS["ccd"], "loss", staticmethod(spy))
    trained(TEACHER)
    before = weights(fit(TEACHER))
    fit(RunConfig(**SMALL, method="ccd", views="cifar100", teacher=TEACHER))
    assert seen == [(40, 40, 40, False)] * 4
    assert weights(fit(TEACHER)) == before


# ---------------------------------------------------------------- what happens to runs


@pytest.mark.drill
def test_killed_at_any_moment_a_run_ends_in_the_same_bits(outputs, monkeypatch):
    config = RunConfig(**SMALL | {"epochs": 24}, method="ccd", views="cifar100", teacher=TEACHER)
    expected = None
    kills = 0
    for place in ("whole", "killed"):
        monkeypatch.setenv("CCD_OUTPUTS", str(outputs / place))
        if place == "killed":
            for seconds in (0.02, 0.1, 0.2):
                process = start(config, start_new_session=True)
                curves = list((outputs / place / "runs").glob("ccd-*/curves.csv"))
                deadline, rows = time.time() + 60, len(curves[0].read_text().splitlines()) if curves else 0
                while time.time() < deadline and process.poll() is None:
                    curves = list((outputs / place / "runs").glob("ccd-*/curves.csv"))
                    if curves and len(curves[0].read_text().splitlines()) > max(rows, 1):
                        time.sleep(seconds)
                        break
                    time.sleep(0.01)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    kills += 1
                process.communicate()
        trained = int(finish(start(config))[-1].split()[0])
        result = fit(config)
        expected = expected or (weights(result), [row | {"seconds": 0} for row in result.curves])
        assert (weights(result), [row | {"seconds": 0} for row in result.curves]) == expected
        assert trained == 24 + 2 if place == "whole" else trained < 24
    assert kills == 3
    assert result.metrics["resumed"]
    assert not list(result.folder.glob(".*.part"))


@pytest.mark.drill
def test_two_processes_asked_for_one_run_train_it_once():
    config = RunConfig(**SMALL | {"epochs": 10})
    lines = [finish(process) for process in [start(config), start(config)]]
    trained = [int(line[-1].split()[0]) for line in lines]
    assert sorted(trained) == [0, 10]
    assert lines[0][-1].split()[1] == lines[1][-1].split()[1]


@pytest.mark.parametrize(
    ("name", "keep"),
    # A run without metrics.json is not damaged but unfinished: it goes on.
    [
        ("weights.safetensors", -40),
        ("weights.safetensors", None),
        ("curves.csv", -40),
        ("curves.csv", None),
        ("metrics.json", -40),
    ],
)
def test_a_damaged_run_is_named_and_retrained_only_on_request(name, keep, trained):
    trained(TEACHER)
    first = fit(TEACHER)
    sha = weights(first)
    file = first.folder / name
    torn = file.read_bytes()[:keep]
    file.unlink()
    if keep is not None:
        file.write_bytes(torn)
    with pytest.raises(DamagedRun, match=rf"{name} is damaged .*repair=True"):
        fit(TEACHER)
    assert weights(fit(TEACHER, repair=True)) == sha
    (aside,) = (path for path in first.folder.parent.iterdir() if ".damaged-" in path.name)
    assert (aside / "config.json").exists(), "the damaged run is kept"


@pytest.mark.parametrize("content", [b"", b"not a zip file"])
def test_a_damaged_resume_state_is_named_and_dropped_only_on_request(monkeypatch, content, trained):
    config = RunConfig(**SMALL | {"epochs": 3})
    trained(config)
    sha = weights(fit(config))
    metrics = next(path for path in fit(config).folder.iterdir() if path.name == "metrics.json")
    metrics.unlink()
    resume = metrics.with_name("resume.pt")
    resume.write_bytes(content)
    with pytest.raises(DamagedRun, match=r"resume.pt is damaged"):
        fit(config)
    monkeypatch.setenv("CCD_REPAIR", "1")
    assert weights(fit(config)) == sha
    assert metrics.with_name("resume.damaged.pt").exists()


def test_the_resume_state_is_loadable_with_weights_only(monkeypatch):
    monkeypatch.setattr(training.Folder, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(TEACHER)
    (file,) = paths.outputs().glob("runs/*/resume.pt")
    state = torch.load(io.BytesIO(file.read_bytes()[32:]), weights_only=True)  # a checksum comes first
    assert state["epochs_done"] == 1
    assert len(json.loads(state["curves"])) == 1


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(monkeypatch, trained):
    kd, calls = LOSSES["kd"], []

    def broken(student, teacher, labels):
        calls.append(1)
        terms = kd(student, teacher, labels)
        return terms | {"kd": terms["kd"] * (float("nan") if len(calls) == 4 else 1)}

    config = RunConfig(**SMALL | {"epochs": 4}, method="kd", teacher=TEACHER)
    trained(TEACHER)
    monkeypatch.setattr(METHODS["kd"], "loss", staticmethod(broken))
    with pytest.raises(Diverged, match=r"epoch 2, step 2 of 2, .*'kd': nan.*What was saved before is kept; lower lr"):
        fit(config)
    monkeypatch.setattr(METHODS["kd"], "loss", staticmethod(kd))
    assert fit(config).metrics["resumed"]


def test_a_learning_rate_far_too_large_is_reported_not_trained_through():
    with pytest.raises(Diverged, match=r"lower lr \(it was 1e\+30\)"):
        fit(RunConfig(**SMALL, lr=1e30))


def test_weights_broken_by_the_very_last_step_are_not_taken_for_a_result(monkeypatch, outputs):
    def finite_with_a_gradient_that_is_not(student, teacher, labels):
        return {"ce": (student.logits * 0).sum().sqrt()}

    monkeypatch.setattr(METHODS["ce"], "loss", staticmethod(finite_with_a_gradient_that_is_not))
    with pytest.raises(Diverged, match="the weights are not finite numbers any more after epoch 1, step 1"):
        fit(RunConfig(**SMALL | {"batch": 40, "epochs": 1}))
    assert not list(outputs.glob("runs/*/metrics.json"))


@pytest.mark.drill
def test_a_full_disk_stops_with_a_clear_error_and_nothing_is_lost(outputs):
    config = RunConfig(**SMALL | {"epochs": 3})
    # The size limit of one file stands in for the end of the disk: the weights (320 kB) do not fit, small files do.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + FIT
    process = subprocess.run([sys.executable, "-c", limited, config.model_dump_json()], capture_output=True, text=True)
    assert process.returncode != 0
    assert "resume.pt could not be written" in process.stderr
    assert "Free some space" in process.stderr
    assert not list(outputs.glob("runs/*/.*.part"))
    assert fit(config).accuracy > 0


def test_a_folder_that_cannot_be_written(outputs):
    outputs.write_text("a file where a folder should be")
    with pytest.raises(CcdError, match=r"is not a folder that can be written .*CCD_OUTPUTS"):
        fit(TEACHER)


# ---------------------------------------------------------------- teachers from files, and mistakes


def test_a_teacher_from_a_checkpoint_file(tmp_path, trained):
    trained(TEACHER)
    result = fit(TEACHER)
    file = tmp_path / "teacher.safetensors"
    file.write_bytes((result.folder / "weights.safetensors").read_bytes())
    by_file = fit(RunConfig(**SMALL, method="kd", teacher=Checkpoint(model="resnet8", file=str(file))))
    by_run = fit(RunConfig(**SMALL, method="kd", teacher=TEACHER))
    assert by_file.curves[-1]["kd"] == by_run.curves[-1]["kd"]


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("resnet20", None, "holds a resnet8, not the resnet20"),
        ("resnet8", "torn", "is incomplete or not a safetensors file"),
        ("resnet8", "gone", "there is no teacher checkpoint"),
        ("resnet8", "classes", r"does not fit resnet8: .*head"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, model, change, message):
    file = tmp_path / "t.safetensors"
    network = build("resnet8", classes=7 if change == "classes" else 10, channels=1)
    if change != "gone":
        store.save_weights(file, network, "resnet8")
    if change == "torn":
        file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CcdError, match=message):
        fit(RunConfig(**SMALL, method="kd", teacher=Checkpoint(model=model, file=str(file))))


def test_teacher_and_student_with_different_classes(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 16), dtype=np.uint8)
    np.savez(
        tmp_path / "d.npz",
        train_images=images,
        train_labels=np.arange(12) % 3,
        test_images=images,
        test_labels=np.arange(12) % 3,
    )
    teacher = RunConfig(data=f"npz:{tmp_path}/d.npz", epochs=1, batch=6)
    with pytest.raises(CcdError, match=r"has 3 classes and 1 channels, the student's 'digits' 10 and 1"):
        fit(RunConfig(**SMALL, method="kd", teacher=teacher))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_asked_for_and_absent():
    with pytest.raises(CcdError, match="no CUDA device is there; use 'auto' or 'cpu', or unset CCD_DEVICE"):
        fit(RunConfig(**SMALL, device="cuda"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "resnet9"}, "unknown model 'resnet9'. Did you mean 'resnet8'"),
        ({"method": "kdd"}, "unknown method 'kdd'.* Allowed: ce, kd, ccd"),
        ({"views": "cifar"}, "unknown views 'cifar'.*rotation"),
        ({"data": "mnist"}, "unknown dataset 'mnist'"),
        ({"learning_rate": 0.1}, "unknown RunConfig parameter 'learning_rate'.*lr"),
        ({"lr": -0.1}, r"RunConfig: lr = -0.1: Input should be greater than 0"),
        ({"lr": float("nan")}, "lr = nan: Input should be a finite number"),
        ({"lr": "fast"}, "lr = 'fast': Input should be a valid number"),
        ({"batch": 0}, "batch = 0: Input should be greater than or equal to 1"),
        ({"epochs": 2.5}, "epochs = 2.5: Input should be a valid integer"),
        ({"weight_decay": -1}, "weight_decay = -1"),
        ({"milestones": (0.5, 1.5)}, r"milestones.1 = 1.5"),
        ({"device": "gpu"}, "device = 'gpu': Input should be 'auto', 'cpu' or 'cuda'"),
        ({"p": 0.5}, "p = 0.5 with views 'none': only a policy has that"),
        ({"views": "cifar10", "p": 1.5}, "p = 1.5"),
        ({"views": "cifar10", "share": 1.5}, "share = 1.5"),
        ({"views": "cifar10", "twins": 0}, "twins = 0"),
        ({"views": "base", "twins": 2}, "twins = 2 with views 'base': only an augmentation has that"),
        ({"views": "none", "ops": ("invert",)}, "only a policy has that"),
        ({"views": "cifar10", "ops": ("cutout",)}, "unknown op of policy 'cifar10' 'cutout'"),
        ({"method": "kd"}, "method 'kd' needs a teacher"),
        ({"teacher": TEACHER}, "method 'ce' uses no teacher"),
        ({"method": "ccd", "teacher": TEACHER}, "needs two views of each image; views 'none', twins 1 and share 1 give 1"),
        ({"method": "kd", "teacher": TEACHER, "settings": {"weight": "none"}}, "unknown setting of method 'kd' 'weight'"),
        (
            {"method": "kd", "teacher": TEACHER, "settings": {"temperature": 0}},
            "temperature = 0 of method 'kd': allowed are numbers above 0",
        ),
        (
            {"method": "ccd", "views": "base", "teacher": TEACHER, "settings": {"weight": "cosin"}},
            "unknown weight of method 'ccd' 'cosin'. Did you mean 'cosine'",
        ),
        ({"views": "mixup", "p": 0.5}, "p = 0.5 with views 'mixup': only a policy has that"),
        ({"views": "cutmixpick"}, "least certain, and method 'ce' has no teacher"),
        ({"method": "dkd", "views": "cutmix", "teacher": TEACHER}, "mix the labels.*'dkd' needs one hard label.*randaugment"),
        ({"method": "crd", "views": "mixup", "teacher": TEACHER}, "mix the labels.*'crd' needs one hard label"),
        ({"method": "ccd", "views": "cutmixpick", "teacher": TEACHER}, "give 2 that are not an original and its twin"),
        (
            {"method": "hsakd", "views": "rotation", "teacher": teacher_of_method("hsakd", TEACHER)},
            "turns every view by 0, 90, 180 and 270 degrees itself.* Allowed views: raw, flip, none",
        ),
        (
            {"method": "hsakd", "teacher": TEACHER},
            "needs a teacher with the heads that 'hsakd_teacher' trains, and this one .resnet8, method 'ce'. has none. One "
            r"command trains them: ccdlib.fit\(ccdlib.teacher_of_method\('hsakd', teacher\)\)",
        ),
        (
            {"method": "sskd", "teacher": teacher_of_method("hsakd", TEACHER)},
            "needs a teacher with the heads that 'sskd_teacher'",
        ),
        (
            {"method": "sskd_teacher", "teacher": TEACHER, "model": "resnet20"},
            "model 'resnet20' must be the teacher's, 'resnet8'",
        ),
        ({"method": "sskd_teacher"}, "method 'sskd_teacher' needs a teacher"),
        (
            {"method": "crd", "teacher": TEACHER, "settings": {"negatives": 0}},
            "negatives = 0 of method 'crd': allowed are whole",
        ),
        ({"method": "crd", "teacher": TEACHER, "settings": {"momentum": 2.0}}, "allowed are numbers from 0 up to 1"),
        ({"method": "at", "teacher": TEACHER, "settings": {"gamma": float("nan")}}, "gamma = nan of method 'at'"),
    ],
)
def test_mistakes_are_named_when_the_config_is_made(given, message):
    with pytest.raises(CcdError, match=message):
        RunConfig(**given)


def test_all_that_will_be_trained_is_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cohort, "_train", never)
    monkeypatch.setattr(arrays, "LEAST_SIDE", 1)
    small = np.zeros((12, 7, 7), np.uint8)
    labels = np.arange(12) % 3
    np.savez(tmp_path / "d.npz", train_images=small, train_labels=labels, test_images=small, test_labels=labels)
    for configs, message in (
        ([], "at least one seed"),
        ([TEACHER, RunConfig(n_train=1001)], "1001 training images were asked for"),
        (
            [TEACHER, RunConfig(data=f"npz:{tmp_path}/d.npz", model="vgg13")],
            r"model 'vgg13' cannot take images of shape \(1, 7, 7\)",
        ),
    ):
        with pytest.raises(CcdError, match=message):
            check(configs)
    with pytest.raises(CcdError, match="unknown recipe 'papr'. Did you mean 'paper'"):
        RECIPES["papr"]


def test_strings_of_yaml_and_the_command_line_become_numbers():
    config = RunConfig(lr="1e-3", epochs="3", n_train="0.5")
    assert (config.lr, config.epochs, config.n_train) == (0.001, 3, 0.5)


def test_a_progress_bar_on_the_command_line_only(capsys):
    fit(TEACHER, show="bar")
    shown = capsys.readouterr()
    assert "resnet8 ce seed 7" in shown.err
    assert shown.out == ""
    fit(TEACHER.but(seed=8))  # no terminal here: lines
    shown = capsys.readouterr()
    assert shown.err == ""
    assert [line[:9] for line in shown.out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    result = fit(TEACHER, show="run")
    assert capsys.readouterr().out == f"resnet8, ce, views none, seed 7: {result.accuracy:.1f} %\n"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_going_on_from_a_state_with_and_without_momentum(momentum, monkeypatch, outputs):
    config = RunConfig(**SMALL | {"epochs": 3}, momentum=momentum)
    sha = weights(fit(config))
    monkeypatch.setenv("CCD_OUTPUTS", str(outputs / "again"))
    save = training.Folder.save_state

    def saved_and_stopped(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Folder, "save_state", saved_and_stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(config)
    monkeypatch.setattr(training.Folder, "save_state", save)
    result = fit(config)
    assert result.metrics["resumed"]
    assert weights(result) == sha


def test_a_wrong_way_to_show_progress():
    with pytest.raises(CcdError, match="allowed are auto, epochs, run, bar, none"):
        fit(TEACHER, show="loud")


TAUGHT = {"n_train": 40, "method": "kd", "teacher": RunConfig(n_train=40, epochs=2, seed=7)}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "ce-b44f6e8ea043"),
        ({"n_train": 40, "subset_seed": 3}, "ce-ab04095f70f4"),
        ({"clip": 5.0, "nesterov": False, "warmup": 2, "batch": 16, "accumulate": 2}, "ce-c4c2965f5d98"),
        (TAUGHT, "kd-67acaf82af4a"),
        (TAUGHT | {"views": "cifar100"}, "kd-28ccb39b531d"),
        (TAUGHT | {"views": "cifar100", "p": 0.5, "ops": ("invert", "rotate"), "twins": 2, "share": 0.5}, "kd-05dfe652c5c9"),
        (TAUGHT | {"views": "randaugment", "jda": "after crop"}, "kd-89d47c583d16"),
        (TAUGHT | {"views": "cutmix"}, "kd-001b2ce31d16"),
        (TAUGHT | {"views": "rotation", "draws": 5}, "kd-d8310ec963fa"),
        (TAUGHT | {"method": "ccd", "views": "cifar10", "settings": {"weight": "shuffled"}}, "ccd-6066fd57c8db"),
        (TAUGHT | {"method": "at", "model": "wrn_16_1"}, "at-361693b68c62"),
    ],
)
def test_stored_runs_keep_their_names(given, name):
    # Names of before the move into rooms. When one changes, stored and published runs are not found any more: a new field must
    # name a run only where it is set (config.Use), or the runs need a migration.
    config = RunConfig(**given)
    facts = identity.identity(config, lambda each: {"sha256": each.data}, "cpu")
    assert training.Folder(config, facts).path.name == name
