"""Commands about records: what stays of runs without their weights."""

import sys

import click

from ccdlib.base.registry import CcdError
from ccdlib.cli.options import NOTEBOOK, PROFILE, names_in
from ccdlib.kit import batch as planner
from ccdlib.kit import power as powers
from ccdlib.kit import recheck, recorded


@click.command(
    short_help="Add finished runs to the records of a profile.",
    epilog="Example: ccd record --profile lite   (all notebooks)   or: ccd record 03_proportion --profile lite",
)
@click.option("--profile", **PROFILE)
@click.argument("notebooks", nargs=-1, **NOTEBOOK)
def record(notebooks, profile):
    """Add the finished runs of NOTEBOOKS (all, if none is named) to outputs/PROFILE/NOTEBOOK/records.jsonl.

    Records hold configuration, curves, accuracies and provenance, without weights. With them a notebook is executed in seconds,
    on any machine. Days and machines add to one file; runs of another precision or protocol are refused.
    """
    refused = []
    for stem in notebooks or planner.stems_of(profile):
        try:
            click.echo(recorded.write(stem, profile))
        except CcdError as error:
            refused.append(f"{stem}: {error}")
    if refused:
        raise CcdError("\n".join(refused))


@click.command(
    short_help="Train a sample of recorded runs again, and compare.",
    epilog="Example: ccd check lite --runs 5   or: ccd check class 00_quickstart",
)
@click.option("--runs", type=click.IntRange(1, 1000), default=3, show_default=True, help="How many runs.")
@click.option("--sample", type=click.IntRange(0), default=0, show_default=True, help="The seed that chooses them.")
@click.option("--confirm", is_flag=True, help="Not a sample, but one run of each kind that other code trained.")
@click.argument("profile", shell_complete=names_in("PARAMS", "*"))
@click.argument("notebooks", nargs=-1, **NOTEBOOK)
def check(profile, notebooks, runs, sample, confirm):
    """Train RUNS recorded runs of PROFILE again, chosen at random, in a store of their own that is deleted.

    Each has to fall within the spread of its arm (the 99 % interval of one more run), or, where the records are portable, to
    have the same bits. Exit status: 0 when all do, 1 when one does not.

    With --confirm all have to have the same bits, which only a processor like that of the records gives. Then
    outputs/PROFILE/confirmed.json says that the code as it is now gives these records, though earlier code trained them.
    """
    stems = notebooks or planner.stems_of(profile)
    chosen = recheck.one_of_each_kind(profile, stems) if confirm else recheck.sample(profile, stems, runs, sample)
    if confirm:
        click.echo(f"{len(chosen)} kinds of run were trained by other code, and are trained again")
    passed = []
    for one in recheck.again(chosen):
        passed.append(one.same_bits if confirm else one.passed)
        click.echo(one.bits if confirm else one.said)
    if not all(passed):
        if confirm:
            click.echo(
                "not confirmed: code, or a processor, that gives other bits; runs of the code as it is now can be trained"
            )
        sys.exit(1)
    if confirm and chosen:
        recheck.confirm(profile, chosen)
        click.echo("confirmed: the code as it is now gives these records")


@click.command(
    short_help="How many seeds a verdict needs, from recorded runs.",
    epilog="Example: ccd power 06_ccd --profile lite --difference 0.5",
)
@click.option("--profile", **PROFILE)
@click.option("--difference", type=float, required=True, help="The effect to detect, or to show to be absent, in points.")
@click.argument("notebook", **NOTEBOOK)
def power(notebook, profile, difference):
    """Print for each claim of NOTEBOOK how far its seeds spread, and how many it takes to decide it in four of five cases."""
    click.echo(powers.power(notebook, profile, difference))
