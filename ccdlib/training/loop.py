"""The training loop (views, teacher, student, loss, backward pass, step) of a cohort: runs with the same views and teacher.

One run is a cohort of one. train_step() is the loop itself; the details of passes, processes and records are in Trainee and Log
below it, and in cohort.py.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain

import torch

from ccdlib.base.arithmetic import exact
from ccdlib.base.registry import CcdError
from ccdlib.data import Dataset
from ccdlib.methods import METHODS, Method
from ccdlib.models import Backbone, Output, build, folded, in_bfloat16
from ccdlib.training import group
from ccdlib.training.ascent import climbed
from ccdlib.training.config import RunConfig
from ccdlib.training.evaluate import evaluate
from ccdlib.training.store import trained_by
from ccdlib.training.teachers import TaughtBy, method_of
from ccdlib.views import Ahead, Batch, views_of


class Diverged(CcdError):
    """The loss or the weights of a run are no longer finite numbers."""


def train_epoch(trainees: list["Trainee"], epoch: int, views: Ahead | None = None) -> list[dict | Diverged]:
    """Train a cohort for one epoch, counted from 0: for each Trainee its row of the curves, or the Diverged that ends it.

    views: the batches of the whole training (None: those of this epoch are made anew).
    """
    if not trainees:
        return []
    for trainee in trainees:
        trainee.begin(epoch)
    logs = [Log() for _ in trainees]
    for batch in (views or trainees[0].views(epoch + 1)).batches(epoch):
        train_step(trainees, batch, logs)
    return [log.row(trainee, epoch) for trainee, log in zip(trainees, logs, strict=True)]


def train_step(trainees: list["Trainee"], batch: Batch, logs: list["Log"]) -> None:
    """Take a step, or one of its passes, with every Trainee of a cohort on one Batch, without waiting for a GPU."""
    batch = trainees[0].picked(batch)
    answered = {}  # {whether the method turns its inputs: (inputs, the teacher's Output)}, computed once for the cohort
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
            student, terms = trainee.backward(inputs, target, batch)
            counted = trainee.method.counted(student, batch)
        if last:
            with trainee.climbed() as sharp:
                if sharp:  # the same loss once more, where it is highest nearby
                    trainee.backward(inputs, target, batch)
            trainee.clip()
            trainee.optimiser.step()
        log.add(terms, counted, batch)


@dataclass(frozen=True)
class Trainee:
    """All that a training step of one run needs: the student, its teacher, the method, and the optimiser.

    network: the student. teacher: a network that is not trained, its batch norms folded into its convolutions; None without a
    teacher, and where `frozen`. frozen: the network is a trained teacher that stays as it is, and only the method's heads are
    trained. shared: the network as group.in_group() wraps it for several processes; with one process the network itself. half:
    whether networks compute in bfloat16.
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
    half: bool

    def begin(self, epoch: int) -> None:
        """Set training mode and the learning rate for an epoch, counted from 0."""
        self.network.train(not self.frozen)
        self.method.train()
        for part in self.optimiser.param_groups:
            part["lr"] = self.config.lr_at(epoch)

    def views(self, epochs: int | None = None) -> Ahead:
        """The batches of its training, or this process's part of them, the same for all runs of a cohort.

        epochs: how many epochs there are (None: as many as the configuration says).
        """
        return views_of(self.config, self.data, epochs or self.config.epochs, group.rank(), group.size())

    def student(self, inputs: torch.Tensor) -> Output:
        """The Output of the student on inputs (B, C, H, W), with gradients unless it is frozen."""
        return self.answers(self.network, inputs) if self.frozen else self._forward(self.shared, inputs)

    def backward(self, inputs: torch.Tensor, target: Output | None, batch: Batch) -> tuple[Output, dict]:
        """Add the gradient of the loss for a batch; the student's Output and the terms of the loss."""
        student = self.student(inputs)
        terms = self.softened(self.method(student, target, batch), batch)
        loss = sum(terms.values())
        (loss if batch.weight == 1 else batch.weight * loss).backward()
        return student, terms

    @contextmanager
    def climbed(self) -> Iterator[bool]:
        """A context in which the weights are where the optimiser takes its gradient, and whether they had to move for it."""
        rho, adaptive = self.config.ascent
        if not rho:
            yield False
            return
        with climbed(trained_by(self.optimiser), (self.network, self.method), rho, adaptive):
            yield True

    def answers(self, network: torch.nn.Module, inputs: torch.Tensor) -> Output:
        """The Output of a network on inputs (B, C, H, W), without gradients."""
        with torch.no_grad():
            return self._forward(network, inputs)

    def tested(self) -> float:
        """The accuracy of the student on the test set, in percent, computed in the precision of its training."""
        precision = "bfloat16" if self.half else "float32"
        return evaluate(self.network, self.data, self.device, precision=precision)["accuracy"]

    def _forward(self, network, inputs):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output = network(inputs)
        # Losses are computed in float32, also where autocast computed the logits in bfloat16.
        return output._replace(logits=output.logits.float(), pooled=output.pooled.float())

    def softened(self, terms: dict, batch: Batch) -> dict:
        """The terms of the loss, all but those that need no teacher scaled by the warm-up factor of the batch's epoch."""
        soft, hard = self.config.soft_at(batch.step[0]), self.method.hard
        return terms if soft == 1 else {name: term if name in hard else soft * term for name, term in terms.items()}

    def exchanging(self, last: bool) -> AbstractContextManager:
        """The context of a backward pass: the processes of a group exchange gradients only in the last pass of a step."""
        return nullcontext() if last or group.size() == 1 else self.shared.no_sync()

    def clip(self) -> None:
        """Scale the gradient down to the norm `clip` of the configuration, where it has one and the gradient is larger."""
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(trained_by(self.optimiser), self.config.clip)

    def picked(self, batch: Batch) -> Batch:
        """See picked()."""
        return picked(batch, self.config.rule.candidates, lambda inputs: self.answers(self.teacher, inputs).logits)


def picked(batch: Batch, candidates: int, teacher: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with only those of its candidate twins of which the teacher is least certain: one in `candidates`.

    teacher: from inputs (B, C, H, W) to the teacher's logits (B, classes).
    """
    if candidates == 1:
        return batch
    first = batch.sizes[0]
    log_p = teacher(batch.inputs[first:]).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)  # (candidates,)
    best = entropy.argsort(descending=True, stable=True)[: len(entropy) // candidates]
    originals = torch.arange(first, device=best.device)
    return batch.kept(torch.cat([originals, first + best.sort().values]))


@dataclass
class Log:
    """The losses and correct answers of an epoch. They stay on the device until its end, so that a GPU need not wait.

    names: of the terms of the loss. history: a tensor (terms,) for each step or pass. correct, seen: numbers of views.
    """

    names: tuple[str, ...] = ()
    history: list[torch.Tensor] = field(default_factory=list)
    correct: int | torch.Tensor = 0
    seen: int = 0

    def add(self, terms: dict, counted: tuple[torch.Tensor, int], batch: Batch) -> None:
        """Add the terms of the loss of a step or pass, and the number of views classified correctly, of how many."""
        self.names = tuple(terms)
        values = torch.stack([term.detach() for term in terms.values()])
        self.history.append(values if batch.weight == 1 else batch.weight * batch.of[1] * values)
        self.correct, self.seen = self.correct + counted[0], self.seen + counted[1]

    def row(self, trainee: Trainee, epoch: int) -> dict | Diverged:
        """The epoch's row of the curves, with the mean of every term, or Diverged if a term or a weight is not finite."""
        config, history = trainee.config, group.total(torch.stack(self.history)) / group.size()  # (steps, terms)
        counts = torch.stack([torch.as_tensor(self.correct), torch.tensor(self.seen, device=history.device)])
        correct, seen = group.total(counts).tolist()
        where, broken = None, (~history.isfinite().all(1)).nonzero()
        if len(broken):
            at = broken[0].item()
            where = f"step {at + 1} of {len(history)}, {dict(zip(self.names, history[at].tolist(), strict=True))}"
            where = f"the loss is not a finite number any more: epoch {epoch + 1}, {where}"
        elif not _largest(trainee.network, trainee.method).isfinite():
            where = f"the weights are not finite numbers any more after epoch {epoch + 1}, step {len(history)}"
        if where:
            return Diverged(f"{where}. What was saved before is kept; lower lr (it was {config.lr:g}), or check the data")
        means = dict(zip(self.names, history.mean(0).tolist(), strict=True))
        return {"epoch": epoch + 1, "lr": config.lr_at(epoch)} | means | {"train_accuracy": 100 * correct / seen}


@torch.no_grad()
def _largest(*modules):
    """The largest absolute value of all weights and buffers, NaN where there is one."""
    every = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
    return torch.nn.utils.get_total_norm(
        [tensor for tensor in every if tensor.is_floating_point() and tensor.numel()], math.inf
    )


def prepare(configs: list[RunConfig], data: Dataset, device: torch.device, taught_by: TaughtBy) -> list[Trainee]:
    """The Trainees of a cohort on `device`, with fresh weights. data: on the same device. taught_by: the cohort's teacher."""
    teacher, heads = taught_by
    answering, half = None, configs[0].arithmetic(device.type).half
    if not half:
        exact(device)
    if teacher is not None:
        answering = folded(teacher).to(device, memory_format=torch.channels_last)
        if half:
            in_bfloat16(answering)
    trainees = []
    for config in configs:
        network = build(config.model, data.classes, data.channels, config.seed)
        frozen = METHODS[config.method].freezes and teacher is not None
        if frozen:  # the network is a copy of the teacher, for which heads are trained
            network.load_state_dict(teacher.state_dict())
            network.requires_grad_(False)
        network.to(memory_format=torch.channels_last)
        # Heads get their random weights on the CPU, like the networks, so that they are equal on every device.
        method = method_of(config, data, network, None if frozen else teacher, heads)
        network, method = network.to(device), method.to(device)
        method.half = half
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
            Trainee(config, data, device, network, None if frozen else answering, method, optimiser, frozen, shared, half)
        )
    if heads is not None:
        heads.to(device).half = half
    return trainees
