"""What every room needs: names and errors, a reader's own extensions, paths, random streams, files, devices.

    registry.py, extensions.py, sources.py  what there is by name, also from outside of the kit    paths.py    streams.py
    files.py, reading.py  files written whole, read strictly    devices.py    vision.py  torchvision beside a CPU-only torch

It imports nothing of the kit.
"""
