"""ShuffleNetV1 units at CIFAR size (Zhang et al., CVPR 2018), which the kept libraries lack in this form.

The libraries' units make their bottleneck a quarter of the whole output; the network of the distillation literature
makes it a quarter of what the unit itself adds, so that a down-sampling unit is narrower (949,258 parameters in all).
"""

import torch
import torch.nn.functional as F
from torch import nn


class ShuffleUnit(nn.Module):
    """Grouped 1 x 1, channel shuffle, depthwise 3 x 3, grouped 1 x 1; added to its input, or beside the pooled input."""

    def __init__(self, inputs, outputs, groups, stride, first_groups):
        super().__init__()
        self.stride = stride
        added = outputs - inputs if stride == 2 else outputs
        middle = added // 4
        self.body = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, groups=first_groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.ChannelShuffle(first_groups),
            nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, added, 1, groups=groups, bias=False),
            nn.BatchNorm2d(added),
        )

    def forward(self, x):
        y = self.body(x)
        if self.stride == 2:
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))
        return F.relu(x + y)


def stages(groups=3, stem=24, widths=(240, 480, 960), depths=(4, 8, 4)):
    """The three stages after a stem of `stem` channels."""
    made, inputs = [], stem
    for width, depth in zip(widths, depths, strict=True):
        units = []
        for k in range(depth):
            # The very first 1 x 1 sees only the stem's 24 channels and is not grouped.
            units.append(ShuffleUnit(inputs, width, groups, 2 if k == 0 else 1, 1 if inputs == stem else groups))
            inputs = width
        made.append(nn.Sequential(*units))
    return made
