"""The loop: views, teacher, student, loss, backward, step, for a cohort of runs that see the same views and have the same teacher.

One run is a cohort of one. Passes, processes and books are kept beside it: here in Trainee and Log, and in cohort.py.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain

import torch

from ccdlib.base.registry import CcdError
from ccdlib.data import Dataset
from ccdlib.methods import METHODS, Method
from ccdlib.models import Backbone, Output, build, folded
from ccdlib.training import group
from ccdlib.training.config import RunConfig
from ccdlib.training.store import trained_by
from ccdlib.training.teachers import TaughtBy, method_of
from ccdlib.views import Batch, epoch_views


class Diverged(CcdError):
    """The loss is no longer a finite number."""


def train_epoch(trainees: list["Trainee"], epoch: int) -> list[dict | Diverged]:
    """Train one epoch (from 0) of a cohort; for each Trainee its row of the curves, or the Diverged that ends it."""
    if not trainees:
        return []
    for trainee in trainees:
        trainee.begin(epoch)
    logs, first = [Log() for _ in trainees], trainees[0]
    for batch in epoch_views(first.config, first.data, epoch, group.rank(), group.size()).batches():
        train_step(trainees, batch, logs)
    return [log.row(trainee, epoch) for trainee, log in zip(trainees, logs, strict=True)]


def train_step(trainees: list["Trainee"], batch: Batch, logs: list["Log"]) -> None:
    """A step, or a pass of one, of every Trainee of a cohort on one Batch, without waiting for a GPU."""
    batch = trainees[0].picked(batch)
    answered = {}  # {whether a method turns the inputs: (inputs, the teacher's Output)}, once for the whole cohort
    for trainee, log in zip(trainees, logs, strict=True):
        turned = trainee.method.rotates
        if turned not in answered:
            inputs = batch.turned().inputs if turned else batch.inputs
            answered[turned] = inputs, trainee.teacher and trainee.answers(trainee.teacher, inputs)
        inputs, target = answered[turned]
        first, last = batch.of[0] == 0, batch.of[0] + 1 == batch.of[1]
        if first:
            trainee.optimiser.zero_grad(set_to_none=True)
        with trainee.exchanging(last):
            student = trainee.student(inputs)
            terms = trainee.softened(trainee.method(student, target, batch), batch)
            loss = sum(terms.values())
            (loss if batch.weight == 1 else batch.weight * loss).backward()
        if last:
            trainee.clip()
            trainee.optimiser.step()
        log.add(terms, student, batch)


@dataclass(frozen=True)
class Trainee:
    """All that a training step needs: the student, its teacher, the method between them, the optimiser of what is trained.

    teacher: answers only, its batch norms folded into its convolutions. frozen: the network stays as it is and only the
    method's heads are trained. shared: the network as the processes of a group train it together, elsewhere the network.
    """

    config: RunConfig
    data: Dataset
    device: torch.device
    network: Backbone
    teacher: torch.nn.Module | None
    method: Method
    optimiser: torch.optim.Optimizer
    frozen: bool
    shared: torch.nn.Module

    def begin(self, epoch: int) -> None:
        """Make ready for the steps of an epoch."""
        self.network.train(not self.frozen)
        self.method.train()
        for part in self.optimiser.param_groups:
            part["lr"] = self.config.lr_at(epoch)

    def student(self, inputs: torch.Tensor) -> Output:
        """The Output of the network that is trained, or whose heads are."""
        return self.answers(self.network, inputs) if self.frozen else self._forward(self.shared, inputs)

    def answers(self, network: torch.nn.Module, inputs: torch.Tensor) -> Output:
        """The Output of a network that is not trained."""
        with torch.no_grad():
            return self._forward(network, inputs)

    def _forward(self, network, inputs):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            output = network(inputs)
        # Losses are computed in full precision, whatever autocast made of what they see.
        return output._replace(logits=output.logits.float(), pooled=output.pooled.float())

    def softened(self, terms: dict, batch: Batch) -> dict:
        """The terms of the loss as they count in the batch's epoch: during a warm-up all but the cross entropy count less."""
        soft = self.config.soft_at(batch.step[0])
        return terms if soft == 1 else {name: term if name == "ce" else soft * term for name, term in terms.items()}

    def exchanging(self, last: bool):
        """The context of a backward pass: the processes of a group exchange gradients after the last pass of a step."""
        return nullcontext() if last or group.size() == 1 else self.shared.no_sync()

    def clip(self) -> None:
        """Cut the gradient to the norm that the configuration asks for."""
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(trained_by(self.optimiser), self.config.clip)

    def picked(self, batch: Batch) -> Batch:
        """The batch, with as many twins as are kept of the candidates: those of which the teacher is least certain."""
        candidates = self.config.rule.candidates
        if candidates == 1:
            return batch
        first = batch.sizes[0]
        log_p = self.answers(self.teacher, batch.inputs[first:]).logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)  # (candidates,)
        best = entropy.argsort(descending=True, stable=True)[: len(entropy) // candidates]
        originals = torch.arange(first, device=best.device)
        return batch.kept(torch.cat([originals, first + best.sort().values]))


@dataclass
class Log:
    """What the steps of an epoch gave, on the device; looked at once an epoch, so that a GPU never waits for it."""

    names: tuple = ()
    history: list = field(default_factory=list)
    correct: int = 0
    seen: int = 0

    def add(self, terms: dict, output: Output, batch: Batch) -> None:
        """Keep the terms of a step, or of a pass of one, and how many of the answers were right."""
        self.names = tuple(terms)
        values = torch.stack([term.detach() for term in terms.values()])
        self.history.append(values if batch.weight == 1 else batch.weight * batch.of[1] * values)
        said, labels = output.logits[: len(batch.labels)].argmax(1), batch.labels
        self.correct = self.correct + (said == (labels if labels.ndim == 1 else labels.argmax(1))).sum()
        self.seen += len(labels)

    def row(self, trainee: Trainee, epoch: int) -> dict | Diverged:
        """The row of the curves, or the Diverged; what was saved before this epoch is still on disk."""
        config, history = trainee.config, group.total(torch.stack(self.history)) / group.size()  # (steps, terms)
        counts = torch.stack([torch.as_tensor(self.correct), torch.tensor(self.seen, device=history.device)])
        correct, seen = group.total(counts).tolist()
        where, broken = None, (~history.isfinite().all(1)).nonzero()
        states = (part.state_dict().values() for part in (trainee.network, trainee.method))
        if len(broken):
            at = broken[0].item()
            where = f"step {at + 1} of {len(history)}, {dict(zip(self.names, history[at].tolist(), strict=True))}"
            where = f"the loss is not a finite number any more: epoch {epoch + 1}, {where}"
        elif not all(tensor.isfinite().all() for tensor in chain.from_iterable(states)):
            where = f"the weights are not finite numbers any more after epoch {epoch + 1}, step {len(history)}"
        if where:
            return Diverged(f"{where}. What was saved before is kept; lower lr (it was {config.lr:g}), or look at the data")
        means = dict(zip(self.names, history.mean(0).tolist(), strict=True))
        return {"epoch": epoch + 1, "lr": config.lr_at(epoch)} | means | {"train_accuracy": 100 * correct / seen}


def prepare(configs: list[RunConfig], data: Dataset, device: torch.device, taught_by: TaughtBy) -> list[Trainee]:
    """The Trainees of a cohort on `device`, where `data` is; taught_by: their teacher, see teachers.teacher_for."""
    teacher, heads = taught_by
    answering = None
    if teacher is not None:
        answering = folded(teacher).to(device, memory_format=torch.channels_last)
    trainees = []
    for config in configs:
        network = build(config.model, data.classes, data.channels, config.seed)
        frozen = METHODS[config.method].freezes and teacher is not None
        if frozen:  # the teacher is the network whose heads are trained
            network.load_state_dict(teacher.state_dict())
            network.requires_grad_(False)
        network.to(memory_format=torch.channels_last)
        # Heads are made and drawn on the CPU, like the networks: equal weights on every device.
        method = method_of(config, data, network, None if frozen else teacher, heads)
        network, method = network.to(device), method.to(device)
        parameters = [p for part in (network, method) for p in part.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(
            parameters,
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov and config.momentum > 0,
            fused=True,
        )
        shared = group.in_group(network, device)
        trainees.append(
            Trainee(config, data, device, network, None if frozen else answering, method, optimiser, frozen, shared)
        )
    if heads is not None:
        heads.to(device)
    return trainees
