"""Which worker of pytest-xdist runs what."""

from xdist.scheduler.loadscope import LoadScopeScheduling


class TestByTest(LoadScopeScheduling):
    """Each test goes to the worker that is free; a notebook goes to one as a whole, for its cells share a kernel. It comes
    first, because the parts with the most items do. (xdist's own groups are lost with pytest 9.2, which keeps node ids.)"""

    __test__ = False

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        return file if file.endswith(".ipynb") else nodeid
