"""A logger plugin of Snakemake: what becomes of the jobs of a batch, a JSON line each, in the file $CCD_EVENTS.

`ccd batch` puts this folder on the engine's path and starts it with `--logger ccd`; engine.Watch reads the lines.
"""

import json
import os
from pathlib import PurePosixPath

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

STATES = {LogEvent.JOB_INFO: "running", LogEvent.JOB_FINISHED: "done", LogEvent.JOB_ERROR: "failed"}


class LogHandler(LogHandlerBase):
    """Keeps which of Snakemake's numbers is which job, by its marker file."""

    def __post_init__(self):
        self.names = {}

    def emit(self, record):
        """Write a line for an event of a job; all others are not ours."""
        state, number = STATES.get(getattr(record, "event", None)), getattr(record, "jobid", getattr(record, "job_id", None))
        for output in getattr(record, "output", None) or ():
            self.names[number] = PurePosixPath(output).name
        if state and number in self.names:
            with open(os.environ["CCD_EVENTS"], "a") as file:
                file.write(json.dumps({"job": self.names[number], "state": state}) + "\n")

    writes_to_stream = False
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False
