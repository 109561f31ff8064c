"""Flatness: against full Hessians of small networks, and the claims and measures that rest on it."""

import copy
import re
import shutil
from collections import namedtuple

import pytest
import torch
from torch import nn

from ccdlib.analyses import Experiment, experiment, flat_minima
from ccdlib.base.registry import CcdError
from ccdlib.evidence.estimands import Contrast, Correlation, Regression, arm_of, line, values_of
from ccdlib.evidence.records import FILE, MEASURES, Records
from ccdlib.evidence.sharpness import PROBES, Landscape, plane, sharpness, top_eigenvalue, trace
from ccdlib.evidence.stats import Claim
from ccdlib.kit import measures, power, recorded, verdicts
from ccdlib.kit.parameters import find, profile_parameters
from ccdlib.training import RunConfig, data_of, fit, folder_of
from ccdlib.training.ascent import ETA
from ccdlib.views.crops import normalise

GOLDEN = (0.0401339, 0.0396444, 0.0172078)
Says = namedtuple("Says", "logits")


class Small(nn.Module):
    """A network of a few dozen weights, with a batch norm between two layers."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return Says(self.last(torch.tanh(self.norm(self.first(x)))))


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(30, 4, generator=generator), torch.randint(0, 3, (30,), generator=generator)


@pytest.fixture
def landscape(given):
    return Landscape(Small(), *given, size=7)


def hessian(network, inputs, labels):
    """The whole matrix of second derivatives, by torch's own function."""
    names, values = zip(*network.named_parameters(), strict=True)
    sizes = [value.numel() for value in values]

    def loss(flat):
        parts = [part.view_as(value) for part, value in zip(flat.split(sizes), values, strict=True)]
        said = torch.func.functional_call(network, dict(zip(names, parts, strict=True)), (inputs,))
        return nn.functional.cross_entropy(said.logits, labels)

    return torch.autograd.functional.hessian(loss, torch.cat([value.detach().flatten() for value in values]))


def test_eigenvalue_and_trace_are_those_of_the_whole_hessian(landscape, given):
    whole = hessian(landscape.network, *given)
    assert top_eigenvalue(landscape) == pytest.approx(torch.linalg.eigvalsh(whole)[-1].item(), rel=0.02)
    mean, error = trace(landscape, probes=200)
    assert 0 < error < 0.1 * mean
    assert abs(mean - whole.trace().item()) < 4 * error
    vector = [torch.randn(w.shape, generator=torch.Generator().manual_seed(2)) for w in landscape.weights]
    flat, product = (torch.cat([part.flatten() for part in parts]) for parts in (vector, landscape.times_hessian(vector)))
    assert torch.allclose(product, whole @ flat, atol=1e-5)


def test_the_loss_and_its_rise_are_those_computed_by_hand(landscape, given):
    inputs, labels = given
    network = copy.deepcopy(landscape.network)
    loss = nn.functional.cross_entropy(network(inputs).logits, labels)
    assert landscape.loss() == pytest.approx(loss.item(), rel=1e-6)
    gradient = torch.autograd.grad(loss, list(network.parameters()))
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    with torch.no_grad():
        for weight, g in zip(network.parameters(), gradient, strict=True):
            weight += 0.3 * g / norm
        rise = nn.functional.cross_entropy(network(inputs).logits, labels) - loss
    assert sharpness(landscape, 0.3) == pytest.approx(rise.item(), rel=1e-4)
    assert sharpness(landscape, 0.3) == sharpness(landscape, 0.3), "the weights are as they were"


@pytest.mark.parametrize("adaptive", [False, True])
def test_ten_steps_stay_in_the_ball_and_find_no_less_than_one(landscape, adaptive, monkeypatch):
    seen, loss = [], landscape.loss
    monkeypatch.setattr(landscape, "loss", lambda away=None: seen.append(away) or loss(away))
    one, ten = (sharpness(landscape, 0.5, steps, adaptive) for steps in (1, 10))
    assert ten >= one > 0
    units = [w.abs() + ETA if adaptive else torch.ones_like(w) for w in landscape.weights]
    norms = [
        torch.cat([(part / unit).flatten() for part, unit in zip(away, units, strict=True)]).norm().item()
        for away in seen
        if away is not None
    ]
    assert len(norms) == 11
    assert max(norms) == pytest.approx(0.5, rel=1e-4)


def test_adaptive_sharpness_does_not_depend_on_the_scale_of_the_weights(given):
    network, scaled = Small().eval(), Small().eval()
    with torch.no_grad():
        for parameter in scaled.first.parameters():
            parameter *= 20
        scaled.norm.running_mean *= 20
        scaled.norm.running_var *= 400
        scaled.norm.eps *= 400
    assert torch.allclose(network(given[0]).logits, scaled(given[0]).logits, atol=1e-5), "both say the same"
    both = [Landscape(each, *given) for each in (network, scaled)]
    plain, adaptive = ([sharpness(each, 0.5, 10, kind) for each in both] for kind in (False, True))
    assert plain[0] / plain[1] > 1.2
    assert adaptive[0] / adaptive[1] == pytest.approx(1, abs=0.1)


def test_a_plane_has_the_network_in_its_middle_and_moves_filters_by_their_own_length(landscape):
    found = plane(landscape, extent=0.5, points=3)
    assert found.losses[1, 1].item() == pytest.approx(landscape.loss(), rel=1e-6)
    assert found.places.tolist() == [-0.5, 0.0, 0.5]
    assert len({round(loss, 6) for loss in found.losses.flatten().tolist()}) == 9
    assert torch.equal(found.losses, plane(landscape, extent=0.5, points=3).losses)
    moved, loss = [], landscape.loss
    landscape.loss = lambda away: moved.append(away) or loss(away)
    plane(landscape, extent=1.0, points=3)
    direction = moved[7]  # one step along the first direction
    for part, weight in zip(direction, landscape.weights, strict=True):
        expected = weight.norm(dim=1) if weight.ndim > 1 else torch.zeros(len(weight))
        assert torch.allclose(part.flatten(1).norm(dim=1) if weight.ndim > 1 else part.abs(), expected, rtol=1e-4)


# ---------------------------------------------------------------- claims about what was measured


def test_names_of_what_was_measured():
    assert values_of("sharpness", "KD + JDA, SAM") == "sharpness: KD + JDA, SAM"
    assert arm_of("sharpness: KD + JDA, SAM") == arm_of("KD + JDA, SAM") == "KD + JDA, SAM"


def test_a_correlation_is_taken_within_each_seed():
    accuracies = {"a": [10.0, 50.0], "b": [11.0, 52.0], "c": [12.0, 51.0]}
    accuracies |= {"m: a": [3.0, 1.0], "m: b": [2.0, 2.0], "m: c": [1.0, 3.0]}
    found = Correlation("m", ("a", "b", "c"))
    assert found.alternatives(accuracies) == {"": [[pytest.approx(-1), pytest.approx(0.5)]]}
    assert len(found.places) == len(found.arms) == 6
    assert found.alternatives(accuracies | {name: [1.0, 1.0] for name in ("m: a", "m: b", "m: c")}) == {"": [[0.0, 0.0]]}


def test_what_remains_of_a_gain_is_where_the_line_meets_no_change():
    changes = [-2.0, -1.0, 0.5, 1.0, -3.0, 0.0]
    gains = [4 - 3 * change for change in changes]
    accuracies = {"new": [50 + g for g in gains], "old": [50.0] * 6, "m: new": changes, "m: old": [0.0] * 6}
    values = Regression("m", "new", "old").alternatives(accuracies)[""][0]
    assert values == pytest.approx([4.0] * 6), "on a line every pseudo-value is the intercept"
    assert line(changes, gains) == pytest.approx((-3.0, 4.0))
    steep = Regression("m", "new", "old", "slope").alternatives(accuracies)[""][0]
    assert steep == pytest.approx([-3.0] * 6)
    noisy = accuracies | {"new": [a + n for a, n in zip(accuracies["new"], (1, -1, 2, 0, -2, 1), strict=True)]}
    claim = Claim("(x)", "some remains", "intercept", Regression("m", "new", "old"), least=6)
    judged = claim.judge(noisy)
    assert judged["low"] < line(changes, [a - 50 for a in noisy["new"]])[1] < judged["high"]
    assert judged["verdict"] == "holds"
    with pytest.raises(CcdError, match="a regression over seeds needs at least four; given: 3"):
        Regression("m", "new", "old").alternatives({name: values[:3] for name, values in accuracies.items()})
    with pytest.raises(CcdError, match="a slope needs at least two different values"):
        Regression("m", "new", "old").alternatives(accuracies | {"m: new": [1.0] * 6})


def test_an_interval_of_what_remains_covers_it_as_often_as_it_says():
    generator = torch.Generator().manual_seed(5)
    claim, covered = Claim("(x)", "some remains", "intercept", Regression("m", "new", "old")), 0
    for _ in range(300):
        changes = (torch.randn(10, generator=generator) - 0.5).tolist()
        gains = [
            2 - change + noise for change, noise in zip(changes, torch.randn(10, generator=generator).tolist(), strict=True)
        ]
        judged = claim.judge({"new": gains, "old": [0.0] * 10, "m: new": changes, "m: old": [0.0] * 10})
        covered += judged["low"] <= 2 <= judged["high"]
    assert 0.9 < covered / 300 < 0.98


def test_a_claim_about_a_measure_needs_its_declaration():
    arms = {arm: [RunConfig(n_train=20, epochs=k + 1, seed=s) for s in range(2)] for k, arm in enumerate("ab")}
    claim = Claim("(x)", "a is flatter", "m", Contrast({"m: b": 1, "m: a": -1}))
    assert Experiment(arms, (claim,), {"a": {}, "b": {}}, measures=("m",))
    with pytest.raises(CcdError, match="unknown arm of claim"):  # of arms without facts nothing is measured
        Experiment(arms, (claim,), {"a": {}}, measures=("m",))
    with pytest.raises(CcdError, match="unknown arm of claim"):
        Experiment(arms, (claim,))


# ---------------------------------------------------------------- the measures of runs, kept


def measured_of(run):
    """A measure for tests, which needs the weights."""
    return {"sum": sum(p.double().sum().item() for p in run.model().parameters())}


NAME = f"{measured_of.__module__}.measured_of"


def two_runs():
    configs = [RunConfig(n_train=20, epochs=1, seed=seed) for seed in range(2)]
    return configs, [fit(config, show="none") for config in configs]


def test_measures_are_kept_beside_the_runs(monkeypatch):
    _, runs = two_runs()
    expected = [measured_of(run) for run in runs]
    assert measures.of_runs([*runs, runs[0]], measured_of) == [*expected, expected[0]]
    for run in runs:
        (run.folder / "weights.safetensors").unlink()
    assert measures.of_runs(runs, measured_of) == expected
    (runs[0].folder / MEASURES).unlink()
    with pytest.raises(CcdError, match="weights of .* are not here, only its record"):
        measures.of_runs(runs, measured_of)


def test_a_record_is_enough_where_it_says_what_was_measured(tmp_path):
    configs, runs = two_runs()
    folders = [folder_of(config) for config in configs]
    expected = measures.of_runs(runs[:1], measured_of)
    records = Records(tmp_path / FILE)
    records.add(folders)
    assert [records.has_measure(config, NAME) for config in configs] == [True, False]
    for folder in folders:
        shutil.rmtree(folder.path)
    assert measures.of_runs([records.result(configs[0])], measured_of) == expected
    with pytest.raises(CcdError, match="only its record"):
        measures.of_runs([records.result(configs[1])], measured_of)

    def missing(**what):
        planned = Experiment({"a": configs}, (), {"a": {}}, records=Records(tmp_path / FILE), **what)
        return [folder.config.seed for _, folder in planned.runs.values() if not folder.recorded]

    assert missing() == []
    assert missing(measure=measured_of) == [1], "its network has to be trained, and measured"


def test_what_is_recorded_is_measured_first(tmp_path, outputs):
    configs, _ = two_runs()
    planned = Experiment({"a": configs}, (), {"a": {}}, measure=measured_of)
    records, new = recorded.keep(planned, "stem", "lite")
    assert new == 2
    assert all(records.has_measure(config, NAME) for config in configs)
    assert records.path == outputs / "lite" / "stem" / FILE


def test_a_claim_about_a_measure_on_the_pages():
    asked = profile_parameters(find("09_flat_minima"), "smoke")
    planned = experiment("09_flat_minima", asked)
    values = {arm: [50.0 + k, 51.0, 52.0, 53.5] for k, arm in enumerate(planned.arms)}
    values |= {values_of(flat_minima.FLAT, arm): [1.0 + k, 2.0, 2.5, k / 2] for k, arm in enumerate(planned.facts)}
    units = []
    for claim in planned.claims:
        row = claim.judge(values, 10.0)
        row |= {"corrected": row["verdict"], "old": [], "profile": "smoke", "arithmetic": "", "data": "digits", "sizes": "few"}
        (line,) = list(verdicts._table([row | {"notebooks": ["09_flat_minima"]}]))[2:]
        units.append(re.search(r"\[[-+.\d]+, [-+.\d]+\]([^|]*)\|", line)[1].strip())
        assert "](" not in line.rpartition("|")[0].rpartition("|")[0], "no link but that to the notebook"
    assert set(units) == {"", "doublings of sharpness", "for each doubling of sharpness", "(Pearson's r)"}
    (row,) = {power._row(claim, {}, 1.0) for claim in planned.claims if claim.statement.startswith("SAM leads")}
    assert "about what was measured" in row


def test_flatness_of_a_student():
    teacher = RunConfig(n_train=40, epochs=2)
    run = fit(RunConfig(n_train=40, epochs=2, method="kd", teacher=teacher), show="none")
    found, data = flat_minima.flatness(run), data_of(run.config)
    assert found[flat_minima.FLAT] == pytest.approx(torch.tensor(found["sharpness"]).log2().item(), rel=1e-5)
    assert found["sharpness"] >= found["sharpness by one step"] > 0
    around = Landscape(run.model(), normalise(data.train_images, data.mean, data.std), data.train_labels)
    assert found["training loss"] == pytest.approx(around.loss(), rel=1e-5)
    assert min(found["eigenvalue"], found["test loss"], found["plain sharpness"]) > 0
    some = torch.tensor([0, 2, 0, 1, 1, 2, 0])
    assert flat_minima.of_each_class(some, 4).tolist() == [0, 3, 1]
    assert flat_minima.of_each_class(some, 6).tolist() == [0, 2, 3, 4, 1, 5]


def test_a_measure_that_changes_gets_another_name(landscape):
    """These numbers are those of the measure as it is. Where they change, so must the name of flatness(): values that are
    kept under the old one are not measured again."""
    found = [sharpness(landscape, 0.5, 10, True), sharpness(landscape, 0.5, 1, True), sharpness(landscape, 0.05)]
    assert found == pytest.approx(GOLDEN, rel=1e-3)
    assert (flat_minima.ADAPTIVE, flat_minima.PLAIN, flat_minima.TRAINING_IMAGES, flat_minima.TEST_IMAGES) == (
        0.5,
        0.05,
        1000,
        100,
    )
    assert (flat_minima.LEAST, PROBES) == (1e-6, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 3}, "seeds = 3: a regression over seeds, on which claims rest, needs at least 4"),
        ({"rho": 0.0}, "rho = 0: how far SAM looks around the weights"),
        ({"others": ["CDD"]}, "unknown method in `others` 'CDD'. Did you mean 'CCD'"),
        ({"data": "photos", "teacher": "train"}, "data = 'photos': sharpness is measured on images in memory"),
    ],
)
def test_mistakes_are_said_before_the_training(change, message):
    asked = profile_parameters(find("09_flat_minima"), "smoke")
    with pytest.raises(CcdError, match=message):
        experiment("09_flat_minima", asked | change)
