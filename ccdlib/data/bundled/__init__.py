"""What comes with the package: small colour photographs (objects/), and networks trained on them (teachers/).

Both folders say in a README where their content is from, under which licence, and what was changed.
"""

import csv
import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from ccdlib.base.registry import CcdError, unknown
from ccdlib.data.bundled.objects.rebuild import tiles

HERE = Path(__file__).parent
OBJECTS, TEACHERS = HERE / "objects", HERE / "teachers"
PREFIX = "ccdlib:"  # of the names of bundled teachers, where a file could be named


def photographs():
    """(arrays, class names) of the 20 classes of objects/: images uint8 (N, 3, 32, 32), labels int64 (N,)."""
    listed, names = _listed()
    arrays = {}
    for split in ("train", "test"):
        labels = [names.index(row["label"]) for row in listed if row["split"] == split]
        arrays[f"{split}_images"] = tiles(_picture(OBJECTS / f"{split}.webp"), len(labels)).transpose(0, 3, 1, 2)
        arrays[f"{split}_labels"] = np.array(labels, dtype=np.int64)
    return arrays, names


def gallery():
    """(20, 3, 160, 160) uint8: the first test photograph of each class of objects/, larger, for pictures."""
    _, names = _listed()
    shown = [np.asarray(_picture(OBJECTS / "gallery" / f"{name}.jpg")) for name in names]
    return np.stack(shown).transpose(0, 3, 1, 2)


def _listed():
    """(a dict for each photograph, in their order; class names)."""
    with open(OBJECTS / "images.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    return listed, tuple(dict.fromkeys(row["label"] for row in listed))


def _picture(file):
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise CcdError(f"{file}, which comes with the package, cannot be read ({error}); install the package again") from error


@lru_cache(maxsize=1)
def cards():
    """{name: what is known of a bundled teacher}: model, configuration, data, accuracy, seed, sha256, provenance."""
    return json.loads((TEACHERS / "cards.json").read_text())


def card(file):
    """What is known of the teacher "ccdlib:NAME"; None for other files. Errors: CcdError for a name that there is not."""
    if not file.startswith(PREFIX):
        return None
    name = file.removeprefix(PREFIX)
    if name not in cards():
        raise unknown("bundled teacher", name, cards())
    return cards()[name]


def teacher(file):
    """The path of the weights of "ccdlib:NAME". Errors: CcdError for a name that there is not, and for a damaged file."""
    known, path = card(file), TEACHERS / f"{file.removeprefix(PREFIX)}.safetensors"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != known["sha256"]:
        raise CcdError(f"{path}, which comes with the package, is not what its card says; install the package again")
    return path
