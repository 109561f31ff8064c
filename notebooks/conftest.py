"""How nbval checks the notebooks: with fresh training, and without what may differ between machines."""

import os
import tempfile

import pytest

FIRST = "00_quickstart.ipynb"


def pytest_configure(config):
    """Every check trains anew, in a folder of its own: a stored run must not hide that the code has changed.

    The workers of one check share the folder, so that a run of two notebooks is trained once.
    """
    if not hasattr(config, "workerinput"):
        config.nbval_outputs = tempfile.TemporaryDirectory(prefix="ccdlib-nbval-")
        os.environ["CCD_OUTPUTS"] = config.nbval_outputs.name
    os.environ.setdefault("CCD_DEVICE", "cpu")  # the stored outputs are a CPU's


def pytest_unconfigure(config):
    """Leave nothing behind."""
    if not hasattr(config, "workerinput"):
        config.nbval_outputs.cleanup()


@pytest.hookimpl(trylast=True)
def pytest_collectstart(collector):
    """Compare words, not the HTML and SVG that hold ids, nor what libraries say on stderr."""
    if collector.nodeid.endswith(".ipynb"):
        collector.skip_compare += ("text/html", "image/svg+xml", "stderr")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`make test` checks the first notebook, which takes a minute, and `make drills` all others, which take several."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        if file.endswith(".ipynb") and not file.endswith(FIRST):
            item.add_marker(pytest.mark.drill)
