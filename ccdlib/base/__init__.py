"""What every other room builds on: registries and errors, a reader's extensions, paths, random streams, files and devices.

    registry.py    rows by name, and CcdError        sources.py  digests of a reader's source code
    extensions.py  a reader's own modules            paths.py    where notebooks, results and downloads are
    files.py       files written whole, and locks    reading.py  text and YAML, read strictly
    streams.py     named random generators           devices.py, vision.py  GPUs and cores; torchvision beside a CPU-only torch
    arithmetic.py  precision, and portable bits

It may import nothing of the other rooms.
"""
