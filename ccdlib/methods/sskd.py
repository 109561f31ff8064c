"""SSKD: self-supervised similarities of rotated images, in two stages."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.base.registry import CcdError, Registry
from ccdlib.methods.losses import Terms, kl_rows
from ccdlib.methods.method import METHODS, TURNS, Given, Method
from ccdlib.methods.settings import Above, Part
from ccdlib.models.backbone import Output
from ccdlib.views.epoch import Batch

# The factors a, b, c, d of SSKD's terms, in the paper's released code and in its supplement.
SSKD_WEIGHTS = Registry("sskd weights")
SSKD_WEIGHTS |= {"released": (0.1, 0.9, 2.7, 10.0), "supplement": (0.1, 0.9, 3.0, 5.0)}


class _Rotating(Method):
    """A method that rotates the views itself. Errors: CcdError for images that are not square."""

    rotates = True

    def __init__(self, given: Given):
        super().__init__(given)
        if given.shape[1] != given.shape[2]:
            raise CcdError(
                f"rotations need square images; these are {given.shape[1]} x {given.shape[2]} pixels. Crop or "
                "resize them to a square"
            )


class _Contrast(_Rotating):
    """What both stages of SSKD share: a head h, linear, ReLU, linear, on the d pooled features, and its similarities."""

    def __init__(self, given: Given):
        super().__init__(given)
        d = given.student.head.in_features
        self.head = nn.Sequential(nn.Linear(d, d), nn.ReLU(inplace=True), nn.Linear(d, d))

    def heads(self, output: Output) -> torch.Tensor:
        """h of the pooled features (B, d), scaled to length one."""
        return F.normalize(self.headed(self.head, output.pooled), dim=1)

    def similarities(self, output: Output, batch: Batch) -> list[torch.Tensor]:
        """For each view of n images (3 n, n): cosines between h of the rotated rows and h of the same view's normal rows."""
        normal, *turned = (part.split(batch.sizes) for part in self.heads(output).chunk(TURNS))
        return [torch.cat([part[v] for part in turned]) @ normal[v].T for v in range(len(batch.sizes)) if batch.sizes[v]]


@METHODS.add("sskd_teacher")
class SSKDTeacher(_Contrast):
    """Stage 1 of SSKD (Xu et al., ECCV 2020): the head of a frozen teacher, trained by mean_ji CE(s_ji, i).

    s_ji are the cosines between the head's answer to image i at rotation j (90, 180, 270 degrees) and its answers to all normal
    images of the batch, among which i is to be found; each view has its own. Terms {"contrast"}.
    """

    freezes = True
    keeps = True

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Terms:
        """Terms {"contrast"}."""
        rows = self.similarities(student, batch)
        own = [torch.arange(s.shape[1], device=s.device).repeat(TURNS - 1) for s in rows]
        losses = torch.cat([F.cross_entropy(s, y, reduction="none") for s, y in zip(rows, own, strict=True)])
        return {"contrast": losses.mean()}


@METHODS.add("sskd")
class SSKD(_Contrast):
    """Stage 2 of SSKD (Xu et al., ECCV 2020): a CE(normal) + b T^2 KL(normal) + c T^2 KL(rotated) + d tau^2 KL(similarities).

    T 4, tau 0.5. weights: the name of a, b, c, d, "released" (0.1, 0.9, 2.7, 10) or "supplement" (0.1, 0.9, 3, 5).
    ratio_logits, ratio_similarities: the ratio of trusted() for rotated logits and for similarities, which are compared only
    where the teacher is right or nearly so. Terms {"ce", "kd", "rotated", "contrast"}. Needs a teacher trained by sskd_teacher.
    """

    teacher_method = "sskd_teacher"

    def __init__(
        self,
        given: Given,
        weights: Annotated[str, SSKD_WEIGHTS] = "released",
        temperature: Above = 4.0,
        tau: Above = 0.5,
        ratio_logits: Part = 1.0,
        ratio_similarities: Part = 0.75,
    ):
        super().__init__(given)
        self.weights, self.temperature, self.tau = SSKD_WEIGHTS[weights], temperature, tau
        self.ratio_logits, self.ratio_similarities = ratio_logits, ratio_similarities

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """Terms {"ce", "kd", "rotated", "contrast"}."""
        n = len(batch.labels)
        with torch.no_grad():
            theirs = self.teacher_heads.similarities(teacher, batch)
        ours = self.similarities(student, batch)
        z_s, z_t, labels = student.logits, teacher.logits.detach(), batch.labels.repeat(TURNS - 1)
        kept = trusted(z_t[n:], labels, self.ratio_logits)
        rotated = _mean(kl_rows(z_s[n:][kept], z_t[n:][kept], self.temperature))
        rows = []
        for s, t in zip(ours, theirs, strict=True):
            kept = trusted(t, torch.arange(t.shape[1], device=t.device).repeat(TURNS - 1), self.ratio_similarities)
            rows.append(kl_rows(s[kept], t[kept], self.tau))
        a, b, c, d = self.weights
        return {
            "ce": a * F.cross_entropy(z_s[:n], batch.labels),
            "kd": b * self.temperature**2 * kl_rows(z_s[:n], z_t[:n], self.temperature).mean(),
            "rotated": c * self.temperature**2 * rotated,
            "contrast": d * self.tau**2 * _mean(torch.cat(rows)),
        }


def _mean(rows):
    return rows.sum() / max(1, len(rows))  # with small ratios nothing may be kept


def trusted(rows: torch.Tensor, true: torch.Tensor, ratio: float) -> torch.Tensor:
    """Choose the rows of the teacher that SSKD keeps: all right ones, and the best part `ratio` of the wrong ones.

    rows: (M, K) numbers of the teacher, all inputs at one angle, then all at the next. true: (M,) the right entry of each; a
    row is right where that is its largest. Of W wrong rows the floor(ratio * W) are kept whose true entry ranks highest; of
    equal ranks those of the first images, all angles of one before the next, as in the released code.
    Returns the numbers of the kept rows, ascending.
    """
    better = (rows > rows.gather(1, true[:, None])).sum(1)  # the rank of the true entry, from 0
    wrong = int((better > 0).sum())
    by_image = torch.arange(len(rows), device=rows.device).view(TURNS - 1, -1).T.flatten()
    best = by_image[better[by_image].argsort(stable=True)]
    return best[: len(rows) - wrong + int(ratio * wrong)].sort().values
