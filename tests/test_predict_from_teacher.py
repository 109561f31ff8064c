"""T. stddev, a teacher's number for what views are worth, and the experiment that asks whether it predicts anything."""

import pytest
import torch
from torch import nn

from ccdlib.analyses import experiment, predict_from_teacher
from ccdlib.analyses.predict_from_teacher import LOSS, SPREAD
from ccdlib.base.registry import CcdError
from ccdlib.data import load_data
from ccdlib.evidence import relations
from ccdlib.evidence.estimands import Correlation
from ccdlib.evidence.published import T_STDDEV
from ccdlib.evidence.teacher_views import GROUPS, ROWS, teacher_stddev
from ccdlib.kit.parameters import find, profile_parameters
from ccdlib.models import build
from ccdlib.models.backbone import Output
from ccdlib.training import RunConfig, fit
from ccdlib.training.checks import data_of
from ccdlib.training.evaluate import evaluate
from ccdlib.views import EpochViews

STUDENT = {"n_train": 40, "batch": 16, "epochs": 2}


@pytest.fixture(scope="module")
def teacher():
    return build("resnet8", 10, 1, seed=1).eval()


def answers(teacher, config, n):
    """The teacher's probabilities of the first n views of originals, and of as many twins, one batch after the other."""
    data, halves = data_of(config), ([], [])
    for epoch in range(99):
        for batch in EpochViews(config, data, epoch).batches():
            with torch.no_grad():
                p = teacher(batch.inputs).logits.softmax(1)
            halves[0].extend(p[: batch.sizes[0]])
            halves[1].extend(p[batch.sizes[0] :])
        if len(halves[0]) >= n:
            return [torch.stack(half[:n]) for half in halves if half]


@pytest.mark.parametrize("views", ["cifar100", "none", "raw"])
def test_t_stddev_is_the_spread_of_mean_answers_over_groups(teacher, views):
    config = RunConfig(**STUDENT, views=views)
    halves = answers(teacher, config, 3 * 25)
    means = [torch.cat([half[25 * k : 25 * k + 25] for half in halves]).mean(0) for k in range(3)]
    expected = torch.stack(means).std(0).mean().item()
    assert teacher_stddev(teacher, config, data_of(config), groups=3, rows=50) == pytest.approx(expected, rel=1e-4)


def test_t_stddev_of_the_same_images_in_every_group_is_zero(teacher):
    config = RunConfig(**STUDENT | {"n_train": 32}, views="raw")
    data = load_data("digits", n_train=32)
    assert teacher_stddev(teacher, config, data, groups=3, rows=64) < 1e-6
    assert teacher_stddev(teacher, config, data, groups=3, rows=40) > 1e-4


class _Sure(nn.Module):
    """A teacher that says the same of every image."""

    def forward(self, x):
        logits = x.flatten(1)[:, :10] * 0
        return Output(logits, (), logits)


def test_a_teacher_that_says_the_same_of_everything_has_no_spread():
    config = RunConfig(**STUDENT, views="cutmixpick", method="kd", teacher=RunConfig(n_train=40))
    assert teacher_stddev(_Sure(), config, data_of(config), groups=2, rows=20) == 0
    assert (GROUPS, ROWS) == (32, 640), "kept values are of these; where they change, predicted() needs another name"


def test_what_is_measured_of_a_student_does_not_depend_on_which_images_it_saw():
    taught = RunConfig(n_train=40, epochs=2)
    runs = [
        fit(RunConfig(**STUDENT, method="kd", teacher=taught, subset_seed=seed, seed=0, draws=0), show="none")
        for seed in (0, 1)
    ]
    one, two = map(predict_from_teacher.predicted, runs)
    assert one[SPREAD] == two[SPREAD] > 0
    assert one[LOSS] != two[LOSS]
    assert one[LOSS] == pytest.approx(evaluate(runs[0].model(), data_of(runs[0].config))["loss"], rel=1e-5)
    whole = runs[0].config.but(n_train=None)
    assert one[SPREAD] == pytest.approx(teacher_stddev(fit(taught, show="none").model(), whole, data_of(whole), groups=2))


def test_a_correlation_of_two_measures_leaves_the_accuracy_out():
    values = {"m: a": [1.0], "m: b": [2.0], "m: c": [3.0], "n: a": [5.0], "n: b": [7.0], "n: c": [9.0]}
    found = Correlation("m", ("a", "b", "c"), "n")
    assert found.arms == ("n: a", "n: b", "n: c", "m: a", "m: b", "m: c")
    assert found.alternatives(values) == {"": [[pytest.approx(1)]]}
    assert Correlation("m", ("a", "b", "c")).places == found.places


def smoke(**change):
    return experiment("10_predict_from_teacher", profile_parameters(find("10_predict_from_teacher"), "smoke") | change)


def test_the_claims_are_about_kinds_that_cost_the_same_and_about_all():
    planned = smoke(views=[], sweep_p=[0.3, 0.1, 0.7])
    kinds = [facts["kind"] for facts in planned.facts.values()]
    assert (kinds.count("one view"), kinds.count("two views"), kinds.count("JDA")) == (3, 8, 3)
    assert all(
        (configs[0].views_per_image == 1) == (planned.facts[arm]["kind"] == "one view")
        for arm, configs in planned.arms.items()
        if arm != "teacher"
    )
    compared = [len(claim.estimand.compared) for claim in planned.claims if isinstance(claim.estimand, Correlation)]
    assert compared == [14, 14, 11, 11, 3]
    directions = [claim.true_where for claim in planned.claims]
    assert directions[:2] == ["above 0 (Pearson's r)", "below 0 (Pearson's r)"], "of the loss, and of the accuracy"
    values = {f"{SPREAD}: JDA, p 0.3": [0.004, 0.004], f"{SPREAD}: KD + crop and flip": [0.005, 0.006]}
    (lower,) = [claim for claim in planned.claims if "lower T. stddev than crop and flip as the second view" in claim.statement]
    assert lower.estimand.alternatives(values) == {"": [pytest.approx([[1.0, 2.0]][0])]}
    assert "rotation" in smoke(views=["rotation", "none", "raw"]).facts, "any row of VIEWS"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": ["cutuot"]}, "unknown kind of views in `views` 'cutuot'. Did you mean 'cutout'"),
        ({"views": ["flip", "flip"]}, "name each kind of views once"),
        ({"views": ["none", "crop and flip"]}, "name each kind of views once"),
        ({"views": ["flip"], "sweep_p": [0.3]}, "needs at least three of them"),
        ({"sweep_p": [0.3, 1.3]}, "sweep_p holds 1.3"),
    ],
)
def test_mistakes_are_said_before_the_training(change, message):
    with pytest.raises(CcdError, match=message):
        smoke(**change)


def test_points_of_several_seeds_and_published_ones_stand_side_by_side():
    theirs = [{"name": name, "x": x, "y": y} for name, (x, y) in T_STDDEV.items()]
    ours = [
        {"name": name, "kind": name[0], "seed": s, "x": x + s, "y": -y - s}
        for name, (x, y) in T_STDDEV.items()
        for s in (0, 1, 2)
    ]
    figure = relations.beside({"published": theirs, "ours": ours}, "x", "y", {"x": "T. stddev", "y": "loss"})
    left, right = figure.axes
    assert left.get_title() == "published: r 0.95", "their own is 0.958, by numbers that we read off"
    assert right.get_title() == "ours: r -0.95"
    assert {text.get_text() for text in left.texts} >= set(T_STDDEV)
    assert left.get_legend() is None
    assert [text.get_text() for text in right.get_legend().get_texts()] == list(dict.fromkeys(name[0] for name in T_STDDEV))
    assert left.get_xlabel() == "T. stddev"
