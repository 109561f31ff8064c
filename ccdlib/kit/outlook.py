"""What is there of a batch, arm by arm, and what so many more hours would add."""

from collections.abc import Iterable

from ccdlib.kit.batch import Grid
from ccdlib.training.schedule import unfinished
from ccdlib.training.store import DamagedRun, Folder


def there(grid: Grid) -> str:
    """The runs of a batch that are finished, by arm, and those that are begun, with their epochs."""
    every = {folder.path.name: folder for folders in grid.runs.values() for folder in folders}.values()
    begun = [folder for folder in unfinished(every) if folder.file("resume.pt").exists()]
    done = _by_arm(grid, (folder for folder in every if folder.finished)) or "no run is finished"
    lines = [f"there now: {done}"]
    lines += [f"begun: {_begun(grid, folder)}" for folder in begun]
    return "\n".join(lines)


def adds(grid: Grid, seconds: dict[str, float], hours: float = 1.0, at_once: int = 1) -> str:
    """What so many hours would add to a batch, in the order in which its jobs begin.

    seconds: {cohort to be trained: seconds that it takes}. at_once: how many jobs run side by side.
    """
    finishes, free = {}, [0.0] * at_once
    for key in sorted(grid.missing_cohorts(), key=grid.tiers.get):
        first = min(range(at_once), key=free.__getitem__)
        begins = max([free[first], *(finishes[needed] for needed in grid.schedule.needs(key) if needed in finishes)])
        finishes[key] = free[first] = begins + seconds[key] * _left(grid.cohorts[key])
    inside = [key for key in finishes if finishes[key] <= 3600 * hours]
    added = _by_arm(grid, (folder for key in inside for folder in unfinished(grid.cohorts[key])))
    span = "the next hour" if hours == 1 else f"{hours:g} hours"
    if not added:
        return f"{span} would finish no run, but get on with those that are begun" if finishes else "nothing is missing"
    return f"{span} would add: {added}"


def _left(folders):
    """The share of the epochs of a cohort that is still to be trained."""
    missing = unfinished(folders)
    return sum(1 - _epochs(folder) / folder.config.epochs for folder in missing) / len(missing) if missing else 0.0


def _by_arm(grid, folders: Iterable[Folder]) -> str:
    """Runs as "KD (seeds 0 1), CCD (seed 0)", by notebook where there are several."""
    arms = {}
    for folder in folders:
        arms.setdefault(grid.arm_of[folder.path.name], set()).add(folder.config.seed)
    said = {}
    for (stem, arm), seeds in arms.items():
        said.setdefault(stem, []).append(f"{arm} (seed{'s' * (len(seeds) > 1)} {' '.join(map(str, sorted(seeds)))})")
    if len(grid.stems) == 1:
        return ", ".join(text for texts in said.values() for text in texts)
    return "; ".join(f"{stem}: {', '.join(texts)}" for stem, texts in said.items())


def _begun(grid, folder):
    config = folder.config
    return f"{' '.join(grid.arm_of[folder.path.name])}, seed {config.seed}, {_epochs(folder)} of {config.epochs} epochs"


def _epochs(folder):
    """The number of epochs that a run has saved."""
    try:
        return len(folder.curves())
    except DamagedRun:  # nothing is saved yet
        return 0
