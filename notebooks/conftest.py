"""How nbval checks the notebooks: their numbers, from records, and without what may differ between machines."""

import os
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

from ccdlib.base.registry import CcdError
from ccdlib.kit import recorded
from ccdlib.kit.parameters import DEFAULT, find, profile_parameters

FIRST = "00_quickstart.ipynb"


def pytest_configure(config):
    """No check finds a stored run, nor trains one: the numbers come from the published records alone."""
    if not hasattr(config, "workerinput"):
        config.nbval_outputs = tempfile.TemporaryDirectory(prefix="ccdlib-nbval-")
        os.environ["CCD_OUTPUTS"] = config.nbval_outputs.name
    os.environ[recorded.FROM] = "records"
    os.environ.setdefault("CCD_DEVICE", "cpu")  # the stored outputs are a CPU's


def pytest_unconfigure(config):
    """Leave nothing behind."""
    if not hasattr(config, "workerinput"):
        config.nbval_outputs.cleanup()


@pytest.hookimpl(trylast=True)
def pytest_collectstart(collector):
    """Compare words and numbers, not the HTML and SVG that hold ids, nor what libraries say on stderr."""
    if collector.nodeid.endswith(".ipynb"):
        collector.skip_compare += ("text/html", "image/svg+xml", "stderr")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`make test` checks the first notebook, which takes a minute, and `make drills` all others, which take several."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        if not file.endswith(".ipynb"):
            continue
        if not file.endswith(FIRST):
            item.add_marker(pytest.mark.drill)
        if lacks := lacking(Path(file).stem):
            item.add_marker(pytest.mark.skip(reason=lacks))


@lru_cache
def lacking(stem):
    """What the published records of a notebook lack, in words; "" where they are complete."""
    try:
        recorded.experiment(stem, profile_parameters(find(stem), DEFAULT), DEFAULT)
    except CcdError as error:
        return str(error)
    return ""
