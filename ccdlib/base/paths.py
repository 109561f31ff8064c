"""Where things are. Never the working directory: notebooks run in several."""

import os
from pathlib import Path

# The checkout with notebooks/ and params/; $CCD_ROOT names another one than the library lies in.
ROOT = Path(os.environ.get("CCD_ROOT") or Path(__file__).parent.parent.parent).expanduser().resolve()


for _name in ("CCD_OUTPUTS", "CCD_DATA"):  # processes that this one starts do so in other folders
    if os.environ.get(_name):
        os.environ[_name] = str(Path(os.environ[_name]).expanduser().absolute())


NOTEBOOKS = ROOT / "notebooks"


PARAMS = ROOT / "params"


def outputs():
    """The folder of everything computed: $CCD_OUTPUTS, else outputs/ of this checkout."""
    return Path(os.environ.get("CCD_OUTPUTS") or ROOT / "outputs").expanduser().resolve()


def downloads():
    """Where torchvision keeps what it downloads: $CCD_DATA, else data/ of this checkout."""
    return Path(os.environ.get("CCD_DATA") or ROOT / "data").expanduser().resolve()


def shown(path):
    """A path as a person wants to read it: relative to the checkout where it lies inside."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
