"""The batch: teachers -> runs -> notebooks -> verdict page. `ccd batch` starts it; ccdlib/kit/batch.py says what is missing.

Only what is missing is in the graph, by a plan that the batch wrote: what is done is read from the run store and the results. The
engine's outputs are marker files; nothing that was computed is an output that it could delete.
"""

import json
import sys
from pathlib import Path
from shlex import quote


def planned():
    """The path of the plan: that of `ccd batch`, else a new one."""
    if "plan" in config:
        return Path(config["plan"])
    from ccdlib.base.paths import outputs
    from ccdlib.kit.batch import Grid, expected, summary

    kept = outputs() / ".batch" / config.get("profile", "lite") / "plan.json"
    if not workflow.is_main_process and kept.exists():  # a job on another machine does what was planned
        return kept
    grid = Grid(config.get("profile", "lite"), str(config.get("notebooks", "")).split())
    grid.forget()
    if workflow.output_settings.dryrun:  # workflow.dryrun is not known yet
        print(summary(grid, expected(grid)), file=sys.stderr)
    return grid.write_plan()


PLAN = planned()
FOLDER, JOBS = PLAN.parent, json.loads(PLAN.read_text())["jobs"]
DONE, LOGS = (FOLDER / "done").as_posix(), (FOLDER / "logs").as_posix()
DO = f"OMP_NUM_THREADS={{threads}} CCD_JOBS=1 {quote(sys.executable)} -m ccdlib job --gpus {{resources.gpu}} --plan {quote(str(PLAN))} "
# On a CPU one thread unless asked for more: a run has the same bits wherever it is trained.
THREADS = int(config.get("threads", 1))


def named(kind, tier=None):
    """The marker names of the jobs of a kind, and of a place in the order of worth, as a pattern."""
    names = [name for name, job in JOBS.items() if job["kind"] == kind and tier in (None, job["tier"])]
    return "|".join(names) or "(?!)"


def needed(name):
    """The marker files of what a job needs."""
    return [f"{DONE}/{other}" for other in JOBS[name]["needs"]]


workdir: FOLDER.as_posix()


# No limit of jobs a second, which Snakemake (9.15) always has: for it, it wakes once a second more for each job that ended,
# a quarter of a core after 350 jobs.
onstart:
    workflow.scheduler.job_rate_limiter = None


rule all:
    input:
        [f"{DONE}/{name}" for name in JOBS],


# A priority belongs to a rule, so each place in the order of worth has a rule.
for tier in sorted({job["tier"] for job in JOBS.values() if job["kind"] == "cohort"}):

    rule:
        name:
            f"cohort_{tier}"
        input:
            lambda wildcards: needed(wildcards.name),
        output:
            DONE + "/{name}",
        wildcard_constraints:
            name=named("cohort", tier),
        log:
            LOGS + "/{name}.log",
        threads: lambda wildcards: THREADS * JOBS[wildcards.name]["processes"]
        priority: 1_000_000 - tier
        resources:
            gpu=lambda wildcards: JOBS[wildcards.name]["processes"],
        shell:
            DO + "{wildcards.name} > {log:q} 2>&1"


rule notebook:
    input:
        lambda wildcards: needed(wildcards.name),
    output:
        DONE + "/{name}",
    wildcard_constraints:
        name=named("notebook"),
    log:
        LOGS + "/{name}.log",
    threads: THREADS
    priority: 1_000_001
    resources:
        gpu=1,
    shell:
        DO + "{wildcards.name} > {log:q} 2>&1"


rule verdicts:
    input:
        lambda wildcards: needed(wildcards.name),
    output:
        DONE + "/{name}",
    wildcard_constraints:
        name=named("page"),
    log:
        LOGS + "/{name}.log",
    resources:
        gpu=0,
    shell:
        DO + "{wildcards.name} > {log:q} 2>&1"
