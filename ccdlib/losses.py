"""Distillation losses: `(student, teacher, labels, **settings) -> {"term": scalar}`; the loop adds the terms and logs them.

`student` and `teacher` are Outputs of the same B inputs. B = V * N rows are views first: [view 1 of N images; view 2; ...].
`labels` are (N,), one an image, or (B,). The teacher never receives a gradient. Notation of methods.md, section 2:
p_T(z) = softmax(z / T), KL(a || b) = sum_c a_c (log a_c - log b_c).
"""

import torch
import torch.nn.functional as F

from ccdlib.registry import CcdError, Registry

LOSSES = Registry("loss")
WEIGHTS = Registry("weight")


def _labels_of_views(labels, rows):
    """Labels (B,) from (N,) or (B,): every view of an image has the image's hard label."""
    if len(labels) == 0 or rows % len(labels):
        raise CcdError(f"{len(labels)} labels do not divide {rows} logit rows into views; give one label an image")
    return labels.repeat(rows // len(labels))


def _same_classes(student, teacher):
    if teacher is None:
        raise CcdError("this loss compares a student with a teacher; give the teacher's Output too")
    if student.logits.shape != teacher.logits.shape:
        raise CcdError(
            f"student logits {tuple(student.logits.shape)} and teacher logits {tuple(teacher.logits.shape)} differ; "
            "both networks must see the same inputs and have the same classes"
        )


def kl_rows(student, teacher, temperature):
    """(B,) KL(p_T(teacher) || p_T(student)) of logits (B, C), row by row."""
    log_p = F.log_softmax(teacher.detach() / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


@LOSSES.add("ce")
def ce(student, teacher, labels):
    """Cross entropy of all B rows with the hard labels, no teacher: {"ce"}. Teachers and the student alone."""
    return {"ce": F.cross_entropy(student.logits, _labels_of_views(labels, len(student.logits)))}


@LOSSES.add("kd")
def kd(student, teacher, labels, temperature=4.0):
    """Knowledge distillation (Hinton et al. 2015): CE + T^2 mean_i KL(p_T(z^t_i) || p_T(z^s_i)), over all B rows.

    On the views [original; augmented] this is KD + JDA. Terms {"ce", "kd"}.
    """
    _same_classes(student, teacher)
    rows = kl_rows(student.logits, teacher.logits, temperature)
    return ce(student, teacher, labels) | {"kd": temperature**2 * rows.mean()}


@LOSSES.add("ccd")
def ccd(student, teacher, labels, temperature=4.0, weight="cosine"):
    """Cosine Confidence Distillation (Li et al., ACCV 2022), on the two views [original; augmented].

    CE over all 2N rows + T^2 1/2 [mean_i KL_o,i + mean_i w_i KL_a,i], with w_i = 1 + cos(z^t_o,i, z^t_a,i) of the raw
    teacher logits, in 0..2, without gradient. weight: "cosine", or a control (a row of WEIGHTS); "none" (w = 1) is exactly
    KD + JDA. Terms {"ce", "kd"}. Errors: CcdError where the rows are not two views of each image.
    """
    _same_classes(student, teacher)
    if len(student.logits) % 2 or len(labels) not in (len(student.logits), len(student.logits) // 2):
        raise CcdError(
            f"ccd needs two views an image, [original; augmented]: {len(student.logits)} rows for {len(labels)} labels "
            "are not. Train it with a policy in `views`"
        )
    original, augmented = kl_rows(student.logits, teacher.logits, temperature).chunk(2)
    w = confidence(teacher.logits, weight)
    soft = temperature**2 * 0.5 * (original.mean() + (w * augmented).mean())
    return ce(student, teacher, labels) | {"kd": soft}


def confidence(teacher_logits, weight="cosine"):
    """(N,) weights of the augmented rows from teacher logits (2N, C), views first; see ccd and WEIGHTS."""
    return WEIGHTS[weight](*teacher_logits.detach().chunk(2))


def _one_plus_cosine(a, b):
    return 1 + F.cosine_similarity(a, b, dim=1)


# The weights: (original logits (N, C), augmented logits (N, C)) -> (N,). Only the controls can tell whether the cosine
# itself helps, because it changes the size of the soft loss as well as its spread over the images.
WEIGHTS.update(
    cosine=_one_plus_cosine,
    none=lambda o, a: torch.ones_like(o[:, 0]),
    # the size of the cosine weights without their spread
    constant=lambda o, a: _one_plus_cosine(o, a).mean().expand(len(o)),
    # their values at other images: batches are in random order, so that each image taking its neighbour's weight is a
    # shuffle, one that needs no random numbers and leaves no image its own weight
    shuffled=lambda o, a: _one_plus_cosine(o, a).roll(1),
    # their spread without their size: batch mean 1
    normalised=lambda o, a: (w := _one_plus_cosine(o, a)) / w.mean().clamp(min=1e-6),
    probabilities=lambda o, a: _one_plus_cosine(o.softmax(1), a.softmax(1)),
    centred=lambda o, a: _one_plus_cosine(o - o.mean(1, keepdim=True), a - a.mean(1, keepdim=True)),
)
