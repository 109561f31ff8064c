"""What `ccd clean` may remove: what was computed here and is not published."""

import json
import shutil
from pathlib import Path

from filelock import Timeout

from ccdlib.base import paths
from ccdlib.base.files import file_lock
from ccdlib.base.registry import CcdError
from ccdlib.kit.parameters import SMOKE, profiles


def removable(runs: bool = False) -> list[tuple[Path, int]]:
    """[(path, bytes)] under outputs/ that nothing published needs: executed notebooks of smoke and of own parameters, copies of
    failed notebooks, damaged runs that were set aside, the engine's records, lists of image files; with `runs`, finished and
    begun runs as well.

    Folders of the profiles in params/ and the runs that their results name are never among them. Errors: CcdError while a
    batch is running.
    """
    out = paths.outputs()
    for lock in out.glob(".batch/*/locks/batch.lock"):
        _free(lock, f"a batch is running ({paths.shown(lock.parent.parent)}); wait until it has ended, or stop it")
    published = {*profiles()} - {SMOKE}
    own = [folder for folder in sorted(out.glob("*")) if folder.is_dir() and _own(folder.name)]
    failed, damaged = sorted(out.glob("*/*.failed.ipynb")), sorted(out.glob("runs/*.damaged-*"))
    found = [out / ".batch", out / ".images", *own, *failed, *damaged]
    if runs:
        needed = _published_runs(published)
        for folder in sorted((out / "runs").glob("*-*")):
            if folder.is_dir() and folder.name not in needed and folder not in found:
                _free(
                    folder.with_name(f".{folder.name}.lock"),
                    f"{paths.shown(folder)} is being trained; wait until this has ended",
                )
                found.append(folder)
    tops = [path for path in found if path.exists() and not any(other in path.parents for other in found)]
    return [(path, _size(path)) for path in tops]


def remove(found: list[tuple[Path, int]]) -> None:
    """Remove what removable() gave."""
    for path, _ in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _own(name):
    """Whether a folder is that of smoke, or of a profile with own parameters: its name, a dash, a hash."""
    return name == SMOKE or name.rpartition("-")[0] in profiles()


def _published_runs(published):
    files = (file for profile in published for file in (paths.outputs() / profile).glob("*/results.json"))
    return {name for file in files for names in json.loads(file.read_text())["runs"].values() for name in names}


def _free(lock, message):
    if not lock.exists():
        return
    try:
        with file_lock(lock).acquire(timeout=0):
            pass
    except Timeout:
        raise CcdError(message) from None


def _size(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
