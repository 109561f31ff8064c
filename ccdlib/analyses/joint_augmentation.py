"""01: which views help a student, when the teacher has never seen them, and what of a twin does?"""

from collections.abc import Iterable, Mapping
from typing import Any

from ccdlib.analyses.common import COMPUTE, CROP, EPOCHS, needs_of, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError
from ccdlib.data.sources import sizes_of
from ccdlib.evidence.stats import more
from ccdlib.training import Result
from ccdlib.views.policies import policy_named

# Parts of KD + JDA, as settings of the method kd_twins.
PARTS = {
    "twins without labels": {"hard": False},
    "right twins only": {"twins": "right"},
    "as many others as right": {"twins": "as many as right"},
    "wrong twins only": {"twins": "wrong"},
    "as many others as wrong": {"twins": "as many as wrong"},
    "answers of other twins": {"answers": "shuffled"},
}


@EXPERIMENTS.add("01_joint_augmentation")
def joint_augmentation(p: Parameters) -> Experiment:
    """Claim (a): KD with kinds of views that the teacher never saw, with each op of the policy alone, and with parts of JDA.

    `left_out`: also with each op of the policy left out.
    """
    teachers, epochs = teachers_of(p), p["student_epochs"]
    kinds = {"KD, not cropped": "raw", "KD": "none", CROP: "base", "KD + rotation": "rotation", "KD + JDA": p["policy"]}
    arms = {"teacher": teachers} | {arm: students_of(p, teachers, views=views) for arm, views in kinds.items()}
    # Two views in half as many epochs, and one in twice as many, are as much compute as KD + JDA.
    arms |= {
        "KD, twice the epochs": students_of(p, teachers, 2 * epochs),
        "KD + rotation, half the epochs": students_of(p, teachers, max(1, epochs // 2), views="rotation"),
    }
    twins = {"method": "kd_twins", "views": p["policy"]}
    arms |= {name: students_of(p, teachers, **twins, settings=settings) for name, settings in PARTS.items()}
    ops = effective_ops(p)
    # A single op fires with `single_p`, 1 by default: with the policy's own p most twins would be copies of the original.
    arms |= {f"only {op}": students_of(p, teachers, views=p["policy"], ops=(op,), p=p["single_p"]) for op in ops}
    every = [name for name, _ in policy_named(p["policy"]).steps]
    for op in ops if p["left_out"] else ():
        rest = tuple(dict.fromkeys(name for name in every if name != op))
        arms[f"without {op}"] = students_of(p, teachers, views=p["policy"], ops=rest)
    # There is a figure of what every teacher makes of the ops.
    return Experiment(arms, (*_view_claims(p), *_part_claims(p)), networks={"teacher": len(teachers)})


def _view_claims(p):
    compared = {
        f"KD gains from JDA, though the teacher never saw such views, at {EPOCHS}": "KD",
        f"KD gains more from JDA than from twice the epochs, at {COMPUTE}": "KD, twice the epochs",
        f"KD gains more from JDA than from rotation, at {EPOCHS}": "KD + rotation",
        f"KD gains more from JDA than from rotation, at {COMPUTE}": "KD + rotation, half the epochs",
        "KD gains more from JDA than from a second crop and flip, which costs as much": CROP,
    }
    return [more("(a)", statement, "KD + JDA", arm, **needs_of(p)) for statement, arm in compared.items()]


def _part_claims(p):
    """The riddle of claim (a): a teacher that is wrong about many twins, and a student that gains from them."""
    right, wrong = "right twins only", "wrong twins only"
    compared = {
        "without labels on twins KD still gains from JDA": ("twins without labels", "KD"),
        "labels on twins help": ("KD + JDA", "twins without labels"),
        "the teacher's own answers to twins are better than those to other twins": (
            "KD + JDA",
            "answers of other twins",
        ),
        "KD gains from the twins that the teacher gets right": (right, "KD"),
        "KD gains from the twins that the teacher gets wrong": (wrong, "KD"),
        "twins that the teacher gets right help more than as many others": (right, "as many others as right"),
        "twins that the teacher gets wrong help less than as many others": ("as many others as wrong", wrong),
        "twins that the teacher gets wrong help on top of the others": ("KD + JDA", right),
    }
    return [more("(a)", statement, *pair, **needs_of(p)) for statement, pair in compared.items()]


def gains_by_op(results: Mapping[str, list[Result]], seen: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each op and seed, the teacher's accuracy on images with the op, and the student's gain over a second crop from it.

    results: {arm: Results} of 01. seen: rows of teacher_views() with "seed", the place of the seed. Keys: "name", "seed",
    "teacher" (percent), "gain" (points).
    """
    gained = {
        arm: [run.accuracy - base.accuracy for run, base in zip(runs, results[CROP], strict=True)]
        for arm, runs in results.items()
    }
    return [
        {
            "name": row["views"],
            "seed": row["seed"],
            "teacher": row["accuracy"],
            "gain": gained[f"only {row['views']}"][row["seed"]],
        }
        for row in seen
        if f"only {row['views']}" in gained
    ]


def effective_ops(p: Parameters) -> list[str]:
    """The ops that 01 compares: the parameter `ops`, or all ops of the policy that can change an image of the data.

    Errors: CcdError for an op that changes no image, or is named twice.
    """
    policy = policy_named(p["policy"])
    known = dict.fromkeys(name for name, _ in policy.effective(sizes_of(p["data"]).channels))
    for op in p["ops"]:
        if op not in known:
            raise CcdError(
                f"ops holds {op!r}, which changes no image of this data or is not an op of {p['policy']}; "
                f"allowed: {', '.join(known)}"
            )
    if len(set(p["ops"])) < len(p["ops"]):
        raise CcdError(f"ops = {p['ops']}: name each op once")
    return p["ops"] or list(known)
