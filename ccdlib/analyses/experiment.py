"""Experiments as data: the runs of an analysis in arms, and its claims, which are declared before any run is trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccdlib.base import paths
from ccdlib.base.devices import best_device
from ccdlib.base.registry import CcdError, Registry
from ccdlib.data import bundled
from ccdlib.evidence.estimands import values_of
from ccdlib.evidence.records import Records, Way, way_of
from ccdlib.evidence.stats import Claim, collapsed_seeds, said_of_collapse
from ccdlib.models import Backbone
from ccdlib.training.checks import check, data_of
from ccdlib.training.cohort import Result, fit, folder_of, measured, network_of
from ccdlib.training.config import Checkpoint, RunConfig, with_teachers
from ccdlib.training.forecast import expected_seconds
from ccdlib.training.schedule import Schedule, Trainings, unfinished
from ccdlib.training.store import Folder
from ccdlib.views import policy_named

Parameters = Mapping[str, Any]  # the parameters of a notebook, by name
EXPERIMENTS = Registry("experiment")  # name of a notebook, without .ipynb -> function of its parameters
MOST_SEEDS = 1000
Measure = Callable[[Result], dict[str, float]]  # of a module, so that worker processes can import it


def name_of(measure: Measure) -> str:
    """The name under which the values of a measure are kept; one that changes needs another."""
    return f"{measure.__module__}.{measure.__qualname__}"


@dataclass(frozen=True)
class Experiment:
    """The arms and the claims of an analysis.

    arms: {name of an arm: its RunConfigs, one for each seed}; Checkpoints are teachers that are not trained here. Arms are
    paired: all have the same seeds in the same order, of which costly arms may have only the first ones. claims: declared
    together with the arms, so before any result. facts: {arm: {name: value}} for tables and axes; the fact "baseline" names the
    arm over which the arm's gain is taken. networks: {arm: n}, where figures need the networks of an arm's first n seeds, which
    are then published with the records. measure, measures: a function that measures the networks of all arms with facts, and
    the names of those of its values that claims are about. checked: whether check() has been passed; otherwise the training
    begins with it. trainings: those under way. records: of runs that need not be trained where the run store lacks them. alone:
    whether all results come from records, and the run store is not looked at.
    Errors: CcdError for fewer than two seeds, arms that are not paired, and claims about arms that do not exist.
    """

    arms: Mapping[str, list[RunConfig | Checkpoint]]
    claims: tuple[Claim, ...]
    facts: Mapping[str, dict] = field(default_factory=dict)
    networks: Mapping[str, int] = field(default_factory=dict)
    measure: Measure | None = None
    measures: tuple[str, ...] = ()
    checked: bool = field(default=False, compare=False)
    trainings: Trainings | None = field(default=None, compare=False, repr=False)
    records: Records | None = field(default=None, compare=False, repr=False)
    alone: bool = field(default=False, compare=False)

    def __post_init__(self):
        seeds = {arm: [config.seed for config in configs] for arm, configs in self.arms.items()}
        first = max(seeds.values(), key=len, default=[])
        if not all(seeds.values()) or not first:
            raise CcdError("an experiment without seeds has nothing to train; give parameter seeds = 2 or more")
        if min(map(len, seeds.values())) == 1:
            raise CcdError(
                "seeds = 1: the claims rest on intervals over paired seeds, which one seed does not give; give 2 or more "
                "(a verdict needs more)"
            )
        if any(given != first[: len(given)] for given in seeds.values()) or len(set(first)) < len(first):
            raise CcdError(
                f"every arm needs the same seeds, or the first of them, each once and in the same order; the arms have {seeds}"
            )
        kinds = {(config.precision, config.portable) for config in self._trained}
        if len(kinds) > 1:
            raise CcdError(
                f"the arms differ in (precision, portable): {sorted(kinds)}; arms that are compared must compute in one way"
            )
        for claim in self.claims:
            claim.needs([*self.arms, *(values_of(measure, arm) for measure in self.measures for arm in self.facts)])

    @property
    def configs(self) -> list[RunConfig]:
        """The RunConfigs of all runs, each once, teachers before their students. Unlike `runs`, it does not need the data."""
        found = {}
        for configs in self.arms.values():
            for config in configs:
                found |= {needed.model_dump_json(exclude={"device", "processes"}): needed for needed in with_teachers(config)}
        return list(found.values())

    @property
    def runs(self) -> dict[str, tuple[str, Folder]]:
        """{name of a run: (the first arm that needs it, its Folder)}, each once, teachers before their students.

        Of a run that is recorded the Folder says so, but not of a teacher whose network is needed to train others.
        """
        found, known = {}, set()
        for arm, configs in self.arms.items():
            for needed in (each for config in configs for each in with_teachers(config)):
                text = needed.model_dump_json()
                if text not in known:  # a teacher has many students
                    known.add(text)
                    folder = folder_of(needed)
                    found.setdefault(folder.path.name, (arm, folder))
        if self.records:
            self._mark({name: folder for name, (_, folder) in found.items()})
        return found

    def _mark(self, folders):
        """Say of each Folder whether its record is enough. Errors: CcdError where others are computed in another way."""
        shown = {folder.path.name for folder in self.shown}
        measured = {folder_of(config).path.name for config in self.measured}
        for name, folder in folders.items():
            folder.recorded = (
                self.records.has(folder.config)
                and (name not in shown or self.records.has_network(folder.config))
                and (name not in measured or self.records.has_measure(folder.config, name_of(self.measure)))
            )
        for student in [] if self.alone else unfinished(folders.values()):
            for teacher in with_teachers(student.config.teacher):
                folders[folder_of(teacher).path.name].recorded = False
        read = self._read(folders.values())
        others = [folder for folder in folders.values() if folder not in read] if read and not self.alone else []
        kinds = {way_of(folder)[:3] if folder.finished else _way_here(folder.config) for folder in others}
        if kinds - {self.records.way[:3]}:
            said = "; ".join(Way(*kind, 0).said for kind in sorted(kinds - {self.records.way[:3]}))
            raise CcdError(
                f"{len(read)} runs would be read from records ({self.records.way.said}) and others computed in another way "
                f"({said}), and the two are not compared. Give the precision, `portable` and device of the records, take all "
                "from them with --from records, or train all with --from scratch"
            )

    def _read(self, folders):
        """Those of `folders` whose results are read from records."""
        return [folder for folder in folders if folder.recorded and (self.alone or not folder.finished)]

    @property
    def read(self) -> list[str]:
        """The names of the runs whose results are read from records, as the records name them."""
        folders = [folder for _, folder in self.runs.values()] if self.records else []
        return [self.records.name(folder.config) for folder in self._read(folders)]

    @property
    def _trained(self):
        """The RunConfigs of all arms; a run of two arms is listed twice."""
        return [config for configs in self.arms.values() for config in configs if isinstance(config, RunConfig)]

    @property
    def shown(self) -> list[Folder]:
        """The Folders of the runs whose networks are published."""
        configs = [config for arm, n in self.networks.items() for config in self.arms[arm][:n]]
        return [folder_of(config) for config in configs if isinstance(config, RunConfig)]

    @property
    def measured(self) -> list[RunConfig]:
        """The RunConfigs of the runs whose networks are measured."""
        return [config for arm in self.facts for config in self.arms[arm]] if self.measure else []

    def check(self) -> None:
        """Check that all runs can be trained. Errors: CcdError."""
        check(self._trained)
        object.__setattr__(self, "checked", True)

    def teacher(self, show: str = "epochs") -> Backbone:
        """The teacher's network of the first seed, trained where it is not here, in eval mode on the CPU; show: see fit().

        Where runs are trained side by side, all others begin too, for train() to wait for, so that no core is idle meanwhile.
        """
        first = self.arms["teacher"][0]
        if isinstance(first, RunConfig) and self._from_record(first) and self.records.has_network(first):
            return self.records.result(first).model()
        trainings = self._under_way()
        if isinstance(first, RunConfig) and trainings.side_by_side:
            trainings.wait([first])
        return network_of(first, data_of(self._trained[0]), show)

    def _under_way(self):
        """The Trainings of all runs, begun once until they are closed."""
        if self.trainings is None or self.trainings.closed:
            if not self.checked:
                self.check()
            object.__setattr__(self, "trainings", Trainings(Schedule(folder for _, folder in self.runs.values())))
        return self.trainings

    def train(self) -> dict[str, list[Result]]:
        """Train all runs that are not finished yet, and print a line for each arm; returns {arm: a Result for each seed}.

        Runs with the same batches and the same teacher are trained together, as a cohort. On a CPU as many cohorts are trained
        at once as there are cores ($CCD_JOBS, if that is set), with one thread each: a second one hardly helps small networks.
        Errors: CcdError if a run cannot be trained, Diverged if one diverges.
        """
        results, width = {}, max(map(len, self.arms))
        if self.records and (said := self._said_of_records()):
            print(said, flush=True)
        with self._under_way() as trainings:
            for arm, configs in self.arms.items():
                trainings.wait(configs)
                results[arm] = [self.result(config) for config in configs]
                mean = sum(result.accuracy for result in results[arm]) / len(configs)
                said = f"; {said}" if (said := said_of_collapse(collapsed_seeds(results[arm]))) else ""
                print(f"{arm:{width}}  {mean:.1f} % on average of {len(configs)} seeds{said}", flush=True)
        return results

    def _said_of_records(self):
        """How many runs the results of which are read from their records."""
        read = self.read
        if not read:
            return ""
        how = f"{self.records.way.arithmetic.said}, trained at {', '.join(self.records.commits(read))}"
        return f"{len(read)} of {len(self.runs)} runs are read from {paths.shown(self.records.path)} ({how})"

    def result(self, config: RunConfig | Checkpoint) -> Result:
        """The Result of a run: from the run store, else from its record, else by training it; where records are `alone`, from
        its record."""
        if isinstance(config, Checkpoint):
            data, card = data_of(self._trained[0]), bundled.card(config.file)
            if card and self.records:  # of a file whose content is checked; where students are trained, it is measured as well
                accuracy, file = card["accuracy"], Path(config.file)
                return Result(config, accuracy, accuracy, [], file, {"seconds": 0.0}, data.classes, data.channels)
            return measured(config, data)
        return self.records.result(config) if self._from_record(config) else fit(config, show="none")

    def _from_record(self, config):
        """Whether the result of the run is read from its record."""
        return bool(self.records) and (self.alone or not folder_of(config).finished) and self.records.has(config)

    def rows(self, results: Mapping[str, list[Result]]) -> list[dict]:
        """The results in long form, for figures: a dict for every arm with facts and every seed.

        Keys: "arm", "seed", "accuracy" (percent), the arm's facts, "collapsed" (whether this run or its baseline did) and, with
        a baseline, "gain", the paired difference in points.
        """
        rows = []
        for arm, facts in self.facts.items():
            base = results[facts["baseline"]] if "baseline" in facts else results[arm]
            for run, other in zip(results[arm], base, strict=False):  # an arm may have fewer seeds
                row = {"arm": arm, "seed": run.config.seed, "accuracy": run.accuracy, **facts}
                row["collapsed"] = run.config.seed in {*collapsed_seeds(results[arm]), *collapsed_seeds(base)}
                rows.append(row | ({"gain": run.accuracy - other.accuracy} if "baseline" in facts else {}))
        return rows

    def plan(self, timed: bool = False) -> list[dict]:
        """The list of what is missing and how long it takes: a dict for each arm. timed: see forecast.expected_seconds().

        Keys: "arm", "runs" (their number), "done", "recorded" (not in the run store, but known from a record), "begun",
        "missing" (the seeds), "seconds" (spent on the runs that are done) and "expected" (seconds for the missing ones). A run
        of several arms is counted in the first.
        """
        counts = dict.fromkeys(("runs", "done", "recorded", "begun"), 0)
        rows = {arm: {"arm": arm, **counts, "missing": [], "seconds": 0.0, "expected": 0.0} for arm in self.arms}
        missing = []  # (configuration, its row)
        for arm, folder in self.runs.values():
            row, config = rows[arm], folder.config
            row["runs"] += 1
            if folder.finished and not self.alone:
                row["done"] += 1
                row["seconds"] += folder.metrics["seconds"]
                continue
            if folder.recorded:
                row["recorded"] += 1
                continue
            row["begun"] += folder.file("resume.pt").exists()
            row["missing"].append(config.seed)
            missing.append((config, row))
        expected = expected_seconds([config for config, _ in missing], timed)
        for (_, row), seconds in zip(missing, expected, strict=True):
            row["expected"] += seconds
        return list(rows.values())


def _way_here(config):
    """The device and the arithmetic in which a run would be computed here."""
    device = best_device().type if config.device == "auto" else config.device
    return device, *config.arithmetic(device)


def experiment(stem: str, parameters: Parameters) -> Experiment:
    """The Experiment of the notebook `stem` ("00_quickstart") with its `parameters`. Errors: CcdError for wrong ones."""
    if parameters.get("seeds", 1) > MOST_SEEDS:
        raise CcdError(f"seeds = {parameters['seeds']}: allowed are at most {MOST_SEEDS} seeds")
    if "policy" in parameters:
        policy_named(parameters["policy"])  # a wrong name gets its error here: RunConfig would call the parameter `views`
    return EXPERIMENTS[stem](parameters)
