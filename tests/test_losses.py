"""The losses against float64 computations written from the formulas of methods.md, section 2."""

import math

import numpy as np
import pytest
import torch

from ccdlib.base.registry import CcdError
from ccdlib.methods import ANSWERS, LOSSES, TWINS, WEIGHTS, confidence
from ccdlib.methods.losses import ccd, ce, kd, kd_twins
from ccdlib.models import Output

N, C = 5, 7


def outputs(rows=2 * N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = (3 * torch.randn(rows, C, generator=generator, dtype=torch.float64)).requires_grad_()
    teacher = (3 * torch.randn(rows, C, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(C, (N,), generator=generator)
    made = [Output(z, (z.view(rows, C, 1, 1),), z) for z in (student, teacher)]
    return *made, labels


def softmax(z, temperature=1.0):
    e = [math.exp(x / temperature) for x in z]
    return [x / sum(e) for x in e]


def kl_by_hand(student, teacher, temperature):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def ce_by_hand(student, labels):
    rows = student.logits.tolist()
    return sum(-math.log(softmax(row)[labels[i % len(labels)]]) for i, row in enumerate(rows)) / len(rows)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def weights_by_hand(teacher, weight):
    o, a = teacher.logits[:N].tolist(), teacher.logits[N:].tolist()
    w = [1 + cosine(x, y) for x, y in zip(o, a, strict=True)]
    centre = [[x - sum(row) / C for x in row] for row in o], [[x - sum(row) / C for x in row] for row in a]
    return {
        "cosine": w,
        "none": [1.0] * N,
        "constant": [sum(w) / N] * N,
        "shuffled": [w[-1], *w[:-1]],
        "normalised": [x * N / sum(w) for x in w],
        "probabilities": [1 + cosine(softmax(x), softmax(y)) for x, y in zip(o, a, strict=True)],
        "centred": [1 + cosine(x, y) for x, y in zip(*centre, strict=True)],
    }[weight]


def test_ce_is_over_all_views_with_the_images_labels():
    student, _, labels = outputs(rows=3 * N)
    assert ce(student, None, labels)["ce"].item() == pytest.approx(ce_by_hand(student, labels.tolist()))
    assert ce(student, None, labels.repeat(3))["ce"].item() == pytest.approx(ce_by_hand(student, labels.tolist()))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("views", [1, 2, 4])
def test_kd_over_any_number_of_views(temperature, views):
    student, teacher, labels = outputs(rows=views * N)
    terms = kd(student, teacher, labels, temperature=temperature)
    rows = zip(student.logits.tolist(), teacher.logits.tolist(), strict=True)
    mean = sum(kl_by_hand(s, t, temperature) for s, t in rows) / (views * N)
    assert list(terms) == ["ce", "kd"]
    assert terms["kd"].item() == pytest.approx(temperature**2 * mean)
    assert terms["ce"].item() == pytest.approx(ce_by_hand(student, labels.tolist()))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("temperature", [4.0, 2.0])
def test_ccd_with_every_weight(weight, temperature):
    student, teacher, labels = outputs()
    terms = ccd(student, teacher, labels, temperature=temperature, weight=weight)
    kl = [kl_by_hand(s, t, temperature) for s, t in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True)]
    w = weights_by_hand(teacher, weight)
    weighted = sum(x * y for x, y in zip(w, kl[N:], strict=True)) / N
    assert terms["kd"].item() == pytest.approx(temperature**2 / 2 * (sum(kl[:N]) / N + weighted))
    assert terms["ce"].item() == pytest.approx(ce_by_hand(student, labels.tolist()))


def test_ccd_without_weights_is_exactly_kd_plus_jda():
    student, teacher, labels = outputs()
    torch.testing.assert_close(ccd(student, teacher, labels, weight="none"), kd(student, teacher, labels))


def test_kd_twins_with_all_of_every_twin_is_exactly_kd_plus_jda():
    student, teacher, labels = outputs()
    torch.testing.assert_close(kd_twins(student, teacher, labels), kd(student, teacher, labels))


def twins_by_hand(teacher, labels, twins):
    right = [max(range(C), key=row.__getitem__) == label for row, label in zip(teacher[N:], labels, strict=True)]
    wrong = [not one for one in right]
    return {
        "all": [True] * N,
        "right": right,
        "wrong": wrong,
        "as many as right": [right[-1], *right[:-1]],
        "as many as wrong": [wrong[-1], *wrong[:-1]],
    }[twins]


@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("twins", TWINS)
def test_kd_twins_leaves_away_what_it_says(twins, hard, answers):
    student, teacher, labels = outputs()
    taught, rows = teacher.logits.tolist(), student.logits.tolist()
    labels[0] = max(range(C), key=taught[N].__getitem__)  # at least one twin is right, and others are wrong
    counts = twins_by_hand(taught, labels.tolist(), twins)
    assert twins == "all" or 0 < sum(counts) < N
    said = taught[:N] + {"own": taught[N:], "shuffled": [taught[-1], *taught[N:-1]]}[answers]
    soft = [kl_by_hand(s, t, 4.0) for s, t in zip(rows, said, strict=True)]
    sure = [-math.log(softmax(row)[labels[i % N]]) for i, row in enumerate(rows)]
    terms = kd_twins(student, teacher, labels, twins=twins, hard=hard, answers=answers)
    of_twins = sum(c * (16 * s) for c, s in zip(counts, soft[N:], strict=True))
    assert terms["kd"].item() == pytest.approx((16 * sum(soft[:N]) + of_twins) / (2 * N))
    of_twins = hard * sum(c * s for c, s in zip(counts, sure[N:], strict=True))
    assert terms["ce"].item() == pytest.approx((sum(sure[:N]) + of_twins) / (2 * N))


def test_equal_views_count_double_and_opposite_views_not_at_all():
    z = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(confidence(torch.cat([z, z])), torch.full((N,), 2.0))
    torch.testing.assert_close(confidence(torch.cat([z, -z])), torch.zeros(N), atol=1e-6, rtol=0)
    assert confidence(torch.zeros(2 * N, C)).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_student_and_never_the_teacher(name):
    student, teacher, labels = outputs()
    sum(LOSSES[name](student, teacher, labels).values()).backward()
    assert student.logits.grad.abs().sum() > 0
    assert teacher.logits.grad is None


def test_a_student_that_equals_its_teacher_has_no_soft_loss():
    _, teacher, labels = outputs()
    for name in ("kd", "ccd"):
        assert LOSSES[name](teacher, teacher, labels)["kd"].item() == pytest.approx(0, abs=1e-12)


def test_extreme_logits_stay_finite():
    student = Output(torch.full((2, C), 1e4), (), None)
    teacher = Output(torch.eye(C)[:2] * 1e4, (), None)
    for name in ("kd", "ccd"):
        terms = LOSSES[name](student, teacher, torch.tensor([0]))
        assert all(value.isfinite() for value in terms.values())


def test_wrong_requests_say_what_is_allowed():
    student, teacher, labels = outputs()
    with pytest.raises(CcdError, match=r"unknown loss 'kdd'.*ce, kd, ccd"):
        LOSSES["kdd"]
    with pytest.raises(CcdError, match="unknown weight 'cosin'.*'cosine'"):
        ccd(student, teacher, labels, weight="cosin")
    with pytest.raises(CcdError, match="are not a multiple of the"):
        ce(student, None, labels[:3])
    for loss in (ccd, kd_twins):
        with pytest.raises(CcdError, match=f"{loss.__name__} needs two views"):
            loss(*outputs(rows=4 * N))
    with pytest.raises(CcdError, match="unknown choice of twins 'rigth'. Did you mean 'right'"):
        kd_twins(student, teacher, labels, twins="rigth")
    with pytest.raises(CcdError, match=r"\(10, 7\) and teacher logits \(10, 6\) differ"):
        kd(student, Output(teacher.logits[:, :6], (), None), labels)
    with pytest.raises(CcdError, match="pass the Output of the teacher"):
        kd(student, None, labels)


def test_dist_is_one_minus_two_correlations():
    z_s, z_t = (torch.randn(7, 5, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    found = LOSSES["dist"](Output(z_s, (), z_s), Output(z_t, (), z_t), torch.arange(7) % 5, temperature=2.0, inter=3.0)["dist"]
    p_s, p_t = (np.exp(z.numpy() / 2) / np.exp(z.numpy() / 2).sum(1, keepdims=True) for z in (z_s, z_t))
    rows = np.mean([1 - np.corrcoef(p_s[i], p_t[i])[0, 1] for i in range(7)])
    classes = np.mean([1 - np.corrcoef(p_s[:, c], p_t[:, c])[0, 1] for c in range(5)])
    assert found.item() == pytest.approx(4 * (3 * rows + classes), rel=1e-4)
