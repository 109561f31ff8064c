"""Whether bfloat16 costs accuracy: ten paired seeds of one small pair, float32 against bfloat16.

    python benchmarks/equivalence.py [--seeds 0 10]

Declared before the first of these runs: seeds 0 to 9; handwritten digits, 1,000 training images; a resnet20 of seed 100, which
was trained in float32, teaches resnet8 by KD + JDA for 20 epochs. Equivalent: the interval of the paired difference lies within
half a point, each end wrong in at most 5 % of cases. The number of images was chosen on seeds from 1000 up, where the
accuracies of seeds differ little enough for ten of them to tell. equivalence.json keeps every accuracy.
"""

import argparse
import json
from pathlib import Path

from ccdlib.base.arithmetic import processor
from ccdlib.evidence import stats
from ccdlib.training import RunConfig
from ccdlib.training.cohort import fit
from ccdlib.training.recipes import recipe_of
from ccdlib.training.schedule import Schedule, Trainings, folders_of

FILE = Path(__file__).with_suffix(".json")
MARGIN = 0.5
IMAGES = {"data": "digits", "n_train": 1000, "eval_every": 20}
OF_TEACHER = recipe_of("small", "resnet20", "teacher") | {"model": "resnet20", "epochs": 20, "seed": 100}
TEACHER = RunConfig(**IMAGES | OF_TEACHER, precision="float32")
STUDENT = IMAGES | recipe_of("small", "resnet8") | {"model": "resnet8", "epochs": 20, "method": "kd", "views": "cifar100"}


def main() -> None:
    """Train, compare and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 10), metavar=("FIRST", "END"))
    seeds = range(*parser.parse_args().seeds)
    arms = {
        precision: [RunConfig(**STUDENT, teacher=TEACHER, precision=precision, seed=seed) for seed in seeds]
        for precision in ("float32", "bfloat16")
    }
    every = [config for configs in arms.values() for config in configs]
    with Trainings(Schedule(folders_of(every))) as trainings:
        trainings.wait(every)
    found = {arm: [fit(config, show="none").accuracy for config in configs] for arm, configs in arms.items()}
    difference = stats.paired(found["bfloat16"], found["float32"], level=0.90)  # two one-sided tests of 5 % each
    equivalent = max(-difference.low, difference.high) < MARGIN
    print(f"bfloat16 - float32: {difference}, 90 %: {'equivalent' if equivalent else 'not shown to be equivalent'}")
    if seeds == range(10):
        seconds = {arm: sum(fit(config, show="none").seconds for config in configs) for arm, configs in arms.items()}
        kept = {"processor": processor(), "accuracies": found, "difference": difference, "margin": MARGIN}
        FILE.write_text(json.dumps(kept | {"equivalent": equivalent, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
