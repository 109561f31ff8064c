"""ShuffleNetV1 (Zhang et al., CVPR 2018) for CIFAR, in a form that neither torchvision nor pytorchcv has.

Their units have a bottleneck of a quarter of the whole output; those of the distillation literature have one of a quarter of
the channels that the unit itself adds, so that a down-sampling unit is narrower (949,258 parameters with 100 classes).
"""

import torch
import torch.nn.functional as F
from torch import nn


class ShuffleUnit(nn.Module):
    """Grouped 1 x 1 convolution, channel shuffle, depthwise 3 x 3, grouped 1 x 1; with a shortcut from the input.

    inputs, outputs: channels. groups, first_groups: of the last and the first 1 x 1 convolution. stride: 1 adds the result to
    the input (as many outputs as inputs); 2 halves the resolution and puts the result beside the averaged input.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, first_groups: int):
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, outputs, h, w), h and w halved with stride 2, of feature maps x (B, inputs, H, W)."""
        y = self.body(x)
        if self.stride == 2:
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))
        return F.relu(x + y)


def shuffle_stages(
    groups: int = 3, stem: int = 24, widths: tuple[int, ...] = (240, 480, 960), depths: tuple[int, ...] = (4, 8, 4)
) -> list[nn.Sequential]:
    """Make the stages after a stem of `stem` channels: `widths` are their output channels, `depths` their numbers of units."""
    made, inputs = [], stem
    for width, depth in zip(widths, depths, strict=True):
        units = []
        for k in range(depth):
            # The first 1 x 1 convolution of all reads only the stem's 24 channels, too few to be grouped.
            units.append(ShuffleUnit(inputs, width, groups, 2 if k == 0 else 1, 1 if inputs == stem else groups))
            inputs = width
        made.append(nn.Sequential(*units))
    return made
