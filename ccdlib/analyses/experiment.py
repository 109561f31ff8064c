"""Experiments as data: the runs that an analysis needs, and the claims it makes before any of them is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ccdlib.base.registry import CcdError, Registry
from ccdlib.evidence.stats import Claim, collapsed_seeds, said_of_collapse
from ccdlib.training.checks import check, data_of
from ccdlib.training.cohort import fit, folder_of, measured, network_of
from ccdlib.training.config import Checkpoint, RunConfig, with_teachers
from ccdlib.training.forecast import expected_seconds
from ccdlib.training.schedule import Schedule, side_by_side
from ccdlib.views import policy_named

EXPERIMENTS = Registry("experiment")  # notebook stem -> function of its parameters


MOST_SEEDS = 1000


@dataclass(frozen=True)
class Experiment:
    """arms: {name: [RunConfig, one a seed]}, paired; Checkpoints stand for teachers that are not trained here. claims:
    declared with the arms, so before any result.

    facts: {arm: numbers that tables and axes show}. Errors: CcdError for no seed or one, arms that are not paired, and a
    claim about an arm that is not there. checked: whether it is known that every run can be trained; train() checks it otherwise.
    """

    arms: Mapping[str, list]
    claims: tuple[Claim, ...]
    facts: Mapping[str, dict] = field(default_factory=dict)
    checked: bool = field(default=False, compare=False)

    def __post_init__(self):
        seeds = {arm: [config.seed for config in configs] for arm, configs in self.arms.items()}
        first = next(iter(seeds.values()), [])
        if not first:
            raise CcdError("an experiment without seeds has nothing to train; give parameter seeds = 2 or more")
        if len(first) == 1:
            raise CcdError(
                "seeds = 1: the claims rest on intervals over paired seeds, which one seed does not give; give 2 or more "
                "(verdicts ask for more still)"
            )
        if any(given != first for given in seeds.values()) or len(set(first)) < len(first):
            raise CcdError(f"the arms are not paired: {seeds}; give every arm the same seeds, each once, in the same order")
        for claim in self.claims:
            claim.needs(self.arms)

    @property
    def configs(self):
        """Every RunConfig once, teachers before their students; nothing is looked up, so the data need not be here."""
        found = {}
        for configs in self.arms.values():
            for config in configs:
                found |= {needed.model_dump_json(exclude={"device", "processes"}): needed for needed in with_teachers(config)}
        return list(found.values())

    @property
    def runs(self):
        """Every run once, teachers before their students: {folder name: (arm that first needs it, Folder)}."""
        found, known = {}, set()
        for arm, configs in self.arms.items():
            for needed in (each for config in configs for each in with_teachers(config)):
                text = needed.model_dump_json()
                if text not in known:  # a teacher has many students
                    known.add(text)
                    folder = folder_of(needed)
                    found.setdefault(folder.path.name, (arm, folder))
        return found

    @property
    def _trained(self):
        """The RunConfigs of all arms, some more than once."""
        return [config for configs in self.arms.values() for config in configs if isinstance(config, RunConfig)]

    def check(self):
        """Raise CcdError where one of the runs could not be trained."""
        check(self._trained)
        object.__setattr__(self, "checked", True)

    def teacher(self, show="epochs"):
        """The network of the first seed's teacher, in eval mode on the CPU; show: see fit()."""
        return network_of(self.arms["teacher"][0], data_of(self._trained[0]), show)

    def train(self):
        """Train what the run store lacks, read the rest: {arm: [Result, one a seed]}. Prints a line an arm.

        Runs that see the same batches and have the same teacher are trained together, as a cohort. On a CPU as many cohorts at
        once as there are cores ($CCD_JOBS, when it is set), one thread each: small networks gain next to nothing from a
        second thread.
        """
        if not self.checked:
            self.check()
        results, width = {}, max(map(len, self.arms))
        with side_by_side(Schedule(folder for _, folder in self.runs.values())) as trained:
            for arm, configs in self.arms.items():
                trained(configs)
                results[arm] = [self._result(config) for config in configs]
                mean = sum(result.accuracy for result in results[arm]) / len(configs)
                said = f"; {said}" if (said := said_of_collapse(collapsed_seeds(results[arm]))) else ""
                print(f"{arm:{width}}  {mean:.1f} % on average of {len(configs)} seeds{said}", flush=True)
        return results

    def _result(self, config):
        if isinstance(config, Checkpoint):
            return measured(config, data_of(self._trained[0]))
        return fit(config, show="none")

    def rows(self, results):
        """Long form, for figures: a dict for each arm that has facts and each seed, with "accuracy", the facts, and "gain",
        the paired difference, for those whose facts name a "baseline"."""
        rows = []
        for arm, facts in self.facts.items():
            base = results[facts["baseline"]] if "baseline" in facts else results[arm]
            for run, other in zip(results[arm], base, strict=True):
                row = {"arm": arm, "seed": run.config.seed, "accuracy": run.accuracy, **facts}
                row["collapsed"] = run.config.seed in {*collapsed_seeds(results[arm]), *collapsed_seeds(base)}
                rows.append(row | ({"gain": run.accuracy - other.accuracy} if "baseline" in facts else {}))
        return rows

    def plan(self, timed: bool = False) -> list[dict]:
        """One row an arm, each run counted once: {"arm", "runs", "done", "begun", "missing" (seeds), "seconds", "expected"}.

        A run that an earlier arm needs is counted there. seconds: spent on those that are done. expected: for the others (timed:
        see forecast.expected_seconds).
        """
        rows = {
            arm: {"arm": arm, "runs": 0, "done": 0, "begun": 0, "missing": [], "seconds": 0.0, "expected": 0.0}
            for arm in self.arms
        }
        missing = []  # (configuration, its row)
        for arm, folder in self.runs.values():
            row, config = rows[arm], folder.config
            row["runs"] += 1
            if folder.finished:
                row["done"] += 1
                row["seconds"] += folder.metrics["seconds"]
                continue
            row["begun"] += folder.file("resume.pt").exists()
            row["missing"].append(config.seed)
            missing.append((config, row))
        expected = expected_seconds([config for config, _ in missing], timed)
        for (_, row), seconds in zip(missing, expected, strict=True):
            row["expected"] += seconds
        return list(rows.values())


def experiment(stem, parameters):
    """The Experiment of the notebook `stem` under its `parameters` (a dict)."""
    if parameters.get("seeds", 1) > MOST_SEEDS:
        raise CcdError(f"seeds = {parameters['seeds']}: allowed are up to {MOST_SEEDS} paired repetitions")
    if "policy" in parameters:
        policy_named(parameters["policy"])  # a RunConfig would call it `views`
    return EXPERIMENTS[stem](parameters)
