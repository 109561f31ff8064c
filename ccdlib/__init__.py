"""ccdlib: what data augmentation does in knowledge distillation (Li et al., ACCV 2022; Neurocomputing 2024).

The words of the kit:
    teacher, student    a trained network, and the one that learns from it
    view                one version of an image that the networks see; original view and augmented view
    policy              the ops that make an augmented image: Joint Data Augmentation (JDA)
    logits, temperature what a network says before softmax, and what softens it
    CCD                 Cosine Confidence Distillation: KD whose augmented views are weighed by the teacher's agreement
    run                 one network trained once; the run store keeps it
    cohort              runs that see the same batches and have the same teacher, and are trained together
    arm, experiment     the runs that differ in nothing but the seed; all arms of an analysis, and what is claimed of them
    recipe, profile     settings of a training; settings of a notebook (smoke, lite, paper)
"""

from ccdlib.augment import AUGMENTATIONS, OPS, POLICIES, Policy, apply_op
from ccdlib.config import RECIPES, Checkpoint, RunConfig, teacher_of_method
from ccdlib.data import DATASETS, Data, load_data
from ccdlib.experiments import EXPERIMENTS, Experiment, experiment
from ccdlib.losses import LOSSES, WEIGHTS, confidence
from ccdlib.methods import METHODS
from ccdlib.models import MODELS, Output, build
from ccdlib.notebook import Run
from ccdlib.registry import CcdError, UnknownName
from ccdlib.runs import DamagedRun
from ccdlib.train import Diverged, Result, check, evaluate, fit, fit_cohort, predict

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "EXPERIMENTS",
    "LOSSES",
    "METHODS",
    "MODELS",
    "OPS",
    "POLICIES",
    "RECIPES",
    "WEIGHTS",
    "CcdError",
    "Checkpoint",
    "DamagedRun",
    "Data",
    "Diverged",
    "Experiment",
    "Output",
    "Policy",
    "Result",
    "Run",
    "RunConfig",
    "UnknownName",
    "apply_op",
    "build",
    "check",
    "confidence",
    "evaluate",
    "experiment",
    "fit",
    "fit_cohort",
    "load_data",
    "predict",
    "teacher_of_method",
]
