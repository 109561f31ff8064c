"""The console script `ccd`: thin commands; nothing is computed here. It may import everything below."""

from ccdlib.cli.main import cli, main
