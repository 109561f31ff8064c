"""Methods: what a training minimises. Plain losses, and a file for each method that has heads or a memory.

    losses.py  plain losses, and the weights of CCD    method.py  the contract of a method, and the registry METHODS
    settings.py  the allowed values of settings        fitnet.py, crd.py, sskd.py, hsakd.py, detection.py

It may import models, views, data and base, and nothing above.
"""

from ccdlib.methods import crd, detection, fitnet
from ccdlib.methods.hsakd import HSAKD, HSAKDTeacher
from ccdlib.methods.losses import ANSWERS, LOSSES, TWINS, WEIGHTS, confidence
from ccdlib.methods.method import (
    CLASSIFYING,
    DETECTING,
    METHODS,
    TURNS,
    Given,
    Method,
    blank_output,
    check_settings,
    make,
    settings_of,
    words_in,
)
from ccdlib.methods.settings import Range
from ccdlib.methods.sskd import SSKD, SSKDTeacher, trusted
