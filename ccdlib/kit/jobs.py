"""One job of a batch, in a process of its own: its work comes from the plan that the batch wrote."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from ccdlib.base import paths
from ccdlib.base.devices import gpus as every_gpu
from ccdlib.base.files import file_lock, write_whole
from ccdlib.base.reading import text_of
from ccdlib.base.registry import CcdError, unknown
from ccdlib.kit import verdicts
from ccdlib.kit.door import run_notebook
from ccdlib.training.cohort import computes_as, fit_cohort, folder_of
from ccdlib.training.config import RunConfig
from ccdlib.training.schedule import unfinished


def work(plan: str | Path, name: str) -> None:
    """Do the job whose marker has that name, as the engine asks for it: alone of its name, its marker written when it is done.

    What is finished of it is found. Errors: CcdError for a job that the plan lacks, and for one that has changed since.
    """
    plan = json.loads(text_of(plan))
    if name not in plan["jobs"]:
        raise unknown("job", name, plan["jobs"])
    job, folder = plan["jobs"][name], Path(plan["folder"])
    with acquired(job_lock(folder, job["job"])):  # an engine that was killed may have left a process behind that does this job
        _do(job, plan["profile"])
        mark = folder / "done" / name
        if job["kind"] != "notebook":
            write_whole(mark, "")
        elif not mark.exists():  # executed under another name
            raise CcdError(f"{job['job']} has changed since the batch was planned; start the batch again")


def _do(job, profile):
    if job["kind"] == "page":
        verdicts.write()
    elif job["kind"] == "notebook":
        run_notebook(job["job"], profile, checked=True)
    else:
        configs = [RunConfig(**config) for config in job["runs"].values()]
        computes_as(configs)  # before the data is read, which computes
        folders = [folder_of(config) for config in configs]
        names = [folder.path.name for folder in folders]
        if names != list(job["runs"]):
            raise CcdError(
                f"the runs {', '.join(job['runs'])} would be {', '.join(names)} now: code, data or a teacher file has changed "
                "since the batch was planned; start the batch again"
            )
        if missing := unfinished(folders):
            fit_cohort([folder.config for folder in missing], show="run", check=False)


def job_lock(folder: Path, job: str) -> FileLock:
    """The lock of a job of the batch whose files are in `folder`."""
    return file_lock(folder / "locks" / f"{job}.lock")


def acquired(lock: FileLock, timeout: float = -1) -> AcquireReturnProxy:
    """Take a lock within so many seconds (-1: whenever), or Timeout; CcdError where files cannot be locked."""
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        return lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as error:
        raise CcdError(
            f"{paths.shown(lock.lock_file)} cannot be locked ({error.strerror}); set CCD_OUTPUTS to a folder on "
            "another file system"
        ) from error


@contextmanager
def gpu_slot(n: int = 1, every: float = 1.0) -> Iterator[str | None]:
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
