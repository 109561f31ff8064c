"""Named random streams: every random number of the kit comes from a generator that its seed and its name determine.

Two runs of one seed have the same initial weights, batch order and views, whatever else differs between them. A resumed run
needs no generator state, because the epoch is part of the name. Torch's global generator is never touched.
"""

import hashlib

import torch

STREAMS = ("weights", "heads", "order", "base", "policy", "share", "subset", "negatives", "regions")


def stream(seed: int, name: str, *where: int) -> torch.Generator:
    """A new CPU generator for the stream `name` (one of STREAMS) of `seed`.

    where: further numbers that tell one stream of that name from another, such as epoch, view and image. Errors: ValueError
    for a name that is not in STREAMS.
    """
    if name not in STREAMS:
        raise ValueError(f"unknown random stream {name!r}; the streams are {', '.join(STREAMS)}")
    digest = hashlib.sha256(repr((int(seed), name, *map(int, where))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
