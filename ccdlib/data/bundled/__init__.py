"""What comes with the package: small colour photographs (objects/), and teachers trained on them (teachers/).

The README of each folder names the source and the licence of its content, and what was changed.
"""

import csv
import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ccdlib.base.registry import CcdError, unknown
from ccdlib.data.bundled.objects.rebuild import tiles

HERE = Path(__file__).parent
OBJECTS, TEACHERS = HERE / "objects", HERE / "teachers"
PREFIX = "ccdlib:"  # tells the name of a bundled teacher from a file


def photographs() -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The four arrays of objects/ and the names of its 20 classes: images uint8 (N, 3, 32, 32), labels int64 (N,).

    Errors: CcdError for a damaged package.
    """
    listed, names = _listed()
    arrays = {}
    for split in ("train", "test"):
        labels = [names.index(row["label"]) for row in listed if row["split"] == split]
        arrays[f"{split}_images"] = tiles(_picture(OBJECTS / f"{split}.webp"), len(labels)).transpose(0, 3, 1, 2)
        arrays[f"{split}_labels"] = np.array(labels, dtype=np.int64)
    return arrays, names


def gallery() -> np.ndarray:
    """Larger copies, (20, 3, 160, 160) uint8, of the first test photograph of each class of objects/, for figures."""
    _, names = _listed()
    shown = [np.asarray(_picture(OBJECTS / "gallery" / f"{name}.jpg")) for name in names]
    return np.stack(shown).transpose(0, 3, 1, 2)


def _listed():
    """A dict for each photograph, in their order in the mosaics, and the names of the classes."""
    with open(OBJECTS / "images.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    return listed, tuple(dict.fromkeys(row["label"] for row in listed))


def _picture(file):
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise CcdError(f"{file}, which comes with the package, cannot be read ({error}); install the package again") from error


@lru_cache(maxsize=1)
def cards() -> dict[str, dict]:
    """The cards of all bundled teachers by name: model, configuration, data, accuracy, seed, sha256 and provenance."""
    return json.loads((TEACHERS / "cards.json").read_text())


def card(file: str) -> dict | None:
    """The card of the bundled teacher "ccdlib:NAME"; None for any other file. Errors: CcdError for an unknown name."""
    if not file.startswith(PREFIX):
        return None
    name = file.removeprefix(PREFIX)
    if name not in cards():
        raise unknown("bundled teacher", name, cards())
    return cards()[name]


def teacher(file: str) -> Path:
    """The path of the weights of the bundled teacher "ccdlib:NAME". Errors: CcdError for an unknown name or a damaged file."""
    known, path = card(file), TEACHERS / f"{file.removeprefix(PREFIX)}.safetensors"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != known["sha256"]:
        raise CcdError(f"{path}, which comes with the package, is missing or damaged; install the package again")
    return path
