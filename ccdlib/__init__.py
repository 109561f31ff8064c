"""ccdlib: what data augmentation does in knowledge distillation (Li et al., ACCV 2022; Neurocomputing 2024).

The words of the kit:
    teacher, student    a trained network, and the one that learns from it
    view                one version of an image that the networks see; original view and augmented view
    policy              the ops that make an augmented image: Joint Data Augmentation (JDA)
    logits, temperature what a network says before softmax, and what softens it
    CCD                 Cosine Confidence Distillation: KD whose augmented views are weighed by the teacher's agreement
    detector, region    a network that finds things in images; a box that it proposes, and says of which class it is
    run                 one network trained once; the run store keeps it
    cohort              runs that see the same batches and have the same teacher, and are trained together
    arm, experiment     the runs that differ in nothing but the seed; all arms of an analysis, and what is claimed of them
    recipe, profile     settings of a training; settings of a notebook (smoke, lite, paper)
"""

from ccdlib.analyses import EXPERIMENTS, Experiment, experiment
from ccdlib.base import arithmetic, extensions, registry
from ccdlib.base.registry import CcdError, UnknownName
from ccdlib.data import DATASETS, Data, load_data
from ccdlib.kit.analysis import Analysis
from ccdlib.methods import ANSWERS, LOSSES, METHODS, TWINS, WEIGHTS, Given, Method, Range, confidence
from ccdlib.models import MODELS, Backbone, Output, build
from ccdlib.training import (
    RECIPES,
    Checkpoint,
    DamagedRun,
    Diverged,
    Result,
    RunConfig,
    check,
    evaluate,
    fit,
    fit_cohort,
    predict,
    teacher_of_method,
)
from ccdlib.views import OPS, POLICIES, VIEWS, Op, Policy, ViewRule, apply_op

arithmetic.from_environment()
registry.seal()  # what is added from here on is a reader's own
extensions.load_from_environment()

__all__ = [
    "ANSWERS",
    "DATASETS",
    "EXPERIMENTS",
    "LOSSES",
    "METHODS",
    "MODELS",
    "OPS",
    "POLICIES",
    "RECIPES",
    "TWINS",
    "VIEWS",
    "WEIGHTS",
    "Analysis",
    "Backbone",
    "CcdError",
    "Checkpoint",
    "DamagedRun",
    "Data",
    "Diverged",
    "Experiment",
    "Given",
    "Method",
    "Op",
    "Output",
    "Policy",
    "Range",
    "Result",
    "RunConfig",
    "UnknownName",
    "ViewRule",
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
