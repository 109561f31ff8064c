"""CRD: contrast with memories of all training images."""

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.methods.losses import kd
from ccdlib.methods.method import METHODS, Method
from ccdlib.methods.settings import Above, Part, Size, Whole


@METHODS.add("crd")
class CRD(Method):
    """Contrastive representation distillation (Tian et al., ICLR 2020): CE + T^2 KL + gamma (L_s + L_t).

    Both networks' pooled features go through a linear layer of their own to `width` numbers of length one, both trained. Two
    memories hold such a vector of every training image. For a row of image i and m negatives k, drawn with replacement from
    the images of other classes: with x = exp(v . u / tau) / Z for the row's vector v in one network and a memory vector u of
    the other, h = x / (x + m / n), L = -mean over rows [log h_i + sum_k log(1 - h_k)]; n training images; Z, fixed at the first
    step, makes the mean of x one over n. All views of an image are rows with the image's negatives; its original view then
    moves the memory, u <- length one of (momentum u + (1 - momentum) v). Terms {"ce", "kd", "crd"}. Errors: CcdError where
    there are more negatives than images of other classes.
    """

    def __init__(
        self,
        given,
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
        self.by_class = given.labels.cpu().argsort(stable=True)  # image rows, class after class
        self.gamma, self.temperature, self.negatives, self.tau, self.momentum = gamma, temperature, negatives, tau, momentum
        self.of_student = nn.Linear(given.student.head.in_features, width)
        self.of_teacher = nn.Linear(given.teacher.head.in_features, width)
        draw = stream(given.seed, "negatives")
        for name in ("memory_of_student", "memory_of_teacher"):
            self.register_buffer(name, F.normalize(torch.randn(n, width, generator=draw), dim=1))
        self.register_buffer("z", torch.zeros(2))  # of L_s and L_t; 0: not fixed yet

    def heads(self, output):
        """The student's vectors (B, width), of length one."""
        return F.normalize(self.headed(self.of_student, output.pooled), dim=1)

    def forward(self, student, teacher, batch):
        """Terms {"ce", "kd", "crd"}."""
        v_s = self.heads(student)
        v_t = F.normalize(self.headed(self.of_teacher, teacher.pooled.detach()), dim=1)
        device, first = v_s.device, batch.images[: batch.sizes[0]]
        labels = batch.labels[: len(first)].cpu()
        # Of every image, itself and its negatives; then of every row.
        chosen = torch.cat([first[:, None], self.draw(labels, stream(self.seed, "negatives", *batch.step))], 1)
        place = torch.empty(len(self.by_class), dtype=torch.long)
        place[first] = torch.arange(len(first))
        chosen = chosen[place[batch.images]].to(device)  # (B, 1 + m)
        loss = self._nce(0, v_s, self.memory_of_teacher, chosen) + self._nce(1, v_t, self.memory_of_student, chosen)
        self._remember(first.to(device), v_s, v_t)
        return kd(student, teacher, batch.labels, self.temperature) | {"crd": self.gamma * loss}

    def draw(self, labels, generator):
        """(N, m) rows of training images of other classes than `labels` (N,), from `generator`."""
        counts = self.counts
        start, own = (counts.cumsum(0) - counts)[labels, None], counts[labels, None]
        # Places in the list of all other classes, which is the list of all with the own class's piece cut out.
        free = len(self.by_class) - own
        place = (torch.rand((len(labels), self.negatives), generator=generator, dtype=torch.float64) * free).long()
        return self.by_class[place + (place >= start) * own]

    def _nce(self, side, v, memory, chosen):
        x = torch.einsum("bd,bkd->bk", v, memory[chosen].detach()).div(self.tau).exp()  # (B, 1 + m)
        n = len(memory)
        self.z[side] = torch.where(self.z[side] == 0, x.detach().mean() * n, self.z[side])
        x = x / self.z[side].clone()  # the other side's may still change
        noise = self.negatives / n
        positive, negative = x[:, 0], x[:, 1:]
        logs = (positive / (positive + noise)).log() + (noise / (negative + noise)).log().sum(1)
        return -logs.mean()

    @torch.no_grad()
    def _remember(self, images, v_s, v_t):
        for memory, v in ((self.memory_of_student, v_s), (self.memory_of_teacher, v_t)):
            kept = self.momentum * memory[images] + (1 - self.momentum) * v[: len(images)]
            memory[images] = F.normalize(kept, dim=1).to(memory.dtype)
