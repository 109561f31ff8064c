"""Backbones by name, all with one contract: `network(x) -> Output(logits, feats, pooled)`.

pytorchcv and torchvision hold the networks; a row of MODELS says how to take one apart into stem, stages and tail.
Parameters and multiply-adds of every row are those of methods.md, section 8 (tests/test_models.py).
"""

import copy
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ccdlib.registry import CcdError, Registry, unknown
from ccdlib.streams import stream


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

    again: a function that makes the units of the last stage once more, from its own output at its own size, for HSAKD's
    branch after that stage. initial: how its weights are drawn.
    """

    def __init__(self, stem, stages, tail, width, classes, again, initial=HE):
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


# ---------------------------------------------------------------- rows


def _resnet(depth, widths=(16, 32, 64), stem=16):
    def make(classes, channels):
        from pytorchcv.models.resnet import ResUnit
        from pytorchcv.models.resnet_cifar import CIFARResNet

        blocks = (depth - 2) // 6
        net = CIFARResNet([[w] * blocks for w in widths], stem, bottleneck=False, in_channels=channels).features
        stages, last = [net.stage1, net.stage2, net.stage3], widths[-1]
        again = _units(blocks, ResUnit, last, last, stride=1, bottleneck=False)
        return Backbone(net.init_block, stages, nn.Identity(), last, classes, again)

    return make


def _wrn(depth, widen):
    def make(classes, channels):
        from pytorchcv.models.preresnet import PreResUnit
        from pytorchcv.models.wrn_cifar import CIFARWRN

        blocks = (depth - 4) // 6
        widths = [16 * widen, 32 * widen, 64 * widen]
        net = CIFARWRN([[w] * blocks for w in widths], 16, in_channels=channels).features
        stages = [net.stage1, net.stage2, net.stage3]
        again = _units(blocks, PreResUnit, widths[-1], widths[-1], stride=1, bottleneck=False, conv1_stride=False)
        return Backbone(net.init_block, stages, net.post_activ, widths[-1], classes, again, HE_ZERO)

    return make


def _vgg(convolutions):
    """`convolutions` of 3 x 3 (two in vgg13, one in vgg8) in each of the stages of 64, 128, 256, 512 and 512 channels.

    Stages begin with their pooling; before the last one there is none, and it is part of the stage before it. There is no stem.
    """

    def make(classes, channels):
        from ccdlib.vision import torchvision

        widths = [width for width in (64, 128, 256, 512, 512) for _ in range(convolutions)]
        poolings = [k * convolutions for k in (3, 2, 1)]
        for place in poolings:
            widths.insert(place, "M")
        layers = torchvision.models.vgg.make_layers(widths, batch_norm=True)
        layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
        cuts = [0, *(k for k, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)), len(layers)]
        stages = [layers[first:last] for first, last in itertools.pairwise(cuts)]

        def again():
            return torchvision.models.vgg.make_layers([512] * (2 * convolutions + 1), batch_norm=True)[3:]  # not three inputs

        return Backbone(nn.Identity(), stages, nn.Identity(), 512, classes, again, HE_NORMAL)

    return make


def _mobilenet_v2(classes, channels):
    from ccdlib.vision import torchvision

    # The network of the distillation literature expands even where the factor is one; torchvision leaves that layer out
    # when the factor is exactly one, and rounds the hidden width, so a factor a hair above one gives the layer.
    one = 1 + 1e-9
    setting = [
        (one, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    net = torchvision.models.MobileNetV2(width_mult=0.5, inverted_residual_setting=setting, round_nearest=1).features
    net[0][0] = nn.Conv2d(channels, 16, 3, stride=1, padding=1, bias=False)
    unit = torchvision.models.mobilenetv2.InvertedResidual

    def again():
        return _unlimited(nn.Sequential(unit(160, 80, 1, 6), unit(80, 80, 1, 6), unit(80, 80, 1, 6), unit(80, 160, 1, 6)))

    # Blocks 1 to 17 after the stem; a stage ends where the resolution is about to halve.
    net = _unlimited(net)
    return Backbone(net[:2], [net[2:4], net[4:7], net[7:14], net[14:18]], net[18], 1280, classes, again, HE_NORMAL)


def _unlimited(network):
    """The network with ReLU for ReLU6: torchvision's MobileNetV2 has the latter, that of the distillation literature not."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU6):
            network.set_submodule(name, nn.ReLU(inplace=True))
    return network


def _shufflenet_v1(classes, channels):
    from ccdlib.models.shufflenet import ShuffleUnit, stages

    again = _units(4, ShuffleUnit, 960, 960, groups=3, stride=1, first_groups=3)
    return Backbone(_pointwise_stem(channels), stages(), nn.Identity(), 960, classes, again, UNIFORM)


def _shufflenet_v2(classes, channels):
    from ccdlib.vision import torchvision

    net = torchvision.models.shufflenet_v2_x1_0()
    stages = [net.stage2, net.stage3, net.stage4]
    unit = torchvision.models.shufflenetv2.InvertedResidual

    def again():
        first = unit(464, 464, 2)  # both branches, as where the resolution halves, which it does not here
        first.branch1[0].stride = first.branch2[3].stride = (1, 1)
        return nn.Sequential(first, *(unit(464, 464, 1) for _ in range(3)))

    return Backbone(_pointwise_stem(channels), stages, net.conv5, 1024, classes, again, UNIFORM)


def _units(count, unit, *arguments, **settings):
    """A function that makes `count` units of a stage, one after the other."""
    return lambda: nn.Sequential(*(unit(*arguments, **settings) for _ in range(count)))


def _pointwise_stem(channels):
    """The ShuffleNets' stem for small images: 1 x 1, stride 1, no pooling."""
    return nn.Sequential(nn.Conv2d(channels, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))


def _resnet50_cifar(classes, channels):
    from ccdlib.vision import torchvision

    net = torchvision.models.resnet50()
    net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    again = _units(3, torchvision.models.resnet.Bottleneck, 2048, 512)
    return Backbone(stem, [net.layer1, net.layer2, net.layer3, net.layer4], nn.Identity(), 2048, classes, again)


# How torchvision names the parts of its ImageNet ResNets, and where a Backbone has them.
PARTS = {"conv1": "stem.0", "bn1": "stem.1", "fc": "head"} | {f"layer{k + 1}": f"stages.{k}" for k in range(4)}


def weights_named(name, file):
    """torchvision's weights that `file`, "torchvision:NAME", names; None for a path. Errors: see pretrained()."""
    from ccdlib.vision import torchvision

    if name not in ("resnet18", "resnet34"):
        raise CcdError(f"{file}: torchvision's weights fit resnet18 and resnet34, not {name!r}; give a .safetensors file")
    kind, colon, wanted = file.partition(":")
    if not (kind == "torchvision" and colon):
        return None
    weights = torchvision.models.get_model_weights(name)
    if wanted not in weights.__members__:
        raise unknown(f"weights of {name}", wanted, weights.__members__)
    return weights[wanted]


def pretrained(name, file):
    """The state of the backbone `name` (resnet18, resnet34) from weights of torchvision: a .pth, or "torchvision:NAME", which
    is downloaded once. Errors: CcdError for other backbones and names, and for files that are not there or no weights."""
    weights = weights_named(name, file)
    try:
        if weights:
            state = weights.get_state_dict(progress=False, check_hash=True)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        parts = ((key.partition("."), tensor) for key, tensor in state.items())
        return {f"{PARTS[part]}.{rest}": tensor for (part, _, rest), tensor in parts}
    except CcdError:
        raise
    except OSError as error:
        raise CcdError(
            f"{file} could not be read or downloaded ({error}). Connect to the network once, or download the file elsewhere "
            "and give its path"
        ) from error
    except Exception as error:  # torch raises many kinds for a file that is no state of a network, and advises to run it
        raise CcdError(
            f"{file} holds no weights of torchvision's {name} ({type(error).__name__}): only named tensors are read, nothing "
            "that could run code; give another file"
        ) from error


def _imagenet_resnet(name):
    def make(classes, channels):
        from ccdlib.vision import torchvision

        net = getattr(torchvision.models, name)()
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        again = _units(len(net.layer4), torchvision.models.resnet.BasicBlock, 512, 512)
        return Backbone(stem, [net.layer1, net.layer2, net.layer3, net.layer4], nn.Identity(), 512, classes, again)

    return make


MODELS.update(
    resnet8=_resnet(8),
    resnet20=_resnet(20),
    resnet56=_resnet(56),
    resnet8x4=_resnet(8, (64, 128, 256), 32),
    resnet32x4=_resnet(32, (64, 128, 256), 32),
    wrn_16_1=_wrn(16, 1),
    wrn_16_2=_wrn(16, 2),
    wrn_40_1=_wrn(40, 1),
    wrn_40_2=_wrn(40, 2),
    vgg8=_vgg(1),
    vgg13=_vgg(2),
    mobilenet_v2=_mobilenet_v2,
    shufflenet_v1=_shufflenet_v1,
    shufflenet_v2=_shufflenet_v2,
    resnet50_cifar=_resnet50_cifar,
    resnet18=_imagenet_resnet("resnet18"),
    resnet34=_imagenet_resnet("resnet34"),
)
