"""The console script `ccd`."""

import os
import signal
import sys
import time
from contextlib import nullcontext
from importlib.util import find_spec
from shutil import which

import click

from ccdlib.base import extensions, paths
from ccdlib.base.reading import text_of, value_of
from ccdlib.base.registry import GOES_ON, CcdError
from ccdlib.cli.evidence import check, power, record
from ccdlib.cli.options import NOTEBOOK, PROFILE, TIMED, asks_for_parameters, from_option
from ccdlib.data import DATASETS, load_data
from ccdlib.evidence.published import REPORTED
from ccdlib.kit import batch as planner
from ccdlib.kit import clean as cleaning
from ccdlib.kit import door, engine, jobs, outlook, planning, recorded
from ccdlib.kit import verdicts as page
from ccdlib.methods import METHODS, settings_of
from ccdlib.models import MODELS
from ccdlib.training import Diverged, RunConfig, check_surroundings, fit_cohort, group
from ccdlib.training import check as check_runs
from ccdlib.training.cohort import computes_as
from ccdlib.training.schedule import cohorts_of
from ccdlib.training.work import model_size


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 when all is well, 1 when something failed, 2 for a mistake in what was asked for, 130 when "
    "interrupted. Tab completion: see `ccd completion --help`.",
)
@click.option("--debug", is_flag=True, envvar="CCD_DEBUG", help="Show the traceback of an error.")
@click.option(
    "--use", "modules", multiple=True, metavar="FILE.py", help="Load your own losses, methods, views and so on from a module."
)
@click.version_option(package_name="ccdlib")
def cli(debug, modules):
    """ccdlib: data augmentation in knowledge distillation, reproduced."""
    extensions.check()
    if modules:
        extensions.load(modules)


@cli.command(
    epilog="Example: ccd run 00_quickstart --profile lite -p seeds 3",
    short_help="Execute a notebook with your parameters and print its results.",
)
@asks_for_parameters
@from_option
@click.option("--repair", is_flag=True, help="Train damaged runs again (their folders are kept under another name).")
@click.option("--again", is_flag=True, help="Execute it also where nothing has changed since it was executed.")
def run(notebook, profile, files, given, repair, again):
    """Execute NOTEBOOK (a stem such as 00_quickstart, or a path) and print its result table.

    Unknown parameters and wrong types are refused before anything runs. Finished runs are reused, and so is the executed
    notebook if its parameters, code and runs are still the same. Exit status: 0,
    1 when the notebook failed (its executed copy is kept as .failed.ipynb), 2 for a mistake in what was asked for.
    """
    if repair:
        os.environ["CCD_REPAIR"] = "1"  # read by fit() in the notebook's kernel
    executed, now = door.run_notebook(notebook, profile, files, given, again=again or repair, say=click.echo)
    click.echo(door.report(executed))
    if not now:
        click.echo("executed before with the same parameters, code and runs; --again executes it once more")


@cli.command(
    epilog="Example: ccd plan 03_proportion --profile lite", short_help="Plan of a notebook: the missing runs and their time."
)
@asks_for_parameters
@from_option
@click.option("--timed", is_flag=True, help=TIMED)
def plan(notebook, profile, files, given, timed):
    """Print the plan of NOTEBOOK: which runs are done, which are missing, and how many seconds they are expected to take.

    The estimate comes from stored runs of the same kind, or else from multiply-adds. Nothing is trained or written.
    """
    click.echo(planning.plan(notebook, profile, files, given, timed))


@cli.command(
    epilog="Example: ccd batch 01_joint_augmentation 06_ccd --profile lite --cores 8   (with -n: only print the plan)",
    short_help="Train and execute all that notebooks of a profile lack.",
)
@click.option("--profile", **PROFILE)
@from_option
@click.option("--cores", type=click.IntRange(1), help="CPU cores to use; with --slurm, for each GPU.  [default: all; 8]")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to use; 0: train on the CPU.  [default: all]")
@click.option(
    "--jobs", type=click.IntRange(1), help="Without GPUs: how many jobs share the cores at once.  [default: one per core]"
)
@click.option("--slurm", is_flag=True, help="Submit the jobs to Slurm by profiles/slurm; they use GPUs unless CCD_DEVICE=cpu.")
@click.option("--hours", type=click.FloatRange(0.01, 10_000), help="Stop after so many hours; the same command goes on.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan: what is missing and how long it takes. Train nothing.")
@click.option("--timed", is_flag=True, help=TIMED)
@click.argument("notebooks", nargs=-1, **NOTEBOOK)
def batch(notebooks, profile, cores, gpus, jobs, slurm, hours, dry_run, timed):
    """Train and execute what the NOTEBOOKS of a profile (all, if none is named) lack; what is finished is reused.

    The engine, Snakemake, runs one job per GPU at a time, or one per core if there is no GPU. A job is a cohort of runs, a
    notebook, or the verdict page. What is worth most comes first: notebook by notebook, the teachers, and then all arms, seed
    by seed. If jobs fail or are killed, the same command goes on from there. With --hours it stops by itself, records what is
    finished, and says what is there and what the next hour would add. Exit status: 0 when all is done, or the hours are over, 1
    when something is not, 2 for a mistake in what was asked for.
    """
    end = hours and time.monotonic() + 3600 * hours
    if find_spec("snakemake") is None:
        raise CcdError("a batch needs Snakemake, which is not installed; run: pip install 'ccdlib[batch]' (or make reproduce)")
    if slurm and not dry_run and which("sbatch") is None:
        raise CcdError(
            "--slurm submits jobs with sbatch, which is not installed here; run it where your cluster's jobs are submitted"
        )
    if slurm:
        os.environ.setdefault("CCD_DEVICE", "cuda")  # what "auto" means on the nodes, also where the engine runs
    elif gpus == 0:
        os.environ["CCD_DEVICE"] = "cpu"
    if not (slurm or dry_run):
        check_surroundings()
    grid = planner.Grid(profile, notebooks, check=not dry_run)
    click.echo(planner.summary(grid))
    seconds = {} if slurm else planner.expected(grid, timed)
    workers = planner.at_once(cores, gpus, jobs)
    if seconds:
        click.echo(planner.forecast(seconds, workers))
        if hours:
            click.echo(f"  {outlook.adds(grid, seconds, hours, workers)}")
    if dry_run:
        return
    done = engine.run(grid, cores, gpus, jobs, slurm, seconds, say=click.echo, until=end)
    for stem in grid.stems if hours else ():  # an instalment
        try:
            click.echo(recorded.write(stem, profile))
        except CcdError as error:
            click.echo(f"{stem}: not recorded: {error}")
    if hours and not done:
        click.echo(outlook.there(grid))
        left = planner.expected(grid)
        if left:
            click.echo(outlook.adds(grid, left, 1.0, workers))
    if done is False:
        sys.exit(1)


@cli.command(
    epilog="Examples: ccd fit student.yaml --processes 8   and on each of two machines: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
    "torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m ccdlib fit "
    "student.yaml",
    short_help="Train the runs that a file describes.",
)
@click.option("--processes", type=click.IntRange(1), help="How many processes of this machine train a run together.")
@click.option("--show", default="auto", show_default=True, help="What to print: epochs, run, bar, none or auto.")
@click.option("--repair", is_flag=True, help="Train damaged runs again (their folders are kept under another name).")
@click.argument("file", type=click.Path())
def fit(file, processes, show, repair):
    """Train the runs that FILE describes: a RunConfig as YAML or JSON (its teacher within it), or a list of them.

    Finished runs are reused. With several processes, each on its own GPU, every process trains on its part of the images of
    each step. Under torchrun, this process is one of a group, on one or more machines that share the outputs folder. Exit
    status: 0, 1 when the training failed, 2 for a mistake in the file.
    """
    if group.given_up():
        return
    if group.started_by_torchrun():
        processes = int(os.environ["WORLD_SIZE"])  # checked as if the file had named them
    configs = _read_configs(file, processes)
    computes_as(configs)  # before check(), which computes
    if not group.launched():
        check_runs(configs)  # all of them, before the first is trained
    with group.joined() if group.started_by_torchrun() else nullcontext():
        for cohort in cohorts_of(configs):
            for result in fit_cohort(cohort, show=show, repair=repair or None):
                if group.rank() == 0 and show != "none" and not group.launched():
                    click.echo(f"{result.accuracy:.2f} %  {result.folder}")


def _read_configs(file, processes):
    """The RunConfigs of a file."""
    asked = value_of(text_of(file), file)
    asked = asked if isinstance(asked, list) else [asked]
    if not asked or not all(isinstance(one, dict) for one in asked):
        raise CcdError(
            f"{file} does not describe a run; write the fields of a RunConfig, one `name: value` a line, or a list of these"
        )
    return [RunConfig(**one | ({"processes": processes} if processes else {})) for one in asked]


@cli.command(hidden=True)
@click.option("--plan", required=True, type=click.Path())
@click.option("--gpus", type=int, default=0)
@click.argument("job")
def job(job, plan, gpus):
    """Do one JOB of a batch, as its plan says; the Snakefile calls this."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes which it started end with it
    with jobs.gpu_slot(gpus):
        jobs.work(plan, job)


@cli.command(short_help="All methods, with their settings.", epilog="Example: ccd methods")
def methods():
    """List the methods: equation and source, settings with their defaults, and which teacher each needs."""
    for name, method in METHODS.items():
        about = (method.__doc__ or "").partition(" Terms {")[0].partition("\n\n")[0]
        settings = ", ".join(f"{key}={default!r}" for key, default in settings_of(name).items())
        needs = f"teacher trained by {method.teacher_method}" if method.teacher_method else f"teacher {method.teacher}"
        facts = [needs] + ["rotates every view itself"] * method.rotates + ["hard labels only"] * method.hard_labels
        facts += ["trains detectors, on images with boxes"] * method.detects
        click.echo(f"{name}  {' '.join(about.split())}\n    {'; '.join(facts)}\n    {settings or 'no settings'}")


@cli.command(short_help="All networks, with their sizes.", epilog="Example: ccd models --classes 10")
@click.option(
    "--classes",
    type=click.IntRange(2, 1_000_000),
    default=100,
    show_default=True,
    help="Number of classes, the width of the logits.",
)
@click.option("--side", type=click.IntRange(32, 4096), default=32, show_default=True, help="Side of the images in pixels.")
def models(classes, side):
    """List the networks: parameters, and multiply-adds of one image, of a detector without those of its regions."""
    for name in MODELS:
        parameters, macs = model_size(name, classes, side)
        click.echo(f"{name:16} {parameters:>12,} parameters  {macs / 1e6:>9,.1f} million multiply-adds")


@cli.command(short_help="Accuracies that others report.", epilog="Example: ccd published wrn_40_2 wrn_16_2")
@click.argument("teacher", required=False)
@click.argument("student", required=False)
def published(teacher, student):
    """List published accuracies of the pair TEACHER STUDENT, or of all pairs, with source, recipe and number of runs.

    They come from recipes that the kit lacks. HSAKD's numbers are not here: the notebooks show them beside runs of its recipe.
    """
    for name in filter(None, (teacher, student)):
        MODELS[name]
    found = [row for row in REPORTED if teacher in (None, row.teacher) and student in (None, row.student)]
    for row in found:
        original = f" (of {row.original:g})" if row.original else ""
        runs = f"mean of {row.runs} runs" if row.runs else "number of runs not stated"
        pair = f"{row.data}, {row.teacher} to {row.student}"
        click.echo(f"{pair}: {row.method} {row.reached:g}{original}; {row.source}; {row.recipe}; {runs}")
    if not found:
        click.echo("the kit has no published numbers for these networks")


@cli.command(
    short_help="All data sets, or what is in one.",
    epilog="Examples: ccd data   ccd data digits   ccd data imagenet:/data/imagenet",
)
@click.option(
    "--side", type=click.IntRange(8, 4096), default=32, show_default=True, help="Side in pixels of images that are resized."
)
@click.argument("name", required=False)
def data(name, side):
    """List the data sets; or load and check the data set NAME, and print what is in it."""
    if name is None:
        for row, source in DATASETS.items():
            sizes = source.sizes
            what = f"{sizes.images} training images, {sizes.classes} classes" if sizes else source.about
            click.echo(f"{row + ':PATH' * source.takes_path:14} {what}")
        return
    found = load_data(name, side=side)
    found.check_files(whole=True)
    click.echo(f"{name}: {len(found.train_labels)} training and {len(found.test_labels)} test images, {found.classes} classes")
    click.echo(f"an image is {found.shape} (channels, height, width); mean {found.mean}, standard deviation {found.std}")
    counts = found.counts()
    click.echo(f"training {'boxes' if found.boxed else 'images'} of a class: {counts.min()} to {counts.max()}")
    click.echo(f"classes: {', '.join(found.class_names[:20])}{', ...' if found.classes > 20 else ''}")


@cli.command(short_help="Remove what was computed and is not published.", epilog="Example: ccd clean --runs")
@click.option("--runs", is_flag=True, help="Remove trained runs as well, except those that published results name.")
@click.option("-y", "--yes", is_flag=True, help="Remove without asking.")
def clean(runs, yes):
    """Remove executed notebooks of smoke and of your own parameters, failed copies, damaged runs and the engine's records.

    It lists what would be removed and asks first. Published results (the profiles in params/) and the runs that they name stay.
    """
    found = cleaning.removable(runs)
    for path, size in found:
        click.echo(f"{size / 1e6:9.1f} MB  {paths.shown(path)}")
    if not found:
        click.echo("nothing to remove")
    elif yes or click.confirm("Remove all of this?"):
        cleaning.remove(found)
    else:
        click.echo("nothing was removed")


@cli.command(short_help="Print the code that switches tab completion on.", epilog='Example: eval "$(ccd completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell):
    """Print the code that makes SHELL complete the commands, options, notebooks and profiles of `ccd`."""
    from click.shell_completion import get_completion_class

    click.echo(get_completion_class(shell)(cli, {}, "ccd", "_CCD_COMPLETE").source())


@cli.command(
    short_help="Execute notebooks as they are and keep the outputs in place.",
    epilog="Example: ccd refresh notebooks/*.ipynb",
)
@click.argument("notebooks", nargs=-1, required=True, **NOTEBOOK)
def refresh(notebooks):
    """Execute NOTEBOOKS under their own parameters, the profile lite, from records alone, and keep the outputs in them.

    There are no times in them, so the same results give the same bytes. A notebook whose records are not complete stays as it
    is.
    """
    for line in door.refresh(notebooks):
        click.echo(line)


@cli.command(short_help="Collect all published verdicts into docs/verdicts.md.", epilog="Example: ccd verdicts")
def verdicts():
    """Collect the claims of the results.json of every profile in params/ into the table of docs/verdicts.md."""
    click.echo(paths.shown(page.write()))


for command in (record, check, power):
    cli.add_command(command)

TRAINING = {"run", "batch", "fit", "refresh", "job"}  # commands that keep what they have trained


def main(arguments: list[str] | None = None) -> None:
    """Run `ccd`: errors end with one readable message and an exit status (see `ccd --help`), and `--debug` raises them."""
    if arguments is None:  # a process of its own, which ends on TERM as it does on Control-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cli.main(arguments, prog_name="ccd", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        trains = TRAINING & {*(sys.argv[1:] if arguments is None else arguments)}
        click.echo(f"interrupted. {GOES_ON}" if trains else "interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `ccd methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if _debug(sys.argv[1:] if arguments is None else arguments):
            raise
        _say_and_exit(error)


def _debug(arguments):
    return "--debug" in arguments or os.environ.get("CCD_DEBUG") not in (None, "", "0")


def _say_and_exit(error):

    if isinstance(error, CcdError | door.NotebookFailed):
        click.echo(f"ccd: {error}", err=True)
        sys.exit(1 if isinstance(error, door.NotebookFailed | Diverged) else 2)
    if isinstance(error, OSError) and error.filename:
        click.echo(f"ccd: {error.filename}: {error.strerror}. Correct this, or name another file or folder", err=True)
        sys.exit(2)
    click.echo(f"ccd: {type(error).__name__}: {error}\nThis should not happen. `ccd --debug ...` shows where it did.", err=True)
    sys.exit(1)
