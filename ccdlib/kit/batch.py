"""The batch: what the notebooks of a profile lack, as jobs that are written into a plan for the engine (Snakefile).

A job is a cohort of training runs, a notebook, or the verdict page. What is computed lies in the run store and in
outputs/<profile>/, written whole by the job itself; the engine only sees marker files under outputs/.batch/, so that nothing
it deletes or forgets was ever computed. What is done is read from the results, never from the times of files.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from loky import ProcessPoolExecutor

from ccdlib.base import paths
from ccdlib.base.devices import best_device
from ccdlib.base.devices import cores as every_core
from ccdlib.base.devices import gpus as every_gpu
from ccdlib.base.files import write_whole
from ccdlib.base.reading import check_name
from ccdlib.base.registry import CcdError, unknown
from ccdlib.kit import finished, recorded, verdicts
from ccdlib.kit.parameters import DEFAULT, SMOKE, asked_for, present, profiles
from ccdlib.training.checks import check_carried
from ccdlib.training.config import RunConfig
from ccdlib.training.forecast import expected_seconds, gpu_hours
from ccdlib.training.schedule import Schedule, grouped, unfinished
from ccdlib.training.store import Folder

PAGE = "verdicts"  # the job that brings the verdict page up to date


def stems_of(profile: str) -> tuple[str, ...]:
    """The notebooks that have a profile, in their order. Errors: CcdError for an unknown profile."""
    check_name(profile, "profile")
    if not paths.NOTEBOOKS.is_dir() or not paths.PARAMS.is_dir():
        raise CcdError(f"{paths.ROOT} has no folders notebooks/ and params/; set CCD_ROOT to a checkout that has them")
    if profile == DEFAULT:
        return tuple(sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
    stems = tuple(sorted(path.stem for path in (paths.PARAMS / profile).glob("*.yaml")))
    if not stems:
        raise unknown("profile", profile, profiles())
    return stems


class Grid:
    """All jobs of some notebooks under one profile: cohorts of runs, shared ones once, then notebooks, then the verdict page.

    stems: of notebooks; none: all that have this profile, but for those whose data is not here (`absent`). check: whether
    it is made sure that every run can be trained, which takes seconds. Errors: CcdError for unknown names, and for such runs.
    """

    def __init__(self, profile: str = DEFAULT, stems: Sequence[str] = (), check: bool = True):
        check_carried("a batch trains in processes of its own, which")
        self.profile, self.absent = profile, {}
        if not stems:
            stems = stems_of(profile)
            data = {stem: asked_for(stem, profile, elsewhere=True)[1]["data"] for stem in stems}
            self.absent = {stem: name for stem, name in data.items() if not present(name)}
        self.stems = tuple(stem for stem in stems if stem not in self.absent)
        self.folder = paths.outputs() / ".batch" / profile
        self.asked = {stem: asked_for(stem, profile) for stem in self.stems}
        self.experiments = {stem: recorded.experiment(stem, values, profile) for stem, (_, values) in self.asked.items()}
        for each in self.experiments.values() if check else ():
            each.check()
        found = {stem: each.runs for stem, each in self.experiments.items()}
        self.runs = {stem: [folder for _, folder in runs.values()] for stem, runs in found.items()}
        # {name of a run: (the first notebook that needs it, its arm there)}
        self.arm_of = {name: (stem, arm) for stem in reversed(found) for name, (arm, _) in found[stem].items()}
        for folders in grouped((f for each in self.runs.values() for f in each), lambda folder: folder.path.name):
            every = all(folder.recorded for folder in folders)  # one notebook may need the network of what another only reads
            for folder in folders:
                folder.recorded = every
        self.schedule = Schedule(folder for folders in self.runs.values() for folder in folders)
        self.cohorts, self.cohort_of = self.schedule.cohorts, self.schedule.cohort_of

    # -- what is there

    def missing_cohorts(self, folders: Iterable[Folder] | None = None) -> list[str]:
        """The keys of the cohorts to which an unfinished run belongs, of all runs or of those in `folders`."""
        return self.schedule.missing(folders)

    def notebook_done(self, stem: str) -> bool:
        """Whether the notebook was executed with these parameters, code cells, ccdlib sources and runs, and is there."""
        # In this order: only a notebook whose runs are all there needs the hash of the library, which takes a second.
        return not self.missing_cohorts(self.runs[stem]) and finished.is_there(self.marker(stem))

    def missing_notebooks(self) -> list[str]:
        """The stems whose notebook is still to be executed."""
        return [stem for stem in self.stems if not self.notebook_done(stem)]

    def missing(self) -> list[str]:
        """The names of all jobs that are still to be done, in an order in which they can be."""
        notebooks = self.missing_notebooks()
        page = self.profile != SMOKE and (notebooks or verdicts.outdated())
        return [*self.missing_cohorts(), *notebooks, *([PAGE] if page else [])]

    def needs(self, job: str) -> list[str]:
        """The jobs that are still to be done before this one."""
        if job == PAGE:
            return self.missing_notebooks()
        return self.missing_cohorts(self.runs[job]) if job in self.runs else self.schedule.needs(job)

    @cached_property
    def tiers(self) -> dict[str, int]:
        """{cohort: its place in the order of worth, from 0}: notebook by notebook, the first of which has the central claims;
        in each the teachers, and then, seed by seed, all arms. Cohorts of one place are worth the same."""
        places = []
        for stem, folders in self.runs.items():
            taught = {self.cohort_of[folder.path.name] for folder in folders if isinstance(folder.config.teacher, RunConfig)}
            teachers = {needed for key in taught for needed in self.schedule.teachers(key)}
            for folder in folders:
                key = self.cohort_of[folder.path.name]
                places.append((self.stems.index(stem), key not in teachers, folder.config.draws_seed, key))
        order, tiers = {}, sorted({place[:3] for place in places})
        for *place, key in sorted(places, reverse=True):
            order[key] = tiers.index(tuple(place))
        return order

    # -- what the engine gets

    def marker(self, job: str) -> Path:
        """The file that says that a job was done; a notebook's is named after what it was made from, too."""
        if job in self.runs:
            return finished.marker(self.profile, job, self.fingerprint(job))
        return self.folder / "done" / job

    def about(self, job: str) -> str:
        """A job in words."""
        if job not in self.cohorts:
            return "the verdict page" if job == PAGE else job
        first, n = self.cohorts[job][0].config, len(self.cohorts[job])
        methods = ", ".join(dict.fromkeys(folder.config.method for folder in self.cohorts[job]))
        more = f" ({n} runs)" if n > 1 else ""
        return f"{methods}: {first.model}, views {first.views}, seed {first.seed}{more}"

    def write_plan(self) -> Path:
        """Write what is missing into plan.json, which the engine and its jobs read instead of planning all again; its path."""
        jobs = {}
        for job in self.missing():
            folders = unfinished(self.cohorts.get(job, ()))
            jobs[self.marker(job).name] = {
                "job": job,
                "kind": "page" if job == PAGE else "cohort" if job in self.cohorts else "notebook",
                "about": self.about(job),
                "needs": [self.marker(needed).name for needed in self.needs(job)],
                "tier": self.tiers.get(job, -1),  # a notebook whose runs are there comes first
                "processes": 0 if job == PAGE else max((folder.config.processes for folder in folders), default=1),
                "runs": {folder.path.name: folder.config.model_dump(mode="json") for folder in folders},
            }
        plan = {"profile": self.profile, "folder": str(self.folder), "jobs": jobs}
        write_whole(self.folder / "plan.json", json.dumps(plan, indent=1))
        return self.folder / "plan.json"

    @lru_cache  # noqa: B019 (a grid lives as long as its process)
    def fingerprint(self, stem: str) -> str:
        """finished.fingerprint() of a notebook."""
        return finished.fingerprint(*self.asked[stem], self.experiments[stem])

    def forget(self) -> None:
        """Remove the markers of what is not done any more, such as runs that were deleted since; a result is never touched."""
        files = list((self.folder / "done").glob("*"))  # before looking at what is done: a job may be writing one
        keep = {self.marker(stem) for stem in self.stems if self.notebook_done(stem)}
        keep |= {self.marker(key) for key in self.cohorts if not unfinished(self.cohorts[key])}
        keep |= set() if PAGE in self.missing() else {self.marker(PAGE)}
        ours = {*self.cohorts, PAGE}
        for file in files:
            stem = file.name.rpartition("-")[0]
            if file not in keep and (file.name in ours or stem in self.runs):
                file.unlink(missing_ok=True)


# ---------------------------------------------------------------- what a person is told before it begins


def summary(grid: Grid, seconds: dict[str, float] | None = None) -> str:
    """What is there and what is missing, as text. seconds: {job: expected}, or None where they are not wanted."""
    cohorts, notebooks = grid.missing_cohorts(), grid.missing_notebooks()
    runs = sum(len(folders) for folders in grid.cohorts.values())
    missing = sum(len(unfinished(grid.cohorts[key])) for key in cohorts)
    lines = [
        f"profile {grid.profile}: notebooks {' '.join(grid.stems)}",
        f"  runs       {runs - missing} done, {missing} missing{f' (in {len(cohorts)} cohorts)' if missing else ''}",
        f"  notebooks  {len(grid.stems) - len(notebooks)} done, {len(notebooks)} missing  {' '.join(notebooks)}".rstrip(),
    ]
    lines += [f"  left out   {stem}: {data} is not on this machine" for stem, data in grid.absent.items()]
    jobs = grid.missing()
    if PAGE in jobs:
        lines.append("  the verdict page needs an update")
    if not jobs:
        return "\n".join([*lines, "nothing to do"])
    if seconds:
        lines.append(forecast(seconds))
    elif best_device().type == "cuda":
        hours = gpu_hours([folder.config for key in cohorts for folder in unfinished(grid.cohorts[key])])
        lines += [f"  {hours}"] * bool(hours)
    return "\n".join(lines)


def forecast(seconds: dict[str, float], n: int = 1) -> str:
    """How long it takes, in words, with n cohorts at once."""
    how = "one cohort at a time" if n == 1 else f"{n} cohorts at once"
    return f"  about {duration(sum(seconds.values()) / n)} of training, {how}"


def at_once(cores: int | None = None, gpus: int | None = None, jobs: int | None = None) -> int:
    """How many jobs run side by side; see engine.run."""
    return (every_gpu() if gpus is None else gpus) or jobs or cores or every_core()


def expected(grid: Grid, timed: bool = False) -> dict[str, float]:
    """{cohort to be trained: seconds that it takes here}; {} where there is no GPU and the runs are a GPU's, as on the machine
    from which jobs are submitted. timed: see expected_seconds."""
    if best_device().type == "cuda" and not every_gpu():
        return {}
    # Read once: jobs that a killed engine left behind may end meanwhile.
    configs = {key: [folder.config for folder in unfinished(grid.cohorts[key])] for key in grid.missing_cohorts()}
    each = [config for cohort in configs.values() for config in cohort]
    if timed and every_gpu():  # by another process: this one stays until the morning, and would keep a part of a GPU
        with ProcessPoolExecutor(1) as another:
            flat = iter(another.submit(expected_seconds, each, timed).result())
    else:
        flat = iter(expected_seconds(each, timed))
    return {key: sum(next(flat) for _ in cohort) for key, cohort in configs.items()}


def duration(seconds: float) -> str:
    """Seconds in words."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
