"""Arguments and options that several commands have."""

import os
from collections.abc import Callable

import click

from ccdlib.base import paths
from ccdlib.kit import recorded
from ccdlib.kit.parameters import DEFAULT


def names_in(folder: str, pattern: str) -> Callable:
    """A function for tab completion: the names of files in a folder of this checkout."""

    def complete(context, parameter, incomplete):

        found = {path.stem for path in getattr(paths, folder).glob(pattern)} | ({DEFAULT} if folder == "PARAMS" else set())
        return sorted(name for name in found if name.startswith(incomplete))

    return complete


NOTEBOOK = {"shell_complete": names_in("NOTEBOOKS", "*.ipynb")}


PROFILE = {
    "default": DEFAULT,
    "show_default": True,
    "help": "lite, whose values stand in the notebooks, or the name of a folder in params/, such as paper.",
    "shell_complete": names_in("PARAMS", "*"),
}


TIMED = "Estimate the times from a few training steps of each kind, which takes a minute."


def asks_for_parameters(command: Callable) -> Callable:
    """The argument and options that name a notebook and its parameters."""
    for option in (
        click.option("-p", "given", multiple=True, nargs=2, metavar="NAME VALUE", help="Set one parameter."),
        click.option("-f", "files", multiple=True, type=click.Path(), metavar="FILE.yaml", help="Set parameters from a file."),
        click.option("--profile", **PROFILE),
        click.argument("notebook", **NOTEBOOK),
    ):
        command = option(command)
    return command


def from_option(command: Callable) -> Callable:
    """The option that says where results come from."""

    def keep(context, parameter, value):
        if value:
            os.environ[recorded.FROM] = value  # read here and by kernels

    what = "Where results come from: records trains nothing, scratch looks at no records, any trains what neither has.  [any]"
    return click.option("--from", type=click.Choice(recorded.SOURCES), callback=keep, expose_value=False, help=what)(command)
