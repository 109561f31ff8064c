"""Every compared method against a float64 computation written from the formula of methods.md, section 3, and its source."""

import copy
import itertools
import math
import re
import shutil

import pytest
import torch
from stepping import step
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.data import load_data
from ccdlib.methods import CLASSIFYING, METHODS, TURNS, Given, losses, make, settings_of, trusted
from ccdlib.models import HE, Output, build, initialise
from ccdlib.training import Checkpoint, RunConfig, cohort, fit, prepare, teacher_of_method, untrained
from ccdlib.training.checks import check
from ccdlib.views import VIEWS, Batch, EpochViews

N, C = 4, 3
BRANCHED = {  # methods.md, section 8: parameters and millions of multiply-adds with HSAKD's branches
    "resnet20": (1_041_316, 94.4),
    "resnet56": (3_067_684, 292.6),
    "resnet8x4": (4_790_836, 429.0),
    "resnet32x4": (26_340_916, 2543.0),
    "wrn_16_2": (2_631_588, 239.7),
    "wrn_40_1": (2_054_212, 193.5),
    "wrn_40_2": (8_024_484, 768.2),
    "vgg13": (46_511_844, 1003.0),
    "mobilenet_v2": (5_484_332, 86.6),
    "shufflenet_v1": (4_067_998, 87.1),
    "shufflenet_v2": (5_875_516, 117.0),
    "resnet18": (59_244_968, 4750.9),
    "resnet34": (98_271_912, 9837.6),
}


class Tiny(nn.Module):
    """A backbone of the contract, small enough for plain Python."""

    initial = HE

    def __init__(self, widths, seed):
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 1)
        pairs = itertools.pairwise([widths[0], *widths])
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, stride=1 + k % 2) for k, (a, b) in enumerate(pairs))
        self.tail, self.head = nn.Identity(), nn.Linear(widths[-1], C)
        self.again = lambda: nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        initialise(self, torch.Generator().manual_seed(seed)).double()

    def forward(self, x):
        x, feats = self.stem(x), []
        for stage in self.stages:
            x = stage(x).tanh()
            feats.append(x)
        pooled = x.mean((2, 3))
        return Output(self.head(pooled), tuple(feats), pooled)


def given(teacher_heads=None, n=12, teacher=True):
    labels = torch.arange(n) % C
    with torch.random.fork_rng(devices=[]):
        student, taught_by = Tiny((2, 3, 4), 1), Tiny((3, 2, 5), 2)
    return Given(student, taught_by if teacher else None, teacher_heads, (1, 8, 8), C, labels, 7)


def a_batch(turned=False, views=1):
    inputs = torch.randn(views * N, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    images = torch.tensor([5, 0, 10, 7])
    batch = Batch(inputs, (images % C).repeat(views), images.repeat(views), (N,) * views, (2, 1))
    return (batch, batch.turned().inputs) if turned else (batch, inputs)


def numbers(terms):
    return {name: value.item() for name, value in terms.items()}


def softmax(row, temperature=1.0):
    e = [math.exp(x / temperature) for x in row]
    return [x / sum(e) for x in e]


def kl(teacher, student, temperature=1.0):
    pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
    return sum(a * math.log(a / b) for a, b in pairs)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def cross_entropy(rows, labels):
    return mean(-math.log(softmax(row)[y]) for row, y in zip(rows, labels, strict=True))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a):
    length = math.sqrt(dot(a, a))
    return [x / length for x in a]


def both(turned=False, views=1, **more):
    """A method's Given, its batch, and the two networks' outputs."""
    built = given(**more)
    batch, inputs = a_batch(turned, views)
    teacher = built.teacher(inputs) if built.teacher else None
    return built, batch, built.student(inputs), teacher


# ---------------------------------------------------------------- losses


def difference_of_similarities(scaled, *features):
    """||G_t - G_s||_F^2 / B^2 for rows of G scaled by a function."""
    a, b = ([scaled([dot(one, other) for other in rows]) for one in rows] for rows in features)
    return mean((x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def test_sp():
    _, batch, s, t = both(views=2)
    terms = numbers(losses.sp(s, t, batch.labels, gamma=10.0))
    maps = (out.feats[-1].flatten(1).tolist() for out in (s, t))
    assert terms["sp"] == pytest.approx(10 * difference_of_similarities(unit, *maps))
    assert terms["ce"] == pytest.approx(cross_entropy(s.logits.tolist(), batch.labels.tolist()))


def test_sp_as_it_was_released():
    _, batch, s, t = both(views=2)
    terms = numbers(losses.sp_released(s, t, batch.labels))

    def shares(row):
        return [x / sum(map(abs, row)) for x in row]

    soft = mean(kl(a, b, 4.0) for a, b in zip(t.logits.tolist(), s.logits.tolist(), strict=True))
    want = {
        "ce": 2 * cross_entropy(s.logits.tolist(), batch.labels.tolist()),
        "kd": 2 * 16 * soft,
        "sp": 2 * difference_of_similarities(shares, *(out.pooled.tolist() for out in (s, t))),
    }
    assert terms == pytest.approx(want)
    # Two rows of absolute sum one are at most two apart, and squared at most four: on 32 rows the term is next to nothing.
    assert terms["sp"] / 2 <= 4 / (2 * N)


def test_at():
    _, batch, s, t = both()
    terms = numbers(losses.at(s, t, batch.labels, gamma=10.0))

    def attention(feature):
        return [unit([sum(v * v for v in place) for place in row.flatten(1).T.tolist()]) for row in feature]

    total = 0
    for a, b in zip(s.feats, t.feats, strict=True):
        total += mean((x - y) ** 2 for p, q in zip(attention(a), attention(b), strict=True) for x, y in zip(p, q, strict=True))
    assert terms["at"] == pytest.approx(10 * total)


def test_at_averages_features_of_another_size_before_they_are_squared():
    _, batch, s, t = both()
    sizes = [f.shape[2:] for f in s.feats]
    small = t._replace(feats=tuple(f[:, :, ::2, ::2] for f in t.feats))  # half as high and wide
    terms = numbers(losses.at(s, small, batch.labels, gamma=10.0))

    def attention(feature):
        return [unit([sum(v * v for v in place) for place in row.flatten(1).T.tolist()]) for row in feature]

    total = 0
    for a, b, (height, width) in zip(s.feats, small.feats, sizes, strict=True):
        cells = a.view(*a.shape[:2], height // 2, 2, width // 2, 2).mean((3, 5))
        pairs = zip(attention(cells), attention(b), strict=True)
        total += mean((x - y) ** 2 for p, q in pairs for x, y in zip(p, q, strict=True))
    assert terms["at"] == pytest.approx(10 * total)


def test_rkd():
    _, batch, s, t = both()
    terms = numbers(losses.rkd(s, t, batch.labels, distance=2.0, angle=3.0))

    def huber(x):
        return x * x / 2 if abs(x) < 1 else abs(x) - 0.5

    def relations(out):
        rows = out.pooled.tolist()
        minus = {(i, j): [x - y for x, y in zip(rows[i], rows[j], strict=True)] for i in range(N) for j in range(N) if i != j}
        d = {pair: math.sqrt(dot(v, v)) for pair, v in minus.items()}
        average = mean(d.values())
        angles = {(i, j, k): dot(unit(minus[i, j]), unit(minus[k, j])) for i, j, k in itertools.permutations(range(N), 3)}
        return {pair: v / average for pair, v in d.items()}, angles

    (d_s, a_s), (d_t, a_t) = relations(s), relations(t)
    assert terms["distance"] == pytest.approx(2 * mean(huber(d_s[p] - d_t[p]) for p in d_s))
    assert terms["angle"] == pytest.approx(3 * mean(huber(a_s[p] - a_t[p]) for p in a_s))


def test_dkd():
    _, batch, s, t = both(views=2)
    terms = numbers(losses.dkd(s, t, batch.labels, temperature=2.0, alpha=3.0, beta=5.0))
    target, others = [], []
    for a, b, y in zip(s.logits.tolist(), t.logits.tolist(), batch.labels.tolist(), strict=True):
        p, q = softmax(b, 2.0)[y], softmax(a, 2.0)[y]
        target.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
        others.append(kl([z for c, z in enumerate(b) if c != y], [z for c, z in enumerate(a) if c != y], 2.0))
    assert terms["target"] == pytest.approx(4 * 3 * mean(target))
    assert terms["others"] == pytest.approx(4 * 5 * mean(others))


def test_decoupled_with_the_teachers_own_weight_is_kd():
    # Zhao et al., eq. 6: KL = TCKD + (1 - p_y) NCKD; with equal p_y in all rows, beta = 1 - p_y gives KD.
    teacher = torch.tensor([[2.0, 0.5, -1.0], [-1.0, 2.0, 0.5]], dtype=torch.float64)
    student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1])
    outs = [Output(z, (), z) for z in (student, teacher)]
    rest = 1 - softmax(teacher[0].tolist(), 4.0)[0]
    terms = losses.dkd(*outs, y, temperature=4.0, alpha=1.0, beta=rest)
    assert (terms["target"] + terms["others"]).item() == pytest.approx(losses.kd(*outs, y)["kd"].item())


def test_kd_of_standardised_logits():
    _, batch, s, t = both()
    terms = numbers(losses.kd_std(s, t, batch.labels, temperature=2.0, hard=0.3, soft=5.0))

    def standard(row):
        middle = mean(row)
        return [(x - middle) / math.sqrt(sum((y - middle) ** 2 for y in row) / (C - 1)) for x in row]

    rows = zip(t.logits.tolist(), s.logits.tolist(), strict=True)
    assert terms["kd"] == pytest.approx(5 * 4 * mean(kl(standard(a), standard(b), 2.0) for a, b in rows))
    assert terms["ce"] == pytest.approx(0.3 * cross_entropy(s.logits.tolist(), batch.labels.tolist()))


# ---------------------------------------------------------------- methods with heads


def test_fitnet():
    built, batch, s, t = both()
    method = make("fitnet", built, {"gamma": 10.0, "stage": 2}).double()
    guess, wanted = s.feats[1], t.feats[1]
    weight = method.regressor[0].weight[:, :, 0, 0].tolist()  # (teacher's channels, student's)
    mapped = [[[dot(row, place) for place in image.flatten(1).T.tolist()] for row in weight] for image in guess]
    total = []
    for channel in range(len(weight)):
        values = [value for image in mapped for value in image[channel]]
        middle = mean(values)
        std = math.sqrt(mean((v - middle) ** 2 for v in values) + 1e-5)
        theirs = wanted[:, channel].flatten().tolist()
        total += [((v - middle) / std - w) ** 2 for v, w in zip(values, theirs, strict=True)]
    assert method(s, t, batch)["hint"].item() == pytest.approx(10 * mean(total))


def test_crd():
    views = 2
    built, batch, s, t = both(views=views)
    m, tau, width, n = 5, 0.5, 6, 12
    settings = {"gamma": 2.0, "negatives": m, "tau": tau, "width": width, "temperature": 2.0}
    method = make("crd", built, settings).double()
    u_s, u_t = (memory.tolist() for memory in (method.memory_of_student, method.memory_of_teacher))
    drawn = method.draw(batch.labels[:N], stream(7, "negatives", 2, 1)).tolist()

    def embedded(layer, out):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        return [unit([dot(w, row) + b for w, b in zip(weight, bias, strict=True)]) for row in out.pooled.tolist()]

    v_s, v_t = embedded(method.of_student, s), embedded(method.of_teacher, t)

    def nce(rows, memory):
        raw = []
        for r, v in enumerate(rows):
            chosen = [int(batch.images[r]), *drawn[r % N]]
            raw.append([math.exp(dot(v, memory[k]) / tau) for k in chosen])
        z = mean(x for row in raw for x in row) * n
        total = 0
        for positive, *negative in raw:
            total -= math.log(positive / z / (positive / z + m / n))
            total -= sum(math.log(1 - x / z / (x / z + m / n)) for x in negative)
        return total / len(rows)

    terms = numbers(method(s, t, batch))
    assert terms["crd"] == pytest.approx(2 * (nce(v_s, u_t) + nce(v_t, u_s)))
    assert terms["kd"] == pytest.approx(
        4 * mean(kl(a, b, 2.0) for a, b in zip(t.logits.tolist(), s.logits.tolist(), strict=True))
    )
    for memory, before, v in ((method.memory_of_student, u_s, v_s), (method.memory_of_teacher, u_t, v_t)):
        for i in range(n):
            rows = (batch.images[:N] == i).nonzero().flatten().tolist()
            want = unit([0.5 * a + 0.5 * b for a, b in zip(before[i], v[rows[0]], strict=True)]) if rows else before[i]
            assert memory[i].tolist() == pytest.approx(want)


def test_crds_negatives_are_of_other_classes_all_of_them_and_repeatable():
    method = make("crd", given()._replace(labels=torch.tensor([2, 0, 0, 1, 2, 0, 1, 0])), {"negatives": 4})
    labels = torch.tensor([0, 1, 2]).repeat_interleave(100)
    drawn = method.draw(labels, stream(0, "negatives", 1, 2))
    own = torch.tensor([2, 0, 0, 1, 2, 0, 1, 0])
    for c, others in ((0, {0, 3, 4, 6}), (1, {0, 1, 2, 4, 5, 7}), (2, {1, 2, 3, 5, 6, 7})):
        assert set(drawn[labels == c].flatten().tolist()) == others
    assert not (own[drawn] == labels[:, None]).any()
    assert torch.equal(drawn, method.draw(labels, stream(0, "negatives", 1, 2)))
    assert not torch.equal(drawn, method.draw(labels, stream(0, "negatives", 1, 3)))


def head_by_hand(head, pooled):
    def linear(layer, row):
        return [dot(w, row) + b for w, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]

    return [linear(head[2], [max(0.0, x) for x in linear(head[0], row)]) for row in pooled.tolist()]


def cosines(head, out, views):
    """{view: {rotation (1..3): [[cosine to every normal row of the view] for each image]}}"""
    h = [unit(row) for row in head_by_hand(head, out.pooled)]
    at = lambda j, v, i: h[j * views * N + v * N + i]  # noqa: E731 (rotation, view, image)
    return {
        v: {j: [[dot(at(j, v, i), at(0, v, k)) for k in range(N)] for i in range(N)] for j in (1, 2, 3)} for v in range(views)
    }


@pytest.mark.parametrize("views", [1, 2])
def test_sskd_stage_one(views):
    built, batch, s, _ = both(turned=True, views=views, teacher=False)
    method = make("sskd_teacher", built).double()
    found = cosines(method.head, s, views)
    rows = [(found[v][j][i], i) for v in range(views) for j in (1, 2, 3) for i in range(N)]
    assert method(s, None, batch)["contrast"].item() == pytest.approx(cross_entropy(*zip(*rows, strict=True)))


def kept_by_hand(rows, true, ratio):
    """SSKD's selection: all right rows, and the floor(ratio * wrong) wrong rows whose true class ranks highest; of equal ranks
    those of the first images, whose three rotations are a third of all rows apart."""
    ranks, third = [sum(x > row[y] for x in row) for row, y in zip(rows, true, strict=True)], len(rows) // 3
    wrong = sorted((rank, k % third, k // third, k) for k, rank in enumerate(ranks) if rank)
    kept = [k for *_, k in wrong[: math.floor(ratio * len(wrong))]]
    return sorted([k for k, rank in enumerate(ranks) if not rank] + kept)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("weights", ["released", "supplement"])
def test_sskd_stage_two(views, weights):
    heads = make("sskd_teacher", given()._replace(student=given().teacher, seed=3)).double()
    built, batch, s, t = both(turned=True, views=views, teacher_heads=heads)
    method = make("sskd", built, {"weights": weights, "ratio_logits": 0.5}).double()
    terms = numbers(method(s, t, batch))
    n, z_s, z_t, y = views * N, s.logits.tolist(), t.logits.tolist(), batch.labels.tolist()
    kept = kept_by_hand(z_t[n:], y * 3, 0.5)
    assert 0 < len(kept) < 3 * n
    ours, theirs = cosines(method.head, s, views), cosines(heads.head, t, views)
    soft = []
    for v in range(views):
        a, b = ([row for j in (1, 2, 3) for row in found[v][j]] for found in (ours, theirs))
        soft += [kl(b[k], a[k], 0.5) for k in kept_by_hand(b, [*range(N)] * 3, 0.75)]
    assert 0 < len(soft) < 3 * n
    c, d = {"released": (2.7, 10.0), "supplement": (3.0, 5.0)}[weights]
    assert terms == pytest.approx(
        {
            "ce": 0.1 * cross_entropy(z_s[:n], y),
            "kd": 0.9 * 16 * mean(kl(z_t[i], z_s[i], 4.0) for i in range(n)),
            "rotated": c * 16 * mean(kl(z_t[n + k], z_s[n + k], 4.0) for k in kept),
            "contrast": d * 0.25 * mean(soft),
        }
    )


def test_sskd_keeps_what_the_teacher_can_be_trusted_with():
    # Two images at three angles: rows 0, 2, 4 are the first image's, rows 1, 3, 5 the second's.
    rows = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1], [1, 3, 2], [1, 3, 2], [3, 1, 2]])
    true = torch.zeros(6, dtype=torch.long)  # ranks 0, 2, 1, 2, 2, 0
    assert trusted(rows, true, 1.0).tolist() == [0, 1, 2, 3, 4, 5]
    assert trusted(rows, true, 0.5).tolist() == [0, 2, 4, 5]  # floor(.5 * 4) = 2 wrong ones; of rank 2 the first image's
    assert trusted(rows, true, 0.75).tolist() == [0, 1, 2, 4, 5]
    assert trusted(rows, true, 0.0).tolist() == [0, 5]


def branches_by_hand(method, network, out):
    """Joint logits of each branch, from the branch's own layers applied one by one to that stage's feature map."""
    joint = []
    for place, feature in enumerate(out.feats):
        *stages, _tail, _pool, _flatten, linear = method.branches[place]
        assert len(stages) == max(1, len(network.stages) - place - 1)
        for stage in stages:
            feature = torch.conv2d(feature, stage.weight, stage.bias, stage.stride, stage.padding)
        joint.append((feature.mean((2, 3)) @ linear.weight.T + linear.bias).tolist())
    return joint


@pytest.mark.parametrize("views", [1, 2])
def test_hsakd_teacher_and_student(views):
    heads = make("hsakd_teacher", given()._replace(student=given().teacher, seed=3)).double()
    built, batch, s, t = both(turned=True, views=views, teacher_heads=heads)
    n, y = views * N, batch.labels.tolist()
    q_t = branches_by_hand(heads, built.teacher, t)
    joint = [4 * label + j for j in range(TURNS) for label in y]
    assert numbers(heads(t, None, batch)) == pytest.approx(
        {"ce": cross_entropy(t.logits.tolist()[:n], y), "joint": sum(cross_entropy(q, joint) for q in q_t)}
    )
    method = make("hsakd", built).double()
    q_s = branches_by_hand(method, built.student, s)
    soft = sum(mean(kl(a, b, 3.0) for a, b in zip(p, q, strict=True)) for p, q in zip(q_t, q_s, strict=True))
    final = mean(kl(a, b, 3.0) for a, b in zip(t.logits.tolist(), s.logits.tolist(), strict=True))
    want = {"ce": cross_entropy(s.logits.tolist()[:n], y), "branches": 9 * soft, "kd": 9 * final}
    assert numbers(method(s, t, batch)) == pytest.approx(want)


def test_turns_are_all_views_at_one_angle_then_all_at_the_next():
    batch, turned = a_batch(turned=True, views=2)
    assert torch.equal(turned[: 2 * N], batch.inputs)
    assert torch.equal(turned[4 * N + 1], batch.inputs[1].rot90(2, (1, 2)))
    for name in ("sskd_teacher", "hsakd_teacher"):
        with pytest.raises(CcdError, match=r"rotations need square images; these are 8 x 9 pixels. Crop or resize"):
            make(name, given(teacher=False)._replace(shape=(1, 8, 9)))


@pytest.mark.parametrize("name", BRANCHED)
def test_hsakds_branches_have_the_published_size(name):
    parameters, millions = BRANCHED[name]
    side, classes = (224, 1000) if name in ("resnet18", "resnet34") else (32, 100)
    network = build(name, classes=classes).eval()
    built = Given(network, None, None, (3, side, side), classes, torch.arange(classes))
    method = make("hsakd_teacher", built).eval().to("meta")
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        method.heads(network.to("meta")(torch.zeros(1, 3, side, side, device="meta")))  # counted from shapes, not computed
    assert sum(p.numel() for part in (network, method) for p in part.parameters()) == parameters
    assert flops.get_total_flops() / 2e6 == pytest.approx(millions, abs=0.0501)


# ---------------------------------------------------------------- all methods, in a training

TEACHER = RunConfig(model="resnet8", n_train=40, epochs=1, batch=20)
# A small network of every family, as its own teacher: four stages, three, and none that were made for such small images.
SLOW = pytest.param("resnet50_cifar", marks=pytest.mark.drill)
FAMILIES = ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "resnet18", SLOW]
STUDENTS = [name for name in CLASSIFYING if METHODS[name].teacher == "needed" and not METHODS[name].freezes]


def student(method, model="resnet8", **changes):
    settings = {"negatives": 8} if method == "crd" else {}
    views = "cifar100" if METHODS[method].pairs else "none"
    teacher = teacher_of_method(method, TEACHER.but(model=model))
    given = {"model": model, "n_train": 40, "epochs": 1, "batch": 20, "views": views, "settings": settings}
    return RunConfig(**given | changes, method=method, teacher=teacher)


def a_step(config, images=20):
    """A Trainee after one step on so many images, its TaughtBy, and the states of that before."""
    data = load_data(config.data, n_train=config.n_train)
    taught = untrained(config, data)
    before = [copy.deepcopy(part.state_dict()) for part in taught if part is not None]
    (trainee,) = prepare([config], data, torch.device("cpu"), taught)
    trainee.network.train(not trainee.frozen)
    step(trainee, EpochViews(config, data, 0).batch(torch.arange(images)))
    return trainee, taught, before


def a_step_terms(config):
    data = load_data(config.data, n_train=config.n_train)
    (trainee,) = prepare([config], data, torch.device("cpu"), untrained(config, data))
    return step(trainee, EpochViews(config, data, 0).batch(torch.arange(20)))


@pytest.mark.parametrize("method", STUDENTS)
def test_gradients_reach_the_student_and_its_heads_and_never_the_teacher(method):
    trainee, taught, before = a_step(student(method))
    for name, parameter in [*trainee.network.named_parameters(), *trainee.method.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    now = [part.state_dict() for part in taught if part is not None]
    for old, new in zip(before, now, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old), "the teacher, its batch norms too, stays as it is"
    assert all(p.grad is None for part in taught if part is not None for p in part.parameters())


@pytest.mark.parametrize("method", ["sskd_teacher", "hsakd_teacher"])
def test_the_heads_of_a_frozen_teacher_are_all_that_is_trained(method, outputs):
    made = fit(teacher_of_method(method.removesuffix("_teacher"), TEACHER, epochs=2))
    plain, headed = fit(TEACHER).model().state_dict(), made.model().state_dict()
    assert all(torch.equal(plain[key], headed[key]) for key in plain)
    assert made.accuracy == fit(TEACHER).accuracy
    fresh = make(method, Given(fit(TEACHER).model(), None, None, (1, 16, 16), 10, torch.arange(40) % 10), {}).state_dict()
    assert not any(torch.equal(fresh[key], value) for key, value in made.heads().state_dict().items() if "weight" in key)
    (made.folder / "heads.safetensors").write_bytes(b"damaged")
    with pytest.raises(CcdError, match="heads.safetensors is damaged"):
        fit(teacher_of_method(method.removesuffix("_teacher"), TEACHER, epochs=2))


def test_a_jointly_trained_teacher_trains_backbone_and_branches():
    joint = RunConfig(model="resnet8", n_train=40, epochs=1, batch=20, method="hsakd_teacher")
    trainee, _, _ = a_step(joint)
    assert not trainee.frozen
    assert all(p.grad.abs().sum() > 0 for part in (trainee.network, trainee.method) for p in part.parameters())
    result = fit(RunConfig(model="resnet8", n_train=40, epochs=1, batch=20, method="hsakd", teacher=joint))
    assert {"ce", "branches", "kd"} <= result.curves[0].keys()


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("method", [name for name in CLASSIFYING if name != "kd"])
def test_every_method_takes_a_step_on_every_family(method, model):
    if METHODS[method].teacher == "none":
        config = RunConfig(model=model, n_train=40, batch=20)
    elif METHODS[method].freezes:
        config = teacher_of_method(method.removesuffix("_teacher"), TEACHER.but(model=model))
    else:
        config = student(method, model)
    trainee, _, _ = a_step(config, images=4)  # shapes are the point, and what norms make of few images
    assert all(p.isfinite().all() for part in (trainee.network, trainee.method) for p in part.parameters())


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("method", ["sp", "rkd", "fitnet", "crd", "sskd", "hsakd", "dkd"])
def test_every_method_takes_every_kind_of_views_that_it_does_not_refuse(method, views):
    try:
        config = student(method, views=views)
    except CcdError as error:
        assert "Allowed views" in str(error)  # noqa: PT017
        assert views in ("rotation", "mixup", "cutmix", "cutmixpick")
        return
    terms, _, inputs = a_step_terms(config)
    assert inputs == 20 * config.views_per_image
    assert all(value.isfinite() for value in terms.values())


def test_twins_and_shares_reach_methods_with_heads_of_their_own():
    for method in ("crd", "sskd", "hsakd"):
        terms, _, inputs = a_step_terms(student(method, views="cifar100", twins=2, share=0.5))
        assert inputs < 3 * 20
        assert all(value.isfinite() for value in terms.values())


def test_a_killed_run_with_a_memory_and_heads_goes_on_to_the_same_bits(monkeypatch, outputs):
    config = student("crd", epochs=3)
    expected = (fit(config).folder / "weights.safetensors").read_bytes()
    shutil.rmtree(fit(config).folder)
    real, epochs = cohort.train_epoch, []

    def dies(*given):
        epochs.append(given[1])
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(cohort, "train_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(config)
    again = fit(config)
    assert epochs == [0, 1, 1, 2]
    assert again.metrics["resumed"]
    assert (again.folder / "weights.safetensors").read_bytes() == expected


def test_networks_that_do_not_match_are_named_with_their_shapes():
    four = RunConfig(model="vgg13", n_train=40, epochs=1)
    for method in ("at", "hsakd"):
        config = RunConfig(model="resnet8", n_train=40, method=method, teacher=teacher_of_method(method, four))
        with pytest.raises(
            CcdError, match=r"student's features are \(16, 16, 16\), .*teacher's \(64, 16, 16\), .*same number of stages"
        ):
            check([config])
    with pytest.raises(CcdError, match=r"fitnet's stage = 4: .*\(64, 4, 4\).*allowed are stages 1 to 3"):
        check([student("fitnet", settings={"stage": 4})])


def test_more_negatives_than_images_are_refused_before_any_training(monkeypatch):
    with pytest.raises(CcdError, match="negatives = 16384: 40 training images leave 36 of other classes; give"):
        check([student("crd", settings={})])
    check([student("crd", settings={"negatives": 36})])


def test_a_checkpoint_with_heads_teaches():
    made = fit(teacher_of_method("sskd", TEACHER))
    files = {"file": str(made.folder / "weights.safetensors"), "heads": str(made.folder / "heads.safetensors")}
    stored = Checkpoint(model="resnet8", method="sskd_teacher", **files)
    given = {"model": "resnet8", "n_train": 40, "epochs": 1, "batch": 20, "method": "sskd"}
    by_file, by_run = fit(RunConfig(**given, teacher=stored)), fit(RunConfig(**given, teacher=made.config))
    assert by_file.curves[0]["contrast"] == by_run.curves[0]["contrast"]
    assert by_file.folder != by_run.folder
    plain = Checkpoint(model="resnet8", file=files["file"])
    with pytest.raises(CcdError, match="needs a teacher with the heads that 'sskd_teacher' trains"):
        RunConfig(**given, teacher=plain)
    headed = fit(teacher_of_method("sskd", plain, n_train=40, epochs=1, batch=20))
    assert torch.equal(headed.model().head.weight, made.model().head.weight)
    assert {key: value.tolist() for key, value in headed.heads().state_dict().items()} == {
        key: value.tolist() for key, value in made.heads().state_dict().items()
    }, "the same heads as on the run itself"


def test_settings_are_listed_and_every_method_says_its_source():
    assert settings_of("hsakd") == {"temperature": 3.0}
    assert settings_of("sskd")["weights"] == "released"
    assert settings_of("dkd") == {"temperature": 4.0, "alpha": 1.0, "beta": 8.0}
    assert settings_of("ce") == {}
    for name, method in METHODS.items():
        assert name == "ce" or re.search(r"\(.*(19|20)\d\d.*\)", method.__doc__), name


def test_cutmixpick_keeps_what_the_teacher_is_least_certain_of():
    config = student("kd", views="cutmixpick")
    data = load_data(config.data, n_train=40)
    (trainee,) = prepare([config], data, torch.device("cpu"), untrained(config, data))
    batch = EpochViews(config, data, 0).batch(torch.arange(20))
    kept = trainee.picked(batch)
    assert kept.sizes == (20, 20)
    assert torch.equal(kept.inputs[:20], batch.inputs[:20])
    p = trainee.teacher(batch.inputs[20:]).logits.softmax(1).double()
    entropy = -(p * p.log()).sum(1)
    chosen = set(map(tuple, kept.inputs[20:].flatten(1).tolist()))
    taken = torch.tensor([tuple(row) in chosen for row in batch.inputs[20:].flatten(1).tolist()])
    assert taken.sum() == 20
    assert entropy[taken].min() >= entropy[~taken].max()
