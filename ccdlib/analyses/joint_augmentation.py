"""01: which views help a student, when the teacher has never seen them?"""

from ccdlib.analyses.common import needs_of, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError
from ccdlib.data.sources import sizes_of
from ccdlib.evidence.stats import more
from ccdlib.views.policies import policy_named


@EXPERIMENTS.add("01_joint_augmentation")
def joint_augmentation(p: Parameters) -> Experiment:
    """Claim (a): KD with kinds of views that the teacher never saw, and with each op of the policy alone or left out."""
    teachers = teachers_of(p)
    kinds = {"KD, not cropped": "raw", "KD": "none", "KD + crop and flip": "base", "KD + rotation": "rotation"}
    arms = {"teacher": teachers} | {arm: students_of(p, teachers, views=views) for arm, views in kinds.items()}
    arms["KD + JDA"] = students_of(p, teachers, views=p["policy"])
    ops = effective_ops(p)
    # A single op fires with `single_p`, 1 by default: with the policy's own p most twins would be copies of the original.
    arms |= {f"only {op}": students_of(p, teachers, views=p["policy"], ops=(op,), p=p["single_p"]) for op in ops}
    every = [name for name, _ in policy_named(p["policy"]).steps]
    for op in ops:
        rest = tuple(dict.fromkeys(name for name in every if name != op))
        arms[f"without {op}"] = students_of(p, teachers, views=p["policy"], ops=rest)
    claims = (
        more("(a)", "KD gains from JDA, though the teacher never saw such views", "KD + JDA", "KD", **needs_of(p)),
        more("(a)", "KD gains more from JDA than from rotation", "KD + JDA", "KD + rotation", **needs_of(p)),
        more("(a)", "KD gains more from JDA than from a second crop and flip", "KD + JDA", "KD + crop and flip", **needs_of(p)),
    )
    return Experiment(arms, claims)


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
