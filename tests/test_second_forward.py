"""Outputs, features and gradients of every backbone against a forward pass that was written a second time.

Parameters and multiply-adds say nothing of activations, strides that cancel out, or the order of norm and activation.
"""

import copy
import itertools

import pytest
import torch
from second_forward import NETWORKS, branches, forward
from torch import nn

from ccdlib.methods import Given, make
from ccdlib.models import BACKBONES, build

MOST = 20  # mistakes that are tried in a network, spread over it
# These take long. All but the one with bottlenecks are the code of a quick network with more or wider blocks.
LARGE = ("resnet56", "resnet32x4", "wrn_40_1", "wrn_40_2", "vgg13", "resnet50_cifar", "resnet34")
EVERY = [pytest.param(name, marks=pytest.mark.drill) if name in LARGE else name for name in BACKBONES]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(module):
    """The module in float64, its norms with weights and statistics that make every activation matter: many inputs of a ReLU
    are negative, many above six."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in (
            (norm.weight, 2, 6),
            (norm.bias, -2, 2),
            (norm.running_mean, -1, 1),
            (norm.running_var, 0.5, 2),
        ):
            with torch.no_grad():
                tensor.uniform_(low, high, generator=generator)
    return module.double()


def network_and_images(name):
    side = 32 if name in ("resnet18", "resnet34") else 8
    return lively(build(name, classes=7)), drawn(3, 3, side, side)


def close(ours, theirs, tolerance=1e-8):
    """Equal to rounding, tensor by tensor; some gradients (of a bias in front of a norm) are nothing but rounding."""
    nothing = 1e-6 * max(b.abs().max() for b in theirs)
    return all((a - b).abs().max() <= tolerance * max(b.abs().max(), nothing) for a, b in zip(ours, theirs, strict=True))


def flat(logits, feats, pooled):
    return [logits, *feats, pooled]


def gradients(outputs, module):
    total = sum((out * drawn(*out.shape, seed=k)).mean() for k, out in enumerate(outputs))
    return torch.autograd.grad(total, list(module.parameters()))


def test_none_is_left_out():
    assert set(NETWORKS) == set(BACKBONES)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", EVERY)
def test_a_network_does_what_its_description_says(name, training):
    network, images = network_and_images(name)
    network.train(training)
    ours, theirs = flat(*network(images)), flat(*forward(name, network, images))
    assert close(ours, theirs)
    assert close(gradients(ours, network), gradients(theirs, network), 1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", EVERY)
def test_hsakds_branches_do_what_their_description_says(name, training):
    network, images = network_and_images(name)
    given = Given(network, None, None, tuple(images.shape[1:]), 7, torch.arange(7))
    method = lively(make("hsakd_teacher", given)).train(training)
    with torch.no_grad():
        output = network.eval()(images)
    ours, theirs = method.heads(output), branches(name, method.branches, output.feats)
    assert len(ours) == len(output.feats)
    assert close(ours, theirs)
    assert close(gradients(ours, method.branches), gradients(theirs, method.branches), 1e-6)


def changes(network):
    """(what, a function that makes one thing of a network otherwise) for mistakes that change no count of parameters."""

    def other(what, change, *arguments):
        return what, lambda changed: change(changed, *arguments)

    named = list(network.named_modules())
    for name, module in named:
        if isinstance(module, nn.ReLU):
            yield other(f"no ReLU at {name}", nn.Module.set_submodule, name, nn.Identity())
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            yield other(f"no stride at {name}", lambda net, name: setattr(net.get_submodule(name), "stride", (1, 1)), name)
        if isinstance(module, nn.MaxPool2d):
            yield other(f"average pooling at {name}", nn.Module.set_submodule, name, nn.AvgPool2d(module.kernel_size, 2))
    relus = [name for name, module in named if isinstance(module, nn.ReLU)]
    yield other("ReLU6 throughout", lambda net: [net.set_submodule(name, nn.ReLU6()) for name in relus])
    for name, module in named:
        children = list(module.named_children())
        for (norm, a), (activation, b) in itertools.pairwise(children):
            if isinstance(a, nn.BatchNorm2d) and isinstance(b, nn.ReLU):
                yield other(f"ReLU before the norm in {name}", swapped, name, norm, activation)


def swapped(network, name, one, other):
    parent = network.get_submodule(name)
    a, b = getattr(parent, one), getattr(parent, other)
    setattr(parent, one, b)
    setattr(parent, other, a)


def with_its_tensors(module):
    """A copy of a module that can be changed and has the module's own tensors. A pass in train mode moves running statistics,
    and reads those of the batch: what one copy moves, no other sees."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def are_seen(module, said, right):
    """How many changes of a module were made; each must show in what the module then says, `said(changed)`."""
    every, found = list(changes(module)), 0
    with torch.no_grad():
        for what, change in every[:: max(1, len(every) // MOST)]:
            changed = with_its_tensors(module)
            change(changed)
            try:
                wrong = said(changed)
            except RuntimeError:  # shapes do not fit any more
                continue
            same = all(a.shape == b.shape for a, b in zip(wrong, right, strict=True)) and close(wrong, right)
            assert not same, what
            found += 1
    return found


@pytest.mark.parametrize("name", EVERY)
def test_what_no_count_can_see_is_seen(name):
    network, images = network_and_images(name)
    with torch.no_grad():
        right = flat(*forward(name, network, images))
    assert are_seen(network, lambda changed: flat(*changed(images)), right) >= 8


@pytest.mark.parametrize("name", EVERY)
def test_what_no_count_can_see_is_seen_in_branches(name):
    network, images = network_and_images(name)
    given = Given(network, None, None, tuple(images.shape[1:]), 7, torch.arange(7))
    method = lively(make("hsakd_teacher", given))
    with torch.no_grad():
        output = network(images)  # in train mode: features whose size lets a branch's own units count
        right = branches(name, method.branches, output.feats)
    assert are_seen(method, lambda changed: changed.heads(output), right) > 3
