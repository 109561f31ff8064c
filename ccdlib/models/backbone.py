"""The contract of all backbones, how their weights are drawn, and teachers with their batch norms folded."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ccdlib.base.registry import CcdError, Registry
from ccdlib.base.streams import stream


class Output(NamedTuple):
    """What a backbone says about B images."""

    logits: torch.Tensor  # (B, classes)
    feats: tuple[torch.Tensor, ...]  # one (B, c, h, w) per stage
    pooled: torch.Tensor  # (B, D), the input of the last linear layer


class Initial(NamedTuple):
    """How weights are drawn. he: convolutions He normal, fan-out (He et al. 2015), their biases 0; else PyTorch's uniform
    default. std: of normal weights of linear layers; None: PyTorch's uniform default. zero_bias: linear biases are 0."""

    he: bool = True
    std: float | None = None
    zero_bias: bool = False


# By family, as the code of HSAKD, whose networks these are, draws them.
HE = Initial()  # ResNets


HE_ZERO = Initial(zero_bias=True)  # wide ResNets


HE_NORMAL = Initial(std=0.01, zero_bias=True)  # VGG, MobileNetV2


UNIFORM = Initial(he=False)  # ShuffleNets: PyTorch's defaults


class Backbone(nn.Module):
    """Stem, stages, tail, global average, linear head; a kept library makes all but the last two.

    stem, tail: modules before the first stage and after the last. stages: a list of modules, one a feature map. width: numbers
    that the tail leaves after averaging. classes: width of the logits. again: a function that makes the units of the last stage
    once more, from its own output at its own size, for HSAKD's branch after that stage (None: HSAKD cannot take the network).
    initial: how its weights are drawn.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[nn.Module],
        tail: nn.Module,
        width: int,
        classes: int,
        again: Callable | None = None,
        initial: Initial = HE,
    ):
        super().__init__()
        self.again, self.initial = again, initial
        self.stem, self.stages, self.tail = stem, nn.ModuleList(stages), tail
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        """x (B, C, H, W) float, normalised -> Output."""
        x = self.stem(x)
        feats = []
        for stage in self.stages:
            x = stage(x)
            feats.append(x)
        pooled = F.adaptive_avg_pool2d(self.tail(x), 1).flatten(1)
        return Output(self.head(pooled), tuple(feats), pooled)


MODELS = Registry("model")


def build(name, classes=10, channels=3, seed=0):
    """The network `name` with fresh weights.

    classes: width of the logits; channels: 1 or 3 image channels; seed: initial weights are a function of it alone, drawn as
    the network's family is (Initial); batch norms are 1 and 0.
    Errors: CcdError for an unknown name, fewer than two classes, or other channels. The network works from images of
    8 x 8 on (32 x 32 for the ImageNet networks).
    """
    make = MODELS[name]
    if not isinstance(classes, int) or classes < 2:
        raise CcdError(f"classes = {classes!r} for model {name!r}: allowed are whole numbers from 2")
    if channels not in (1, 3):
        raise CcdError(f"channels = {channels!r} for model {name!r}: allowed are 1 (grey) and 3 (RGB)")
    with torch.device("meta"):  # no memory, no random numbers: the weights are drawn below, from our own stream
        network = make(classes, channels)
    return initialise(network.to_empty(device="cpu"), stream(seed, "weights"), network.initial)


def initialise(network, generator, initial=HE):
    """Draw all weights of `network` (convolutions, linear layers, batch norms) from `generator`, as `initial` says."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            _draw_convolution(module, generator, initial)
        elif isinstance(module, nn.Linear):
            _draw_linear(module, generator, initial)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"no initialisation is written for {type(module).__name__}; add it to initialise")
    return network


def _draw_convolution(module, generator, initial):
    if initial.he:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        _uniform(module, module.weight[0].numel(), generator)


def _draw_linear(module, generator, initial):
    if initial.std is None:
        _uniform(module, module.in_features, generator)
    else:
        nn.init.normal_(module.weight, std=initial.std, generator=generator)
    if initial.zero_bias:
        nn.init.zeros_(module.bias)


def _uniform(module, inputs, generator):
    """PyTorch's default: uniform within one over the root of a unit's inputs."""
    for weights in filter(torch.is_tensor, (module.weight, module.bias)):
        nn.init.uniform_(weights, -(inputs**-0.5), inputs**-0.5, generator=generator)


def folded(network):
    """A copy of a network in eval mode that answers the same, to rounding, with its batch norms folded into the convolutions
    whose output only they read. It cannot be trained."""
    traced = fx.symbolic_trace(copy.deepcopy(network))
    modules = dict(traced.named_modules())
    norms = [node for node in traced.graph.nodes if isinstance(modules.get(node.target), nn.BatchNorm2d)]
    for norm in norms:
        conv = norm.args[0]
        if isinstance(modules.get(conv.target), nn.Conv2d) and len(conv.users) == 1:
            traced.set_submodule(conv.target, fuse_conv_bn_eval(modules[conv.target], modules[norm.target]))
            norm.replace_all_uses_with(conv)
            traced.graph.erase_node(norm)
    traced.recompile()
    return traced.eval()
