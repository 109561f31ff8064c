"""HSAKD: auxiliary branches that classify class and rotation jointly, in two stages."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.base.registry import CcdError
from ccdlib.methods.losses import Terms, kl_rows, shapes
from ccdlib.methods.method import METHODS, TURNS, Given, blank_output
from ccdlib.methods.settings import Above
from ccdlib.methods.sskd import _Rotating
from ccdlib.models.backbone import Output
from ccdlib.views.epoch import Batch


class _Branches(_Rotating):
    """What both stages of HSAKD share: an auxiliary branch after each stage of a backbone, built like the rest of the backbone.

    Branch l has the units of stages l + 1 to the last (after the last stage: of that stage again, at the same size), the tail,
    average pooling and a linear layer to 4 C joint labels: class y rotated by j times 90 degrees is 4 y + j.
    """

    def __init__(self, given: Given):
        super().__init__(given)
        network = given.student
        self.initial = network.initial  # branches are drawn as the parts of the network that they copy
        self.branches = nn.ModuleList(
            nn.Sequential(
                *([copy.deepcopy(stage) for stage in network.stages[place + 1 :]] or [network.again()]),
                copy.deepcopy(network.tail),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(network.head.in_features, TURNS * given.classes),
            )
            for place in range(len(network.stages))
        )

    def heads(self, output: Output) -> list[torch.Tensor]:
        """The joint logits of every branch, each (B, 4 C) for B rotated inputs."""
        return [self.headed(branch, feature) for branch, feature in zip(self.branches, output.feats, strict=True)]


@METHODS.add("hsakd_teacher")
class HSAKDTeacher(_Branches):
    """The teacher of HSAKD (Yang et al., IJCAI 2021): CE(backbone(x_0), y) + sum_l CE(q_l(x_j), 4 y + j) over all rotations j.

    Rows x_0 are not rotated. With a trained teacher, its backbone is frozen and only the branches are trained (HSAKD); without
    one, backbone and branches are trained together from scratch (HSAKD*). Terms {"ce", "joint"}.
    """

    teacher = "optional"
    freezes = True
    keeps = True

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Terms:
        """Terms {"ce", "joint"}."""
        joint = torch.cat([TURNS * batch.labels + j for j in range(TURNS)])
        hard = F.cross_entropy(student.logits[: len(batch.labels)], batch.labels)
        return {"ce": hard, "joint": sum(F.cross_entropy(q, joint) for q in self.heads(student))}


@METHODS.add("hsakd")
class HSAKD(_Branches):
    """HSAKD (Yang et al., IJCAI 2021): CE(backbone(x_0), y) + T^2 sum_l KL(q_l^t || q_l^s) + T^2 KL(p^t || p^s), T 3.

    Both KL are means over the rows of all rotations, q_l the joint probabilities of branch l, p the probabilities of the
    backbone, all at temperature T. Terms {"ce", "branches", "kd"}. Needs a teacher trained by hsakd_teacher. Errors: CcdError
    for networks with different numbers of stages.
    """

    teacher_method = "hsakd_teacher"

    def __init__(self, given: Given, temperature: Above = 3.0):
        super().__init__(given)
        if len(given.teacher.stages) != len(given.student.stages):
            both = (shapes(blank_output(network, given.shape).feats) for network in (given.student, given.teacher))
            raise CcdError(
                "hsakd compares a branch after each stage: the student's features are {}, the teacher's {}; choose networks "
                "with the same number of stages".format(*both)
            )
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """Terms {"ce", "branches", "kd"}."""
        with torch.no_grad():
            theirs = self.teacher_heads.heads(teacher)
        pairs = zip(self.heads(student), theirs, strict=True)
        soft = sum(kl_rows(ours, q, self.temperature).mean() for ours, q in pairs)
        final = kl_rows(student.logits, teacher.logits, self.temperature).mean()
        return {
            "ce": F.cross_entropy(student.logits[: len(batch.labels)], batch.labels),
            "branches": self.temperature**2 * soft,
            "kd": self.temperature**2 * final,
        }
