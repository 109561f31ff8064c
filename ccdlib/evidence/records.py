"""Records: what stays of runs when their weights are gone, one file for a notebook and a profile.

    outputs/<profile>/<stem>/records.jsonl              a line of facts that all runs share, then a line for each run
    outputs/<profile>/<stem>/networks/<run>/...         the few networks that figures need, each with a card

A record holds configuration, curves, metrics and provenance. Losses are rounded to four digits and training accuracies to two
decimals; test accuracies are exact. Learning rates follow from the configuration. The records of a file were computed in one
way: one kind of device, one precision, one protocol. Records of other days and machines are added to it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ccdlib.base import paths
from ccdlib.base.arithmetic import Arithmetic
from ccdlib.base.files import write_whole
from ccdlib.base.reading import text_of
from ccdlib.base.registry import CcdError
from ccdlib.training.checks import data_of, whole_data
from ccdlib.training.cohort import Result
from ccdlib.training.config import RunConfig
from ccdlib.training.identity import PROTOCOL, identity
from ccdlib.training.store import Folder

FORMAT = 1
FILE, CARD = "records.jsonl", "card.json"
LICENCE = "Apache-2.0"  # of the networks; that of their data is in its own card
WAY = ("device", "precision", "portable", "protocol")  # what all records of a file share
METRICS = ("accuracy", "best_on_test", "best_on_test_epoch", "train_images", "test_images", "seconds", "teacher_accuracy")
KNOWN = ("epoch", "lr", "seconds", "train_accuracy", "test_accuracy")  # columns of curves that are no terms of a loss


class Records:
    """The records of a file, by the name of the run.

    path: the file, whether it is there or not. facts: what the records share, "device", "precision", "portable", "protocol"
    and "provenance", a list of the codes and machines that trained them; {} without records. lines: {name of a run: its
    record as stored}. Errors: CcdError for a file that is damaged or of another format.
    """

    path: Path
    facts: dict[str, Any]
    lines: dict[str, dict[str, Any]]

    def __init__(self, path: Path):
        self.path, self.facts, self.lines = path, {}, {}
        if not path.exists():
            return
        try:
            first, *rest = map(json.loads, text_of(path).splitlines())
            self.facts, self.lines = first, {line["run"]: line for line in rest}
            if first["format"] != FORMAT or not {*WAY, "provenance"} <= first.keys():
                raise ValueError(f"its format is {first['format']}, not {FORMAT}")
            for line in rest:
                _check(line)
        except (ValueError, KeyError, TypeError) as error:
            raise CcdError(
                f"{paths.shown(path)} holds no records that can be read ({error}); restore it, for example from git"
            ) from error

    def __len__(self):
        return len(self.lines)

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the content of the file; "none" without it."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:8] if self.path.exists() else "none"

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic of all runs."""
        return Arithmetic(self.facts["precision"], self.facts["portable"])

    @property
    def commits(self) -> list[str]:
        """The commits of the code that trained the runs, seven digits each."""
        return sorted({facts["git_commit"][:7] for facts in self.facts.get("provenance", ())})

    def name(self, config: RunConfig) -> str:
        """The name of a run in the arithmetic of the records, which this machine or its device might not choose."""
        facts = identity(config, lambda c: whole_data(c).facts, self.facts["device"], self.arithmetic)
        return Folder(config, facts).path.name

    def has(self, config: RunConfig) -> bool:
        """Whether there is a record of the run, computed as it asks for it.

        "auto" and "fast" leave the precision to the machine. A run that asks for portable bits may have been recorded on a
        machine that has none; one that does not ask for them is another run.
        """
        if not self.lines or (self.arithmetic.portable and not config.portable):
            return False
        return config.precision in ("auto", "fast", self.arithmetic.precision) and self.name(config) in self.lines

    def has_network(self, config: RunConfig) -> bool:
        """Whether the network of a recorded run was published with its record."""
        return (self.path.parent / "networks" / self.name(config) / "weights.safetensors").exists()

    def result(self, config: RunConfig) -> Result:
        """The Result of a recorded run. Its network is there only if it was published. Errors: KeyError without a record."""
        line = self.lines[self.name(config)]
        metrics = {key: line[key] for key in METRICS if key in line}
        metrics |= {"data": self.facts["data"], "provenance": self.facts["provenance"][line["provenance"]]}
        data, folder = data_of(config), self.path.parent / "networks" / line["run"]
        curves = _rows(line["curves"], config)
        return Result(config, line["accuracy"], line["best_on_test"], curves, folder, metrics, data.classes, data.channels)

    def add(self, folders: Iterable[Folder]) -> int:
        """Add records of the finished runs in `folders` and write the file, whole; returns how many are new.

        A record that is there stays as it is. Errors: CcdError where a run was computed in another way than the others.
        """
        before = len(self.lines)
        for folder in folders:
            if folder.finished and folder.path.name not in self.lines:
                self._add(folder)
        if len(self.lines) > before:
            lines = [self.facts, *(self.lines[name] for name in sorted(self.lines))]
            write_whole(self.path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
            self.__dict__.pop("digest", None)
        return len(self.lines) - before

    def publish(self, folders: Iterable[Folder]) -> None:
        """Put the networks of recorded runs that are finished here beside the records, each with a card.

        The card has model, configuration, data, accuracy, seed, sha256, licence and provenance.
        """
        for folder in folders:
            line, target = self.lines.get(folder.path.name), self.path.parent / "networks" / folder.path.name
            if line and folder.finished and not (target / CARD).exists():
                write_whole(target / "weights.safetensors", folder.file("weights.safetensors").read_bytes())
                card = {name: line[name] for name in ("run", "config", "accuracy")}
                card |= {
                    "model": folder.config.model,
                    "seed": folder.config.seed,
                    "sha256": line["weights"],
                    "licence": LICENCE,
                }
                card |= {"data": self.facts["data"], "provenance": self.facts["provenance"][line["provenance"]]}
                write_whole(target / CARD, json.dumps(card, indent=1) + "\n")

    def _add(self, folder):
        folder.verify()
        metrics, curves = folder.metrics, folder.curves()
        made = dict(metrics["provenance"])
        way = {
            "device": made.pop("device").partition(":")[0],
            "precision": made.pop("precision", "float32"),
            "portable": made.pop("portable", False),
            "protocol": made.pop("protocol"),
        }
        if way["protocol"] != PROTOCOL:
            raise CcdError(
                f"{folder.path.name} was trained by protocol {way['protocol']} of the arithmetic, which is {PROTOCOL} now; "
                "delete its folder and train it again"
            )
        shared = {"format": FORMAT, **way, "data": metrics["data"], "provenance": []}
        self.facts = self.facts or shared
        if differs := [key for key in WAY if self.facts[key] != way[key]]:
            said = ", ".join(f"{key} {way[key]} instead of {self.facts[key]}" for key in differs)
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
            "weights": metrics["sha256"]["weights.safetensors"],
            "curves": _columns(curves),
        }


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


def _check(line: Mapping[str, Any]):
    """Raise ValueError for a record whose accuracies are not those of its curve."""
    tested = list(line["curves"]["test_accuracy"].values())
    if (line["accuracy"], line["best_on_test"]) != (tested[-1], max(tested)):
        raise ValueError(f"the accuracies of {line['run']} are not those of its curve")
