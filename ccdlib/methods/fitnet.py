"""FitNet: a regressor from the student's feature map to the teacher's."""

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.base.registry import CcdError
from ccdlib.methods.losses import Terms, ce, full, same_size, shapes
from ccdlib.methods.method import METHODS, Given, Method, blank_output
from ccdlib.methods.settings import Size, Whole
from ccdlib.models.backbone import Output
from ccdlib.views.epoch import Batch


@METHODS.add("fitnet")
class FitNet(Method):
    """FitNets (Romero et al., ICLR 2015), trained at once: CE + gamma mean (r(F^s_l) - F^t_l)^2 at stage l = `stage`, from 1.

    The regressor r, trained with the student, is a 1 x 1 convolution to the teacher's channels and a batch norm, without which
    gamma 100 diverges; where the maps differ in size, the larger is averaged down. This departs from the literature, whose
    regressor ends in a ReLU and has a strided or transposed convolution for other sizes. Terms {"ce", "hint"}.
    Errors: CcdError for a stage that a network does not have.
    """

    hard_labels = False

    def __init__(self, given: Given, gamma: Size = 100.0, stage: Whole = 2):
        super().__init__(given)
        both = [blank_output(network, given.shape).feats for network in (given.student, given.teacher)]
        if stage > min(map(len, both)):
            raise CcdError(
                f"fitnet's stage = {stage}: the student's features are {shapes(both[0])}, the teacher's {shapes(both[1])}; "
                f"allowed are stages 1 to {min(map(len, both))}"
            )
        self.gamma, self.stage = gamma, stage - 1
        here, there = (feats[self.stage].shape[1] for feats in both)
        self.regressor = nn.Sequential(nn.Conv2d(here, there, 1, bias=False), nn.BatchNorm2d(there))

    def heads(self, output: Output) -> torch.Tensor:
        """The student's feature map, regressed to the teacher's channels: (B, channels, h, w)."""
        return self.headed(self.regressor, output.feats[self.stage])

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """Terms {"ce", "hint"}."""
        guess = self.heads(student)
        a, b = same_size(guess, full(teacher.feats[self.stage].detach()))
        return ce(student, teacher, batch.labels) | {"hint": self.gamma * F.mse_loss(a, b)}
