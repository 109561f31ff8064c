"""Records: what stays of runs when their weights are gone, one file for a notebook and a profile.

    outputs/<profile>/<stem>/records.jsonl              a line of facts that all runs share, then a line for each run
    outputs/<profile>/<stem>/networks/<run>/...         the few networks that figures need, each with a card

A record holds configuration, curves, metrics, what was measured of the network, and provenance. Losses are rounded to four
digits and training accuracies to two decimals; test accuracies are exact. Learning rates follow from the configuration. The
records of a file were computed in one way: one kind of device, one precision, one protocol. Records of other days and
machines are added to it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ccdlib.base import paths
from ccdlib.base.arithmetic import Arithmetic
from ccdlib.base.files import file_lock, sha256, write_whole
from ccdlib.base.reading import text_of
from ccdlib.base.registry import CcdError
from ccdlib.training.checks import data_of, whole_data
from ccdlib.training.cohort import Result
from ccdlib.training.config import RunConfig
from ccdlib.training.identity import PROTOCOL, identity
from ccdlib.training.store import Folder

FORMAT = 1
FILE, CARD, WEIGHTS = "records.jsonl", "card.json", "weights.safetensors"
MEASURES = "measures.json"  # beside a run: what was measured of its network
LICENCE = "Apache-2.0"  # of the networks; that of their data is in its own card
METRICS = ("accuracy", "best_on_test", "best_on_test_epoch", "train_images", "test_images", "seconds", "teacher_accuracy")
KNOWN = ("epoch", "lr", "seconds", "train_accuracy", "test_accuracy")  # columns of curves that are no terms of a loss


class Way(NamedTuple):
    """How the runs of a file were computed, all in the same way: "cpu" or "cuda", the arithmetic, and its protocol."""

    device: str
    precision: str
    portable: bool
    protocol: int

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic of the runs."""
        return Arithmetic(self.precision, self.portable)

    @property
    def said(self) -> str:
        """The way in words."""
        return f"{self.arithmetic.said}, on {self.device}"


def way_of(folder: Folder) -> Way:
    """How the finished run in `folder` was computed. Errors: DamagedRun."""
    made = folder.metrics["provenance"]
    device, portable = made["device"].partition(":")[0], made.get("portable", False)
    return Way(device, made.get("precision", "float32"), portable, made["protocol"])


class Records:
    """The records of a file, by the name of the run; also: other files in which runs are looked for that it lacks.

    path: the file, whether it is there or not. facts: what its records share; {} without records. lines: {name of a run: its
    record as stored}. way: how all of them were computed; None without records. Other files whose records were computed in
    another way are left aside. Errors: CcdError for a file that is damaged or of another format.
    """

    path: Path
    facts: dict[str, Any]
    lines: dict[str, dict[str, Any]]

    def __init__(self, path: Path, also: Sequence[Path] = ()):
        self.path = path
        self.facts, self.lines = _read(path)
        self._found = {name: (line, self.facts, path.parent) for name, line in self.lines.items()}
        self._way = self.facts
        for other in also:
            facts, lines = _read(other)
            self._way = self._way or facts
            if lines and _way(facts) == _way(self._way):
                self._found |= {name: (line, facts, other.parent) for name, line in lines.items() if name not in self._found}

    def __len__(self):
        return len(self._found)

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the content of the file; "none" without it."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:8] if self.path.exists() else "none"

    @property
    def way(self) -> Way | None:
        """How the runs were computed."""
        return _way(self._way) if self._way else None

    def commits(self, names: Iterable[str] | None = None) -> list[str]:
        """The commits of the code that trained these runs (None: all), seven digits each, with + for one that was changed."""
        found = set()
        for name in self._found if names is None else names:
            line, facts, _ = self._found[name]
            made = facts["provenance"][line["provenance"]]
            found.add(made["git_commit"][:7] + "+" * bool(made["git_dirty"]))
        return sorted(found)

    def name(self, config: RunConfig) -> str:
        """The name of a run in the arithmetic of the records, which this machine or its device might not choose."""
        facts = identity(config, lambda c: whole_data(c).facts, self.way.device, self.way.arithmetic)
        return Folder(config, facts).path.name

    def has(self, config: RunConfig) -> bool:
        """Whether there is a record of the run, computed as it asks for it.

        "auto" leaves the precision to the machine that trained it.
        """
        if not self._found or self.way.portable != config.portable:
            return False
        asked = config.arithmetic().precision if config.precision == "fast" else config.precision
        return asked in ("auto", self.way.precision) and self.name(config) in self._found

    def line(self, config: RunConfig) -> dict[str, Any]:
        """The record of a run as stored. Errors: KeyError without one."""
        return self._found[self.name(config)][0]

    def has_network(self, config: RunConfig) -> bool:
        """Whether the network of a recorded run was published with its record, and is what was recorded."""
        line, _, folder = self._found[self.name(config)]
        file = folder / "networks" / line["run"] / WEIGHTS
        return file.exists() and sha256(file) == line["weights"]

    def made(self, config: RunConfig) -> dict[str, Any]:
        """Where, when and by which code a recorded run was trained. Errors: KeyError without a record."""
        line, facts, _ = self._found[self.name(config)]
        return facts["provenance"][line["provenance"]]

    def has_measure(self, config: RunConfig, name: str) -> bool:
        """Whether what the measure `name` found of a recorded run stands in its record."""
        return name in self.line(config).get("measures", {})

    def result(self, config: RunConfig) -> Result:
        """The Result of a recorded run. Its network is there only if it was published. Errors: KeyError without a record."""
        line, facts, folder = self._found[self.name(config)]
        metrics = {key: line[key] for key in METRICS if key in line}
        metrics |= {"data": facts["data"], "provenance": facts["provenance"][line["provenance"]]}
        metrics |= {"measures": line["measures"]} if "measures" in line else {}
        where, data = folder / "networks" / line["run"], data_of(config)
        curves = _rows(line["curves"], config)
        return Result(config, line["accuracy"], line["best_on_test"], curves, where, metrics, data.classes, data.channels)

    def add(self, folders: Iterable[Folder]) -> int:
        """Add records of the finished runs in `folders` and write the file, whole; returns how many are new.

        A record that is there stays as it is. Errors: CcdError for runs that were computed in another way than the others, or
        are damaged, after the rest has been added.
        """
        found = [folder for folder in folders if folder.finished and folder.path.name not in self.lines]
        if not found:
            return 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(self.path.with_name(".records.lock")):  # another process may add others
            self.facts, self.lines = _read(self.path)
            before, refused = len(self.lines), []
            for folder in found:
                if folder.path.name not in self.lines:
                    try:
                        self._add(folder)
                    except CcdError as error:
                        refused.append(str(error))
            if len(self.lines) > before:
                lines = [self.facts, *(self.lines[name] for name in sorted(self.lines))]
                write_whole(self.path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        self.__init__(self.path)
        self.__dict__.pop("digest", None)
        if refused:
            more = f" ({len(refused) - 1} more were refused)" if refused[1:] else ""
            raise CcdError(refused[0] + more)
        return len(self.lines) - before

    def publish(self, folders: Iterable[Folder]) -> None:
        """Put the networks of recorded runs that are finished here beside the records, each with a card.

        The card has model, configuration, data, accuracy, seed, sha256, licence and provenance. A network with other bits than
        the recorded one, which was trained elsewhere, is left out.
        """
        for folder in folders:
            line, target = self.lines.get(folder.path.name), self.path.parent / "networks" / folder.path.name
            if line and folder.finished and not (target / CARD).exists():
                content = folder.file(WEIGHTS).read_bytes()
                if hashlib.sha256(content).hexdigest() == line["weights"]:
                    card = {name: line[name] for name in ("run", "config", "accuracy")}
                    card |= {"model": folder.config.model, "seed": folder.config.seed, "sha256": line["weights"]}
                    card |= {"licence": LICENCE, "data": self.facts["data"]}
                    card |= {"provenance": self.facts["provenance"][line["provenance"]]}
                    write_whole(target / WEIGHTS, content)
                    write_whole(target / CARD, json.dumps(card, indent=1) + "\n")

    def _add(self, folder):
        folder.verify()
        metrics, way = folder.metrics, way_of(folder)
        made = {key: value for key, value in metrics["provenance"].items() if key not in Way._fields}
        if way.protocol != PROTOCOL:
            raise CcdError(
                f"{folder.path.name} was trained by protocol {way.protocol} of the arithmetic, which is {PROTOCOL} now; "
                "delete its folder and train it again"
            )
        shared = {"format": FORMAT, **way._asdict(), "data": metrics["data"]}
        self.facts = self.facts or shared | {"provenance": []}
        if differs := [key for key, value in shared.items() if self.facts[key] != value]:
            said = ", ".join(f"{key} {shared[key]} instead of {self.facts[key]}" for key in differs)
            raise CcdError(
                f"{folder.path.name} differs from the records in {paths.shown(self.path)}: {said}. Records are not mixed; "
                "train it as they were, or move that file away and begin a new one"
            )
        known = self.facts["provenance"]
        if made not in known:
            known.append(made)
        self.lines[folder.path.name] = {
            "run": folder.path.name,
            "config": folder.config.model_dump(mode="json", exclude_defaults=True),
            **{key: metrics[key] for key in METRICS if key in metrics},
            "provenance": known.index(made),
            "weights": metrics["sha256"][WEIGHTS],
            "curves": _columns(folder.curves()),
            **({"measures": json.loads(text_of(folder.file(MEASURES)))} if folder.file(MEASURES).exists() else {}),
        }


def _way(facts):
    return Way(*(facts[name] for name in Way._fields)) if facts else None


def _read(path):
    """(facts, lines) of a file; ({}, {}) where there is none."""
    if not path.exists():
        return {}, {}
    try:
        facts, *rest = map(json.loads, text_of(path).splitlines())
        lines = {line["run"]: line for line in rest}
        if facts["format"] != FORMAT or not {*Way._fields, "data", "provenance"} <= facts.keys():
            raise ValueError(f"its format is {facts['format']}, not {FORMAT}")
        if len(lines) < len(rest):
            raise ValueError("a run is there twice")
        for line in rest:
            _check(line, facts)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CcdError(
            f"{paths.shown(path)} holds no records that can be read ({error}); restore it, for example from git"
        ) from error
    return facts, lines


def _check(line: Mapping[str, Any], facts: Mapping[str, Any]):
    """Raise ValueError for a record whose accuracies are not those of its curve, or IndexError without provenance."""
    _ = facts["provenance"][line["provenance"]]
    tested = list(line["curves"]["test_accuracy"].values())
    if (line["accuracy"], line["best_on_test"]) != (tested[-1], max(tested)):
        raise ValueError(f"the accuracies of {line['run']} are not those of its curve")


def _columns(rows):
    """Curves column by column, as short as they may be: see the head of this module."""
    terms = [name for name in rows[0] if name not in KNOWN]
    columns = {name: [float(f"{row[name]:.4g}") for row in rows] for name in terms}
    columns["train_accuracy"] = [round(row["train_accuracy"], 2) for row in rows]
    columns["test_accuracy"] = {str(row["epoch"]): row["test_accuracy"] for row in rows if row["test_accuracy"] is not None}
    return columns


def _rows(columns, config):
    """The rows of Result.curves from columns; the seconds of single epochs are not kept."""
    tested = columns["test_accuracy"]
    terms = [name for name in columns if name != "test_accuracy"]
    return [
        {"epoch": epoch, "lr": config.lr_at(epoch - 1)}
        | {name: columns[name][epoch - 1] for name in terms}
        | {"test_accuracy": tested.get(str(epoch))}
        for epoch in range(1, len(columns["train_accuracy"]) + 1)
    ]
