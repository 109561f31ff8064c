"""Runs trained together: the bits of runs trained alone, whatever is killed, damaged or breaks; views made in blocks."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ccdlib import training
from ccdlib.base.files import sha256
from ccdlib.base.registry import CcdError
from ccdlib.data import load_data
from ccdlib.methods import METHODS, losses
from ccdlib.training import Diverged, RunConfig, cohort, fit, fit_cohort, folder_of, forecast, teacher_of_method
from ccdlib.training.schedule import cohorts_of
from ccdlib.views import EpochViews, epoch, views_of

SMALL = {"n_train": 40, "batch": 20, "epochs": 2, "model": "resnet8"}
TEACHER = RunConfig(**SMALL, seed=7)
JDA = SMALL | {"views": "cifar100", "teacher": TEACHER}
FIVE = [
    RunConfig(**JDA, method="kd"),
    RunConfig(**JDA, method="ccd", eval_every=2),
    RunConfig(**JDA, method="ccd", settings={"weight": "shuffled"}, lr=0.02),
    RunConfig(**JDA, method="crd", settings={"negatives": 8}),
    RunConfig(**JDA | {"model": "wrn_16_1"}, method="fitnet", seed=3, draws=0),
]


def bits(result):
    """What a run left behind, without its times."""
    files = [sha256(result.folder / name) for name in result.metrics["sha256"] if name not in ("curves.csv", "metrics.json")]
    return files, [row | {"seconds": 0} for row in result.curves]


@pytest.fixture
def alone(once, trained):
    """A function: the bits of runs trained one by one, in another store. Only their common teacher is here, too."""
    trained(TEACHER)
    return lambda configs: [bits(result) for result in once(*configs)]


def test_a_cohort_has_the_bits_of_its_members_alone(alone):
    expected = alone(FIVE)
    assert len({str(one) for one in expected}) == 5
    results = fit_cohort(FIVE, show="none")
    assert [bits(result) for result in results] == expected
    assert [result.config for result in results] == FIVE
    assert len({result.folder for result in results}) == 5


@pytest.mark.parametrize("views", ["rotation", "mixup", "cutmixpick"])
def test_other_views_too(views, alone):
    configs = [RunConfig(**JDA | {"views": views}, method=method) for method in ("kd", "rkd")]
    assert [bits(result) for result in fit_cohort(configs, show="none")] == alone(configs)


def test_methods_that_rotate_and_methods_that_do_not_share_a_teacher(alone):
    heads = teacher_of_method("sskd", TEACHER)
    configs = [RunConfig(**JDA | {"teacher": heads}, method=method) for method in ("sskd", "kd", "sskd")]
    results = fit_cohort(configs, show="none")
    assert [bits(result) for result in results] == alone(configs)
    assert results[0].folder == results[2].folder != results[1].folder


def test_the_teacher_answers_each_batch_once(trained, monkeypatch):
    trained(TEACHER)
    asked, answers = [], training.Trainee.answers
    monkeypatch.setattr(training.Trainee, "answers", lambda *args: asked.append(1) or answers(*args))
    fit_cohort(FIVE, show="none")
    assert len(asked) == 2 * 2  # two epochs of two batches


def test_cohorts_are_runs_that_see_the_same_batches_and_have_the_same_teacher():
    others = [
        RunConfig(**JDA | change, method="kd")
        for change in ({"seed": 1}, {"views": "none"}, {"batch": 10}, {"epochs": 3}, {"p": 0.1}, {"n_train": 30})
    ]
    others.append(RunConfig(**JDA | {"teacher": TEACHER.but(seed=8)}, method="kd"))
    assert cohorts_of([*FIVE, *others]) == [FIVE, *([other] for other in others)]
    with pytest.raises(CcdError, match="2 configurations are not one cohort: all must have the same teacher, data, views"):
        fit_cohort([FIVE[0], others[0]])


def test_runs_of_equal_draws_differ_in_their_weights_only(alone):
    own, shared, same = RunConfig(**SMALL, seed=4), RunConfig(**SMALL, seed=4, draws=1), RunConfig(**SMALL, seed=4, draws=4)
    assert folder_of(own).path == folder_of(same).path != folder_of(shared).path
    data = load_data("digits", n_train=40)
    one = RunConfig(**SMALL, seed=1)
    for a, b in zip(EpochViews(shared, data, 1).batches(), EpochViews(one, data, 1).batches(), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.images, b.images)
    cohort = [shared, one]
    assert [bits(result) for result in fit_cohort(cohort, show="none")] == alone(cohort)
    assert bits(fit(shared)) != bits(fit(one))


@pytest.mark.parametrize(
    "change", [{}, {"share": 0.5}, {"twins": 2}, {"views": "mixup"}, {"views": "rotation"}, {"views": "base"}, {"views": "raw"}]
)
def test_views_made_in_blocks_are_those_of_each_batch(monkeypatch, change):
    config = RunConfig(**SMALL | {"batch": 7, "views": "cifar100"} | change)
    data = load_data("digits", n_train=40)
    views = EpochViews(config, data, 1)
    steps = None
    for block in (1, 15, 1000):
        monkeypatch.setattr(epoch, "BLOCK", block)
        made = list(views.batches())
        steps = steps or made
        assert len(made) == 6
        for k, (a, b) in enumerate(zip(made, steps, strict=True)):
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.images, b.images)
            assert (a.sizes, a.step) == (b.sizes, (1, k))
    first = views.batch(steps[2].images[: steps[2].sizes[0]])
    assert torch.equal(first.inputs, steps[2].inputs)
    assert sorted(torch.cat([s.images[: s.sizes[0]] for s in steps]).tolist()) == list(range(40))


@pytest.mark.parametrize("change", [{}, {"share": 0.5, "twins": 2}, {"views": "mixup"}, {"views": "cutmix"}, {"views": "raw"}])
def test_views_of_several_epochs_made_at_once_are_those_of_each(monkeypatch, change):
    config = RunConfig(**SMALL | {"batch": 7, "epochs": 6, "views": "cifar100"} | change)
    data = load_data("digits", n_train=40)
    made = []
    monkeypatch.setattr(
        epoch.EpochViews, "batches_of", lambda epochs, make=EpochViews.batches_of: made.append(epochs) or make(epochs)
    )
    monkeypatch.setattr(epoch, "BLOCK", 130)
    ahead = views_of(config, data, config.epochs)
    for number in range(1, 6):  # as a run that goes on after its first epoch
        for a, b in zip(ahead.batches(number), EpochViews(config, data, number).batches(), strict=True):
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.images, b.images)
            assert (a.sizes, a.step, a.of, a.weight) == (b.sizes, b.step, b.of, b.weight)
    assert [len(epochs) for epochs in made] == [3, 2], "no epoch after the last"


# ---------------------------------------------------------------- what happens to them


COHORT = """
import sys
from ccdlib import RunConfig, fit_cohort
fit_cohort([RunConfig.model_validate_json(text) for text in sys.argv[1:]], show="none")
"""


@pytest.mark.drill
def test_a_killed_cohort_goes_on_to_the_same_bits(outputs, alone):
    configs = [config.but(epochs=12) for config in FIVE[:4]]
    expected = alone(configs)
    texts = [config.model_dump_json() for config in configs]
    kills = 0
    for epochs in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", COHORT, *texts], start_new_session=True)
        deadline = time.time() + 60
        while time.time() < deadline and process.poll() is None:
            curves = list((outputs / "runs").glob("crd-*/curves.csv"))
            if curves and len(curves[0].read_text().splitlines()) > epochs:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills == 2
    results = fit_cohort(configs, show="none")
    assert all(result.metrics["resumed"] for result in results)
    assert [bits(result) for result in results] == expected


def test_members_go_on_from_different_epochs(monkeypatch, alone):
    """Killed between two members' states, one is an epoch behind; a new member begins at the first."""
    configs = [config.but(epochs=4) for config in FIVE[:3]]
    expected = alone(configs)
    save, saves = cohort.Member.save, []

    def killed(member):
        saves.append(member)
        if len(saves) == 4:  # the second of epoch two
            raise KeyboardInterrupt
        save(member)

    monkeypatch.setattr(cohort.Member, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_cohort(configs[:2], show="none")
    monkeypatch.setattr(cohort.Member, "save", save)
    epochs, real = [], cohort.train_epoch
    monkeypatch.setattr(cohort, "train_epoch", lambda trainees, *given: epochs.append(len(trainees)) or real(trainees, *given))
    results = fit_cohort(configs, show="none")
    assert epochs == [1, 2, 3, 3]  # the new one; then the one that was behind; then all
    assert [bits(result) for result in results] == expected
    assert [result.metrics["resumed"] for result in results] == [True, True, False]


def test_when_one_diverges_the_others_are_trained_to_their_end(monkeypatch, alone):
    bad = FIVE[2].but(lr=1e30)
    with pytest.raises(Diverged, match=r"lower lr \(it was 1e\+30\)"):
        fit_cohort([FIVE[0], bad, FIVE[1]], show="none")
    assert [folder_of(config).finished for config in (FIVE[0], bad, FIVE[1])] == [True, False, True]
    monkeypatch.setattr(cohort, "_train", lambda *args: pytest.fail("a finished run was trained again"))
    results = fit_cohort(FIVE[:2], show="none")
    monkeypatch.undo()
    assert [bits(result) for result in results] == alone(FIVE[:2])


def test_what_is_finished_is_found_and_only_the_rest_is_trained(trained, monkeypatch, capsys):
    trained(TEACHER)
    first = bits(fit(FIVE[1], show="none"))
    members, real = [], cohort.train_epoch
    monkeypatch.setattr(cohort, "train_epoch", lambda trainees, *given: members.append(len(trainees)) or real(trainees, *given))
    results = fit_cohort(FIVE[:3], show="epochs")
    assert members == [2, 2]
    assert bits(results[1]) == first
    said = capsys.readouterr().out
    assert said.count("resnet8 kd, seed 0: epoch ") == 2
    assert fit_cohort(FIVE[:3], show="none")[0].accuracy == results[0].accuracy


def test_a_damaged_member_is_named_before_any_training(trained, monkeypatch):
    trained(TEACHER)
    fit(FIVE[0], show="none").folder.joinpath("curves.csv").write_text("")
    monkeypatch.setattr(cohort, "_train", lambda *args: pytest.fail("something was trained"))
    with pytest.raises(CcdError, match=r"curves.csv is damaged"):
        fit_cohort(FIVE, show="none")


@pytest.mark.drill
def test_two_processes_with_overlapping_cohorts_train_each_run_once(monkeypatch, alone):
    expected = alone(FIVE[:3])
    texts = [config.model_dump_json() for config in FIVE]
    both = [
        subprocess.Popen([sys.executable, "-c", COHORT, *some], stderr=subprocess.PIPE) for some in (texts[:2], texts[2:0:-1])
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    monkeypatch.setattr(cohort, "_train", lambda *args: pytest.fail("a finished run was trained again"))
    assert [bits(result) for result in fit_cohort(FIVE[:3], show="none")] == expected


def test_seconds_are_the_runs_own_part(trained):
    trained(TEACHER)
    began = time.perf_counter()
    results = fit_cohort(FIVE, show="none")
    assert 0 < sum(result.seconds for result in results) < time.perf_counter() - began


def test_the_pace_of_a_cohort_is_the_part_of_each():
    one, *_ = forecast.expected_seconds(FIVE, timed=True)
    longer, *_ = forecast.expected_seconds([config.but(epochs=20) for config in FIVE], timed=True)
    assert 0 < one < longer


def test_a_method_that_fails_in_a_cohort_fails_aloud(trained, monkeypatch):
    trained(TEACHER)

    def broken(student, teacher, labels):
        raise CcdError("not today")

    monkeypatch.setattr(METHODS["kd"], "loss", staticmethod(broken))
    with pytest.raises(CcdError, match="not today"):
        fit_cohort(FIVE[:2], show="none")
    monkeypatch.setattr(METHODS["kd"], "loss", staticmethod(losses.kd))
    assert len(fit_cohort(FIVE[:2], show="none")) == 2
