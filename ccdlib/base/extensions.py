"""A reader's own modules: loaded where $CCD_EXTENSIONS names them, and handed on to worker processes."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from ccdlib.base.registry import REGISTRIES, Added, CcdError

VARIABLE = "CCD_EXTENSIONS"
_failed: list[CcdError] = []


def load(names: Iterable[str] | None = None) -> None:
    """Import a reader's modules, in this process and in every process that it starts later.

    names: paths of .py files, or names of modules; None: those that $CCD_EXTENSIONS lists, separated as in $PATH. Errors:
    CcdError for a module that does not exist or raises an error.
    """
    before = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    found = [
        str(Path(name).expanduser().resolve()) if name.endswith(".py") else name
        for name in (before if names is None else names)
    ]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*before, *found] if names is not None else found))
    for name in found:
        _load(name)


def load_from_environment() -> None:
    """Load the modules of $CCD_EXTENSIONS, and leave an error to check().

    This runs while ccdlib itself is imported: raised here, the error would reach the command line as a traceback.
    """
    try:
        load()
    except CcdError as error:
        _failed.append(error)


def check() -> None:
    """Raise the CcdError of a module of $CCD_EXTENSIONS that load_from_environment() could not load."""
    if _failed:
        raise _failed[0]


def _load(name):
    path = Path(name)
    try:
        if path.suffix != ".py":
            importlib.import_module(name)
            return
        loaded = sys.modules.get(path.stem)
        if loaded is not None and getattr(loaded, "__file__", None) and Path(loaded.__file__).resolve() == path:
            return
        # A library may have the name of the file; its own module must stay importable.
        title = path.stem if loaded is None else f"ccd_extension_{path.stem}"
        spec = importlib.util.spec_from_file_location(title, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[title] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[title]
            raise
    except Exception as error:  # a reader's module may raise anything
        said = str(error) if isinstance(error, CcdError | FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise CcdError(
            f"the extension {name} ({VARIABLE}, or ccd --use) cannot be loaded ({said}). Give the path of a .py file, or the "
            "name of a module, that can be imported"
        ) from error


def added() -> list[Added]:
    """All rows that a reader's code added, each once: rows that follow another registry are left out."""
    return [row for registry in REGISTRIES.values() for row in registry.added.values() if row.kind == registry.kind]


def environment() -> dict[str, str]:
    """$CCD_EXTENSIONS, as a dict, for another process: the modules that are listed already and those that added rows here."""
    files = [row.file for row in added() if row.file]
    listed = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    return {VARIABLE: os.pathsep.join(dict.fromkeys([*listed, *files]))}


def carried() -> list[Added]:
    """The rows that notebook cells, prompts and scripts added, which no other process can import, with their digests.

    They are sent to a worker process, which takes them with receive().
    """
    return [row._replace(sent=row.digest()) for row in added() if row.file is None]


def receive(rows: Iterable[Added]) -> None:
    """Add the rows that carried() of another process returned; they keep the digests that they have there."""
    for row in rows:
        REGISTRIES[row.kind].receive(row)
