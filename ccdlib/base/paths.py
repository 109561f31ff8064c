"""Where notebooks, profiles, results and downloads are; never relative to the working directory, which notebooks change."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The checkout with notebooks/ and params/. The library need not lie in it: an installed one finds it by $CCD_ROOT.
ROOT = Path(os.environ.get("CCD_ROOT") or Path(__file__).parent.parent.parent).expanduser().resolve()
NOTEBOOKS = ROOT / "notebooks"
PARAMS = ROOT / "params"

for _name in ("CCD_OUTPUTS", "CCD_DATA"):  # processes that this one starts have other working directories
    if os.environ.get(_name):
        os.environ[_name] = str(Path(os.environ[_name]).expanduser().absolute())


def outputs() -> Path:
    """The folder of all results: $CCD_OUTPUTS, else outputs/ of the checkout."""
    return Path(os.environ.get("CCD_OUTPUTS") or ROOT / "outputs").expanduser().resolve()


def downloads() -> Path:
    """The folder of downloaded data sets: $CCD_DATA, else data/ of the checkout."""
    return Path(os.environ.get("CCD_DATA") or ROOT / "data").expanduser().resolve()


def shown(path: str | Path) -> str:
    """A path for people to read: relative to the checkout where it lies inside it."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Context in which an environment variable has a value, for this process and those that it starts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
