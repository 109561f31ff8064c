"""Who trains what: every run once, in cohorts, teachers before their students. Notebooks and batches use the same schedule."""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache

from loky import ProcessPoolExecutor

from ccdlib.base import extensions
from ccdlib.base.devices import jobs
from ccdlib.training import group
from ccdlib.training.cohort import fit_cohort, folder_of
from ccdlib.training.config import RunConfig, with_teachers
from ccdlib.training.store import Folder


def grouped(things: Iterable, key: Callable) -> list[list]:
    """Lists of those of `things` that have the same key, in the order of their first."""
    groups = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return list(groups.values())


def cohorts_of(configs: Iterable[RunConfig]) -> list[list[RunConfig]]:
    """The RunConfigs in lists of those that are trained together."""
    return grouped(configs, lambda config: config.cohort)


def digest_of(facts: object) -> str:
    """Twelve hexadecimal digits of facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Schedule:
    """The cohorts of some runs and of their teachers, each run once.

    cohorts: {key: [Folder]}, teachers first; a key is a method and a hash of the cohort's runs. cohort_of: {name of a run: key}.
    """

    def __init__(self, folders: Iterable[Folder]):
        every = {folder.path.name: folder for folder in folders}
        cohorts = grouped(every.values(), lambda folder: folder.config.cohort)
        self.cohorts = {_key(members): members for members in cohorts}
        self.cohort_of = {folder.path.name: key for key, members in self.cohorts.items() for folder in members}

    def missing(self, folders: Iterable[Folder] | None = None) -> list[str]:
        """The keys of the cohorts to which an unfinished run belongs, of all runs or of those in `folders`."""
        every = (folder for members in self.cohorts.values() for folder in members)
        wanted = {self.cohort_of[folder.path.name] for folder in unfinished(every if folders is None else folders)}
        return [key for key in self.cohorts if key in wanted]

    def needs(self, key: str) -> list[str]:
        """The keys of the cohorts that are still to be trained before this one: those of its teachers."""
        teachers = [folder.config.teacher for folder in self.cohorts[key]]
        return self.missing([folder_of(teacher) for teacher in teachers if isinstance(teacher, RunConfig)])


def folders_of(configs: Iterable[RunConfig]) -> list[Folder]:
    """The Folders of runs, each after those of its teachers, each once."""
    found = {}
    for config in configs:
        for needed in with_teachers(config):
            folder = folder_of(needed)
            found.setdefault(folder.path.name, folder)
    return list(found.values())


def unfinished(folders: Iterable[Folder]) -> list[Folder]:
    """Those of `folders` whose run is not finished."""
    return [folder for folder in folders if not folder.finished]


def _key(folders):
    return f"{folders[0].config.method}-{digest_of(sorted(folder.path.name for folder in folders))}"


@contextmanager
def side_by_side(schedule: Schedule) -> Iterator[Callable[[Sequence[RunConfig]], None]]:
    """A function that comes back when all of a list of configurations are trained, those that the schedule lacks in worker
    processes where there are several jobs.

    Workers take the cohorts in their order, whichever are asked for first, and end with the context, whatever ends it.
    """
    missing = [[folder.config for folder in unfinished(schedule.cohorts[key])] for key in schedule.missing()]
    pool, together = None, [config for cohort in missing for config in cohort]
    if any(config.processes > 1 for config in together):  # one group of processes for all: they take seconds to start
        once = cache(lambda: group.launch(together, "none"))
        begun = [(together, once)]
    elif jobs() == 1 or not missing:
        begun = [(cohort, lambda cohort=cohort: _fit(cohort)) for cohort in missing]
    else:
        environment = {"OMP_NUM_THREADS": "1"} | extensions.environment()
        pool, rows = (
            ProcessPoolExecutor(jobs(), timeout=60, env=environment, initializer=_end_with_parent),
            extensions.carried(),
        )
        begun = [(cohort, pool.submit(_fit_in_worker, cohort, rows).result) for cohort in _spread(missing, jobs())]

    def trained(configs):
        for cohort, result in begun:
            if any(config in cohort for config in configs):
                result()

    try:
        yield trained
    finally:
        if pool:
            pool.shutdown(wait=True, kill_workers=sys.exc_info()[0] is not None)


def _end_with_parent():
    """In a worker: end when the process that started it was killed, which otherwise nobody tells a worker that trains."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _spread(cohorts, n):
    """The same runs in at least n cohorts, where there are as many: the largest is halved, so that no core is idle."""
    cohorts = list(cohorts)
    while len(cohorts) < n and max(map(len, cohorts)) > 1:
        largest = cohorts.pop(max(range(len(cohorts)), key=lambda k: len(cohorts[k])))
        cohorts += [largest[::2], largest[1::2]]
    return cohorts


def _fit(cohort):
    fit_cohort(cohort, show="none")


def _fit_in_worker(cohort, rows):
    """Train a cohort in a worker, which is sent the rows that it could not import. What it prints while it waits for a teacher
    that another worker trains is not shown."""
    extensions.receive(rows)
    with redirect_stdout(None):
        _fit(cohort)
