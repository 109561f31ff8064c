"""The run store: a folder outputs/runs/<method>-<hash>/ for each run.

    config.json          the configuration and the identity, with the checksums of the data and the identity of the teacher
    curves.csv           a row for each epoch
    weights.safetensors  the network after the last epoch
    heads.safetensors    the heads of a teacher, for a method that trains heads which students need
    resume.pt            of an unfinished run: its weights, the method's heads and memory, momentum and curves after the last
                         saved epoch, preceded by a checksum
    metrics.json         accuracies, provenance, and a checksum of every file; written last, it marks a finished run

A file is written whole or not at all, and is used only if its checksum is right. A finished run is found again, an unfinished
run goes on from its last saved epoch, and a damaged run raises DamagedRun until the caller asks for a repair.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import Timeout
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import nn

from ccdlib.base import paths
from ccdlib.base.files import file_lock, sha256, write_whole
from ccdlib.base.registry import CcdError
from ccdlib.methods import Method
from ccdlib.models import Backbone
from ccdlib.training.config import RunConfig


class DamagedRun(CcdError):
    """A file of the run store is missing, or its content is not what was written."""


def save_weights(path: Path, network: nn.Module, model: str) -> None:
    """Write a network's state as safetensors, with the name of its `model` in the header.

    The header has no other entry: safetensors writes several in a random order, and equal weights shall give equal files.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(path, safetensors.save(state, metadata={"model": model}))


def load_weights(path: Path, network: nn.Module, model: str) -> nn.Module:
    """Load the state of `network`, or of the heads of such a network, from a safetensors file and return `network`.

    model: the name of the backbone. Errors: CcdError if the file is damaged, or belongs to another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CcdError(
            f"{path} is incomplete or not a safetensors file ({error}); copy it again, or train the run again"
        ) from error
    if facts.get("model", model) != model:
        raise CcdError(f"{path} holds a {facts['model']}, not the {model} that was asked for; name the right model or file")
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != given:
        names = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise CcdError(
            f"{path} does not fit {model}: {len(names)} tensors differ, such as {names[0]} (file: {given.get(names[0])}, "
            f"{model}: {wanted.get(names[0])}). Name the model, classes and channels it was trained with"
        )
    check_finite(state, path)
    network.load_state_dict(state)
    return network


def check_finite(state: Mapping[str, torch.Tensor], path: Path | str) -> None:
    """Raise CcdError if one of the tensors {name: tensor} of the file `path` holds a number that is not finite."""
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise CcdError(
            f"{path} holds {len(broken)} tensors that are not finite numbers, such as {broken[0]}; give weights of a training "
            "that did not diverge"
        )


class Folder:
    """The folder of a run, whether it exists or not.

    config: the run's configuration. facts: its identity, see identity.identity(). path: the folder, named by the hash of this.
    recorded: whether a record of the run is enough, so that it need not be trained.
    """

    config: RunConfig
    facts: dict
    path: Path
    recorded: bool = False

    def __init__(self, config: RunConfig, facts: dict):
        self.config, self.facts = config, facts
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.path = paths.outputs() / "runs" / f"{config.method}-{digest[:12]}"

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    @contextmanager
    def lock(self, say: Callable[[str], object] = print) -> Iterator[None]:
        """Context in which no other process trains the run; one that wants to waits here, after telling so by `say`.

        The lock ends with the process. Errors: CcdError for a folder that cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = file_lock(self.path.with_name(f".{self.path.name}.lock"))  # beside the folder, which may be renamed
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"{paths.shown(self.path)}: another process is training this run; waiting for it")
                lock.acquire()
        except OSError as error:
            raise CcdError(
                f"{self.path} is not a folder that can be written ({error.strerror}); set CCD_OUTPUTS to another folder"
            ) from error
        try:
            for torn in self.path.glob(".*.part"):  # the unfinished files of a killed process
                torn.unlink()
            yield
        finally:
            lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run is finished, so that metrics.json is there."""
        return self.file("metrics.json").exists()

    @property
    def metrics(self) -> dict:
        """The content of metrics.json. Errors: DamagedRun."""
        return self._read("metrics.json", json.loads)

    def curves(self) -> list[dict]:
        """The rows of curves.csv, a dict for each epoch; accuracies that were not measured are None. Errors: DamagedRun."""

        def parse(text):
            rows = list(csv.DictReader(io.StringIO(text)))
            return [{key: _number(value) for key, value in row.items()} for row in rows]

        return self._read("curves.csv", parse)

    def ready(self, repair: bool = False) -> bool:
        """Whether the run is finished and undamaged. Errors: DamagedRun, which with `repair` is False instead."""
        try:
            return self.finished and self.verify()
        except DamagedRun:
            if not repair:
                raise
            return False

    def verify(self) -> bool:
        """Check the files of a finished run by their checksums and return True. Errors: DamagedRun."""
        recorded = self.metrics
        if not isinstance(recorded, dict) or not {"accuracy", "best_on_test", "seconds", "sha256"} <= recorded.keys():
            raise self._damaged("metrics.json", "it lacks required entries")
        if not isinstance(recorded["sha256"], dict) or not {"weights.safetensors", "curves.csv"} <= recorded["sha256"].keys():
            raise self._damaged("metrics.json", "it lacks the checksums of the other files")
        # Runs of protocol 1 have no checksum of metrics.json itself; its accuracies are compared with the curves below.
        if recorded["sha256"].get("metrics.json", _digest_of(recorded)) != _digest_of(recorded):
            raise self._damaged("metrics.json", "its content does not match its checksum")
        for name, digest in recorded["sha256"].items():
            if name != "metrics.json" and (not self.file(name).is_file() or sha256(self.file(name)) != digest):
                raise self._damaged(name, "its content does not match its checksum in metrics.json")
        tested = [row.get("test_accuracy") for row in self.curves()]
        tested = [accuracy for accuracy in tested if accuracy is not None]
        if not tested or (recorded["accuracy"], recorded["best_on_test"]) != (tested[-1], max(tested)):
            raise self._damaged("metrics.json", "its accuracies are not those of curves.csv")
        return True

    def _read(self, name, parse):
        try:
            return parse(self.file(name).read_text())
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name, why):
        return DamagedRun(
            f"{paths.shown(self.file(name))} is damaged ({why}). Restore the file, or train this run again with "
            "fit(config, repair=True) or `ccd run --repair`, which keeps the damaged folder under another name"
        )

    def set_aside(self) -> Path:
        """Rename the folder of a damaged run, so that the run can be trained again; returns the new path."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(self.path, aside)
        self.path.mkdir()
        return aside

    def start(self) -> None:
        """Write config.json, which only people read: the name of the folder stands for the identity."""
        asked = self.config.model_dump(mode="json")
        write_whole(self.file("config.json"), json.dumps({"asked": asked, "identity": self.facts}, indent=2) + "\n")

    def save_state(
        self, epoch: int, network: Backbone, method: Method, optimiser: torch.optim.Optimizer, rows: list[dict]
    ) -> None:
        """Write resume.pt with all that the next epoch needs; epoch: how many are done; rows: their curves.

        It holds tensors, strings and numbers only, so that loading it cannot run code.
        """
        kept = (optimiser.state[p].get("momentum_buffer") for p in trained_by(optimiser))
        momentum = [buffer for buffer in kept if buffer is not None]  # empty without momentum
        state = {
            "epochs_done": epoch,
            "weights": network.state_dict(),
            "method": method.state_dict(),
            "momentum": momentum,
            "curves": json.dumps(rows),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_whole(self.file("resume.pt"), hashlib.sha256(content).digest() + content)

    def load_state(self, network: Backbone, method: Method, optimiser: torch.optim.Optimizer) -> tuple[int, list[dict]]:
        """Restore weights and momentum from resume.pt; returns the number of epochs done and their curves.

        Without the file, nothing is changed and (0, []) is returned. Errors: DamagedRun.
        """
        if not self.file("resume.pt").exists():
            return 0, []
        try:
            content = self.file("resume.pt").read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("its content does not match its checksum")
            state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            rows = json.loads(state["curves"])
            network.load_state_dict(state["weights"])
            method.load_state_dict(state["method"])
            parameters = trained_by(optimiser) if self.config.momentum else ()
            for parameter, kept in zip(parameters, state["momentum"], strict=True):
                # With the memory layout of its parameter, so that the update runs the same code as in an uninterrupted run.
                optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(kept)
        except Exception as error:  # torch raises many kinds for a file that is not whole
            raise self._damaged("resume.pt", error if isinstance(error, ValueError) else type(error).__name__) from error
        return state["epochs_done"], rows

    def finish(self, network: Backbone, method: Method, rows: list[dict], metrics: dict) -> None:
        """Write curves, weights, heads and, last, metrics.json, which marks the run as finished; then delete resume.pt."""
        self.save_curves(rows)
        save_weights(self.file("weights.safetensors"), network, self.config.model)
        names = ["weights.safetensors", "curves.csv", "config.json"]
        if method.keeps:
            save_weights(self.file("heads.safetensors"), method, self.config.model)
            names.append("heads.safetensors")
        metrics = metrics | {"sha256": {name: sha256(self.file(name)) for name in names}}
        metrics["sha256"]["metrics.json"] = _digest_of(metrics)
        write_whole(self.file("metrics.json"), json.dumps(metrics, indent=2) + "\n")
        self.file("resume.pt").unlink(missing_ok=True)

    def save_curves(self, rows: list[dict]) -> None:
        """Write curves.csv from a dict for each epoch; there is at least one."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.file("curves.csv"), text.getvalue())


def _digest_of(metrics):
    """A checksum of the content of metrics.json without this checksum itself."""
    others = {name: digest for name, digest in metrics["sha256"].items() if name != "metrics.json"}
    return hashlib.sha256(json.dumps(metrics | {"sha256": others}, sort_keys=True).encode()).hexdigest()


def trained_by(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimiser trains, in the optimiser's order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _number(text):
    if text == "":
        return None
    return int(text) if text.isdecimal() else float(text)
