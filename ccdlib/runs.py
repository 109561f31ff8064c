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
import platform
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors

from ccdlib import bundled, paths
from ccdlib.config import Checkpoint
from ccdlib.registry import CcdError

# Raised by hand when the training arithmetic changes, so that results of the old one are not taken for the new one's.
# tests/test_train.py holds golden numbers of a short training and fails when somebody forgets.
PROTOCOL = 2
# What changed in which protocol, where that is not the first: runs with such a thing, and no others, are trained again.
CHANGED_IN = {
    "model": dict.fromkeys(("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg13"), 2)  # initial weights
    | dict.fromkeys(("mobilenet_v2", "shufflenet_v1", "shufflenet_v2"), 2),  # and the activations of two of them
    "method": dict.fromkeys(("at", "kd_std", "sskd"), 2),
    "views": {"trivialaugment": 2},  # shears at levels 3 and 6
    "recipe": dict.fromkeys(("small", "imagenet_small"), 2),
    "answers": dict.fromkeys(("mobilenet_v2", "shufflenet_v1"), 2),  # what a network says with weights from a file
}

LATER = ("jda", "accumulate", "clip", "nesterov", "warmup")

# The modules whose code can change a result; their hash is kept with every run.
SHAPING = (
    "augment",
    "config",
    "data",
    "files",
    "group",
    "losses",
    "methods",
    "models/__init__",
    "models/shufflenet",
    "streams",
    "train",
)


class DamagedRun(CcdError):
    """A file of the run store that is not what was written."""


def write_whole(path, content):
    """Write bytes or text so that `path` has all of it or stays as it was; CcdError where the disk says no."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise CcdError(
            f"{path} could not be written ({error.strerror}). Free some space, or name another folder in CCD_OUTPUTS; what "
            "was computed before is kept, and the same command goes on from there"
        ) from error


def sha256(path):
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- weights


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


# ---------------------------------------------------------------- provenance


@lru_cache(maxsize=1)
def source_hash():
    """A hash of the code that can change a result."""
    digest = hashlib.sha256()
    for name in SHAPING:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def git_state():
    """(commit, whether code, notebooks or parameters differ from it) of this checkout; ("unknown", None) outside of git."""
    ask = ("git", "-C", str(paths.ROOT))
    try:
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        code = ("ccdlib", "notebooks", "params", "pyproject.toml", "constraints.txt")
        status = subprocess.run([*ask, "status", "--porcelain", "--", *code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None
    return commit, bool(status.strip())


def best_device():
    """The device that "auto" means: $CCD_DEVICE (cuda names the runs of a GPU where there is none), or what is here."""
    given = os.environ.get("CCD_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if given not in ("cpu", "cuda"):
        raise CcdError(f"CCD_DEVICE = {given!r}: allowed are cpu and cuda")
    return torch.device(given)


def gpus():
    """How many GPUs there are for "auto"; none where it means the CPU. CUDA is not begun by asking, so that a process can
    still choose the GPUs that it sees."""
    return 0 if os.environ.get("CCD_DEVICE") == "cpu" else torch.cuda.device_count()


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def jobs():
    """How many runs are trained at once: $CCD_JOBS, or one on a GPU, or as many as there are cores."""
    given = os.environ.get("CCD_JOBS")
    if given is None:
        return 1 if best_device().type == "cuda" else cores()
    if not given.isdecimal() or int(given) < 1:
        raise CcdError(f"CCD_JOBS = {given!r}: allowed are whole numbers from 1, the runs that are trained at once")
    return int(given)


def hardware(device):
    """One line: the GPU's name, or the processor's architecture and the threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def provenance(device):
    """Where a result comes from: code, versions, machine, date. Strings, whole numbers and booleans only."""
    commit, dirty = git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "source": source_hash(),
        "protocol": PROTOCOL,
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "python": platform.python_version(),
        "device": str(device),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }


# ---------------------------------------------------------------- one run


def identity(config, data_facts, precision):
    """Everything that shaped a run, as a plain dict: its configuration, its data by content, its teacher by identity.

    data_facts: a function from a configuration to its Data.facts. precision: "float32" (CPU) or "bfloat16" (CUDA autocast).
    """
    # A subset seed shapes nothing when there is no subset; the name of a policy stands for its steps, a path for its content.
    unused = {"device", "processes", "teacher", "data", "side", "statistics", "ops"} | (
        {"subset_seed"} if config.n_train is None else set()
    )
    unused |= {"draws"} if config.draws_seed == config.seed else set()
    # Fields that came later name a run only where they say something: stored runs keep their names.
    unused |= {name for name in LATER if getattr(config, name) == type(config).model_fields[name].default}
    facts = config.model_dump(mode="json", exclude=unused) | {"precision": precision}
    if config.policy:
        facts |= {"steps": config.policy.steps, "p": config.policy.p}
    elif config.augmentation:
        facts |= {"augmentation": asdict(config.augmentation)}
    if isinstance(config.teacher, Checkpoint):
        named = config.teacher.file.startswith("torchvision:")
        what = {"weights": config.teacher.file} if named else {"sha256": sha256(existing(config.teacher.file))}
        facts["teacher"] = {"model": config.teacher.model} | what
        changed = CHANGED_IN["answers"].get(config.teacher.model)
        facts["teacher"] |= {"protocol": changed} if changed else {}
        if config.teacher.heads:
            facts["teacher"] |= {"method": config.teacher.method, "heads": sha256(existing(config.teacher.heads))}
    elif config.teacher is not None:
        facts["teacher"] = identity(config.teacher, data_facts, precision)
    return facts | {"data": data_facts(config), "protocol": protocol_of(config)}


def protocol_of(config):
    """The protocol in which the arithmetic of such a run last changed, its teacher apart."""
    return max(CHANGED_IN[kind].get(getattr(config, kind), 1) for kind in ("model", "method", "views"))


def existing(file):
    """The path of a teacher checkpoint, of a bundled one, too; CcdError when it is not there."""
    if file.startswith(bundled.PREFIX):
        return bundled.teacher(file)
    path = Path(file).expanduser()
    if not path.is_file():
        raise CcdError(
            f"there is no {'file' if path.exists() else 'teacher checkpoint'} {path}; give a .safetensors or .pth file, "
            "torchvision:NAME, ccdlib:NAME, or teacher=RunConfig(...)"
        )
    return path


def file_lock(path):
    """A lock that ends with the process that holds it, however that ends; an OSError where the file system has none.

    (By itself FileLock would take a lock there that a killed process leaves behind for ever.)
    """
    return FileLock(path, fallback_to_soft=False)


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
