"""The networks of the papers, each a row of MODELS: (classes, channels) -> Backbone.

pytorchcv and torchvision hold the networks; a row takes one apart into stem, stages and tail.
Parameters and multiply-adds of every row are those that the papers publish (tests/test_models.py).
"""

import itertools

from torch import nn

from ccdlib.models.backbone import HE_NORMAL, HE_ZERO, MODELS, UNIFORM, Backbone
from ccdlib.models.shufflenet import ShuffleUnit, shuffle_stages


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
    """A VGG with so many 3 x 3 convolutions (two in vgg13, one in vgg8) at each width of 64, 128, 256, 512 and 512 channels.

    A stage begins with its pooling; the second 512 have none and belong to the stage of the first. There is no stem.
    """

    def make(classes, channels):
        from ccdlib.base.vision import torchvision

        widths = [width for width in (64, 128, 256, 512, 512) for _ in range(convolutions)]
        poolings = [k * convolutions for k in (3, 2, 1)]
        for place in poolings:
            widths.insert(place, "M")
        layers = torchvision.models.vgg.make_layers(widths, batch_norm=True)
        layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
        cuts = [0, *(k for k, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)), len(layers)]
        stages = [layers[first:last] for first, last in itertools.pairwise(cuts)]

        def again():
            return torchvision.models.vgg.make_layers([512] * (2 * convolutions + 1), batch_norm=True)[3:]  # not its RGB layer

        return Backbone(nn.Identity(), stages, nn.Identity(), 512, classes, again, HE_NORMAL)

    return make


def _mobilenet_v2(classes, channels):
    from ccdlib.base.vision import torchvision

    # The network of the distillation literature has an expanding layer even where the factor is one. torchvision leaves that
    # layer out when the factor is exactly one, and rounds the hidden width, so a factor a little above one gives the layer.
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
    """Replace ReLU6 by ReLU: torchvision's MobileNetV2 has the former, that of the distillation literature the latter."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU6):
            network.set_submodule(name, nn.ReLU(inplace=True))
    return network


def _shufflenet_v1(classes, channels):
    again = _units(4, ShuffleUnit, 960, 960, groups=3, stride=1, first_groups=3)
    return Backbone(_pointwise_stem(channels), shuffle_stages(), nn.Identity(), 960, classes, again, UNIFORM)


def _shufflenet_v2(classes, channels):
    from ccdlib.base.vision import torchvision

    net = torchvision.models.shufflenet_v2_x1_0()
    stages = [net.stage2, net.stage3, net.stage4]
    unit = torchvision.models.shufflenetv2.InvertedResidual

    def again():
        first = unit(464, 464, 2)  # a unit with stride 2 has both branches; here it keeps the resolution
        first.branch1[0].stride = first.branch2[3].stride = (1, 1)
        return nn.Sequential(first, *(unit(464, 464, 1) for _ in range(3)))

    return Backbone(_pointwise_stem(channels), stages, net.conv5, 1024, classes, again, UNIFORM)


def _units(count, unit, *arguments, **settings):
    """A function that makes a sequence of `count` units, for Backbone.again."""
    return lambda: nn.Sequential(*(unit(*arguments, **settings) for _ in range(count)))


def _pointwise_stem(channels):
    """The ShuffleNets' stem for small images: 1 x 1, stride 1, no pooling."""
    return nn.Sequential(nn.Conv2d(channels, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))


def _resnet50_cifar(classes, channels):
    from ccdlib.base.vision import torchvision

    net = torchvision.models.resnet50()
    net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    again = _units(3, torchvision.models.resnet.Bottleneck, 2048, 512)
    return Backbone(stem, [net.layer1, net.layer2, net.layer3, net.layer4], nn.Identity(), 2048, classes, again)


def _imagenet_resnet(name):
    def make(classes, channels):
        from ccdlib.base.vision import torchvision

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
