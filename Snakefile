"""The batch: teachers -> runs -> notebooks -> verdict page. `ccd batch` starts it; ccdlib/batch.py says what is missing.

Only what is missing is in the graph: what is done is read from the run store and the results. The engine's outputs are marker
files; nothing that was computed is an output that it could delete.
"""

import sys
from shlex import quote

from ccdlib.batch import PAGE, Grid, expected, summary

grid = Grid(config.get("profile", "smoke"), str(config.get("notebooks", "")).split(), check="checked" not in config)
if workflow.is_main_process:  # a job on another machine may not see yet what was just done
    grid.forget()
if workflow.output_settings.dryrun:  # workflow.dryrun is not known yet
    print(summary(grid, expected(grid)), file=sys.stderr)

done, logs = (grid.folder / "done").as_posix(), (grid.folder / "logs").as_posix()
asked = " ".join(f"--notebook {stem}" for stem in grid.stems)
DO = f"OMP_NUM_THREADS={{threads}} CCD_JOBS=1 {quote(sys.executable)} -m ccdlib job --gpus {{resources.gpu}} "
DO += f"--profile {grid.profile} {asked} "
TO_LOG = " > {log:q} 2>&1"
# On a CPU one thread unless asked for more: a run has the same bits wherever it is trained.
THREADS = int(config.get("threads", 1))


workdir: grid.folder.as_posix()


# No limit of jobs a second, which Snakemake (9.15) always has: for it, it wakes once a second more for each job that ended,
# a quarter of a core after 350 jobs.
onstart:
    workflow.scheduler.job_rate_limiter = None


rule all:
    input:
        grid.markers(grid.missing()),


rule cohort:
    input:
        lambda wildcards: grid.markers(grid.needs(wildcards.key)),
    output:
        done + "/{key}",
    wildcard_constraints:
        key="|".join(grid.cohorts),
    log:
        logs + "/{key}.log",
    threads: lambda wildcards: THREADS * grid.processes(wildcards.key)
    resources:
        gpu=lambda wildcards: grid.processes(wildcards.key),
    shell:
        DO + "{wildcards.key}" + TO_LOG


rule notebook:
    input:
        lambda wildcards: grid.markers(grid.needs(wildcards.stem)),
    output:
        done + "/{stem}-{fingerprint}",
    wildcard_constraints:
        stem="|".join(grid.stems),
        fingerprint="[0-9a-f]{12}",
    log:
        logs + "/{stem}-{fingerprint}.log",
    threads: THREADS
    resources:
        gpu=1,
    shell:
        DO + "{wildcards.stem}" + TO_LOG


rule verdicts:
    input:
        grid.markers(grid.needs(PAGE)),
    output:
        f"{done}/{PAGE}",
    log:
        f"{logs}/{PAGE}.log",
    resources:
        gpu=0,
    shell:
        DO + PAGE + TO_LOG
