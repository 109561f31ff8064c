"""Every backbone once more: a forward pass written from the networks' descriptions, with plain functions of torch.

The weights are those of a network of the kit, taken in the order in which they are used; kernels, widths, strides, groups,
norms, activations, shuffles and poolings are said here again. So whatever a kept library, or the code that takes it apart, does
otherwise than the description gives other outputs.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Weights:
    """The convolutions, norms and linear layers of a module, one after the other."""

    def __init__(self, module):
        self.layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]

    def next(self, kind):
        """The next layer, which has to be a `kind`."""
        layer = self.layers.pop(0)
        assert type(layer) is kind, f"{layer} stands where the description has a {kind.__name__}"
        return layer

    def conv(self, x, width, kernel, stride=1, groups=1, bias=False):
        """A convolution to `width` channels that keeps the size, but for its stride."""
        layer = self.next(nn.Conv2d)
        assert layer.weight.shape == (width, x.shape[1] // groups, kernel, kernel), layer
        assert (layer.bias is not None) == bias, layer
        return F.conv2d(x, layer.weight, layer.bias, stride, (kernel - 1) // 2, groups=groups)

    def norm(self, x):
        """A batch norm, in train mode by the statistics of the batch."""
        layer = self.next(nn.BatchNorm2d)
        mean, var = layer.running_mean, layer.running_var
        if layer.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        scale = layer.weight / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (layer.bias - mean * scale)[:, None, None]

    def head(self, pooled):
        """The linear layer."""
        layer = self.next(nn.Linear)
        return pooled @ layer.weight.T + layer.bias


# Each family: stem(w, x), the stages (w, x, again) and tail(w, x); again: the stage once more, at its own width and size.


def relu(x):
    return x.clamp(min=0)


def same(w, x):
    return x


def conv_norm_relu(width, kernel, stride=1):
    return lambda w, x: relu(w.norm(w.conv(x, width, kernel, stride)))


def resnet(depth, widths=(16, 32, 64), stem=16):
    """He et al. 2016: conv 3, norm, ReLU, conv 3, norm, plus the input (1 x 1 and norm where its shape differs), ReLU."""

    def stage(width, halves):
        def run(w, x, again=False):
            for k in range((depth - 2) // 6):
                stride = 2 if halves and k == 0 and not again else 1
                y = w.norm(w.conv(relu(w.norm(w.conv(x, width, 3, stride))), width, 3))
                changes = stride > 1 or x.shape[1] != width
                x = relu(y + (w.norm(w.conv(x, width, 1, stride)) if changes else x))
            return x

        return run

    stages = [stage(width, halves=k > 0) for k, width in enumerate(widths)]
    return conv_norm_relu(stem, 3), stages, same


def wide_resnet(depth, widen):
    """Zagoruyko & Komodakis 2016: norm, ReLU, conv 3, norm, ReLU, conv 3; where widths differ 1 x 1 of the activated input."""

    def stage(width, halves):
        def run(w, x, again=False):
            for k in range((depth - 4) // 6):
                stride = 2 if halves and k == 0 and not again else 1
                active = relu(w.norm(x))
                y = w.conv(relu(w.norm(w.conv(active, width, 3, stride))), width, 3)
                x = y + (w.conv(active, width, 1, stride) if x.shape[1] != width else x)
            return x

        return run

    stages = [stage(16 * widen * 2**k, halves=k > 0) for k in range(3)]
    return (lambda w, x: w.conv(x, 16, 3)), stages, (lambda w, x: relu(w.norm(x)))


def vgg(convolutions):
    """Simonyan & Zisserman 2015 with batch norm: conv 3 with bias, norm, ReLU; halved before the second, third and fourth
    stage; the fifth of the original network belongs to the fourth here, without a pooling."""

    def stage(width, count, halves):
        def run(w, x, again=False):
            x = F.max_pool2d(x, 2) if halves and not again else x
            for _ in range(count):
                x = relu(w.norm(w.conv(x, width, 3, bias=True)))
            return x

        return run

    n = convolutions
    return same, [stage(64, n, False), stage(128, n, True), stage(256, n, True), stage(512, 2 * n, True)], same


def mobilenet_v2():
    """Sandler et al. 2018 at half the width, with plain ReLU: 1 x 1 to six times the width, depthwise 3, 1 x 1 without an
    activation; the input is added where nothing changes. Stem, first block and stage of 12 channels keep the size."""

    def blocks(w, x, width, count, stride, expand=6):
        for k in range(count):
            step = stride if k == 0 else 1
            inner = expand * x.shape[1]
            y = relu(w.norm(w.conv(x, inner, 1)))
            y = relu(w.norm(w.conv(y, inner, 3, step, groups=inner)))
            y = w.norm(w.conv(y, width, 1))
            x = x + y if step == 1 and x.shape[1] == width else y
        return x

    def stage(*rows):
        def run(w, x, again=False):
            for width, count, stride in rows:
                x = blocks(w, x, width, count, 1 if again else stride)
            return x

        return run

    stages = [stage((12, 2, 1)), stage((16, 3, 2)), stage((32, 4, 2), (48, 3, 1)), stage((80, 3, 2), (160, 1, 1))]
    return (lambda w, x: blocks(w, conv_norm_relu(16, 3)(w, x), 8, 1, 1, expand=1)), stages, conv_norm_relu(1280, 1)


def shuffle(x, groups):
    n, c, height, width = x.shape
    return x.reshape(n, groups, c // groups, height, width).transpose(1, 2).reshape(n, c, height, width)


def shufflenet_v1(groups=3):
    """Zhang et al. 2018: grouped 1 x 1, norm, ReLU, shuffle, depthwise 3, norm, ReLU, grouped 1 x 1, norm; added to the input
    or, where a stage begins, beside the input averaged over 3 x 3 at stride 2; ReLU. The very first 1 x 1 is not grouped."""

    def stage(width, count):
        def run(w, x, again=False):
            for k in range(count):
                stride = 2 if k == 0 and not again else 1
                added = width - x.shape[1] if stride == 2 else width
                first = 1 if x.shape[1] == 24 else groups
                y = shuffle(relu(w.norm(w.conv(x, added // 4, 1, groups=first))), first)
                y = relu(w.norm(w.conv(y, added // 4, 3, stride, groups=added // 4)))
                y = w.norm(w.conv(y, added, 1, groups=groups))
                x = relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if stride == 2 else y + x)
            return x

        return run

    return conv_norm_relu(24, 1), [stage(240, 4), stage(480, 8), stage(960, 4)], same


def shufflenet_v2():
    """Ma et al. 2018: half of the channels through 1 x 1, norm, ReLU, depthwise 3, norm, 1 x 1, norm, ReLU; the first unit of a
    stage gives all of them to both branches, the other one depthwise 3, norm, 1 x 1, norm, ReLU; joined and shuffled in two."""

    def right(w, x, half, stride):
        y = relu(w.norm(w.conv(x, half, 1)))
        y = w.norm(w.conv(y, half, 3, stride, groups=half))
        return relu(w.norm(w.conv(y, half, 1)))

    def stage(width, count):
        def run(w, x, again=False):
            stride = 1 if again else 2
            left = w.norm(w.conv(x, x.shape[1], 3, stride, groups=x.shape[1]))
            left = relu(w.norm(w.conv(left, width // 2, 1)))
            x = shuffle(torch.cat([left, right(w, x, width // 2, stride)], 1), 2)
            for _ in range(count - 1):
                kept, seen = x.chunk(2, 1)
                x = shuffle(torch.cat([kept, right(w, seen, width // 2, 1)], 1), 2)
            return x

        return run

    return conv_norm_relu(24, 1), [stage(116, 4), stage(232, 8), stage(464, 4)], conv_norm_relu(1024, 1)


def large_resnet(counts, bottleneck, cifar=False):
    """He et al. 2016 for ImageNet: stem 7 x 7 at stride 2 and max pooling (3 x 3 at stride 1 and none for CIFAR). bottleneck: a
    quarter of the width in the middle, the stride in its 3 x 3."""

    def block(w, x, width, stride):
        if bottleneck:
            y = relu(w.norm(w.conv(x, width // 4, 1)))
            y = w.norm(w.conv(relu(w.norm(w.conv(y, width // 4, 3, stride))), width, 1))
        else:
            y = w.norm(w.conv(relu(w.norm(w.conv(x, width, 3, stride))), width, 3))
        changes = stride > 1 or x.shape[1] != width
        return relu(y + (w.norm(w.conv(x, width, 1, stride)) if changes else x))

    def stage(width, count, halves):
        def run(w, x, again=False):
            for k in range(count):
                x = block(w, x, width, 2 if halves and k == 0 and not again else 1)
            return x

        return run

    def stem(w, x):
        return conv_norm_relu(64, 3)(w, x) if cifar else F.max_pool2d(conv_norm_relu(64, 7, 2)(w, x), 3, 2, 1)

    width = 256 if bottleneck else 64
    return stem, [stage(width * 2**k, count, k > 0) for k, count in enumerate(counts)], same


NETWORKS = {
    "resnet8": resnet(8),
    "resnet20": resnet(20),
    "resnet56": resnet(56),
    "resnet8x4": resnet(8, (64, 128, 256), 32),
    "resnet32x4": resnet(32, (64, 128, 256), 32),
    "wrn_16_1": wide_resnet(16, 1),
    "wrn_16_2": wide_resnet(16, 2),
    "wrn_40_1": wide_resnet(40, 1),
    "wrn_40_2": wide_resnet(40, 2),
    "vgg8": vgg(1),
    "vgg13": vgg(2),
    "mobilenet_v2": mobilenet_v2(),
    "shufflenet_v1": shufflenet_v1(),
    "shufflenet_v2": shufflenet_v2(),
    "resnet50_cifar": large_resnet((3, 4, 6, 3), True, cifar=True),
    "resnet18": large_resnet((2, 2, 2, 2), False),
    "resnet34": large_resnet((3, 4, 6, 3), False),
}


def forward(name, network, x):
    """(logits, stage features, pooled features) of a network of the kit, by the description of `name`."""
    stem, stages, tail = NETWORKS[name]
    w, feats = Weights(network), []
    x = stem(w, x)
    for stage in stages:
        x = stage(w, x)
        feats.append(x)
    pooled = tail(w, x).mean((2, 3))
    logits = w.head(pooled)
    assert not w.layers, f"{len(w.layers)} layers of {name} are not in its description"
    return logits, feats, pooled


def branches(name, branches, feats):
    """The joint logits of HSAKD's branches, from the stage features: what is left of the network after each stage; after the
    last, that stage once more."""
    _, stages, tail = NETWORKS[name]
    answers = []
    for k, (branch, x) in enumerate(zip(branches, feats, strict=True)):
        w = Weights(branch)
        for stage in stages[k + 1 :]:
            x = stage(w, x)
        if k + 1 == len(stages):
            x = stages[k](w, x, again=True)
        answers.append(w.head(tail(w, x).mean((2, 3))))
        assert not w.layers, f"{len(w.layers)} layers of branch {k + 1} of {name} are not in its description"
    return answers
