"""The run store: one folder a trained network, outputs/runs/<method>-<hash>/.

    config.json          what was asked for, and what the data and the teacher were
    curves.csv           one row an epoch
    weights.safetensors  the network after the last epoch
    heads.safetensors    of a teacher whose method trains heads that students need
    resume.pt            while unfinished: weights, the method's heads and memory, momentum and curves of the last saved epoch,
                         after a checksum of all this
    metrics.json         written last, the mark of a finished run: accuracies, provenance, and a checksum of every file

Files appear whole or not at all, and are read only where their checksums agree. A finished run is found again, an unfinished
one goes on from the last epoch it saved, and a damaged one is named and left alone until the caller asks for a repair.
"""

import csv
import hashlib
import io
import json
import os
import time
from contextlib import contextmanager

import torch
from filelock import Timeout
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors

from ccdlib.base import paths
from ccdlib.base.files import file_lock, sha256, write_whole
from ccdlib.base.registry import CcdError


class DamagedRun(CcdError):
    """A file of the run store that is not what was written."""


def save_weights(path, network, model):
    """Write a network's state as safetensors, with the name of its `model` in the header.

    Only that: safetensors writes several header entries in a random order, and equal weights should be equal files.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(path, safetensors.save(state, metadata={"model": model}))


def load_weights(path, network, model):
    """Fill `network` (a backbone `model`) from a safetensors file; CcdError where the file is damaged or another's."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CcdError(f"{path} is no whole safetensors file ({error}); copy it again, or train the run again") from error
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


def check_finite(state, path):
    """Raise CcdError where the tensors {name: tensor} of a file are not all finite numbers."""
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise CcdError(
            f"{path} holds {len(broken)} tensors that are not finite numbers, such as {broken[0]}; give weights of a training "
            "that did not diverge"
        )


class Folder:
    """The folder of one run."""

    def __init__(self, config, facts):
        self.config, self.facts = config, facts
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.path = paths.outputs() / "runs" / f"{config.method}-{digest[:12]}"

    def file(self, name):
        """The path of one of its files."""
        return self.path / name

    @contextmanager
    def lock(self, say=print):
        """Hold the run: a second process that asks for it waits here, and finds it finished. Freed when a process dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = file_lock(self.path.with_name(f".{self.path.name}.lock"))  # beside it: a damaged folder may be renamed
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"{paths.shown(self.path)}: another process is training this run; waiting for it")
                lock.acquire()
        except OSError as error:
            raise CcdError(
                f"{self.path} is not a folder that can be written ({error.strerror}); name another one in CCD_OUTPUTS"
            ) from error
        try:
            for torn in self.path.glob(".*.part"):  # what a killed process was writing
                torn.unlink()
            yield
        finally:
            lock.release()

    # -- a finished run

    @property
    def finished(self):
        """Whether the done-marker is there."""
        return self.file("metrics.json").exists()

    @property
    def metrics(self):
        """metrics.json as a dict."""
        return self._read("metrics.json", json.loads)

    def curves(self):
        """One dict an epoch, from curves.csv; an accuracy that was not measured is None."""

        def parse(text):
            rows = list(csv.DictReader(io.StringIO(text)))
            return [{key: _number(value) for key, value in row.items()} for row in rows]

        return self._read("curves.csv", parse)

    def ready(self, repair=False):
        """Whether the run is finished and whole. A damaged one raises DamagedRun or, under `repair`, is not ready."""
        try:
            return self.finished and self.verify()
        except DamagedRun:
            if not repair:
                raise
            return False

    def verify(self):
        """True when all files of a finished run are what was written; DamagedRun otherwise."""
        recorded = self.metrics
        if not isinstance(recorded, dict) or not {"accuracy", "best_on_test", "seconds", "sha256"} <= recorded.keys():
            raise self._damaged("metrics.json", "it lacks what it should record")
        if not isinstance(recorded["sha256"], dict) or not {"weights.safetensors", "curves.csv"} <= recorded["sha256"].keys():
            raise self._damaged("metrics.json", "it lacks the checksums of the other files")
        # Runs of protocol 1 recorded no checksum of metrics.json itself; their accuracies must be those of the curves, too.
        if recorded["sha256"].get("metrics.json", _digest_of(recorded)) != _digest_of(recorded):
            raise self._damaged("metrics.json", "its content is not what its checksum says")
        for name, digest in recorded["sha256"].items():
            if name != "metrics.json" and (not self.file(name).is_file() or sha256(self.file(name)) != digest):
                raise self._damaged(name, "its content is not what metrics.json records")
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
            f"{paths.shown(self.file(name))} is damaged ({why}). Put the file back, or train this run again with "
            "fit(config, repair=True) or `ccd run --repair`, which keeps the damaged folder under another name"
        )

    def set_aside(self):
        """Rename a damaged run's folder, so that it can be trained again and nothing is lost."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(self.path, aside)
        self.path.mkdir()
        return aside

    # -- an unfinished run

    def start(self):
        """Write config.json, for people; the folder's name is the identity."""
        asked = self.config.model_dump(mode="json")
        write_whole(self.file("config.json"), json.dumps({"asked": asked, "identity": self.facts}, indent=2) + "\n")

    def save_state(self, epoch, network, method, optimiser, rows):
        """Keep what the next epoch needs: tensors, strings and numbers only."""
        kept = (optimiser.state[p].get("momentum_buffer") for p in trained_by(optimiser))
        momentum = [buffer for buffer in kept if buffer is not None]  # none at all without momentum
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

    def load_state(self, network, method, optimiser):
        """(epochs done, curve rows), after putting the kept weights and momentum back; (0, []) for a fresh run."""
        if not self.file("resume.pt").exists():
            return 0, []
        try:
            content = self.file("resume.pt").read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("its content is not what its checksum says")
            state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            rows = json.loads(state["curves"])
            network.load_state_dict(state["weights"])
            method.load_state_dict(state["method"])
            parameters = trained_by(optimiser) if self.config.momentum else ()
            for parameter, kept in zip(parameters, state["momentum"], strict=True):
                # Laid out like its parameter, so that the update runs the same code as without the interruption.
                optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(kept)
        except Exception as error:  # torch raises many kinds for a file that is not whole
            raise self._damaged("resume.pt", error if isinstance(error, ValueError) else type(error).__name__) from error
        return state["epochs_done"], rows

    def finish(self, network, method, rows, metrics):
        """Write curves, weights and, last, the done-marker; then drop the resume state."""
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

    def save_curves(self, rows):
        """Write curves.csv."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.file("curves.csv"), text.getvalue())


def _digest_of(metrics):
    """A checksum of the content of metrics.json, its own apart."""
    others = {name: digest for name, digest in metrics["sha256"].items() if name != "metrics.json"}
    return hashlib.sha256(json.dumps(metrics | {"sha256": others}, sort_keys=True).encode()).hexdigest()


def trained_by(optimiser):
    """The parameters that an optimiser trains, in its order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _number(text):
    if text == "":
        return None
    return int(text) if text.isdecimal() else float(text)
