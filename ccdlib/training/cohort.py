"""fit(): trains a run, or a cohort of runs with the same views and teacher, to the end, or finds it trained."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ccdlib.base import paths
from ccdlib.base.arithmetic import TOO_LATE, make_portable
from ccdlib.base.devices import best_device, device_named
from ccdlib.base.registry import CcdError
from ccdlib.data import Dataset, source_of
from ccdlib.methods import Method
from ccdlib.models import Backbone, build
from ccdlib.training import group
from ccdlib.training.checks import (
    check_fits,
    check_importable,
    check_teacher,
    checked,
    data_of,
    seconds_between_saves,
    whole_data,
)
from ccdlib.training.config import Checkpoint, RunConfig, with_teachers
from ccdlib.training.identity import identity, provenance
from ccdlib.training.loop import Diverged, Trainee, prepare, train_epoch
from ccdlib.training.store import DamagedRun, Folder, load_weights
from ccdlib.training.teachers import TaughtBy, accuracy_of, check_accuracy, checkpoint_taught, from_checkpoint, heads_from

SHOWS = ("auto", "epochs", "run", "bar", "none")


@dataclass(frozen=True)
class Result:
    """A finished run.

    accuracy: top-1 accuracy on the test set after the last epoch, in percent; this is the result. best_on_test: the accuracy of
    the best epoch, which is too high because it is chosen on the test set; it is there for comparison with papers that report
    it. curves: a dict for each epoch. folder: the run's folder. metrics: the content of its metrics.json. classes, channels: of
    its data. measured() makes a Result of a Checkpoint, which has no curves, and whose folder is its file.
    """

    config: RunConfig | Checkpoint
    accuracy: float
    best_on_test: float
    curves: list[dict]
    folder: Path
    metrics: dict
    classes: int
    channels: int

    @property
    def chance(self) -> float:
        """The accuracy of guessing, in percent: 0 for a detector, whose accuracy is an average precision."""
        detector = isinstance(self.config, RunConfig) and source_of(self.config.data)[0].boxed
        return 0.0 if detector else 100 / self.classes

    @property
    def seconds(self) -> float:
        """Seconds of training, also those before an interruption; in a cohort, the run's share of them."""
        return self.metrics["seconds"]

    def model(self) -> Backbone:
        """The trained network, in eval mode on the CPU. Errors: CcdError for a run of which only the record is here."""
        if isinstance(self.config, Checkpoint):
            return from_checkpoint(self.config, self.classes, self.channels)
        if not (self.folder / "weights.safetensors").exists():
            raise CcdError(
                f"the weights of {self.folder.name} are not here, only its record; train it with ccdlib.fit(result.config), or "
                "all runs of a notebook with `ccd run --from scratch`"
            )
        network = build(self.config.model, classes=self.classes, channels=self.channels)
        return load_weights(self.folder / "weights.safetensors", network, self.config.model).eval()

    def heads(self) -> Method | None:
        """The method with its trained heads, in eval mode on the CPU; None for a method whose heads are not stored."""
        return heads_from(self.config, self.folder / "heads.safetensors", self.model(), data_of(self.config))


def fit(config: RunConfig, show: str = "auto", repair: bool | None = None) -> Result:
    """Train the network that `config` describes, after its teacher, or find it trained in the run store.

    show: "epochs" prints a line for each epoch and "run" a line at the end, both also for a run that is found; "bar" shows a
    progress bar; "none" shows nothing; "auto" is "bar" on an interactive command line and "epochs" elsewhere. repair: train a
    damaged run again and keep its folder under another name (None: if $CCD_REPAIR is 1). Errors: CcdError, before the training
    wherever possible; DamagedRun for a damaged run without `repair`; Diverged during the training.
    """
    return fit_cohort([config], show, repair)[0]


def fit_cohort(
    configs: Sequence[RunConfig], show: str = "auto", repair: bool | None = None, check: bool = True
) -> list[Result]:
    """fit() for the runs of one cohort (equal RunConfig.cohort), which are trained together: a Result for each configuration.

    Views and the teacher's logits are computed once for all, and every network takes its own step. On a CPU the result of each
    run is the same, bit by bit, as when it is trained alone. Finished runs are found, interrupted ones go on from their last
    saved epoch. If a run diverges, the others are trained to the end before Diverged is raised. check: False where a command
    has made sure that the runs can be trained. Errors: as fit(), and CcdError for configurations that are no cohort.
    """
    if show not in SHOWS:
        raise CcdError(f"show = {show!r}: allowed are {', '.join(SHOWS)}")
    configs = [checked(config) for config in configs]
    if len({config.cohort for config in configs}) != 1:
        raise CcdError(
            f"{len(configs)} configurations are not one cohort: all must have the same teacher, data, views, draws, batch and "
            "epochs. Group them by RunConfig.cohort"
        )
    show = ("bar" if sys.stderr.isatty() else "epochs") if show == "auto" else show
    repair = os.environ.get("CCD_REPAIR") == "1" if repair is None else repair
    device = device_named(configs[0].device)
    as_asked = computes_as(configs)  # before anything is computed
    data = data_of(configs[0])
    seconds_between_saves()  # a wrong value raises its error before the training
    if check:
        check_teacher(configs[0], data)
    folders = {folder.path: folder for folder in map(folder_of, configs)}  # each run once, also if two configurations name it
    missing = group.from_first(lambda: [path for path, folder in folders.items() if not folder.ready(repair)])
    found = folders.keys() - set(missing)
    for path in sorted(found):
        _check_teacher_of(folders[path], data, device)
    for path in missing if check else ():
        check_fits(folders[path].config, data)
    if missing and not as_asked:
        raise CcdError(TOO_LATE)
    if missing and configs[0].processes > 1 and group.size() == 1 and not group.started_by_torchrun():
        check_importable(configs[0])
        group.launch([folders[path].config for path in missing], show, repair)
    elif missing:
        taught_by = _teacher_for(configs[0], data, show, repair)
        with ExitStack() as locks:
            still = group.from_first(lambda: _locked([folders[path] for path in missing], locks, repair))
            found |= set(missing) - set(still)  # another process may have finished some meanwhile
            if still:
                _train([folders[path] for path in still], data.to(device), taught_by, device, show, repair)
            group.wait()
    for path in sorted(found) if show == "epochs" and group.rank() == 0 else ():
        for row in folders[path].curves():
            print(_line(folders[path].config, row))
    return [_result(config, folder_of(config), data, show) for config in configs]


def computes_as(configs: Sequence[RunConfig]) -> bool:
    """Let this process compute as the runs and their teachers need it, from now on.

    Returns False where it is too late (see arithmetic.make_portable).
    """
    every = (needed for config in configs for needed in with_teachers(config))
    return not any(config.arithmetic().portable for config in every) or make_portable()


def folder_of(config: RunConfig) -> Folder:
    """The Folder of a run, trained or not. Errors: CcdError for data or a teacher's file that is not there."""
    device = best_device().type if config.device == "auto" else config.device
    return Folder(config, identity(config, lambda c: whole_data(c).facts, device))


def measured(teacher: Checkpoint, data: Dataset) -> Result:
    """The Result of a Checkpoint: its accuracy on the test images of `data`, without curves.

    Errors: CcdError if the accuracy is not the one that the Checkpoint promises.
    """
    device, network = best_device(), from_checkpoint(teacher, data.classes, data.channels)
    reached = accuracy_of(teacher, network, data, device)
    check_accuracy(teacher, reached, data)
    file = Path(teacher.file)
    return Result(teacher, reached, reached, [], file, {"seconds": 0.0}, data.classes, data.channels)


def network_of(config: RunConfig | Checkpoint, data: Dataset, show: str = "epochs") -> Backbone:
    """The network of a RunConfig, trained if necessary, or of a Checkpoint, in eval mode on the CPU; show: see fit()."""
    if isinstance(config, RunConfig):
        return fit(config, show).model()
    if show != "none":
        print(f"{config.file}: {measured(config, data).accuracy:.1f} % on the test images, from its file")
    return from_checkpoint(config, data.classes, data.channels)


def _teacher_for(config, data, show, repair):
    """The teacher of a configuration as a TaughtBy, trained first if necessary."""
    if config.teacher is None:
        return TaughtBy()
    if isinstance(config.teacher, Checkpoint):
        return checkpoint_taught(config.teacher, data)
    taught = config.teacher.but(device=config.device, processes=config.processes)
    result = fit(taught, show="bar" if show == "bar" else "none", repair=repair)
    return TaughtBy(result.model(), result.heads())


def _check_teacher_of(folder, data, device):
    """check_accuracy() for a run that is found, by its stored "teacher_accuracy"; older runs lack that, so it is measured."""
    teacher = folder.config.teacher
    if isinstance(teacher, Checkpoint) and teacher.accuracy is not None:
        reached = folder.metrics.get("teacher_accuracy")
        if reached is None:
            reached = accuracy_of(teacher, from_checkpoint(teacher, data.classes, data.channels), data, device)
        check_accuracy(teacher, reached, data)


def _locked(folders, locks, repair):
    """Lock the folders of runs until `locks` is closed; returns the paths of those that are still to be trained."""
    for folder in sorted(folders, key=lambda folder: folder.path):  # in one order, so that no two processes wait for each other
        locks.enter_context(folder.lock())
    missing = [folder for folder in folders if not folder.ready(repair)]
    for folder in missing:
        if folder.finished:
            folder.set_aside()
    return [folder.path for folder in missing]


def _result(config, folder, data, show):
    metrics = folder.metrics
    if show == "run" and group.rank() == 0:
        print(f"{config.model}, {config.method}, views {config.views}, seed {config.seed}: {metrics['accuracy']:.1f} %")
    return Result(
        config, metrics["accuracy"], metrics["best_on_test"], folder.curves(), folder.path, metrics, data.classes, data.channels
    )


@dataclass
class Member:
    """A run in training.

    rows: its curves so far, a dict for each epoch. found: how many of these epochs an earlier process trained. failed: the
    Diverged that ended it.
    """

    trainee: Trainee
    folder: Folder
    rows: list[dict] = field(default_factory=list)
    found: int = 0
    failed: Diverged | None = None

    @property
    def parts(self) -> tuple:
        """The network, the method and the optimiser, whose states change in training."""
        return self.trainee.network, self.trainee.method, self.trainee.optimiser

    def resume(self, repair: bool) -> None:
        """Load the saved state of an interrupted run, if there is one. repair: start again from the beginning if it is damaged.

        Errors: DamagedRun without `repair`.
        """
        try:
            self.found, self.rows = self.folder.load_state(*self.parts)
        except DamagedRun:
            if not repair:
                raise
            if group.rank() == 0:
                self.folder.file("resume.pt").rename(self.folder.file("resume.damaged.pt"))
        if group.rank() == 0:
            self.folder.start()

    def add(self, row: dict, seconds: float) -> None:
        """Add an epoch's row to the curves, with its seconds and, every `eval_every` epochs, the accuracy on the test set."""
        config, trainee = self.trainee.config, self.trainee
        began = time.perf_counter()
        tested = row["epoch"] == config.epochs or row["epoch"] % config.eval_every == 0
        row["test_accuracy"] = trainee.tested() if tested else None
        self.rows.append(row | {"seconds": round(seconds + time.perf_counter() - began, 4)})

    def save(self) -> None:
        """Save the state and the curves after the last epoch trained."""
        if group.rank():
            return
        self.folder.save_state(len(self.rows), *self.parts, self.rows)
        self.folder.save_curves(self.rows)

    def finish(self, facts: dict) -> None:
        """Write all files of the finished run; facts: further entries of its metrics.json."""
        if group.rank():
            return
        trainee = self.trainee
        metrics = facts | _metrics(self.rows, trainee.config, trainee.data, trainee.device, len(self.rows) - self.found)
        self.folder.finish(trainee.network, trainee.method, self.rows, metrics)


def _train(folders, data, taught_by, device, show, repair):
    """Train the runs of `folders` together to the end, each from its own last saved epoch."""
    trainees = prepare([folder.config for folder in folders], data, device, taught_by)
    members = [Member(trainee, folder) for trainee, folder in zip(trainees, folders, strict=True)]
    for member in members:
        member.resume(repair)
    done = [len(member.rows) for member in members]
    if group.from_first(lambda: done) != done:
        raise CcdError(
            f"{paths.outputs()} is not the same folder for all processes; set CCD_OUTPUTS to one that all machines share"
        )
    facts, saved, epochs = _facts_of_teacher(members[0], taught_by, device), time.monotonic(), folders[0].config.epochs
    views = trainees[0].views()
    for epoch in _epochs(members, show):
        # A cohort that was killed while it saved its states goes on from different epochs.
        active = [member for member in members if len(member.rows) == epoch and not member.failed]
        began = time.perf_counter()
        rows = train_epoch([member.trainee for member in active], epoch, views)
        seconds = (time.perf_counter() - began) / max(1, len(active))
        for member, row in zip(active, rows, strict=True):
            if isinstance(row, Diverged):
                member.failed = row
                continue
            member.add(row, seconds)
            if show == "epochs" and group.rank() == 0:
                print(_line(member.trainee.config, member.rows[-1], len(members) > 1))
        if epoch + 1 < epochs and time.monotonic() - saved >= seconds_between_saves():
            for member in active:
                if not member.failed:
                    member.save()
            saved = time.monotonic()
    for member in members:
        if not member.failed:
            member.finish(facts)
    for member in members:
        if member.failed:
            raise member.failed


def _facts_of_teacher(member, taught_by, device):
    """The entry of metrics.json for a teacher from a file, its accuracy, which is checked here; {} for other teachers."""
    teacher, data = member.trainee.config.teacher, member.trainee.data
    if not isinstance(teacher, Checkpoint):
        return {}
    reached = accuracy_of(teacher, taught_by.network, data, device)
    check_accuracy(teacher, reached, data)
    return {"teacher_accuracy": reached}


def _metrics(rows, config, data, device, epochs_here):
    tested = [(row["test_accuracy"], row["epoch"]) for row in rows if row["test_accuracy"] is not None]
    best, best_epoch = max(tested, key=lambda pair: (pair[0], -pair[1]))
    return {
        "accuracy": rows[-1]["test_accuracy"],
        "best_on_test": best,
        "best_on_test_epoch": best_epoch,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "resumed": epochs_here < len(rows),
        "data": {"name": data.name, "sha256": data.fingerprint},
        "provenance": provenance(device, config.arithmetic(device.type)),
    }


def _epochs(members, show):
    """The epochs, from 0, that at least one member lacks, as long as not all members have diverged."""
    config, done = members[0].trainee.config, min(len(member.rows) for member in members)
    epochs = range(done, config.epochs)
    if show == "bar":
        from tqdm import tqdm

        who = f"seed {config.seed}" if len(members) == 1 else f"and {len(members) - 1} more"
        label = f"{config.model} {config.method} {who}"
        epochs = tqdm(epochs, label, total=config.epochs, initial=done, unit="epoch", leave=False)
    for epoch in epochs:
        if all(member.failed for member in members):
            return
        yield epoch


def _line(config, row, named=False):
    """The printed line of an epoch. It has no times: a run that is found prints the lines of its training again."""
    known = ("epoch", "lr", "train_accuracy", "test_accuracy", "seconds")
    terms = " ".join(f"{name} {value:.3f}" for name, value in row.items() if name not in known)
    test = "" if row["test_accuracy"] is None else f"  test {row['test_accuracy']:.1f} %"
    width = len(str(config.epochs))
    who = f"{config.model} {config.method}, seed {config.seed}: " if named else ""
    return (
        f"{who}epoch {row['epoch']:{width}d}/{config.epochs}  lr {row['lr']:.4g}  {terms}  train {row['train_accuracy']:.1f} %"
        f"{test}"
    )
