"""The engine of a batch: Snakemake, started, watched by its own events, and ended with all that it started."""

import fcntl
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from ccdlib.base import paths
from ccdlib.base.devices import cores as every_core
from ccdlib.base.devices import gpus as every_gpu
from ccdlib.base.registry import GOES_ON, CcdError
from ccdlib.kit import verdicts
from ccdlib.kit.batch import Grid, at_once, duration
from ccdlib.kit.door import alive
from ccdlib.kit.jobs import acquired, job_lock
from ccdlib.kit.parameters import SMOKE

PLUGINS = Path(__file__).parent / "plugins"  # where Snakemake finds the logger plugin


def run(
    grid: Grid,
    cores: int | None = None,
    gpus: int | None = None,
    jobs: int | None = None,
    slurm: bool = False,
    seconds: dict[str, float] | None = None,
    poll: float = 1.0,
    say: Callable[[str], None] = print,
    until: float | None = None,
) -> bool | None:
    """Run the engine until nothing more can be done; returns whether all is done, or None where it was stopped in time.

    cores: CPU cores to use (None: all), gpus: GPUs to use (None: all): one job a GPU. jobs: where there are no GPUs, how many
    share the cores (None: one a core). slurm: submit the jobs by profiles/slurm instead, with so many cores for each GPU
    (None: 8). seconds: see batch.expected. poll: seconds between looks. until: the time.monotonic() by which all is stopped, to
    go on another time (None: never). A second batch of the same profile is refused.
    """
    last = (until or math.inf) - GRACE - CANCELLING * slurm
    grid.forget()
    if not grid.missing():
        return True
    with _alone(grid) as lock, open(grid.folder / "engine.log", "ab") as log:
        plan, events = grid.write_plan(), grid.folder / "events.jsonl"
        events.write_text("")
        watch = Watch(grid.folder, json.loads(plan.read_text())["jobs"], seconds or {}, say)
        command, cancelling = _engine(plan, cores, gpus, jobs, slurm), CANCELLING * slurm
        path = os.pathsep.join(filter(None, (str(PLUGINS), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "CCD_EVENTS": str(events)}
        with _guarded(command, lock, cancelling, stdout=log, stderr=log, cwd=grid.folder, env=environment) as engine:
            while engine.poll() is None and time.monotonic() < last:
                time.sleep(poll)
                watch.look()
            over = engine.poll() is None
            if over:
                watch.look()
                watch.stopped = True  # the jobs that are ended now have not failed
        if over:
            say("The time is over. What was in training goes on from its last saved epoch another time.")
        done = watch.end(paths.outputs() / grid.profile)
        if not done and grid.profile != SMOKE and verdicts.outdated():
            verdicts.write()  # its job needs all notebooks
            say("The verdict page now has the notebooks that are done.")
        return None if over and not done and "failed" not in watch.states.values() else done


@contextmanager
def _alone(grid, patience=30):
    """Hold the lock of a profile's batches; its file descriptor, which the engine gets too, so that the lock is free only when
    both have ended. CcdError while another batch is running."""
    file = Path(job_lock(grid.folder, "batch").lock_file)
    with acquired(job_lock(grid.folder, "batch.trial")):  # says what is wrong where files cannot be locked
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


def _engine(plan, cores=None, gpus=None, jobs=None, slurm=False):
    """The command that starts Snakemake; most of its options are in profiles/."""
    cores, gpus = cores or (8 if slurm else every_core()), every_gpu() if gpus is None else gpus
    if slurm:
        profile, threads, here = "slurm", cores, ()
    else:
        profile, threads = "default", max(1, cores // at_once(cores, gpus, jobs))
        here = "--cores", str(cores), "--resources", f"gpu={gpus}"
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(paths.ROOT / "Snakefile"), "--logger", "ccd"),
        *("--workflow-profile", str(paths.ROOT / "profiles" / profile)),
        *("--config", f"plan={plan}", f"threads={threads}"),
        *here,
    ]


FEW = 10  # jobs that are named one by one


class Watch:
    """Says what became of the jobs of a plan, from the events that the engine writes.

    folder: of the batch. jobs: {name: what the plan says of it}. seconds: {name: expected}. stopped: whether to look no more.
    """

    def __init__(self, folder: Path, jobs: dict[str, dict], seconds: dict[str, float], say: Callable[[str], None]):
        self.folder, self.jobs, self.seconds, self.say = folder, jobs, seconds, say
        self.began, self.read, self.states, self.stopped = time.time(), 0, dict.fromkeys(jobs, "waiting"), False

    def look(self) -> None:
        """Say what has happened since the last look, a line for each job that has ended."""
        if self.stopped:
            return
        with open(self.folder / "events.jsonl") as file:
            file.seek(self.read)
            text = file.read()
        whole, _, _ = text.rpartition("\n")
        self.read += len(whole.encode()) + bool(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            job, state = event["job"], event["state"]
            if job in self.jobs and self.states[job] != state:
                self.states[job] = state
                if state != "running":
                    self.say(f"{time.strftime('%H:%M:%S')}  {state:6}  {self.jobs[job]['about']:50}  {self._progress()}")

    def _progress(self):
        states = list(self.states.values())
        counts = {state: states.count(state) for state in ("done", "running", "failed")}
        said = ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "done")
        left = self._left()
        return f"[{said} of {len(self.jobs)}{'' if left is None else f'; about {duration(left)} to go'}]"

    def _left(self):
        """Seconds until all is trained, at the pace so far; None where nothing is known."""
        done = sum(self.seconds.get(job, 0) for job, state in self.states.items() if state == "done")
        to_go = sum(self.seconds.get(job, 0) for job, state in self.states.items() if state not in ("done", "failed"))
        return to_go * (time.time() - self.began) / done if done else None

    def end(self, results: Path) -> bool:
        """Say what failed, with its last lines, and what was not begun because of it; returns whether all is done."""
        self.look()
        of = {
            state: [job for job in self.jobs if self.states[job] == state] for state in ("done", "failed", "running", "waiting")
        }
        self.say(f"{len(of['done'])} of {len(self.jobs)} jobs done in {duration(time.time() - self.began)}")
        trainings = [job for job in of["waiting"] if self.jobs[job]["kind"] == "cohort"]
        if len(trainings) > FEW:
            self.say(f"not begun: {len(trainings)} cohorts")
        for job in of["waiting"]:
            if self.jobs[job]["kind"] != "cohort" or len(trainings) <= FEW:
                self.say(f"not begun: {self.jobs[job]['about']}")
        for job in of["failed"][:FEW]:
            self._say_failed(job)
        if len(of["failed"]) > FEW:
            self.say(
                f"also failed: {len(of['failed']) - FEW} more jobs; their output is in {paths.shown(self.folder / 'logs')}"
            )
        for job in of["running"]:
            self.say(f"interrupted, because the engine was stopped: {self.jobs[job]['about']}")
        if len(of["done"]) == len(self.jobs):
            self.say(f"notebooks, results and figures are in {paths.shown(results)}/")
            return True
        if not of["done"] and not of["failed"]:
            self.say(f"The engine did not start any job; its own output is in {paths.shown(self.folder / 'engine.log')}")
        self.say(GOES_ON)
        return False

    def _say_failed(self, job):
        log = self.folder / "logs" / f"{job}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        last = text.splitlines()[-6:] or ["(no output: the job was killed, or the disk is full)"]
        self.say(f"failed: {self.jobs[job]['about']}; all of its output is in {paths.shown(log)}")
        self.say("\n".join(f"    {line}" for line in last))
