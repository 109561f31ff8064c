"""Flatness: against full Hessians of small networks, and the claims and measures that rest on it."""

import copy
import json
from collections import namedtuple

import pytest
import torch
from torch import nn

from ccdlib.analyses import Experiment, experiment, flat_minima
from ccdlib.analyses.common import teachers_of
from ccdlib.base.registry import CcdError
from ccdlib.evidence.estimands import Contrast, Correlation, Remaining, arm_of, intercept, values_of
from ccdlib.evidence.sharpness import Landscape, plane, sharpness, top_eigenvalue, trace
from ccdlib.evidence.stats import Claim
from ccdlib.kit import measures
from ccdlib.kit.parameters import find, profile_parameters
from ccdlib.training import RunConfig, fit
from ccdlib.training.ascent import ETA
from ccdlib.views.crops import normalise

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
    with pytest.raises(CcdError, match="the correlation of m with accuracy needs different values"):
        found.alternatives(accuracies | {name: [1.0, 1.0] for name in ("m: a", "m: b", "m: c")})


def test_what_remains_of_a_gain_is_the_intercept_of_its_regression():
    changes = [-2.0, -1.0, 0.5, 1.0, -3.0, 0.0]
    gains = [4 - 3 * change for change in changes]
    accuracies = {"new": [50 + g for g in gains], "old": [50.0] * 6, "m: new": changes, "m: old": [0.0] * 6}
    values = Remaining("m", "new", "old").alternatives(accuracies)[""][0]
    assert values == pytest.approx([4.0] * 6), "on a line every pseudo-value is the intercept"
    assert intercept(changes, gains) == pytest.approx(4.0)
    noisy = accuracies | {"new": [a + n for a, n in zip(accuracies["new"], (1, -1, 2, 0, -2, 1), strict=True)]}
    claim = Claim("(x)", "some remains", "intercept", Remaining("m", "new", "old"), least=6)
    judged = claim.judge(noisy)
    assert judged["low"] < intercept(changes, [a - 50 for a in noisy["new"]]) < judged["high"]
    assert judged["verdict"] == "holds"
    with pytest.raises(CcdError, match="a regression over seeds needs at least four; given: 3"):
        Remaining("m", "new", "old").alternatives({name: values[:3] for name, values in accuracies.items()})
    with pytest.raises(CcdError, match="a slope needs at least two different values"):
        Remaining("m", "new", "old").alternatives(accuracies | {"m: new": [1.0] * 6})


def test_an_interval_of_what_remains_covers_it_as_often_as_it_says():
    generator = torch.Generator().manual_seed(5)
    claim, covered = Claim("(x)", "some remains", "intercept", Remaining("m", "new", "old")), 0
    for _ in range(300):
        changes = (torch.randn(10, generator=generator) - 0.5).tolist()
        gains = [
            2 - change + noise for change, noise in zip(changes, torch.randn(10, generator=generator).tolist(), strict=True)
        ]
        judged = claim.judge({"new": gains, "old": [0.0] * 10, "m: new": changes, "m: old": [0.0] * 10})
        covered += judged["low"] <= 2 <= judged["high"]
    assert 0.91 < covered / 300 < 0.98


def test_a_claim_about_a_measure_needs_its_declaration():
    arms = {arm: [RunConfig(n_train=20, epochs=k + 1, seed=s) for s in range(2)] for k, arm in enumerate("ab")}
    claim = Claim("(x)", "a is flatter", "m", Contrast({"m: b": 1, "m: a": -1}))
    assert Experiment(arms, (claim,), measures=("m",))
    with pytest.raises(CcdError, match="unknown arm of claim"):
        Experiment(arms, (claim,))


# ---------------------------------------------------------------- the measures of runs, kept


def measured_of(run):
    """A measure for tests, which needs the weights."""
    return {"sum": sum(p.double().sum().item() for p in run.model().parameters())}


def test_measures_are_kept_and_read_where_the_weights_are_gone(outputs, monkeypatch):
    monkeypatch.setenv("CCD_JOBS", "1")
    runs = [fit(RunConfig(n_train=20, epochs=1, seed=seed), show="none") for seed in range(2)]
    folder = outputs / "lite" / "x"
    found = measures.of_runs(folder, runs, measured_of)
    assert found == {measures.network_of(run): measured_of(run) for run in runs}
    for run in runs:
        (run.folder / "weights.safetensors").unlink()
    assert measures.of_runs(folder, runs[:1], measured_of) == found
    kept = json.loads((folder / measures.FILE).read_text())
    del kept[f"{measured_of.__module__}.measured_of"][measures.network_of(runs[1])]
    (folder / measures.FILE).write_text(json.dumps(kept))
    with pytest.raises(CcdError, match="weights of .* are not here, only its record"):
        measures.of_runs(folder, runs, measured_of)
    (folder / measures.FILE).write_text("{")
    with pytest.raises(CcdError, match=r"measures\.json cannot be read .*restore it from git, or delete it"):
        measures.of_runs(folder, runs, measured_of)


def test_what_is_published_is_known_beside_what_is_measured_here(outputs, tmp_path, monkeypatch):
    monkeypatch.setattr("ccdlib.base.paths.ROOT", tmp_path / "root")
    published = tmp_path / "root" / "outputs" / "lite" / "x" / measures.FILE
    published.parent.mkdir(parents=True)
    run = fit(RunConfig(n_train=20, epochs=1), show="none")
    kind = f"{measured_of.__module__}.measured_of"
    published.write_text(json.dumps({kind: {measures.network_of(run): {"sum": 3.0}}}))
    assert measures.of_runs(outputs / "lite" / "x", [run], measured_of) == {measures.network_of(run): {"sum": 3.0}}


def test_flatness_of_a_student(monkeypatch):
    teacher = RunConfig(n_train=40, epochs=2)
    run = fit(RunConfig(n_train=40, epochs=2, method="kd", teacher=teacher), show="none")
    found = flat_minima.sharp_and_curved(run)
    assert found[flat_minima.FLAT] == pytest.approx(torch.tensor(found["sharpness"]).log2().item(), rel=1e-5)
    assert found["sharpness"] >= found["sharpness by one step"] > 0
    assert found["training loss"] == pytest.approx(
        Landscape(
            run.model(), normalise(data_of(run).train_images, data_of(run).mean, data_of(run).std), data_of(run).train_labels
        ).loss()
    )
    assert min(found["eigenvalue"], found["test loss"], found["plain sharpness"]) > 0


def data_of(run):
    from ccdlib.training import data_of

    return data_of(run.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 3}, "seeds = 3: a regression over seeds, on which a claim rests, needs at least 4"),
        ({"rho": 0.0}, "rho = 0: how far SAM looks around the weights"),
        ({"data": "photos", "teacher": "train"}, "data = 'photos': sharpness is measured on images in memory"),
    ],
)
def test_mistakes_are_said_before_the_training(change, message):
    asked = profile_parameters(find("09_flat_minima"), "smoke")
    assert teachers_of(asked)
    with pytest.raises(CcdError, match=message):
        experiment("09_flat_minima", asked | change)
