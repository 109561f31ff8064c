"""Distillation losses: `(student, teacher, labels, **settings) -> {"term": scalar}`; the loop adds the terms and logs them.

`student` and `teacher` are Outputs of the same B inputs. The B = V * N rows are views first: [view 1 of N images; view 2; ...].
`labels` are (N,), one for each image, or (B,), or mixed (B, C). The teacher never receives a gradient.

Every loss raises CcdError where labels do not fit the rows, and one with a teacher where the two Outputs do not fit each other.
Notation: p_T(z) = softmax(z / T), KL(a || b) = sum_c a_c (log a_c - log b_c), z^s and z^t the student's and teacher's logits.
"""

from typing import Annotated

import torch
import torch.nn.functional as F

from ccdlib.base.registry import CcdError, Registry
from ccdlib.methods.settings import Above, Size
from ccdlib.models.backbone import Output

# hard_labels: the loss needs one right class for each image, so that mixed labels are refused. by_image: its terms are means
# over inputs, or over pairs of views, so that a step may be computed in parts. pairs: every image has exactly two views, an
# original and its twin. teacher: "needed", "none" or "optional".
LOSSES = Registry("loss", hard_labels=False, by_image=False, pairs=False, teacher="needed")
# CCD's weights of N twins: (original logits (N, C), augmented logits (N, C)), both the teacher's, -> (N,). by_image: the
# weight of an image does not depend on the other images.
WEIGHTS = Registry("weight", by_image=False)
# Which of N twins count: (the teacher's original logits (N, C), its augmented logits (N, C), labels (N,)) -> (N,) bool.
TWINS = Registry("choice of twins", by_image=False)
# What the teacher is said to answer to N twins: its augmented logits (N, C) -> (N, C).
ANSWERS = Registry("answers", by_image=False)

Terms = dict[str, torch.Tensor]


def _labels_of_views(labels, rows):
    """Labels (B,) from (N,) or (B,): every view has the label of its image. Mixed labels (B, C) stay as they are."""
    if len(labels) == 0 or rows % len(labels):
        raise CcdError(f"the {rows} rows of logits are not a multiple of the {len(labels)} labels; give one label per image")
    return labels if len(labels) == rows else labels.repeat(rows // len(labels))


def _same_classes(student, teacher):
    if teacher is None:
        raise CcdError("this loss needs a teacher, and teacher is None; pass the Output of the teacher")
    if student.logits.shape != teacher.logits.shape:
        raise CcdError(
            f"student logits {tuple(student.logits.shape)} and teacher logits {tuple(teacher.logits.shape)} differ; "
            "both networks must see the same inputs and have the same classes"
        )


def kl_rows(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(p_T(teacher) || p_T(student)) of each row (B,), from logits (B, C); without a gradient for the teacher."""
    log_p = F.log_softmax(teacher.detach() / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


@LOSSES.add("ce", by_image=True, teacher="none")
def ce(student: Output, teacher: Output | None, labels: torch.Tensor) -> Terms:
    """Cross entropy of all B rows with the labels, without a teacher: how teachers, and students alone, are trained.

    Terms {"ce"}.
    """
    return {"ce": F.cross_entropy(student.logits, _labels_of_views(labels, len(student.logits)))}


@LOSSES.add("kd", by_image=True)
def kd(student: Output, teacher: Output, labels: torch.Tensor, temperature: Above = 4.0) -> Terms:
    """Knowledge distillation (Hinton et al. 2015): CE + T^2 mean_i KL(p_T(z^t_i) || p_T(z^s_i)), over all B rows i.

    On the views [original; augmented] this is KD + JDA. Terms {"ce", "kd"}.
    """
    _same_classes(student, teacher)
    rows = kl_rows(student.logits, teacher.logits, temperature)
    return ce(student, teacher, labels) | {"kd": temperature**2 * rows.mean()}


@LOSSES.add("ccd", by_image=True, pairs=True)
def ccd(
    student: Output,
    teacher: Output,
    labels: torch.Tensor,
    temperature: Above = 4.0,
    weight: Annotated[str, WEIGHTS] = "cosine",
) -> Terms:
    """Cosine Confidence Distillation (Li et al., ACCV 2022), on the two views [original; augmented].

    CE over all 2N rows + T^2 1/2 [mean_i KL_o,i + mean_i w_i KL_a,i], with w_i = 1 + cos(z^t_o,i, z^t_a,i), from 0 to 2, of
    the teacher's logits at temperature 1, without gradient. weight: a row of WEIGHTS; "cosine" is the paper's, the others are
    controls, of which "none" (w = 1) is exactly KD + JDA. Terms {"ce", "kd"}. Errors: CcdError where the rows are not two views
    of each image.
    """
    _two_views("ccd", student, teacher, labels)
    original, augmented = kl_rows(student.logits, teacher.logits, temperature).chunk(2)
    w = confidence(teacher.logits, weight)
    soft = temperature**2 * 0.5 * (original.mean() + (w * augmented).mean())
    return ce(student, teacher, labels) | {"kd": soft}


def _two_views(name, student, teacher, labels):
    _same_classes(student, teacher)
    if len(student.logits) % 2 or len(labels) not in (len(student.logits), len(student.logits) // 2):
        raise CcdError(
            f"{name} needs two views of each image, [original; augmented], but the logits have {len(student.logits)} rows for "
            f"{len(labels)} labels. Train it with a policy in `views`"
        )


def confidence(teacher_logits: torch.Tensor, weight: str = "cosine") -> torch.Tensor:
    """The weights (N,) of N twins from the teacher's logits (2N, C) of [original; augmented]; weight: a row of WEIGHTS."""
    return WEIGHTS[weight](*teacher_logits.detach().chunk(2))


# The cosine changes both the mean of the soft loss's weights and how they differ between images; only the controls can tell
# which of the two helps.


@WEIGHTS.add("cosine", by_image=True)
def _cosine(original, augmented):
    return 1 + F.cosine_similarity(original, augmented, dim=1)


@WEIGHTS.add("none", by_image=True)
def _none(original, augmented):
    return torch.ones_like(original[:, 0])


@WEIGHTS.add("constant")
def _constant(original, augmented):
    """The mean of the cosine weights for every image."""
    return _cosine(original, augmented).mean().expand(len(original))


@WEIGHTS.add("shuffled")
def _shuffled(original, augmented):
    """The cosine weights of other images.

    Batches are in random order, so taking the neighbour's weight is a shuffle, which needs no random numbers and leaves no
    image its own weight.
    """
    return _cosine(original, augmented).roll(1)


@WEIGHTS.add("normalised")
def _normalised(original, augmented):
    """The cosine weights over their mean in the batch, so that only their differences act."""
    w = _cosine(original, augmented)
    return w / w.mean().clamp(min=1e-6)


@WEIGHTS.add("probabilities", by_image=True)
def _probabilities(original, augmented):
    return _cosine(original.softmax(1), augmented.softmax(1))


@WEIGHTS.add("centred", by_image=True)
def _centred(original, augmented):
    return _cosine(original - original.mean(1, keepdim=True), augmented - augmented.mean(1, keepdim=True))


# ---------------------------------------------------------------- what of a twin helps


@LOSSES.add("kd_twins", by_image=True, hard_labels=True, pairs=True)
def kd_twins(
    student: Output,
    teacher: Output,
    labels: torch.Tensor,
    temperature: Above = 4.0,
    twins: Annotated[str, TWINS] = "all",
    hard: bool = True,
    answers: Annotated[str, ANSWERS] = "own",
) -> Terms:
    """KD + JDA with parts of what the twins say taken away, to see which part helps; by default it is exactly KD + JDA
    (Li et al., ACCV 2022).

    [sum_i CE_o,i + sum_i m_i h CE_a,i] / 2N + T^2 [sum_i KL_o,i + sum_i m_i KL(p_T(a_i) || p_T(z^s_a,i))] / 2N, on the views
    [original; augmented]. So what is left of a twin counts as much as before, and the originals as in KD + JDA. twins: a row of
    TWINS, which decides m_i, 0 or 1. hard: h, whether twins have a cross entropy with the label. answers: a row of ANSWERS,
    which makes a_i of the teacher's logits. Terms {"ce", "kd"}. Errors: CcdError where the rows are not two views of each
    image. Source: ours; controls for claim (a) of the paper.
    """
    _two_views("kd_twins", student, teacher, labels)
    z_original, z_augmented = teacher.logits.detach().chunk(2)
    n, labels = len(z_original), _labels_of_views(labels, len(student.logits))
    counts = TWINS[twins](z_original, z_augmented, labels[:n]).to(student.logits.dtype)  # (N,)
    said = torch.cat([z_original, ANSWERS[answers](z_augmented)])
    hard_original, hard_augmented = F.cross_entropy(student.logits, labels, reduction="none").chunk(2)
    soft_original, soft_augmented = kl_rows(student.logits, said, temperature).chunk(2)
    ce = 0.5 * (hard_original.mean() + float(hard) * (counts * hard_augmented).mean())
    return {"ce": ce, "kd": temperature**2 * 0.5 * (soft_original.mean() + (counts * soft_augmented).mean())}


@TWINS.add("all", by_image=True)
def _all_twins(original, augmented, labels):
    return torch.ones_like(labels, dtype=torch.bool)


@TWINS.add("right", by_image=True)
def _right(original, augmented, labels):
    """Twins of which the teacher gives the right class."""
    return augmented.argmax(1) == labels


@TWINS.add("wrong", by_image=True)
def _wrong(original, augmented, labels):
    """Twins of which the teacher gives a wrong class."""
    return ~_right(original, augmented, labels)


@TWINS.add("as many as right")
def _as_many_as_right(original, augmented, labels):
    """As many twins as the teacher gets right, but those of other images: batches are in random order (see _shuffled)."""
    return _right(original, augmented, labels).roll(1)


@TWINS.add("as many as wrong")
def _as_many_as_wrong(original, augmented, labels):
    """As many twins as the teacher gets wrong, but those of other images."""
    return _wrong(original, augmented, labels).roll(1)


@ANSWERS.add("own", by_image=True)
def _own(augmented):
    return augmented


@ANSWERS.add("shuffled")
def _shuffled_answers(augmented):
    """The answers to the twins of other images (see _shuffled)."""
    return augmented.roll(1, 0)


# ---------------------------------------------------------------- losses of other papers, to compare with


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in at least float32, because the features that a GPU computes under autocast are bfloat16."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@LOSSES.add("dist")
def dist(
    student: Output,
    teacher: Output,
    labels: torch.Tensor,
    temperature: Above = 1.0,
    inter: Size = 1.0,
    intra: Size = 1.0,
) -> Terms:
    """DIST (Huang et al., NeurIPS 2022): CE + T^2 (inter mean_i d(p^s_i, p^t_i) + intra mean_c d(p^s_.c, p^t_.c)).

    d is one minus Pearson's correlation, p = p_T(z) (B, C): of each row over the classes, and of each class over the rows. The
    defaults are those for ImageNet and for detection. Terms {"ce", "dist"}.
    """
    _same_classes(student, teacher)
    ours, theirs = (F.softmax(z / temperature, dim=1) for z in (student.logits, teacher.logits.detach()))
    rows, classes = _apart(ours, theirs), _apart(ours.T, theirs.T)
    return ce(student, teacher, labels) | {"dist": temperature**2 * (inter * rows.mean() + intra * classes.mean())}


def _apart(a, b):
    """One minus Pearson's correlation of each row of a and b, both (n, m)."""
    a, b = (each - each.mean(1, keepdim=True) for each in (a, b))
    return 1 - F.cosine_similarity(a, b, dim=1)


@LOSSES.add("sp")
def sp(student: Output, teacher: Output, labels: torch.Tensor, gamma: Size = 3000.0) -> Terms:
    """Similarity preserving (Tung & Mori, ICCV 2019): CE + gamma ||G_t - G_s||_F^2 / B^2.

    G (B, B) is F F^T with rows scaled to Euclidean length one, F the flattened last feature map. Terms {"ce", "sp"}.
    """
    _same_rows(student, teacher)
    maps = [full(output.feats[-1]).flatten(1) for output in (student, _detached(teacher))]
    return ce(student, teacher, labels) | {"sp": gamma * _difference_of_similarities(*maps, p=2)}


@LOSSES.add("sp_released")
def sp_released(student: Output, teacher: Output, labels: torch.Tensor, temperature: Above = 4.0) -> Terms:
    """SP as the released code of the CCD paper (Li et al., ACCV 2022) trains it: 2 (CE + T^2 KL + ||G_t - G_s||_F^2 / B^2).

    G (B, B) is F F^T with rows scaled so that their absolute values add up to one, F the pooled features; so the SP term is at
    most 4 / B^2 and hardly acts beside the KL. Terms {"ce", "kd", "sp"}.
    """
    terms = kd(student, teacher, labels, temperature)
    terms |= {"sp": _difference_of_similarities(student.pooled, teacher.pooled.detach(), p=1)}
    return {name: 2 * term for name, term in terms.items()}


def _difference_of_similarities(student, teacher, p):
    """mean (G_t - G_s)^2 of features F (B, D), G = F F^T with rows scaled to p-norm one."""
    one, other = (F.normalize(features @ features.T, p=p, dim=1) for features in (student, teacher))
    return (one - other).square().mean()


@LOSSES.add("at", by_image=True)
def at(student: Output, teacher: Output, labels: torch.Tensor, gamma: Size = 1000.0) -> Terms:
    """Attention transfer (Zagoruyko & Komodakis, ICLR 2017): CE + gamma sum_l mean_{i,x} (Q^t_l - Q^s_l)^2.

    Q_l is the sum over channels of the squared feature map of stage l, flattened, with rows scaled to length one. Where the
    two networks' maps differ in size, the features are averaged down to the smaller size before they are squared. Terms {"ce",
    "at"}. Errors: CcdError for networks with different numbers of stages.
    """
    _same_rows(student, teacher)
    if len(student.feats) != len(teacher.feats):
        raise CcdError(
            f"attention transfer compares stage by stage: the student's features are {shapes(student.feats)}, the teacher's "
            f"{shapes(teacher.feats)}; choose networks with the same number of stages"
        )
    pairs = (same_size(full(a), full(b)) for a, b in zip(student.feats, _detached(teacher).feats, strict=True))
    parts = [(_attention(b) - _attention(a)).square().mean() for a, b in pairs]
    return ce(student, teacher, labels) | {"at": gamma * sum(parts)}


def shapes(feats: tuple[torch.Tensor, ...]) -> str:
    """The shapes (channels, height, width) of feature maps as text, for error messages."""
    return ", ".join(str(tuple(f.shape[1:])) for f in feats)


def same_size(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature maps a and b (B, c, h, w), averaged down to the smaller height and the smaller width of the two."""
    side = [min(x, y) for x, y in zip(a.shape[2:], b.shape[2:], strict=True)]
    return F.adaptive_avg_pool2d(a, side), F.adaptive_avg_pool2d(b, side)


def _attention(feature):
    return F.normalize(feature.square().sum(1).flatten(1), dim=1)


@LOSSES.add("rkd")
def rkd(student: Output, teacher: Output, labels: torch.Tensor, distance: Size = 25.0, angle: Size = 50.0) -> Terms:
    """Relational KD (Park et al., CVPR 2019): CE + distance * L_D + angle * L_A, on pooled features of the B rows.

    L_D: mean over ordered pairs of different rows of huber(d^t_ij - d^s_ij), d the distances divided by their mean. L_A: mean
    over triples of different rows of huber(a^t_ijk - a^s_ijk), a the cosine of the angle at j. huber(x) = x^2 / 2 for |x| < 1,
    |x| - 1/2 elsewhere. Memory grows with B^3. Terms {"ce", "distance", "angle"}.
    """
    _same_rows(student, teacher)
    s, t, b = student.pooled, teacher.pooled.detach(), len(student.pooled)
    # Pairs and triples with a repeated row are equal on both sides and add nothing to the sums, but must not be counted.
    pairs, triples = max(1, b * (b - 1)), max(1, b * (b - 1) * (b - 2))
    by_distance = F.smooth_l1_loss(_distances(s), _distances(t), reduction="sum") / pairs
    by_angle = F.smooth_l1_loss(_angles(s), _angles(t), reduction="sum") / triples
    return ce(student, teacher, labels) | {"distance": distance * by_distance, "angle": angle * by_angle}


def _distances(x):
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return d / (d.sum() / max(1, len(x) * (len(x) - 1))).clamp(min=1e-12)


def _angles(x):
    """The cosines of the angles at row j between rows i and k, as (j, i, k)."""
    e = F.normalize(x[None] - x[:, None], dim=2)
    return e @ e.mT


@LOSSES.add("dkd", hard_labels=True, by_image=True)
def dkd(
    student: Output, teacher: Output, labels: torch.Tensor, temperature: Above = 4.0, alpha: Size = 1.0, beta: Size = 8.0
) -> Terms:
    """Decoupled KD (Zhao et al., CVPR 2022): CE + T^2 mean_i (alpha TCKD_i + beta NCKD_i).

    TCKD: KL between (p_y, 1 - p_y) of teacher and student, y the true class. NCKD: KL between their probabilities of the other
    classes, made to add up to one. The paper has a beta for each pair of networks (the `paper` profiles set it), and lets the
    soft terms grow over the first 20 of 240 epochs (RunConfig.warmup). Terms {"ce", "target", "others"}.
    """
    _same_classes(student, teacher)
    true = F.one_hot(_labels_of_views(labels, len(student.logits)), student.logits.shape[1]).bool()
    rows = [z / temperature for z in (student.logits, teacher.logits.detach())]
    log_y = [F.log_softmax(z, 1)[true] for z in rows]  # (B,) each
    others = [z[~true].view(len(z), -1) for z in rows]  # (B, C - 1)
    log_rest = [z.logsumexp(1) - whole.logsumexp(1) for z, whole in zip(others, rows, strict=True)]
    binary = [torch.stack(pair, 1) for pair in zip(log_y, log_rest, strict=True)]
    target = F.kl_div(*binary, reduction="none", log_target=True).sum(1).mean()
    rest = kl_rows(*others, 1.0).mean()
    soft = {"target": temperature**2 * alpha * target, "others": temperature**2 * beta * rest}
    return ce(student, teacher, labels) | soft


@LOSSES.add("kd_std", by_image=True)
def kd_std(
    student: Output, teacher: Output, labels: torch.Tensor, temperature: Above = 2.0, hard: Size = 0.1, soft: Size = 9.0
) -> Terms:
    """Logit standardisation (Sun et al., CVPR 2024): hard * CE + soft * T^2 mean_i KL(p_T(Z(z^t_i)) || p_T(Z(z^s_i))).

    Z(z) = (z - mean) / standard deviation over the C classes of a row, with the variance over C - 1 of the released code.
    Terms {"ce", "kd"}.
    """
    _same_classes(student, teacher)

    def standard(z):
        return (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True).clamp(min=1e-7)

    rows = kl_rows(standard(student.logits), standard(teacher.logits), temperature)
    return {"ce": hard * ce(student, teacher, labels)["ce"], "kd": soft * temperature**2 * rows.mean()}


def _detached(teacher):
    return teacher._replace(feats=tuple(f.detach() for f in teacher.feats), pooled=teacher.pooled.detach())


def _same_rows(student, teacher):
    if teacher is None:
        raise CcdError("this loss needs a teacher, and teacher is None; pass the Output of the teacher")
    if len(student.logits) != len(teacher.logits):
        raise CcdError(
            f"the student's output has {len(student.logits)} rows, the teacher's {len(teacher.logits)}; both must see "
            "the same inputs"
        )
