"""Every backbone: the exact numbers of methods.md (section 8), the contract, and the initial weights."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ccdlib.base.registry import CcdError, UnknownName
from ccdlib.methods import Given, make
from ccdlib.models import BACKBONES, build, folded

# name: parameters, millions of multiply-adds of one image
CIFAR = {
    "resnet8": (83_892, 12.5),
    "resnet20": (278_324, 40.8),
    "resnet56": (861_620, 125.8),
    "resnet8x4": (1_233_540, 177.1),
    "resnet32x4": (7_433_860, 1083.0),
    "wrn_16_1": (180_916, 26.7),
    "wrn_16_2": (703_284, 101.1),
    "wrn_40_1": (569_780, 83.3),
    "wrn_40_2": (2_255_156, 327.6),
    "vgg8": (3_965_028, 96.2),
    "vgg13": (9_462_180, 284.9),
    "mobilenet_v2": (812_836, 25.7),
    "shufflenet_v1": (949_258, 38.7),
    "shufflenet_v2": (1_355_528, 44.5),
    "resnet50_cifar": (23_705_252, 1298.0),
}
IMAGENET = {"resnet18": (11_689_512, 1814.1), "resnet34": (21_797_672, 3663.8)}
FAMILIES = ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "resnet18"]


def test_no_model_is_left_out():
    assert set(BACKBONES) == set(CIFAR) | set(IMAGENET)


@pytest.mark.parametrize("name", [*CIFAR, *IMAGENET])
def test_parameters_and_multiply_adds(name):
    (parameters, millions), side, classes = (CIFAR[name], 32, 100) if name in CIFAR else (IMAGENET[name], 224, 1000)
    network = build(name, classes=classes).eval().to("meta")
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network(torch.zeros(1, 3, side, side, device="meta"))  # counted from shapes, not computed
    assert sum(p.numel() for p in network.parameters()) == parameters
    tenth = 1e5
    assert flops.get_total_flops() / 2 == pytest.approx(millions * tenth * 10, abs=0.5 * tenth + 1)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 32])
def test_output_contract(name, channels, side):
    network = build(name, classes=7, channels=channels)
    out = network(torch.randn(4, channels, side, side, generator=torch.Generator().manual_seed(0)))
    assert out.logits.shape == (4, 7)
    assert out.pooled.shape == (4, network.head.in_features)
    assert len(out.feats) == (4 if name in ("resnet18", "vgg8", "mobilenet_v2") else 3)
    assert all(f.ndim == 4 and len(f) == 4 for f in out.feats)
    sides = [f.shape[-1] for f in out.feats]
    assert sides == sorted(sides, reverse=True)
    out.logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_feats_are_what_later_layers_left_untouched():
    # An in-place ReLU in the next stage would change a feature map after it was handed out.
    for name in FAMILIES:
        network = build(name, classes=7).eval()
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            feats = network(x).feats
            again = network.stem(x)
            for stage, feat in zip(network.stages, feats, strict=True):
                again = stage(again)
                torch.testing.assert_close(feat, again, msg=f"{name}: {stage}")
                again = again.clone()


def test_initial_weights_are_a_function_of_the_seed():
    one, same, other = build("resnet20", seed=1), build("resnet20", seed=1), build("resnet20", seed=2)
    for (name, a), b, c in zip(one.state_dict().items(), same.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        if "conv.weight" in name:
            assert not torch.equal(a, c), name
    assert all(b.isfinite().all() for b in one.buffers())


# family: convolutions (standard deviation from the fan-out or, uniform, from the fan-in), linear weights, linear bias
INITIAL = {
    "resnet8x4": ("fan out", "uniform", "uniform"),
    "wrn_16_2": ("fan out", "uniform", "zero"),
    "vgg8": ("fan out", 0.01, "zero"),
    "mobilenet_v2": ("fan out", 0.01, "zero"),
    "shufflenet_v1": ("uniform", "uniform", "uniform"),
    "shufflenet_v2": ("uniform", "uniform", "uniform"),
    "resnet18": ("fan out", "uniform", "uniform"),
}


def check_uniform(weights, inputs):
    bound = inputs**-0.5
    assert weights.abs().max() <= bound
    assert weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize("name", INITIAL)
@pytest.mark.parametrize("where", ["network", "branch"])
def test_initial_weights_are_those_of_the_family(name, where):
    convolutions, linear, bias = INITIAL[name]
    part = build(name, classes=200)
    if where == "branch":  # HSAKD's are parts of the network, and drawn like it
        part = make("hsakd_teacher", Given(part, None, None, (3, 32, 32), 200, torch.arange(200)))
    for module in part.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            if convolutions == "uniform":
                check_uniform(module.weight, module.weight[0].numel())
            else:
                fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
            if module.bias is not None:
                assert not module.bias.any()
        if isinstance(module, torch.nn.Linear):
            if linear == "uniform":
                check_uniform(module.weight, module.in_features)
            else:
                assert module.weight.std().item() == pytest.approx(linear, rel=0.1)
            if bias == "uniform":
                check_uniform(module.bias, module.in_features)
            else:
                assert not module.bias.any()


def test_wrong_requests_say_what_is_allowed():
    with pytest.raises(UnknownName, match=r"Did you mean 'resnet8x4'.*wrn_40_2"):
        build("resnet8x")
    with pytest.raises(CcdError, match="classes = 1"):
        build("resnet8", classes=1)
    with pytest.raises(CcdError, match=r"allowed are 1 \(grey\) and 3"):
        build("resnet8", channels=4)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_folded_network_answers_the_same_with_fewer_batch_norms(name):
    network, generator = build(name, classes=7).eval(), torch.Generator().manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_(0, 0.1, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    quick, inputs = folded(network), torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        ours, theirs = quick(inputs), network(inputs)
    for a, b in zip((ours.logits, ours.pooled, *ours.feats), (theirs.logits, theirs.pooled, *theirs.feats), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    left = sum(
        isinstance(quick.get_submodule(node.target), torch.nn.BatchNorm2d)
        for node in quick.graph.nodes
        if node.op == "call_module"
    )
    # Networks with norms in front of their convolutions keep those that follow a sum.
    assert left <= (0.6 * len(norms) if name.startswith("wrn") else 0)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
