"""`python -m ccdlib`: the same as `ccd`."""

from ccdlib.cli import main

main()
