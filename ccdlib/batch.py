"""The batch: what the notebooks of a profile lack, as jobs for an engine (Snakefile), and what became of them.

A job is a cohort of training runs, a notebook, or the verdict page. What is computed lies in the run store and in
outputs/<profile>/, written whole by the job itself; the engine only sees marker files under outputs/.batch/, so that nothing
it deletes or forgets was ever computed. What is done is read from the results, never from the times of files.
"""

import ast
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import Timeout
from loky import ProcessPoolExecutor

from ccdlib import paths, verdicts
from ccdlib.config import RunConfig
from ccdlib.experiments import expected_seconds, experiment, grouped
from ccdlib.notebook import alive, asked_for, gpu_hours, present, run_notebook
from ccdlib.reading import cells_of, check_name
from ccdlib.registry import GOES_ON, CcdError, unknown
from ccdlib.runs import best_device, file_lock, write_whole
from ccdlib.runs import cores as every_core
from ccdlib.runs import gpus as every_gpu
from ccdlib.train import fit_cohort, folder_of

PAGE = "verdicts"  # the job that brings the verdict page up to date
ELSEWHERE = ("cli", "batch", "clean", "verdicts")  # modules on which no result depends


def stems_of(profile):
    """The notebooks that have a profile, in their order."""
    check_name(profile, "profile")
    if not paths.NOTEBOOKS.is_dir() or not paths.PARAMS.is_dir():
        raise CcdError(f"{paths.ROOT} has no notebooks/ and params/; name a checkout that has them in CCD_ROOT")
    if profile == "smoke":
        return tuple(sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
    stems = tuple(sorted(path.stem for path in (paths.PARAMS / profile).glob("*.yaml")))
    if not stems:
        raise unknown("profile", profile, ["smoke", *sorted(folder.name for folder in paths.PARAMS.iterdir())])
    return stems


class Grid:
    """All jobs of some notebooks under one profile: cohorts of runs, shared ones once, then notebooks, then the verdict page.

    stems: of notebooks; none: all that have this profile, but for those whose data is not here (`absent`). check: whether
    it is made sure that every run can be trained, which takes seconds. Errors: CcdError for unknown names, and for such runs.
    """

    def __init__(self, profile="smoke", stems=(), check=True):
        self.profile, self.absent = profile, {}
        if not stems:
            stems = stems_of(profile)
            data = {stem: asked_for(stem, profile, elsewhere=True)[1]["data"] for stem in stems}
            self.absent = {stem: name for stem, name in data.items() if not present(name)}
        self.stems = tuple(stem for stem in stems if stem not in self.absent)
        self.folder = paths.outputs() / ".batch" / profile
        self.asked = {stem: asked_for(stem, profile) for stem in self.stems}
        plans = {stem: experiment(stem, values) for stem, (_, values) in self.asked.items()}
        for plan in plans.values() if check else ():
            plan.check()
        self.runs = {stem: [folder for _, folder in plan.runs.values()] for stem, plan in plans.items()}
        every = {folder.path.name: folder for folders in self.runs.values() for folder in folders}
        cohorts = grouped(every.values(), lambda folder: folder.config.cohort)
        self.cohorts = {_key(folders): folders for folders in cohorts}
        self.cohort_of = {folder.path.name: key for key, folders in self.cohorts.items() for folder in folders}

    # -- what is there

    def missing_cohorts(self, folders=None):
        """The keys of the cohorts to which an unfinished run belongs, of all runs or of those in `folders`."""
        every = (folder for cohort in self.cohorts.values() for folder in cohort)
        wanted = {self.cohort_of[folder.path.name] for folder in _unfinished(every if folders is None else folders)}
        return [key for key in self.cohorts if key in wanted]

    def notebook_done(self, stem):
        """Whether the notebook was executed with these parameters, code cells, ccdlib sources and runs, and is there."""
        target = paths.outputs() / self.profile / stem
        there = (target / "results.json").exists() and target.with_suffix(".ipynb").exists()
        return there and self.marker(stem).exists() and not self.missing_cohorts(self.runs[stem])

    def missing_notebooks(self):
        """The stems whose notebook is still to be executed."""
        return [stem for stem in self.stems if not self.notebook_done(stem)]

    def missing(self):
        """The names of all jobs that are still to be done, in an order in which they can be."""
        notebooks = self.missing_notebooks()
        page = self.profile != "smoke" and (notebooks or verdicts.outdated())
        return [*self.missing_cohorts(), *notebooks, *([PAGE] if page else [])]

    # -- what needs what

    def needs(self, job):
        """The jobs that are still to be done before this one."""
        if job == PAGE:
            return self.missing_notebooks()
        if job in self.runs:
            return self.missing_cohorts(self.runs[job])
        teachers = [folder.config.teacher for folder in self.cohorts[job]]
        return self.missing_cohorts([folder_of(teacher) for teacher in teachers if isinstance(teacher, RunConfig)])

    def do(self, job):
        """Do a job here; what is finished of it is found."""
        if job == PAGE:
            verdicts.write()
        elif job in self.runs:
            run_notebook(job, self.profile)
        elif job in self.cohorts:
            missing = _unfinished(self.cohorts[job])
            if missing:
                fit_cohort([folder.config for folder in missing], show="run")
        else:
            raise unknown("job", job, [*self.cohorts, *self.stems, PAGE])

    # -- files of the engine

    def marker(self, job):
        """The file that says that a job was done; a notebook's is named after what it was made from, too."""
        return self.folder / "done" / (f"{job}-{self.fingerprint(job)}" if job in self.runs else job)

    def markers(self, jobs):
        """The marker files of jobs, as text."""
        return [self.marker(job).as_posix() for job in jobs]

    def log(self, job):
        """The file with what a job prints."""
        return self.folder / "logs" / f"{self.marker(job).name}.log"

    def failed(self, job):
        """The file that says that a job failed when it was last tried."""
        return self.folder / "failed" / job

    def processes(self, job):
        """How many processes train a cohort together, a GPU each; a notebook has one, the verdict page none."""
        if job == PAGE:
            return 0
        return max((folder.config.processes for folder in self.cohorts.get(job, ())), default=1)

    def about(self, job):
        """A job in words."""
        if job not in self.cohorts:
            return "the verdict page" if job == PAGE else job
        first, n = self.cohorts[job][0].config, len(self.cohorts[job])
        methods = ", ".join(dict.fromkeys(folder.config.method for folder in self.cohorts[job]))
        more = f" ({n} runs)" if n > 1 else ""
        return f"{methods}: {first.model}, views {first.views}, seed {first.seed}{more}"

    @lru_cache  # noqa: B019 (a grid lives as long as its process)
    def fingerprint(self, stem):
        """A hash of what a notebook's results depend on: parameters, code cells, the library's code, the runs."""
        path, values = self.asked[stem]
        code = [cell["source"] for cell in cells_of(path, paths.shown(path)) if cell["cell_type"] == "code"]
        return _digest([values, code, library_hash(), sorted(folder.path.name for folder in self.runs[stem])])

    def forget(self):
        """Remove the markers of what is not done any more, such as runs that were deleted since; a result is never touched."""
        files = list((self.folder / "done").glob("*"))  # before looking at what is done: a job may be writing one
        keep = {self.marker(stem) for stem in self.stems if self.notebook_done(stem)}
        keep |= {self.marker(key) for key in self.cohorts if not _unfinished(self.cohorts[key])}
        keep |= set() if PAGE in self.missing() else {self.marker(PAGE)}
        ours = {*self.cohorts, PAGE}
        for file in files:
            stem = file.name.rpartition("-")[0]
            if file not in keep and (file.name in ours or stem in self.runs):
                file.unlink(missing_ok=True)


def _unfinished(folders):
    return [folder for folder in folders if not folder.finished]


def _key(folders):
    """A name for a cohort: a method, and a hash of all of its runs."""
    return f"{folders[0].config.method}-{_digest(sorted(folder.path.name for folder in folders))}"


def _digest(facts):
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@lru_cache
def library_hash():
    """A hash of the code that a notebook runs: all modules but the doors to them, without comments and docstrings."""
    files = sorted(path for path in Path(__file__).parent.rglob("*.py") if path.stem not in ELSEWHERE)
    return _digest([[path.name, _code(path)] for path in files])


def _code(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


# ---------------------------------------------------------------- one job, in a process of its own


def work(grid, job):
    """Do a job as the engine asks for it: alone of its name, on a GPU of its own, its marker written when it is done."""
    with _acquired(_lock(grid, job)):  # an engine that was killed may have left a process behind that does this job
        grid.failed(job).unlink(missing_ok=True)
        try:
            grid.do(job)
        except BaseException:
            with suppress(CcdError):  # a full disk, say
                write_whole(grid.failed(job), "")
            raise
        for old in (grid.folder / "done").glob(f"{job}-*") if job in grid.runs else ():
            old.unlink()
        write_whole(grid.marker(job), "")


def _lock(grid, job):
    return file_lock(grid.folder / "locks" / f"{job}.lock")


def _acquired(lock, timeout=-1):
    """Take a lock within so many seconds (-1: whenever), or Timeout; CcdError where files cannot be locked."""
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        return lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as error:
        raise CcdError(
            f"{lock.lock_file} cannot be locked ({error.strerror}); name another file system in CCD_OUTPUTS"
        ) from error


@contextmanager
def gpu_slot(n=1, every=1.0):
    """Hold n GPUs of this machine (all, where there are fewer) that no other job holds, as the only ones it sees.

    To be entered before anything else: once CUDA was begun, which a look at what "auto" means does, a process keeps the GPUs
    that it saw then. The locks end with the process, however it ends. every: seconds between attempts.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(every_gpu())))
    here = named.split(",") if n and every_gpu() else ()
    # Slurm numbers the GPUs of each of its jobs from 0: two of them on one machine hold no GPU in common.
    folder = Path(tempfile.gettempdir()) / f"ccdlib-gpus-{os.getuid()}-{os.environ.get('SLURM_JOB_ID', 'all')}"
    folder.mkdir(exist_ok=True)
    n = min(n, len(here))
    while here:
        with ExitStack() as held:  # all of them or none: two jobs that each hold a part would wait for ever
            mine = []
            for gpu in here:
                if len(mine) < n and _taken(held, folder / f"{gpu.replace('/', '-')}.lock"):
                    mine.append(gpu)
            if len(mine) == n:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
                yield os.environ["CUDA_VISIBLE_DEVICES"]
                return
        time.sleep(every)
    yield None


def _taken(held, lock):
    with suppress(Timeout):
        held.enter_context(file_lock(lock).acquire(timeout=0))
        return True
    return False


# ---------------------------------------------------------------- all of them, by the engine


def summary(grid, seconds=None):
    """What is there and what is missing, as text. seconds: {job: expected}, or None where they are not wanted."""
    cohorts, notebooks = grid.missing_cohorts(), grid.missing_notebooks()
    runs = sum(len(folders) for folders in grid.cohorts.values())
    missing = sum(len(_unfinished(grid.cohorts[key])) for key in cohorts)
    lines = [
        f"profile {grid.profile}: notebooks {' '.join(grid.stems)}",
        f"  runs       {runs - missing} done, {missing} missing{f' (in {len(cohorts)} cohorts)' if missing else ''}",
        f"  notebooks  {len(grid.stems) - len(notebooks)} done, {len(notebooks)} missing  {' '.join(notebooks)}".rstrip(),
    ]
    lines += [f"  left out   {stem}: {data} is not here" for stem, data in grid.absent.items()]
    if PAGE in grid.missing():
        lines.append("  verdict page to be brought up to date")
    if not grid.missing():
        return "\n".join([*lines, "nothing to do"])
    if seconds:
        lines.append(forecast(seconds))
    elif best_device().type == "cuda":
        hours = gpu_hours([folder.config for key in cohorts for folder in _unfinished(grid.cohorts[key])])
        lines += [f"  {hours}"] * bool(hours)
    return "\n".join(lines)


def forecast(seconds, n=1):
    """How long it takes, in words, with n cohorts at once."""
    how = "one cohort at a time" if n == 1 else f"{n} cohorts at once"
    return f"  about {_duration(sum(seconds.values()) / n)} of training, {how}"


def at_once(cores=None, gpus=None, jobs=None):
    """How many jobs run side by side; see run()."""
    return (every_gpu() if gpus is None else gpus) or jobs or cores or every_core()


def expected(grid):
    """{cohort to be trained: seconds that it takes here}, from a few timed steps of each kind; {} where there is no GPU and the
    runs are a GPU's, as on the machine from which jobs are submitted."""
    if best_device().type == "cuda" and not every_gpu():
        return {}
    # Read once: jobs that a killed engine left behind may end meanwhile.
    configs = {key: [folder.config for folder in _unfinished(grid.cohorts[key])] for key in grid.missing_cohorts()}
    each = [config for cohort in configs.values() for config in cohort]
    if every_gpu():  # by another process: this one stays until the morning, and would keep a part of a GPU
        with ProcessPoolExecutor(1) as another:
            flat = iter(another.submit(expected_seconds, each).result())
    else:
        flat = iter(expected_seconds(each))
    return {key: sum(next(flat) for _ in cohort) for key, cohort in configs.items()}


def run(grid, cores=None, gpus=None, jobs=None, slurm=False, seconds=None, poll=1.0, say=print):
    """Run the engine until nothing more can be done; returns whether all is done.

    cores: CPU cores to use (None: all), gpus: GPUs to use (None: all): one job a GPU. jobs: where there are no GPUs, how many
    share the cores (None: one a core). slurm: submit the jobs by profiles/slurm instead, with so many cores for each GPU
    (None: 8). seconds: see expected(). A second batch of the same profile is refused.
    """
    grid.forget()
    missing = grid.missing()
    if not missing:
        return True
    with _alone(grid) as lock, open(grid.folder / "engine.log", "ab") as log:
        watch = Watch(grid, missing, seconds or {}, say)
        command, cancelling = _engine(grid, cores, gpus, jobs, slurm), CANCELLING * slurm
        with _guarded(command, lock, cancelling, stdout=log, stderr=log, cwd=grid.folder) as engine:
            while engine.poll() is None:
                time.sleep(poll)
                watch.look()
        done = watch.end()
        if not done and grid.profile != "smoke" and verdicts.outdated():
            verdicts.write()  # its job needs all notebooks
            say("The verdict page has the notebooks that are done.")
        return done


@contextmanager
def _alone(grid, patience=30):
    """Hold the lock of a profile's batches; its file descriptor, which the engine gets too, so that the lock is free only when
    both have ended. CcdError while another batch is running."""
    file = Path(_lock(grid, "batch").lock_file)
    with _acquired(_lock(grid, "batch.trial")):  # says what is wrong where files cannot be locked
        pass
    with open(file, "a+") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                owner, _, machine = lock.read().strip().partition(" on ")
                here = machine == platform.node()
                # One that was killed: its guard is ending what it left behind.
                if here and not alive(int(owner)) and time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                who = f" (process {owner}{'' if here else f' on {machine}'}; `kill {owner}` stops it)" * bool(owner)
                raise CcdError(
                    f"a batch of {grid.profile} is running already{who}; its log is {grid.folder / 'engine.log'}"
                ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {platform.node()}")
        lock.flush()
        yield lock.fileno()


# The guard of a process group: it waits until the process that started it closes the pipe, or ends, however it does, and then
# ends the group: where there is time for it, the first process is interrupted, so that it can cancel jobs on other machines;
# then all get a word, and at last none.
GUARD = """
import os, signal, sys, time
group, cancelling, grace = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
def waited(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        os.killpg(group, 0)
        time.sleep(0.05)
sys.stdin.read()
try:
    if cancelling:
        os.kill(group, signal.SIGINT)
        waited(cancelling)
    os.killpg(group, signal.SIGTERM)
    waited(grace)
    os.killpg(group, signal.SIGKILL)
except OSError:
    pass  # there is nobody left
"""
GRACE = 10  # seconds that an engine and its jobs have to end
CANCELLING = 60  # seconds that an engine has, before that, to cancel what it submitted to a cluster


@contextmanager
def _guarded(command, lock, cancelling=0, **options):
    """The process of `command`, which ends, with all that it started, when the context or this process does.

    lock: a file descriptor that stays open for as long. cancelling: seconds that it has to cancel jobs on other machines.
    """
    read, write = os.pipe()
    engine = subprocess.Popen(command, process_group=0, pass_fds=(lock,), **options)
    waits = [sys.executable, "-c", GUARD, str(engine.pid), str(cancelling), str(GRACE)]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    guard = subprocess.Popen(waits, stdin=read, process_group=0, pass_fds=(lock,), **nowhere)
    os.close(read)
    try:
        yield engine
    finally:
        os.close(write)
        while guard.poll() is None:
            engine.poll()  # one that has ended and is not asked counts as there
            time.sleep(0.02)
        engine.wait()


def _engine(grid, cores=None, gpus=None, jobs=None, slurm=False):
    """The command that starts Snakemake; most of its options are in profiles/."""
    cores, gpus = cores or (8 if slurm else every_core()), every_gpu() if gpus is None else gpus
    if slurm:
        profile, threads, here = "slurm", cores, ()
    else:
        profile, threads = "default", max(1, cores // at_once(cores, gpus, jobs))
        here = "--cores", str(cores), "--resources", f"gpu={gpus}"
    given = {"checked": 1, "threads": threads, "profile": grid.profile, "notebooks": " ".join(grid.stems)}
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(paths.ROOT / "Snakefile")),
        *("--workflow-profile", str(paths.ROOT / "profiles" / profile)),
        *("--config", *(f"{name}={value}" for name, value in given.items())),
        *here,
    ]


FEW = 10  # jobs that are named one by one


class Watch:
    """Says what became of the jobs of a batch, from the files that they leave."""

    def __init__(self, grid, jobs, seconds, say):
        self.grid, self.jobs, self.seconds, self.say = grid, jobs, seconds, say
        self.began, self.states = time.time(), {}

    def state(self, job):
        """done, running, failed or waiting; starting, when its process has not begun to work, or was killed."""
        grid = self.grid
        if grid.marker(job).exists():
            return "done"
        log = grid.log(job)
        if not log.exists() or log.stat().st_mtime < self.began:
            return "waiting"
        try:
            with _lock(grid, job).acquire(timeout=0):
                if grid.marker(job).exists():
                    return "done"
        except Timeout:
            return "running"
        failed = grid.failed(job)
        return "failed" if failed.exists() and failed.stat().st_mtime >= self.began - 1 else "starting"

    def look(self):
        """Say what has changed since the last look, a line a job."""
        before = self.states
        self.states = {job: "done" if before.get(job) == "done" else self.state(job) for job in self.jobs}
        for job, state in self.states.items():
            if state in ("done", "failed") and before.get(job) != state:
                self.say(f"{time.strftime('%H:%M:%S')}  {state:6}  {self.grid.about(job):50}  {self._progress()}")

    def _progress(self):
        states = ["running" if state == "starting" else state for state in self.states.values()]
        counts = {state: states.count(state) for state in ("done", "running", "failed")}
        said = ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "done")
        left = self._left()
        return f"[{said} of {len(self.jobs)}{'' if left is None else f'; about {_duration(left)} to go'}]"

    def _left(self):
        """Seconds until all is trained, at the pace so far; None where nothing is known."""
        done = sum(self.seconds.get(job, 0) for job, state in self.states.items() if state == "done")
        to_go = sum(self.seconds.get(job, 0) for job, state in self.states.items() if state not in ("done", "failed"))
        return to_go * (time.time() - self.began) / done if done else None

    def end(self):
        """Say what failed, with its last lines, and what was not begun because of it; returns whether all is done."""
        self.look()
        of = {state: [] for state in ("done", "failed", "running", "waiting")}
        for job, state in self.states.items():
            of["failed" if state == "starting" else state].append(job)  # it was killed: nobody was left to say so
        self.say(f"{len(of['done'])} of {len(self.jobs)} jobs done in {_duration(time.time() - self.began)}")
        trainings = [job for job in of["waiting"] if job in self.grid.cohorts]
        if len(trainings) > FEW:
            self.say(f"not begun: {len(trainings)} trainings")
        for job in of["waiting"]:
            if job not in self.grid.cohorts or len(trainings) <= FEW:
                self.say(f"not begun: {self.grid.about(job)}")
        for job in of["failed"][:FEW]:
            log = self.grid.log(job)
            last = log.read_text(errors="replace").splitlines()[-6:] or ["(it said nothing: killed, or the disk is full)"]
            self.say(f"failed: {self.grid.about(job)}; all it said is in {paths.shown(log)}")
            self.say("\n".join(f"    {line}" for line in last))
        if len(of["failed"]) > FEW:
            self.say(
                f"failed, too: {len(of['failed']) - FEW} more; what they said is in {paths.shown(self.grid.folder / 'logs')}"
            )
        for job in of["running"]:
            self.say(f"still running, left behind by an engine that was stopped: {self.grid.about(job)}")
        if len(of["done"]) == len(self.jobs):
            self.say(f"notebooks, results and figures are in {paths.shown(paths.outputs() / self.grid.profile)}/")
            return True
        if not of["done"] and not of["failed"]:
            self.say(f"The engine did not get to work; all it said is in {paths.shown(self.grid.folder / 'engine.log')}")
        self.say(GOES_ON)
        return False


def _duration(seconds):
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
