"""Object detection: the losses of Faster R-CNN, and distillation of what a teacher says about the student's regions.

A region is a box that the student proposes and draws for its own loss; both networks say of which class it is. So every loss of
LOSSES that needs nothing but logits can act on regions as it acts on images.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.methods.losses import LOSSES, WEIGHTS, Terms, full
from ccdlib.methods.method import METHODS, Given, Method
from ccdlib.methods.settings import Above, defaults_of
from ccdlib.models.backbone import Output
from ccdlib.models.detector import Detector, Regions
from ccdlib.views.boxes import NONE, moved, rows_of
from ccdlib.views.epoch import Batch


@METHODS.add("detection")
class Detection(Method):
    """Faster R-CNN (Ren et al., NeurIPS 2015) without a teacher, on all views.

    Terms {"ce", "box", "proposals"}: the cross entropy of the drawn regions, how far their boxes lie from those of their things
    (smooth L1), and both losses of the proposals.
    """

    teacher = "none"
    detects = True
    hard = ("ce", "box", "proposals")

    def __init__(self, given: Given):
        super().__init__(given)
        self.seed = given.seed
        # In a tuple, so that PyTorch does not take the networks for parts of the method.
        self._networks = given.student, given.teacher

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Terms:
        """The terms of the loss."""
        return self.own(_full(student), batch)[0]

    def own(self, student: Output, batch: Batch) -> tuple[Terms, Regions]:
        """The terms without a teacher, and the regions that were drawn."""
        network: Detector = self._networks[0]
        things = [{"boxes": each[:, 1:], "labels": each[:, 0].long() + 1} for each in rows_of(batch.labels)]
        with self._drawing(batch):
            boxes, losses = network.proposed(student, batch.inputs, things)
            boxes, labels, targets = network.drawn(boxes, things)
        logits, offsets = network.said(student, boxes, _size(batch))
        regions = Regions(boxes, labels, targets, logits, offsets)
        self._right = (logits.argmax(1) == labels).sum(), len(labels)
        ce = F.cross_entropy(logits, labels)
        return {"ce": ce, "box": _box_loss(regions), "proposals": sum(losses.values())}, regions

    def counted(self, student: Output, batch: Batch) -> tuple[torch.Tensor, int]:
        """How many of the drawn regions got their class, and of how many."""
        return self._right

    @contextmanager
    def _drawing(self, batch: Batch) -> Iterator[None]:
        """A context in which torchvision, which draws from the global generators, draws by the seed and the step."""
        devices = [batch.inputs.device] if batch.inputs.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream(self.seed, "regions", *batch.step).initial_seed())
            yield


@METHODS.add("detection_kd")
class DetectionKD(Detection):
    """Faster R-CNN with a teacher that says of which class the student's regions are, on all views.

    loss: a row of LOSSES that acts on the logits of regions, with background as a class; its terms are added, but for its cross
    entropy, which is that of Detection. "kd" at temperature 1 is the recipe of Li et al.'s release (2023). Terms {"ce", "box",
    "proposals", "kd"}, or of another loss its own.
    """

    teacher = "needed"
    hard_labels = True

    def __init__(self, given: Given, loss: Annotated[str, LOSSES] = "kd", temperature: Above = 1.0):
        super().__init__(given)
        self.loss, self.temperature = LOSSES[loss], temperature
        self._try(loss)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The terms of the loss."""
        terms, regions = self.own(_full(student), batch)
        taught = self.taught(teacher, regions.boxes, batch)
        soft = self.loss(_output(regions.logits), _output(taught), regions.labels, temperature=self.temperature)
        return terms | {name: term for name, term in soft.items() if name != "ce"}

    def _try(self, name):
        """Raise CcdError where the loss needs more than the logits of regions and one view of an image."""
        option = LOSSES.options[name]
        one = (
            not option.get("pairs") and option.get("teacher", "needed") == "needed" and "temperature" in defaults_of(self.loss)
        )
        if one:
            with suppress(IndexError, RuntimeError):  # of a feature map that is not there
                return self.loss(*[_output(torch.eye(3))] * 2, torch.arange(3), temperature=self.temperature)
        raise CcdError(
            f"loss = {name!r} of method 'detection_kd': allowed are losses with a temperature that compare nothing but the "
            "logits of one view, such as 'kd' and 'dist'; CCD has its own method, 'detection_ccd'"
        )

    def taught(self, teacher: Output, boxes: list[torch.Tensor], batch: Batch) -> torch.Tensor:
        """The teacher's logits (R, 1 + classes) of regions."""
        network: Detector = self._networks[1].to(batch.inputs.device)
        with torch.no_grad():
            return network.said(_full(teacher), boxes, _size(batch))[0]


@METHODS.add("detection_ccd")
class DetectionCCD(DetectionKD):
    """Faster R-CNN with Cosine Confidence Distillation of regions, on the views [original; twin].

    pairing: which two regions are compared. "paired": a region of the original, and the same region where it lies on the twin.
    "released": the even and the odd rows of all drawn regions, as in the public code (Li et al., 2023), where they are two
    proposals of one image. weight: a row of WEIGHTS. Terms {"ce", "box", "proposals", "kd"}.
    """

    pairs = True

    def __init__(
        self,
        given: Given,
        pairing: Literal["paired", "released"] = "paired",
        weight: Annotated[str, WEIGHTS] = "cosine",
        temperature: Above = 1.0,
    ):
        super().__init__(given, "kd", temperature)
        self.pairing, self.weight = pairing, weight

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The terms of the loss."""
        student = _full(student)
        terms, regions = self.own(student, batch)
        pairs = self._paired if self.pairing == "paired" else self._released
        ours, theirs, labels = pairs(student, teacher, regions, batch)
        if not len(labels):  # no region of an original lies on its twin
            return terms | {"kd": 0 * terms["ce"]}
        how = {"temperature": self.temperature, "weight": self.weight}
        return terms | {"kd": LOSSES["ccd"](_output(ours), _output(theirs), labels, **how)["kd"]}

    def _released(self, student, teacher, regions, batch):
        """Both networks' logits of [even rows; odd rows] of all drawn regions, and their labels."""
        order = torch.arange(len(regions.labels) // 2 * 2, device=regions.labels.device).view(-1, 2).T.flatten()
        theirs = self.taught(teacher, regions.boxes, batch)
        return regions.logits[order], theirs[order], regions.labels[order]

    def _paired(self, student, teacher, regions, batch):
        """Both networks' logits of [regions of originals; the same regions on their twins], and the labels of both."""
        n, (height, width) = batch.sizes[0], _size(batch)
        here, there, rows, first = [], [], [], 0
        for own, moves in zip(regions.boxes[:n], batch.moves[n:], strict=True):
            placed = moved(F.pad(own.detach(), (1, 0))[None], moves[None].double(), height, width)[0]
            kept = (placed[:, 0] != NONE).nonzero().flatten()
            here.append(own[kept])
            there.append(placed[kept, 1:])
            rows.append(first + kept)
            first += len(own)
        rows, empty = torch.cat(rows), [own[:0] for own in there]
        ours = self._networks[0].said(student, empty + there, (height, width))[0]
        theirs = self.taught(teacher, here + there, batch)  # the originals' first, as the batch has them
        return torch.cat([regions.logits[rows], ours]), theirs, regions.labels[rows].repeat(2)


def _size(batch):
    return tuple(batch.inputs.shape[2:])


def _full(output):
    """The Output with its maps in float32."""
    return output._replace(feats=tuple(full(each) for each in output.feats))


def _output(logits):
    return Output(logits, (), logits)


def _box_loss(regions):
    """Smooth L1 of the offsets of regions that are things, over the number of all regions."""
    rows = regions.labels.nonzero().flatten()
    said = regions.offsets.unflatten(1, (-1, 4))[rows, regions.labels[rows]]
    return F.smooth_l1_loss(said, regions.targets[rows], beta=1 / 9, reduction="sum") / len(regions.labels)
