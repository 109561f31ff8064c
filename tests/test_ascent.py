"""Sharpness-aware steps: against a computation of their own, in cohorts, and after an interruption."""

import copy

import pytest
import torch
from stepping import interrupt
from test_group import CCD, after_one_step, close
from torch import nn

from ccdlib import training
from ccdlib.base.registry import CcdError
from ccdlib.data.sources import Sizes
from ccdlib.training import RunConfig, fit, fit_cohort, loop
from ccdlib.training.ascent import ASCENTS, ETA, climbed, steepest
from ccdlib.training.work import cost

SMALL = {"n_train": 40, "batch": 20, "epochs": 2, "model": "resnet8"}
TEACHER = RunConfig(**SMALL, seed=7)
SAM = RunConfig(**SMALL, method="ccd", views="cifar100", teacher=TEACHER, optimiser="sam", rho=0.2)
KINDS = [(name, adaptive) for name, (_, adaptive) in ASCENTS.items()]


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_way_up_is_as_long_as_asked_and_the_steepest(adaptive):
    generator = torch.Generator().manual_seed(0)
    weights, gradients = ([torch.randn(shape, generator=generator) for shape in ((3, 4), (4,))] for _ in range(2))
    units = [weight.abs() + ETA if adaptive else torch.ones_like(weight) for weight in weights]

    def length(way):
        return torch.cat([(part / unit).flatten() for part, unit in zip(way, units, strict=True)]).norm().item()

    def gain(way):
        return sum((part * gradient).sum().item() for part, gradient in zip(way, gradients, strict=True))

    way = steepest(weights, gradients, 0.3, adaptive)
    assert length(way) == pytest.approx(0.3, rel=1e-5)
    for _ in range(50):
        other = [torch.randn(unit.shape, generator=generator) * unit for unit in units]
        assert gain(way) > gain([0.3 / length(other) * part for part in other])
    assert not any(part.any() for part in steepest(weights, [torch.zeros_like(w) for w in weights], 0.3, adaptive))


@pytest.mark.parametrize(("optimiser", "adaptive"), KINDS)
def test_a_step_takes_the_gradient_of_where_the_loss_is_highest(optimiser, adaptive, monkeypatch):
    """The way up is computed here once more, and a plain step from there must have the same gradient."""
    plain, build = CCD, loop.build
    sharp, statistics, terms, _ = after_one_step(plain.but(optimiser=optimiser, rho=0.2))
    gradient, own_statistics, own_terms, _ = after_one_step(plain)
    assert terms == own_terms
    for name, value in own_statistics.items():
        assert name.endswith("num_batches_tracked") or torch.equal(statistics[name], value), "they are not those of w + e"
    weights = {name: p.detach().double() for name, p in build(plain.model, 10, 1, plain.seed).named_parameters()}
    unit = {name: weight.abs() + ETA if adaptive else torch.ones_like(weight) for name, weight in weights.items()}
    norm = sum((unit[name] * g).square().sum() for name, g in gradient.items()).sqrt()

    def moved(model, classes, channels, seed):
        network = build(model, classes, channels, seed).double()
        for name, p in network.named_parameters() if seed == plain.seed else ():
            p.data += 0.2 * unit[name] ** 2 * gradient[name] / norm
        return network

    monkeypatch.setattr(loop, "build", moved)
    close(sharp, after_one_step(plain)[0], 1e-6)
    assert max((sharp[name] - g).norm() / g.norm() for name, g in gradient.items()) > 0.05


def test_afterwards_the_weights_are_what_they_were():
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    network.register_parameter("unused", nn.Parameter(torch.ones(3)))
    before = copy.deepcopy(network.state_dict())
    network(torch.randn(16, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    statistics = network[1].running_mean.clone()
    with climbed(list(network.parameters()), [network], 0.5, True):
        assert not torch.equal(network[0].weight, before["0.weight"])
        assert network[0].weight.grad is None
        network(torch.ones(16, 4))
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert network[1].momentum == 0.1
    assert torch.equal(network[1].running_mean, statistics)


def test_sharpness_aware_runs_share_a_cohort_and_go_on_after_an_interruption(once, trained, monkeypatch):
    configs = [SAM, SAM.but(optimiser="asam", rho=None), SAM.but(optimiser="sgd", rho=None)]
    alone = [result.metrics["sha256"] for result in once(*configs)]
    assert len({hashes["weights.safetensors"] for hashes in alone}) == 3
    trained(TEACHER)
    interrupt(configs, monkeypatch)
    found = [result.metrics["sha256"]["weights.safetensors"] for result in fit_cohort(configs, show="none")]
    assert found == [hashes["weights.safetensors"] for hashes in alone]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 0.1}, "rho = 0.1 with optimiser 'sgd': only sam and asam have one; leave it out"),
        (
            {"optimiser": "sam", "accumulate": 2},
            "accumulate = 2 with optimiser 'sam': the gradient at the weights must be known",
        ),
        ({"optimiser": "sam", "rho": 0.0}, "rho"),
        ({"optimiser": "adam"}, "optimiser"),
    ],
)
def test_what_is_not_allowed(change, message):
    with pytest.raises(CcdError, match=message):
        RunConfig(**SMALL, **change)


def test_names_and_costs():
    plain = SAM.but(optimiser="sgd", rho=None)
    assert (
        len({training.folder_of(config).path.name for config in (plain, SAM, SAM.but(rho=0.1), SAM.but(optimiser="asam"))}) == 4
    )
    assert training.folder_of(SAM.but(rho=0.05)).path.name == training.folder_of(SAM.but(rho=None)).path.name
    assert "optimiser" not in training.folder_of(plain).facts
    assert SAM.but(rho=None).ascent == (0.05, False)
    twice, once = (cost(config, Sizes(10, 1, 1000), 16)["training_macs"] for config in (SAM, plain))
    assert once < twice < 2 * once, "the teacher answers once"
    assert SAM.work != plain.work


def test_a_sharpness_aware_run_learns():
    config = RunConfig(n_train=200, epochs=4, optimiser="sam")
    assert fit(config, show="none").accuracy > 40
