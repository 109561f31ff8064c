"""The schedule of many runs, for notebooks and batches: each run once, in cohorts, teachers before their students."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, partial

from loky import ProcessPoolExecutor

from ccdlib.base import extensions
from ccdlib.base.arithmetic import SWITCHES
from ccdlib.base.devices import jobs
from ccdlib.training import group
from ccdlib.training.cohort import computes_as, fit_cohort, folder_of
from ccdlib.training.config import RunConfig, with_teachers
from ccdlib.training.store import Folder
from ccdlib.training.work import training_macs


def grouped(things: Iterable, key: Callable) -> list[list]:
    """The `things` in lists of equal key(thing), in the order of the first of each list."""
    groups = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return list(groups.values())


def cohorts_of(configs: Iterable[RunConfig]) -> list[list[RunConfig]]:
    """The configurations in lists of those that are trained together, because they have the same RunConfig.cohort."""
    return grouped(configs, lambda config: config.cohort)


def digest_of(facts: object) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of `facts` written as JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Schedule:
    """The cohorts of some runs, given as their Folders, those of teachers before those of their students.

    cohorts: {key: the Folders of the cohort}; a key is the method and a hash of the names of the runs. cohort_of: {name of a
    run: key of its cohort}.
    """

    cohorts: dict[str, list[Folder]]
    cohort_of: dict[str, str]

    def __init__(self, folders: Iterable[Folder]):
        every = {folder.path.name: folder for folder in folders}
        cohorts = grouped(every.values(), lambda folder: folder.config.cohort)
        self.cohorts = {_key(members): members for members in cohorts}
        self.cohort_of = {folder.path.name: key for key, members in self.cohorts.items() for folder in members}

    def missing(self, folders: Iterable[Folder] | None = None) -> list[str]:
        """The keys of the cohorts that hold an unfinished run of `folders` (None: of all runs)."""
        every = (folder for members in self.cohorts.values() for folder in members)
        wanted = {self.cohort_of[folder.path.name] for folder in unfinished(every if folders is None else folders)}
        return [key for key in self.cohorts if key in wanted]

    def in_order(self) -> list[str]:
        """missing(), teachers first, and then those with the most work, so that all cores are done at about the same time."""
        missing = self.missing()
        taught = {teacher for key in missing for teacher in self.teachers(key)}
        rest = [key for key in missing if key not in taught]
        work = {key: sum(training_macs(folder.config) for folder in unfinished(self.cohorts[key])) for key in rest}
        return [key for key in missing if key in taught] + sorted(rest, key=work.get, reverse=True)

    def needs(self, key: str) -> list[str]:
        """The keys of the unfinished cohorts of its teachers, which have to be trained before this cohort."""
        return self.missing(self._teachers(key))

    def teachers(self, key: str) -> list[str]:
        """The keys of the cohorts of its teachers."""
        return list(dict.fromkeys(self.cohort_of[folder.path.name] for folder in self._teachers(key)))

    def _teachers(self, key):
        teachers = [folder.config.teacher for folder in self.cohorts[key]]
        return [folder_of(teacher) for teacher in teachers if isinstance(teacher, RunConfig)]


def folders_of(configs: Iterable[RunConfig]) -> list[Folder]:
    """The Folder of every configuration and of its teachers, each once, teachers before their students."""
    found = {}
    for config in configs:
        for needed in with_teachers(config):
            folder = folder_of(needed)
            found.setdefault(folder.path.name, folder)
    return list(found.values())


def unfinished(folders: Iterable[Folder]) -> list[Folder]:
    """Those of `folders` whose run is not finished, nor known from a record."""
    return [folder for folder in folders if not (folder.finished or folder.recorded)]


def _key(folders):
    return f"{folders[0].config.method}-{digest_of(sorted(folder.path.name for folder in folders))}"


class Trainings:
    """What a schedule lacks, in training.

    With several jobs ($CCD_JOBS, or the number of cores) worker processes train all missing cohorts, teachers and the longest
    first, from the beginning on. With one job, wait() trains what it is asked for in this process, unless that cannot
    compute as the runs need it. Runs that need several processes are trained by one group of processes. closed: whether the
    workers have ended. A context: they end with it.
    """

    def __init__(self, schedule: Schedule):
        missing = [[folder.config for folder in unfinished(schedule.cohorts[key])] for key in schedule.in_order()]
        together = [config for cohort in missing for config in cohort]
        self._pool, self.closed = None, False
        if any(config.processes > 1 for config in together):  # one group for all runs, because a group takes seconds to start
            self._begun = [(together, cache(lambda: group.launch(together, "none")))]
        elif not missing or (jobs() == 1 and computes_as(together)):
            self._begun = [(cohort, lambda cohort=cohort: _fit(cohort)) for cohort in missing]
        else:
            portable = any(config.arithmetic().portable for config in together)
            self._pool = workers(jobs(), SWITCHES if portable else {})
            rows = extensions.carried()
            self._begun = [
                (cohort, self._pool.submit(_fit_in_worker, cohort, rows).result) for cohort in _spread(missing, jobs())
            ]
            # At the end of this process, before what loky has registered by now, which would wait for all trainings: the last
            # one is called first, and all of these before those of the module atexit.
            threading._register_atexit(partial(self.close, stop=True))

    @property
    def side_by_side(self) -> bool:
        """Whether worker processes train."""
        return self._pool is not None

    def wait(self, configs: Sequence[RunConfig]) -> None:
        """Return when these runs are finished. Errors: as fit_cohort()."""
        try:
            for cohort, result in self._begun:
                if any(config in cohort for config in configs):
                    result()
        except BaseException:
            self.close(stop=True)
            raise

    def close(self, stop: bool = False) -> None:
        """End the workers, after their work or, to `stop` it, at once; what they saved is kept."""
        self.closed = True
        if self._pool:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=True, kill_workers=stop)

    def __enter__(self) -> "Trainings":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self.close(stop=kind is not None)


def workers(n: int, environment: Mapping[str, str] | None = None) -> ProcessPoolExecutor:
    """A pool of n processes with one thread each, which know where a reader's rows come from and end with this process.

    environment: variables that are set in them, too.
    """
    every = {"OMP_NUM_THREADS": "1"} | dict(environment or {}) | extensions.environment()
    return ProcessPoolExecutor(n, timeout=60, env=every, initializer=_end_with_parent)


def _end_with_parent():
    """In a worker: end when the process that started it is killed; without this a worker would go on training alone.

    An interrupt is the starting process's to answer: that of another cell must not end what is in training.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _spread(cohorts, n):
    """The same runs in at least n cohorts, if there are n runs: the largest are halved, so that no core is idle."""
    cohorts = list(cohorts)
    while len(cohorts) < n and max(map(len, cohorts)) > 1:
        largest = cohorts.pop(max(range(len(cohorts)), key=lambda k: len(cohorts[k])))
        cohorts += [largest[::2], largest[1::2]]
    return cohorts


def _fit(cohort):
    fit_cohort(cohort, show="none", check=False)  # whoever makes a schedule has checked its runs


def _fit_in_worker(cohort, rows):
    """Train a cohort in a worker, with the rows that it cannot import, and hide what it prints while it waits for others."""
    extensions.receive(rows)
    with redirect_stdout(None):
        _fit(cohort)
