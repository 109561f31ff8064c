"""The analyses: a module for each notebook, with its arms, its claims, and the facts of arms that its figures show.

    experiment.py  arms and claims as data, and their training    common.py  functions that several analyses use
    00 quickstart, 01 joint_augmentation, 02 augmented_teacher, 03 proportion, 04 few_shot, 05 compatibility,
    06 ccd, 07 imagenet, 08 detection, 09 flat_minima, 10 predict_from_teacher

It may import evidence, training and what is below.
"""

from ccdlib.analyses import (
    augmented_teacher,
    ccd,
    compatibility,
    detection,
    few_shot,
    flat_minima,
    imagenet,
    joint_augmentation,
    predict_from_teacher,
    proportion,
    quickstart,
)
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, experiment
