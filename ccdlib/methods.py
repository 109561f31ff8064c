"""Methods: how a network is trained. A row of METHODS is a plain loss, or a class with heads or a memory of its own.

A method is built for its networks (Given) and called once a step: `method(student, teacher, batch) -> {"term": scalar}`. Heads
are made from the networks' own parts, trained with the student and left out when it is used.

Methods with rotations of their own (`rotates`: SSKD, HSAKD) turn every view that `views` makes by 0, 90, 180 and 270 degrees:
V views an image become 4 V inputs, [all views; all views at 90 degrees; ...]. So they take any policy.
"""

import copy
import inspect
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.augment import rotations
from ccdlib.losses import (
    BY_IMAGE,
    HARD_LABELS,
    LOSSES,
    OWN_WEIGHTS,
    WEIGHTS,
    ce,
    full,
    kd,
    kl_rows,
    same_size,
    shapes,
)
from ccdlib.models import HE, Backbone, initialise
from ccdlib.registry import CcdError, Registry, unknown
from ccdlib.streams import stream

METHODS = Registry("method")
TURNS = 4


class Batch(NamedTuple):
    """What a step sees: B inputs of N images, views first."""

    inputs: torch.Tensor  # (B, C, H, W) float32, normalised
    labels: torch.Tensor  # (B,), or mixed labels (B, classes)
    images: torch.Tensor  # (B,) rows of the training set, on the CPU
    sizes: tuple[int, ...]  # how many inputs each view has; the first, the originals, has N
    step: tuple[int, int] = (0, 0)  # epoch and step in it, for random numbers
    of: tuple[int, int] = (0, 1)  # which pass of how many this is, where the images of a step are spread over several
    weight: float = 1.0  # how much its loss counts in the step

    def turned(self):
        """The batch of a method that rotates: all inputs at 0, then at 90, 180 and 270 degrees; labels and images stay."""
        return self._replace(inputs=rotations(self.inputs))

    def kept(self, rows):
        """Only the inputs `rows`, the originals and some of the second view."""
        where = rows.cpu()
        first = self.sizes[0]
        return self._replace(
            inputs=self.inputs[rows], labels=self.labels[rows], images=self.images[where], sizes=(first, len(rows) - first)
        )


class Given(NamedTuple):
    """What a method is built for: the networks, the trained heads of the teacher where there are some, and the data."""

    student: Backbone
    teacher: Backbone | None
    teacher_heads: "Method | None"
    shape: tuple[int, int, int]  # of an image: channels, height, width
    classes: int
    labels: torch.Tensor  # (n,) of the training images
    seed: int = 0


class Method(nn.Module):
    """Base of all methods.

    teacher: "none", "needed" or "optional". teacher_method: the method that its teacher must have been trained by, because it
    makes the heads that are needed. freezes: the network starts as the teacher and stays as it is, only heads are trained.
    rotates: see the module. hard_labels: mixed labels are refused. keeps: the heads are stored with the run.
    """

    teacher = "needed"
    teacher_method = None
    freezes = False
    rotates = False
    hard_labels = True
    keeps = False
    initial = HE  # how the weights of its heads are drawn

    @classmethod
    def by_image(cls, settings):
        """Whether a batch can be seen in parts: its terms are means over inputs or pairs of views, and it has no heads."""
        return False

    def __init__(self, given):
        super().__init__()
        # In a tuple, so that the teacher's heads are neither trained, nor put into train mode, nor stored with this method.
        self._taught_by = (given.teacher_heads,)

    @property
    def teacher_heads(self):
        """The heads of the teacher, frozen."""
        return self._taught_by[0]

    def heads(self, output):
        """What the heads make of a network's Output; nothing where there are none."""

    def headed(self, head, x):
        """head(x) in float32, computed as the networks are (bfloat16 on a GPU)."""
        if x.device.type != "cuda":
            return head(x)
        with torch.autocast("cuda", torch.bfloat16):
            return full(head(x))


class Plain(Method):
    """A row of LOSSES: no heads, no memory."""

    @classmethod
    def by_image(cls, settings):
        """Whether its terms are means over inputs or pairs of views."""
        return cls.name in BY_IMAGE and settings.get("weight", "cosine") in OWN_WEIGHTS

    def __init__(self, given, **settings):
        super().__init__(given)
        self.settings = settings
        if self.name == "at" and given.teacher is not None:
            both = [_output(network, given.shape) for network in (given.student, given.teacher)]
            self.loss(*both, both[0].logits.new_zeros(2, dtype=torch.long))  # says which stages do not match

    def forward(self, student, teacher, batch):
        """The loss's terms."""
        return self.loss(student, teacher, batch.labels, **self.settings)


for _name, _loss in LOSSES.items():
    METHODS[_name] = type(
        _name,
        (Plain,),
        {
            "name": _name,
            "loss": staticmethod(_loss),
            "__doc__": _loss.__doc__,
            "teacher": "none" if _name == "ce" else "needed",
            "hard_labels": _name in HARD_LABELS,
        },
    )


def settings_of(name):
    """{setting: default} of a method."""
    made = METHODS[name]
    parameters = inspect.signature(made.loss if issubclass(made, Plain) else made.__init__).parameters
    return {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}


def make(name, given, settings=None):
    """The method `name` for its networks (a Given), its heads with fresh weights; CcdError where it cannot be."""
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator when they are made
        method = METHODS[name](given, **(settings or {}))
    # Copied parts of a frozen network are trained nevertheless.
    return initialise(method.requires_grad_(True), stream(given.seed, "heads"), method.initial)


@torch.no_grad()
def _output(network, shape):
    """What a network says about two blank images of `shape`, for the shapes of its features."""
    training = network.training
    made = network.eval()(next(network.parameters()).new_zeros(2, *shape))
    network.train(training)
    return made


# ---------------------------------------------------------------- FitNet


@METHODS.add("fitnet")
class FitNet(Method):
    """FitNets (Romero et al., ICLR 2015), in one stage: CE + gamma mean (r(F^s_l) - F^t_l)^2, l = `stage` (from 1).

    The regressor r is ours: a 1 x 1 convolution to the teacher's channels and a batch norm, without which gamma 100 diverges;
    where the maps differ in size, the larger is averaged down. (The literature's regressor ends in a ReLU, and where sizes
    differ its convolution is strided or transposed.) It is trained with the student. Terms {"ce", "hint"}.
    Errors: CcdError for a stage that a network does not have.
    """

    hard_labels = False

    def __init__(self, given, gamma=100.0, stage=2):
        super().__init__(given)
        both = [_output(network, given.shape).feats for network in (given.student, given.teacher)]
        if stage > min(map(len, both)):
            raise CcdError(
                f"fitnet's stage = {stage}: the student's features are {shapes(both[0])}, the teacher's {shapes(both[1])}; "
                f"allowed are stages 1 to {min(map(len, both))}"
            )
        self.gamma, self.stage = gamma, stage - 1
        here, there = (feats[self.stage].shape[1] for feats in both)
        self.regressor = nn.Sequential(nn.Conv2d(here, there, 1, bias=False), nn.BatchNorm2d(there))

    def heads(self, output):
        """The student's feature map as the teacher's (B, channels, h, w)."""
        return self.headed(self.regressor, output.feats[self.stage])

    def forward(self, student, teacher, batch):
        """Terms {"ce", "hint"}."""
        guess = self.heads(student)
        a, b = same_size(guess, full(teacher.feats[self.stage].detach()))
        return ce(student, teacher, batch.labels) | {"hint": self.gamma * F.mse_loss(a, b)}


# ---------------------------------------------------------------- CRD


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

    def __init__(self, given, gamma=0.8, temperature=4.0, negatives=16384, tau=0.07, momentum=0.5, width=128):
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


# ---------------------------------------------------------------- SSKD


# Weights of CE, KL of normal views, KL of rotated views, KL of similarities: the released code's, and the supplement's.
SSKD_WEIGHTS = Registry("sskd weights")
SSKD_WEIGHTS |= {"released": (0.1, 0.9, 2.7, 10.0), "supplement": (0.1, 0.9, 3.0, 5.0)}


class _Rotating(Method):
    """A method with rotations of its own; CcdError for images that are not square."""

    rotates = True

    def __init__(self, given):
        super().__init__(given)
        if given.shape[1] != given.shape[2]:
            raise CcdError(f"rotations need square images, not {given.shape[1:]}; make them square first")


class _Contrast(_Rotating):
    """What both stages of SSKD share: the head h, Linear(d, d)-ReLU-Linear(d, d) on pooled features, and similarities."""

    def __init__(self, given):
        super().__init__(given)
        d = given.student.head.in_features
        self.head = nn.Sequential(nn.Linear(d, d), nn.ReLU(inplace=True), nn.Linear(d, d))

    def heads(self, output):
        """h of the pooled features (B, d), of length one."""
        return F.normalize(self.headed(self.head, output.pooled), dim=1)

    def similarities(self, output, batch):
        """For each view of n images (3 n, n): the cosine of h at the rotated rows and h at the same view's normal rows."""
        normal, *turned = (part.split(batch.sizes) for part in self.heads(output).chunk(TURNS))
        return [torch.cat([part[v] for part in turned]) @ normal[v].T for v in range(len(batch.sizes)) if batch.sizes[v]]


@METHODS.add("sskd_teacher")
class SSKDTeacher(_Contrast):
    """Stage 1 of SSKD (Xu et al., ECCV 2020): the head of a frozen teacher: mean_ji CE(s_ji., i).

    s_ji. are the cosines of the head's answers to rotated image i (90, 180, 270 degrees) and to the normal images of the
    batch, each view among its own. Terms {"contrast"}.
    """

    freezes = True
    keeps = True

    def forward(self, student, teacher, batch):
        """Terms {"contrast"}."""
        rows = self.similarities(student, batch)
        own = [torch.arange(s.shape[1], device=s.device).repeat(TURNS - 1) for s in rows]
        losses = torch.cat([F.cross_entropy(s, y, reduction="none") for s, y in zip(rows, own, strict=True)])
        return {"contrast": losses.mean()}


@METHODS.add("sskd")
class SSKD(_Contrast):
    """Stage 2 of SSKD (Xu et al., ECCV 2020): a CE(normal) + b T^2 KL(normal) + c T^2 KL(rotated) + d tau^2 KL(similarities).

    T 4, tau 0.5; a, b, c, d by name, `weights`: "released" (0.1, 0.9, 2.7, 10) or "supplement" (0.1, 0.9, 3, 5). Rotated
    logits and rows of similarities are only compared where the teacher can be trusted, see `trusted`. Terms {"ce", "kd",
    "rotated", "contrast"}. Needs a teacher trained by sskd_teacher.
    """

    teacher_method = "sskd_teacher"

    def __init__(self, given, weights="released", temperature=4.0, tau=0.5, ratio_logits=1.0, ratio_similarities=0.75):
        super().__init__(given)
        self.weights, self.temperature, self.tau = SSKD_WEIGHTS[weights], temperature, tau
        self.ratio_logits, self.ratio_similarities = ratio_logits, ratio_similarities

    def forward(self, student, teacher, batch):
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


def trusted(rows, true, ratio):
    """Row numbers, ascending, of the teacher's `rows` (M, K) that SSKD keeps: all whose largest entry is at `true` (M,), and of
    the W wrong ones the floor(ratio * W) whose true entry ranks highest.

    The M rows are all inputs at one angle, then all at the next; of equal ranks the first images are kept, all angles of one
    before the next, as the released code does.
    """
    better = (rows > rows.gather(1, true[:, None])).sum(1)  # the rank of the true entry, from 0
    wrong = int((better > 0).sum())
    by_image = torch.arange(len(rows), device=rows.device).view(TURNS - 1, -1).T.flatten()
    best = by_image[better[by_image].argsort(stable=True)]
    return best[: len(rows) - wrong + int(ratio * wrong)].sort().values


# ---------------------------------------------------------------- HSAKD


class _Branches(_Rotating):
    """What both stages of HSAKD share: an auxiliary branch after each stage of a backbone, made of its own remaining parts.

    Branch l is made of the units of stages l + 1 to the last (after the last stage: of that stage once more, at the same size),
    of the tail, average pooling and a linear layer to 4 C joint labels: class y turned by j times 90 degrees is 4 y + j.
    """

    def __init__(self, given):
        super().__init__(given)
        network = given.student
        self.initial = network.initial  # branches are parts of it
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

    def heads(self, output):
        """Joint logits (4 B, 4 C) of every branch."""
        return [self.headed(branch, feature) for branch, feature in zip(self.branches, output.feats, strict=True)]


@METHODS.add("hsakd_teacher")
class HSAKDTeacher(_Branches):
    """The teacher of HSAKD (Yang et al., IJCAI 2021): CE(backbone(x_0), y) + sum_l CE(q_l(x_j), 4 y + j) over all rotations j.

    With a trained teacher, its backbone is frozen and only branches are trained (HSAKD); without one, all is trained from
    scratch together (HSAKD*). Terms {"ce", "joint"}.
    """

    teacher = "optional"
    freezes = True
    keeps = True

    def forward(self, student, teacher, batch):
        """Terms {"ce", "joint"}."""
        joint = torch.cat([TURNS * batch.labels + j for j in range(TURNS)])
        hard = F.cross_entropy(student.logits[: len(batch.labels)], batch.labels)
        return {"ce": hard, "joint": sum(F.cross_entropy(q, joint) for q in self.heads(student))}


@METHODS.add("hsakd")
class HSAKD(_Branches):
    """HSAKD (Yang et al., IJCAI 2021): CE(backbone(x_0), y) + T^2 sum_l KL(q_l^t || q_l^s) + T^2 KL(p^t || p^s), T 3.

    Both KL are means over all rotated rows, q_l the joint probabilities of branch l, p those of the backbone. Terms {"ce",
    "branches", "kd"}. Needs a teacher trained by hsakd_teacher, with as many stages as the student.
    """

    teacher_method = "hsakd_teacher"

    def __init__(self, given, temperature=3.0):
        super().__init__(given)
        if len(given.teacher.stages) != len(given.student.stages):
            both = (shapes(_output(network, given.shape).feats) for network in (given.student, given.teacher))
            raise CcdError(
                "hsakd pairs a branch after each stage: the student's features are {}, the teacher's {}; choose networks with "
                "as many stages".format(*both)
            )
        self.temperature = temperature

    def forward(self, student, teacher, batch):
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


# ---------------------------------------------------------------- settings


MOST = 1_000_000  # of a number in settings
# What a setting that is a word may be.
WORDS = {"weight": WEIGHTS, "weights": SSKD_WEIGHTS}


def check_settings(name, settings):
    """Raise CcdError unless `settings` are settings of the method `name`, of the right type and in their range."""
    known = settings_of(name)
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of method {name!r}", key, known or ["(this method has none)"])
        kind = type(known[key])
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise CcdError(
                f"setting {key} = {value!r} of method {name!r}: it must be a {kind.__name__}, such as {known[key]!r}"
            )
        if kind is str and value not in WORDS[key]:
            raise unknown(f"{key} of method {name!r}", value, WORDS[key])
        if kind is int and not 1 <= value <= MOST:
            raise CcdError(f"setting {key} = {value} of method {name!r}: allowed are whole numbers from 1 to {MOST:,}")
        if kind is float:
            _check_number(name, key, value)


def _check_number(name, key, value):
    above = key in ("temperature", "tau")
    most = 1 if key.startswith(("ratio", "momentum")) else 1000 if above else MOST
    if not (value > 0 if above else value >= 0) or value > most:
        raise CcdError(
            f"setting {key} = {value!r} of method {name!r}: allowed are numbers {'above' if above else 'from'} 0 up to {most:,}"
        )
