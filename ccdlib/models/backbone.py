"""The contract of all backbones, how their weights are drawn, and copies of networks with folded batch norms."""

import copy
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ccdlib.base.registry import CcdError, Registry
from ccdlib.base.streams import stream

Network = TypeVar("Network", bound=nn.Module)


class Output(NamedTuple):
    """What a backbone answers to B images."""

    logits: torch.Tensor  # (B, classes)
    feats: tuple[torch.Tensor, ...]  # one (B, c, h, w) per stage
    pooled: torch.Tensor  # (B, D), the input of the last linear layer


class Initial(NamedTuple):
    """How the weights of a network are drawn."""

    he: bool = True  # convolutions: He normal, fan-out (He et al. 2015), with biases 0; False: PyTorch's uniform default
    std: float | None = None  # of the normal weights of linear layers; None: PyTorch's uniform default
    zero_bias: bool = False  # whether the biases of linear layers are 0


# These networks are those of the code of HSAKD (Yang et al., IJCAI 2021), which draws each family in its own way.
HE = Initial()  # ResNets
HE_ZERO = Initial(zero_bias=True)  # wide ResNets
HE_NORMAL = Initial(std=0.01, zero_bias=True)  # VGG, MobileNetV2
UNIFORM = Initial(he=False)  # ShuffleNets


class Backbone(nn.Module):
    """A network as its stem, its stages, its tail, a global average and a last linear layer.

    stem, tail: modules before the first stage and after the last. stages: a list of modules, one for each feature map. width:
    the number D of pooled features. classes: the number of logits. again: makes new units like those of the last stage, which
    take its output and keep its shape; HSAKD's branch after that stage needs them (None: HSAKD cannot train the network).
    initial: how the weights are drawn.
    """

    again: Callable[[], nn.Module] | None
    initial: Initial

    def __init__(
        self,
        stem: nn.Module,
        stages: list[nn.Module],
        tail: nn.Module,
        width: int,
        classes: int,
        again: Callable[[], nn.Module] | None = None,
        initial: Initial = HE,
    ):
        super().__init__()
        self.again, self.initial = again, initial
        self.stem, self.stages, self.tail = stem, nn.ModuleList(stages), tail
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> Output:
        """The Output for normalised images x (B, C, H, W) float."""
        x = self.stem(x)
        feats = []
        for stage in self.stages:
            x = stage(x)
            feats.append(x)
        pooled = F.adaptive_avg_pool2d(self.tail(x), 1).flatten(1)
        return Output(self.head(pooled), tuple(feats), pooled)


MODELS = Registry("model")


def build(name: str, classes: int = 10, channels: int = 3, seed: int = 0) -> Backbone:
    """Make the network `name` with fresh weights, drawn as its family is (Initial); batch norms start at 1 and 0.

    classes: the number of logits. channels: of an image, 1 or 3. seed: alone decides the initial weights.
    The smallest images it takes are 8 x 8 (32 x 32 for the ImageNet networks). Errors: CcdError for an unknown name, for fewer
    than two classes, and for other channels.
    """
    make = MODELS[name]
    if not isinstance(classes, int) or classes < 2:
        raise CcdError(f"classes = {classes!r} for model {name!r}: allowed are whole numbers from 2")
    if channels not in (1, 3):
        raise CcdError(f"channels = {channels!r} for model {name!r}: allowed are 1 (grey) and 3 (RGB)")
    with torch.device("meta"):  # no memory, no random numbers: the weights are drawn below, from our own stream
        network = make(classes, channels)
    return initialise(network.to_empty(device="cpu"), stream(seed, "weights"), network.initial)


def initialise(network: Network, generator: torch.Generator, initial: Initial = HE) -> Network:
    """Draw all weights of `network` in place from `generator`, as `initial` says, and return it.

    Errors: TypeError for a layer with weights that is no convolution, linear layer or batch norm.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            _draw_convolution(module, generator, initial)
        elif isinstance(module, nn.Linear):
            _draw_linear(module, generator, initial)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"initialise() has no rule for {type(module).__name__}; add one to it")
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
    """PyTorch's default: uniform within plus or minus one over the root of the number of a unit's inputs."""
    for weights in filter(torch.is_tensor, (module.weight, module.bias)):
        nn.init.uniform_(weights, -(inputs**-0.5), inputs**-0.5, generator=generator)


def in_bfloat16(network: nn.Module) -> None:
    """Hold the weights of convolutions and linear layers in bfloat16, in place, so that autocast need not convert them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)


def folded(network: nn.Module) -> fx.GraphModule:
    """Copy a network in eval mode, with each batch norm folded into the convolution before it where nothing else reads that.

    The copy answers the same up to rounding, and faster, but cannot be trained.
    """
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
