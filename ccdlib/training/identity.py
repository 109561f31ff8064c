"""The identity that names a run, the protocol of its arithmetic, and the provenance of its result."""

import hashlib
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from ccdlib.base import paths
from ccdlib.base.arithmetic import Arithmetic, processor
from ccdlib.base.devices import hardware
from ccdlib.base.files import sha256
from ccdlib.base.registry import CcdError
from ccdlib.base.sources import code_of
from ccdlib.data import bundled
from ccdlib.models import MODELS
from ccdlib.training.ascent import ASCENTS
from ccdlib.training.config import Checkpoint, RunConfig

# Increased by hand when the arithmetic of a training changes, so that stored results of the old arithmetic are not taken for
# results of the new one. tests/test_train.py compares a short training with stored numbers and fails when this is forgotten.
PROTOCOL = 2
# The protocol in which the arithmetic of a row last changed, if that was not the first: only runs with such a row are trained
# again. (The key "recipe" marks rows whose settings changed.)
CHANGED_IN = {
    "model": dict.fromkeys(("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg13"), 2)  # initial weights
    | dict.fromkeys(("mobilenet_v2", "shufflenet_v1", "shufflenet_v2"), 2),  # and the activations of two of them
    "method": dict.fromkeys(("at", "kd_std", "sskd"), 2),
    "views": {"trivialaugment": 2},  # shears at levels 3 and 6
    "recipe": dict.fromkeys(("small", "imagenet_small"), 2),
    "answers": dict.fromkeys(("mobilenet_v2", "shufflenet_v1"), 2),  # the logits of a network with weights from a file
}
# The code that can change a result; a hash of it is kept with every run. What recipes and configurations say is in its name.
LOOP = tuple(f"training/{name}.py" for name in ("ascent", "cohort", "detections", "evaluate", "group", "loop", "teachers"))
SHAPING = ("base/streams.py", "base/vision.py", "data", "views", "models", "methods", *LOOP)


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Sixteen hexadecimal digits that change with the kit's code in SHAPING, but not with its comments and docstrings.

    A reader's own code is part of the identity.
    """
    package = Path(__file__).parent.parent
    files = [file for room in SHAPING for file in sorted((package / room).rglob("*.py")) or [package / room]]
    return hashlib.sha256("\n".join(map(code_of, files)).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def git_state() -> tuple[str, bool | None]:
    """The commit of this checkout, and whether code, notebooks or parameters differ from it; ("unknown", None) without git."""
    ask = ("git", "-C", str(paths.ROOT))
    try:
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        code = ("ccdlib", "notebooks", "params", "pyproject.toml", "constraints.txt")
        status = subprocess.run([*ask, "status", "--porcelain", "--", *code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None
    return commit, bool(status.strip())


def provenance(device: torch.device, arithmetic: Arithmetic | None = None) -> dict:
    """The code, library versions, machine and date of a result, and the arithmetic of a run, as strings, whole numbers and
    booleans."""
    commit, dirty = git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "source": source_hash(),
        "protocol": PROTOCOL,
        "versions": {
            name: version(name) for name in ("torch", "torchvision", "numpy", "pillow", "torchmetrics", "pycocotools")
        },
        "python": platform.python_version(),
        "device": str(device),
        "hardware": hardware(device),
        "processor": processor(),
        **(arithmetic._asdict() if arithmetic else {}),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def identity(
    config: RunConfig, data_facts: Callable[[RunConfig], dict], device: str, arithmetic: Arithmetic | None = None
) -> dict:
    """Everything that shapes a run, as a dict whose hash names the run's folder.

    It holds the configuration, the checksums of the data, the identity of the teacher, the arithmetic, and the source of rows
    that a reader added. data_facts: a function from a configuration to the facts of its data. device: "cpu" or "cuda", which
    decides what precision is meant. arithmetic: of the run and its teachers, where it was computed in one that this machine or
    device would not choose. Errors: CcdError for a teacher file that is not there.
    """
    unused = {*_BY_CONTENT} | {name for name in _WHERE_SET if getattr(config, name) == RunConfig.model_fields[name].default}
    unused |= {"subset_seed"} if config.n_train is None else set()  # without a subset, its seed shapes nothing
    unused |= {"draws"} if config.draws_seed == config.seed else set()
    unused |= {"rho"} if config.ascent[0] == ASCENTS.get(config.optimiser, (0.0,))[0] else set()  # the optimiser's own
    used = arithmetic or config.arithmetic(device)
    facts = config.model_dump(mode="json", exclude=unused) | {"precision": used.precision} | config.rule.facts()
    facts |= {"portable": True} if used.portable else {}
    if isinstance(config.teacher, Checkpoint):
        facts["teacher"] = _identity_of_file(config.teacher)
    elif config.teacher is not None:
        facts["teacher"] = identity(config.teacher, data_facts, device, arithmetic)
    added = {f"{rows.kind} {name}": rows.added[name].digest() for rows, name in config.rows if name in rows.added}
    facts |= {"added": added} if added else {}
    return facts | {"data": data_facts(config), "protocol": protocol_of(config)}


_BY_CONTENT = RunConfig.fields_where(lambda use: use.named == "by content")
_WHERE_SET = RunConfig.fields_where(lambda use: use.named == "where set")


def _identity_of_file(teacher):
    named = teacher.file.startswith("torchvision:")
    what = {"weights": teacher.file} if named else {"sha256": _content_of(teacher.file)}
    changed = CHANGED_IN["answers"].get(teacher.model)
    what |= {"protocol": changed} if changed else {}
    what |= {"method": teacher.method, "heads": _content_of(teacher.heads)} if teacher.heads else {}
    added = MODELS.added.get(teacher.model)
    return {"model": teacher.model} | what | ({"added": added.digest()} if added else {})


def _content_of(file):
    """The SHA-256 of a teacher's file, computed once for hundreds of students as long as the file stays as it is."""
    if file.startswith(bundled.PREFIX):
        return _of_bundled(file, bundled.TEACHERS)
    path = existing(file)
    return _of_path(path, path.stat().st_mtime_ns, path.stat().st_size)


@lru_cache(maxsize=256)
def _of_bundled(file, folder):
    return sha256(bundled.teacher(file))


@lru_cache(maxsize=256)
def _of_path(path, modified, size):
    return sha256(path)


def protocol_of(config: RunConfig) -> int:
    """The protocol in which the arithmetic of such a run last changed; that of its teacher is in the teacher's identity."""
    return max(CHANGED_IN[kind].get(getattr(config, kind), 1) for kind in ("model", "method", "views"))


def existing(file: str) -> Path:
    """The path of a teacher's file, also of a bundled one ("ccdlib:NAME"). Errors: CcdError when it is not there."""
    if file.startswith(bundled.PREFIX):
        return bundled.teacher(file)
    path = Path(file).expanduser()
    if not path.is_file():
        raise CcdError(
            f"there is no {'file' if path.exists() else 'teacher checkpoint'} {path}; give a .safetensors or .pth file, "
            "torchvision:NAME, ccdlib:NAME, or teacher=RunConfig(...)"
        )
    return path
