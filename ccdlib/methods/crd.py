"""CRD: contrast of each image with negatives from memories of all training images."""

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.methods.losses import Terms, kd
from ccdlib.methods.method import METHODS, Given, Method
from ccdlib.methods.settings import Above, Part, Size, Whole
from ccdlib.models.backbone import Output
from ccdlib.views.epoch import Batch


@METHODS.add("crd")
class CRD(Method):
    """Contrastive representation distillation (Tian et al., ICLR 2020): CE + T^2 KL + gamma (L_s + L_t).

    Each network has a trained linear layer that makes of its pooled features a vector of `width` numbers and length one. Each
    has a memory of the vectors u of all n training images. The m = `negatives` of an image are drawn with replacement from the
    images of other classes. A row of image i with vector v in one network meets vectors u of the other's memory:
    x = exp(v . u / tau) / Z, h = x / (x + m / n), L = -mean over rows [log h_i + sum over negatives k of log(1 - h_k)].
    Z is set at the first step, so that the mean of x is 1 / n. All views of an image are rows with the same negatives.
    After the step its original view moves the memory: u <- momentum u + (1 - momentum) v, scaled to length one.

    Terms {"ce", "kd", "crd"}. Errors: CcdError where there are more negatives than images of other classes.
    """

    def __init__(
        self,
        given: Given,
        gamma: Size = 0.8,
        temperature: Above = 4.0,
        negatives: Whole = 16384,
        tau: Above = 0.07,
        momentum: Part = 0.5,
        width: Whole = 128,
    ):
        super().__init__(given)
        n, self.seed = len(given.labels), given.seed
        self.counts = torch.bincount(given.labels.cpu(), minlength=given.classes)
        others = n - int(self.counts.max())
        if negatives > others:
            raise CcdError(
                f"crd's negatives = {negatives}: {n} training images leave {others} of other classes; give "
                f"settings={{'negatives': {others}}} or fewer, or more images"
            )
        self.by_class = given.labels.cpu().argsort(stable=True)  # rows of training images, class after class
        self.gamma, self.temperature, self.negatives, self.tau, self.momentum = gamma, temperature, negatives, tau, momentum
        self.of_student = nn.Linear(given.student.head.in_features, width)
        self.of_teacher = nn.Linear(given.teacher.head.in_features, width)
        draw = stream(given.seed, "negatives")
        for name in ("memory_of_student", "memory_of_teacher"):
            self.register_buffer(name, F.normalize(torch.randn(n, width, generator=draw), dim=1))
        self.register_buffer("z", torch.zeros(2))  # of L_s and L_t; 0: not fixed yet

    def heads(self, output: Output) -> torch.Tensor:
        """The student's vectors v (B, width), of length one."""
        return F.normalize(self.headed(self.of_student, output.pooled), dim=1)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """Terms {"ce", "kd", "crd"}."""
        v_s = self.heads(student)
        v_t = F.normalize(self.headed(self.of_teacher, teacher.pooled.detach()), dim=1)
        device, first = v_s.device, batch.images[: batch.sizes[0]]
        labels = batch.labels[: len(first)].cpu()
        # Each image's own row and its negatives, which all of its views then share.
        chosen = torch.cat([first[:, None], self.draw(labels, stream(self.seed, "negatives", *batch.step))], 1)
        place = torch.empty(len(self.by_class), dtype=torch.long)
        place[first] = torch.arange(len(first))
        chosen = chosen[place[batch.images]].to(device)  # (B, 1 + m)
        loss = self._nce(0, v_s, self.memory_of_teacher, chosen) + self._nce(1, v_t, self.memory_of_student, chosen)
        self._remember(first.to(device), v_s, v_t)
        return kd(student, teacher, batch.labels, self.temperature) | {"crd": self.gamma * loss}

    def draw(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw negatives (N, m) for images with `labels` (N,): rows of training images of other classes."""
        counts = self.counts
        start, own = (counts.cumsum(0) - counts)[labels, None], counts[labels, None]
        # A place among the images of other classes is a place in by_class once the own class's images are skipped.
        free = len(self.by_class) - own
        place = (torch.rand((len(labels), self.negatives), generator=generator, dtype=torch.float64) * free).long()
        return self.by_class[place + (place >= start) * own]

    def _nce(self, side, v, memory, chosen):
        x = torch.einsum("bd,bkd->bk", v, memory[chosen].detach()).div(self.tau).exp()  # (B, 1 + m)
        n = len(memory)
        self.z[side] = torch.where(self.z[side] == 0, x.detach().mean() * n, self.z[side])
        x = x / self.z[side].clone()  # a copy, because the other loss's z may still be set in place
        noise = self.negatives / n
        positive, negative = x[:, 0], x[:, 1:]
        logs = (positive / (positive + noise)).log() + (noise / (negative + noise)).log().sum(1)
        return -logs.mean()

    @torch.no_grad()
    def _remember(self, images, v_s, v_t):
        for memory, v in ((self.memory_of_student, v_s), (self.memory_of_teacher, v_t)):
            kept = self.momentum * memory[images] + (1 - self.momentum) * v[: len(images)]
            memory[images] = F.normalize(kept, dim=1).to(memory.dtype)
