"""Named random streams: every random number of the kit comes from a generator that a (seed, name) pair determines.

Two runs with one seed see the same initial weights, batch order and views, whatever else differs between them, and a
resumed run needs no generator state: the epoch is part of the name. Torch's global generator is never touched.
"""

import hashlib

import torch

STREAMS = ("weights", "heads", "order", "base", "policy", "share", "subset", "negatives")


def stream(seed, name, *where):
    """A fresh CPU generator for `name` (one of STREAMS) under `seed`; `where` tells epochs and views apart."""
    if name not in STREAMS:
        raise ValueError(f"unknown random stream {name!r}; the streams are {', '.join(STREAMS)}")
    digest = hashlib.sha256(repr((int(seed), name, *map(int, where))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
