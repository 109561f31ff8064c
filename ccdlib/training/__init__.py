"""Training: what a run is, the loop, cohorts, the run store, several processes, and who trains what when.

    recipes.py, config.py  settings of runs    loop.py, ascent.py  the loop, sharpness-aware steps    cohort.py  fit
    teachers.py, evaluate.py, detections.py, checks.py  before and after    store.py, identity.py  the run store
    group.py  several processes that train one network
    schedule.py  cohorts side by side          forecast.py, work.py  how long, and how much

It may import methods, models, views, data and base, and nothing above.
"""

from ccdlib.training.checks import check, check_surroundings, data_of
from ccdlib.training.cohort import Result, fit, fit_cohort, folder_of, measured, network_of
from ccdlib.training.config import Checkpoint, RunConfig, teacher_of_method, with_teachers
from ccdlib.training.evaluate import evaluate, predict
from ccdlib.training.loop import Diverged, Log, Trainee, prepare, train_epoch, train_step
from ccdlib.training.recipes import NAMES, RECIPES, recipe_of
from ccdlib.training.store import DamagedRun, Folder
from ccdlib.training.teachers import TaughtBy, untrained
