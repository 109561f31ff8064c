"""Object detection: boxes that move with the pixels, data with boxes, detectors, and distillation of regions."""

import json
import os
import shutil
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stepping import interrupt, step

from ccdlib.analyses import experiment
from ccdlib.base.registry import CcdError
from ccdlib.base.vision import torchvision
from ccdlib.data import DATASETS, load_data, sizes_of
from ccdlib.data.boxed import NONE, SCENES, Split, scenes, with_boxes
from ccdlib.data.sources import COCO
from ccdlib.evidence import found
from ccdlib.kit.parameters import find, profile_parameters
from ccdlib.methods import DETECTING, LOSSES, METHODS, Given, make
from ccdlib.models import BACKBONES, DETECTORS, build
from ccdlib.models.backbone import Output, folded
from ccdlib.models.detector import REGION, named
from ccdlib.training import Checkpoint, RunConfig, fit, fit_cohort
from ccdlib.training.detections import average_precision
from ccdlib.training.loop import prepare
from ccdlib.training.teachers import untrained
from ccdlib.views import OPS, POLICIES, VIEWS, apply_op, as_bytes, epoch_views, policy_named
from ccdlib.views.boxes import flipped, move_of, moved, rows_of, still, then

SIDE = 64
FEW = {"data": "scenes", "n_train": 12, "batch": 6, "epochs": 1}
GOLDEN = (1.94236, 0.138185, 0.707853, 0.0147544)
LARGE = (27_702_386, 37_810_546)  # parameters, for six classes
TEACHER = RunConfig(**FEW, model="frcnn_resnet20", method="detection")


def boxes_at(*boxes):
    return torch.tensor([[[0.0, *box] for box in boxes]])


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.moves])
@pytest.mark.parametrize("box", [(10, 12, 30, 25), (20, 20, 44, 44), (22, 30, 29, 52)])
def test_a_box_moves_as_the_rectangle_in_it(name, box):
    op, (left, top, right, bottom) = OPS[name], box
    for level in range(10):
        for sign in (1, -1) if op.signed else (1,):
            image = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
            image[..., top:bottom, left:right] = 255
            lit = (apply_op(image, name, level, sign)[0, 0] > 190).nonzero()
            move = then(still(1), move_of(op.moves(sign * op.magnitude(level), SIDE, SIDE)))
            (found,) = moved(boxes_at(box), move, SIDE, SIDE, least=0.0)[0].tolist()
            if not len(lit):
                assert found[0] == NONE
                continue
            (high, first), (low, last) = lit.amin(0).tolist(), (lit.amax(0) + 1).tolist()
            if found[0] == NONE:
                assert min(low - high, last - first) == 1, "less than a pixel is left"
                continue
            cut = 0 in (first, high) or SIDE in (last, low)  # at an edge the hull of the corners is wider than what is left
            assert np.abs(np.array(found[1:]) - [first, high, last, low]).max() <= (2.2 if cut else 1.3), (level, sign)


def test_ops_move_pixels_where_they_say_so_and_nowhere_else():
    image = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    image[..., 20:40, 10:30] = 200
    here = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    here[20:40, 10:30] = True
    for name, op in OPS.items():
        changed = apply_op(image, name, 9)[0, 0]
        same = len(changed[here].unique()) == len(changed[~here].unique()) == 1  # sharpness leaves a rectangle's edges alone
        assert same == (op.moves is None) or name == "sharpness", name


def test_boxes_that_leave_the_image_are_clipped_or_dropped():
    boxes = boxes_at((50, 10, 60, 20), (0, 0, 10, 10), (58, 0, 64, 6))
    move = still(1)
    move[0, 0, 2] = 8  # to the right
    right = moved(boxes, move, SIDE, SIDE)[0]
    assert right[0].tolist() == [0, 58, 10, 64, 20], "six tenths are left"
    assert right[1].tolist() == [0, 8, 0, 18, 10]
    assert right[2, 0] == NONE, "nothing is left"
    move[0, 0, 2] = 12
    assert moved(boxes, move, SIDE, SIDE)[0, 0, 0] == NONE, "a fifth is left, and a quarter must be"
    assert moved(boxes, move, SIDE, SIDE, least=0.1)[0, 0].tolist() == [0, 62, 10, 64, 20]
    thin = moved(boxes_at((60, 0, 64, 50)), torch.tensor([[[1.0, 0, 3.5], [0, 1, 0]]]).double(), SIDE, SIDE, least=0.0)
    assert thin[0, 0, 0] == NONE, "half a pixel"
    empty = torch.tensor([[[NONE, 0.0, 0, 0, 0]]])
    assert moved(empty, still(1), SIDE, SIDE)[0, 0, 0] == NONE


def test_moves_follow_one_another_and_a_flip_is_undone_by_a_flip():
    flips = torch.tensor([True, False])
    twice = then(flipped(flips, SIDE), flipped(flips, SIDE))
    torch.testing.assert_close(twice, still(2))
    boxes = boxes_at((1, 2, 5, 9)).repeat(2, 1, 1)
    assert moved(boxes, flipped(flips, SIDE), SIDE, SIDE)[:, 0].tolist() == [[0, 59, 2, 63, 9], [0, 1, 2, 5, 9]]


def test_a_policy_moves_boxes_as_its_ops_one_after_the_other():
    policy = policy_named("cifar100", p=1.0, ops=("translateX", "shearX", "rotate"))
    draws = policy.draw(4, torch.Generator().manual_seed(0))
    moves = policy.moves(draws, SIDE, SIDE)
    for k in range(4):
        found = still(1)
        for (name, level), sign in zip(policy.steps, draws.signs[k].tolist(), strict=True):
            if level is not None:
                op = OPS[name]
                found = then(found, move_of(op.moves((sign if op.signed else 1) * op.magnitude(level), SIDE, SIDE)))
        torch.testing.assert_close(moves[k], found[0])
    nothing = policy.with_p(0.0)
    assert torch.equal(nothing.moves(nothing.draw(3, torch.Generator()), SIDE, SIDE), still(3))


def test_views_of_images_with_boxes_share_the_flip_and_boxes_follow_the_pixels():
    """Scenes of one white rectangle on black: in every view its box is where it is white."""
    images, boxes = np.zeros((40, 3, SIDE, SIDE), np.uint8), []
    rng = np.random.default_rng(0)
    for image in images:
        left, top = rng.integers(12, 30, 2)
        image[:, top : top + 14, left : left + 20] = 255
        boxes.append(np.array([[1, left, top, left + 20, top + 14]], np.float32))
    data = with_boxes("white", dict.fromkeys(("train", "test"), Split(images, boxes)), ("a", "b"))
    config = RunConfig(data="scenes", model="frcnn_resnet8", method="detection", views="cifar100", ops=("translateX", "rotate"))
    epoch = epoch_views(config, data, 0)
    batch = epoch.batch(torch.arange(40))
    assert batch.labels.shape == (80, 1, 5)
    assert 8 < epoch.crops[0].flips.sum() < 32
    pixels = as_bytes(batch.inputs, data.mean, data.std)
    for view, own in zip(pixels, rows_of(batch.labels), strict=True):
        lit = (view[0] > 190).nonzero()
        found = [*lit.amin(0).flip(0).tolist(), *(lit.amax(0) + 1).flip(0).tolist()]
        assert np.abs(own[0, 1:].numpy() - found).max() <= 1.5
    twins = moved(batch.labels[:40], batch.moves[40:].double(), SIDE, SIDE)
    torch.testing.assert_close(twins, batch.labels[40:], msg="moves lead from the original view to the twin")
    torch.testing.assert_close(batch.moves[:40].double(), still(40))


@pytest.mark.parametrize("views", ["none", "raw", "flip", "cifar100", "imagenet"])
def test_views_that_may_have_boxes(views):
    config = RunConfig(**FEW, model="frcnn_resnet8", method="detection", views=views)
    batch = next(epoch_views(config, load_data("scenes", n_train=12), 0).batches())
    assert len(batch.inputs) == len(batch.labels) == len(batch.moves) == 6 * config.views_per_image


# ---------------------------------------------------------------- data


def test_scenes_have_boxes_inside_and_little_overlap():
    data = load_data("scenes")
    assert (len(data.train_images), len(data.test_images)) == (SCENES["train"], SCENES["test"])
    assert data.class_names[-1] == "digit"
    assert torch.equal(data.counts(), torch.cat(rows_of(data.train_boxes))[:, 0].long().bincount(minlength=6))
    assert data.counts().min() > 200
    for boxes in (data.train_boxes, data.test_boxes):
        for own in rows_of(boxes):
            assert 1 <= len(own) <= 4
            assert own[:, 1:].min() >= 0
            assert own[:, 1:].max() <= SIDE
            assert (own[:, 3:] - own[:, 1:3]).min() >= 3
            overlap = torchvision.ops.box_iou(own[:, 1:], own[:, 1:]).fill_diagonal_(0)
            assert overlap.max() <= 0.1
    few = load_data("scenes", n_train=30, seed=4)
    assert few.train_boxes.shape[0] == 30
    row = (data.train_images == few.train_images[7]).all((1, 2, 3)).nonzero().item()
    assert torch.equal(data.train_boxes[row], few.train_boxes[7])
    assert data.flip


def test_what_is_in_scenes_is_always_the_same_and_boxes_are_part_of_it():
    splits, names = scenes()
    plain = with_boxes("scenes", splits, names)
    assert plain.fingerprint == load_data("scenes").fingerprint
    splits["train"].boxes[3][0, 1] += 1
    assert with_boxes("scenes", splits, names).fingerprint != plain.fingerprint
    with pytest.raises(CcdError, match="the test images of scenes have no boxes at all"):
        with_boxes("scenes", splits | {"test": splits["test"]._replace(boxes=[np.zeros((0, 5))] * 200)}, names)


@pytest.fixture
def coco(tmp_path):
    """A folder like COCO's with two training images, one of them without boxes, and a test image; and a way to change it."""
    for split, count in (("train2017", 2), ("val2017", 1)):
        (tmp_path / split).mkdir()
        for k in range(count):
            Image.new("RGB", (80, 40), (10 * k, 200, 0)).save(tmp_path / split / f"{k}.png")
        row = {"id": 7, "image_id": 0, "category_id": 18, "bbox": [20, 10, 40, 20], "iscrowd": 0}
        crowd = row | {"id": 8, "iscrowd": 1, "bbox": [0, 0, 0, 0]}
        listed = {
            "images": [{"id": k, "file_name": f"{k}.png", "width": 80, "height": 40} for k in range(count)],
            "annotations": [row, crowd],
            "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(listed))
    return tmp_path


def test_cocos_folders_are_read_and_resized_into_squares(coco):
    data = load_data(f"coco:{coco}", side=32)
    assert data.class_names == ("cat", "dog")
    assert data.train_boxes[0].tolist() == [[1, 8, 4, 24, 12]], "by 32 / 80"
    assert rows_of(data.train_boxes)[1].shape == (0, 5)
    assert data.train_images.shape == (2, 3, 32, 32)
    assert (data.train_images[1, :, 16:] == 128).all(), "the lower half of the square is empty"
    assert data.train_images[1, 1, :16].min() == 200
    assert data.train_labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bbox": [70, 10, 40, 20]},
            r"annotation 7 of .*instances_train2017.json: its box .* is not inside of its image of 80 x 40",
        ),
        ({"bbox": [-5, 10, 40, 20]}, "annotation 7 .* is not inside"),
        ({"bbox": [20, 10, -1, 20]}, "annotation 7 .* is not inside"),
        ({"bbox": [20, 10, float("nan"), 20]}, "annotation 7 .* is not inside"),
        ({"category_id": 4}, "annotation 7 .*: its category_id 4 is not among the categories"),
        ({"image_id": 9}, "annotation 7 .*: its image_id 9 is not among the images"),
        ({"bbox": [1, 2, 3]}, "cannot be read as annotations of COCO"),
        ({"bbox": [1, 2, 3, "wide"]}, "cannot be read as annotations of COCO"),
    ],
)
def test_wrong_annotations_are_named_with_file_and_id(coco, change, message):
    file = coco / "annotations" / "instances_train2017.json"
    listed = json.loads(file.read_text())
    listed["annotations"][0] |= change
    file.write_text(json.dumps(listed))
    with pytest.raises(CcdError, match=message):
        load_data(f"coco:{coco}", side=32)


def test_boxes_without_area_are_left_out_with_a_warning_as_coco_has_two(coco):
    file = coco / "annotations" / "instances_train2017.json"
    listed = json.loads(file.read_text())
    listed["annotations"].append(listed["annotations"][0] | {"id": 918, "bbox": [3, 4, 10, 0]})
    file.write_text(json.dumps(listed))
    with pytest.warns(
        UserWarning, match="instances_train2017.json: the boxes of annotations 918 have no area and are left out"
    ):
        assert load_data(f"coco:{coco}", side=32).counts().tolist() == [0, 1]


def test_sizes_of_coco_are_known_without_an_image_and_assumed_where_it_is_not(coco):
    (coco / "train2017" / "0.png").unlink()
    assert sizes_of(f"coco:{coco}")[:3] == (2, 3, 2)
    assert sizes_of("coco:nowhere") == COCO
    asked = profile_parameters(find("08_detection"), "paper")
    student = experiment("08_detection", asked).arms["KD"][0]
    assert (student.data, student.side, student.epochs, student.lr, student.weight_decay) == (
        "coco:data/coco",
        320,
        24,
        0.02,
        1e-4,
    )
    assert [student.lr_at(epoch) for epoch in (15, 16, 22)] == pytest.approx([0.02, 0.002, 0.0002])


def test_a_readers_own_images_with_boxes():
    images, own = np.zeros((4, 3, 16, 16), np.uint8), [[[0, 1, 2, 8, 9]], [], [[1, 0, 0, 16, 16]], []]
    made = {"train": (images, own), "test": (images, own)}, ("cat", "dog")
    with mine(made):
        data = load_data("boxed_by_a_reader")
        assert data.counts().tolist() == [1, 1]
        assert RunConfig(data="boxed_by_a_reader", model="frcnn_resnet8", method="detection")
    for wrong, message in (
        (({"train": (images, own)}, ("cat", "dog")), "did not return images and boxes"),
        (({"train": (images, own[:2]), "test": (images, own)}, ("a", "b")), "are uint8 .* with 2 lists of boxes"),
        (({"train": (images, [*own[:3], [[0, 4, 4, 20, 9]]]), "test": (images, own)}, ("a", "b")), "a box of train image 3"),
        (({"train": (images, own), "test": (images, [*own[:3], [[2, 4, 4, 9, 9]]])}, ("a", "b")), "a box of test image 3"),
    ):
        with mine(wrong), pytest.raises(CcdError, match=message):
            load_data("boxed_by_a_reader")


@contextmanager
def mine(made):
    DATASETS.add("boxed_by_a_reader", boxed=True)(lambda: made)
    try:
        yield
    finally:
        DATASETS.remove("boxed_by_a_reader")


def test_broken_folders_of_coco_are_named(coco):
    file = coco / "annotations" / "instances_val2017.json"
    whole = file.read_text()
    for text, message in (("{", "cannot be read as annotations of COCO"), ("{}", "KeyError: 'images'")):
        file.write_text(text)
        with pytest.raises(CcdError, match=message):
            load_data(f"coco:{coco}", side=32)
    file.write_text(whole.replace("dog", "dingo"))
    with pytest.raises(CcdError, match="has the classes cat, dingo, the training images cat, dog; make them equal"):
        load_data(f"coco:{coco}", side=32)
    file.write_text(whole.replace('"width": 80', '"width": 90'))
    with pytest.raises(CcdError, match="has 80 x 40 pixels, and .* says 90 x 40"):
        load_data(f"coco:{coco}", side=32)
    file.write_text(whole)
    (coco / "val2017" / "0.png").write_bytes(b"no image")
    with pytest.raises(CcdError, match="0.png"):
        load_data(f"coco:{coco}", side=32)
    (coco / "val2017" / "0.png").unlink()
    with pytest.raises(CcdError, match="there is no .*0.png, which .*instances_val2017.json names"):
        load_data(f"coco:{coco}", side=32)
    file.unlink()
    with pytest.raises(CcdError, match=r"has 0 files instances_val\*.json"):
        load_data(f"coco:{coco}", side=32)


def test_blood_cells(tmp_path):
    archive = Path(os.environ.get("CCD_TEST_DATA", "")) / "det_bccd_320.zip"
    if not archive.is_file():
        pytest.skip("CCD_TEST_DATA names no folder with det_bccd_320.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    data = load_data(f"coco:{tmp_path}", side=80)
    assert (len(data.train_images), len(data.test_images)) == (205, 87)
    assert data.class_names == ("RBC", "WBC", "Platelets")
    assert torch.cat(rows_of(data.train_boxes))[:, 0].long().bincount().tolist() == [2381, 214, 209]


# ---------------------------------------------------------------- detectors


def test_nms_keeps_the_best_of_boxes_that_overlap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 4]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.8])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert torchvision.ops.nms(boxes, scores, 0.9).tolist() == [1, 3, 0, 2]
    assert torchvision.ops.nms(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_keeps_the_contract(name):
    network, x = build(name, 6, 3, seed=0).eval(), torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    output = network(x)
    assert output.logits.shape == (2, 0)
    assert [tuple(each.shape) for each in output.feats] == [
        (2, network.scale.width, SIDE // s, SIDE // s) for s in network.strides
    ]
    again = folded(network)(x)
    torch.testing.assert_close(again.feats, output.feats, rtol=1e-4, atol=1e-5)
    found = network.detect(x)
    assert len(found) == 2
    assert all(each["labels"].min() >= 0 and each["labels"].max() < 6 for each in found if len(each["labels"]))
    one, two = (build(name, 6, 3, seed=seed).state_dict() for seed in (0, 0))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert name not in BACKBONES
    count = sum(p.numel() for p in network.parameters())
    known = {"frcnn_resnet8": 215_618, "frcnn_resnet20": 410_050, "frcnn_resnet18": LARGE[0], "frcnn_resnet34": LARGE[1]}
    assert count == known[name]


def test_regions_are_pooled_as_by_aligned_roi_align():
    """Against torchvision's formula, sample by sample."""
    network = build("frcnn_resnet8", 6, 3)
    generator = torch.Generator().manual_seed(0)
    feats = tuple(torch.randn(2, 32, SIDE // s, SIDE // s, generator=generator) for s in network.strides)
    boxes = [torch.tensor([[3.0, 5, 15, 17], [10, 8, 40, 30]]), torch.tensor([[0.0, 0, 64, 64]])]
    pooled = network.pooled(named(feats), boxes, [(SIDE, SIDE)] * 2)
    assert pooled.shape == (3, 32, REGION, REGION)
    for row, (k, box) in enumerate([(0, boxes[0][0]), (0, boxes[0][1]), (1, boxes[1][0])]):
        side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt() / network.scale.anchor
        level = min(range(3), key=lambda j: abs(torch.log2(side) - torch.log2(torch.tensor(network.strides[j]))))
        stride, maps = network.strides[level], feats[level][k]
        for i, j in ((0, 0), (3, 5), (6, 6)):
            samples = []
            for a in (0.25, 0.75):
                for b in (0.25, 0.75):
                    y = ((box[1] + (box[3] - box[1]) * (i + a) / REGION) / stride - 0.5).clamp(0, maps.shape[1] - 1)
                    x = ((box[0] + (box[2] - box[0]) * (j + b) / REGION) / stride - 0.5).clamp(0, maps.shape[2] - 1)
                    top, left = int(y), int(x)
                    low, right = min(top + 1, maps.shape[1] - 1), min(left + 1, maps.shape[2] - 1)
                    v, u = y - top, x - left
                    upper = (1 - u) * maps[:, top, left] + u * maps[:, top, right]
                    samples.append((1 - v) * upper + v * ((1 - u) * maps[:, low, left] + u * maps[:, low, right]))
            torch.testing.assert_close(pooled[row, :, i, j], torch.stack(samples).mean(0), rtol=1e-4, atol=1e-4)


def test_the_average_precision_of_boxes_that_are_right_is_100():
    data = load_data("scenes").few(5)

    class Knows(torch.nn.Module):
        shift = 0.0

        def detect(self, inputs):
            first = self.seen
            self.seen += len(inputs)
            own = rows_of(data.test_boxes[first : self.seen])
            return [{"boxes": b[:, 1:] + self.shift, "labels": b[:, 0].long(), "scores": torch.ones(len(b))} for b in own]

    network = Knows()
    network.seen = 0
    assert average_precision(network, data, torch.device("cpu")) == {"accuracy": 100.0, "AP50": 100.0, "AP75": 100.0}
    network.seen, network.shift = 0, 3.0
    found = average_precision(network, data, torch.device("cpu"))
    assert found["AP50"] > found["accuracy"] > 0
    network.seen, network.shift = 0, 60.0
    assert average_precision(network, data, torch.device("cpu"))["accuracy"] == 0


def test_figures_name_every_box_and_draw_precision_against_recall():
    data = load_data("scenes").few(5)
    truth = rows_of(data.test_boxes[:3])
    right = [{"boxes": own[:, 1:], "labels": own[:, 0].long(), "scores": torch.ones(len(own))} for own in truth]
    unsure = [each | {"scores": 0.2 + 0 * each["scores"]} for each in right]
    assert [torch.equal(a, b) for a, b in zip(found.sure(right), truth, strict=True)] == [True] * 3
    assert sum(map(len, found.sure(unsure))) == 0
    rows = {"truth": (data.test_images[:3], truth), "unsure": (data.test_images[:2], found.sure(unsure))}
    figure = found.pictures(rows, data.class_names)
    words = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert words[:3] == [[data.class_names[int(c)] for c in own[:, 0]] for own in truth]
    assert words[3:] == [[], [], []]
    assert [len(ax.patches) for ax in figure.axes[:3]] == list(map(len, truth))
    for each, expected in ((right, 1.0), ([{k: v[:0] for k, v in one.items()} for one in right], 0.0)):
        curve = found.precision_recall({"x": each}, replace(data, test_boxes=data.test_boxes[:3])).axes[0].lines[0]
        assert curve.get_ydata().tolist() == pytest.approx([expected] * 101)


# ---------------------------------------------------------------- methods


@pytest.fixture(scope="module")
def batch():
    config = RunConfig(**FEW, model="frcnn_resnet8", method="detection", views="cifar100")
    return next(epoch_views(config, load_data("scenes", n_train=12), 0).batches())


def built(name, **settings):
    data = load_data("scenes", n_train=12)
    networks = [build(f"frcnn_{body}", 6, 3, seed=1) for body in ("resnet8", "resnet20")]
    for network in networks:  # so that their answers differ from region to region
        network.regions.box_predictor.cls_score.weight.data *= 20
        network.regions.box_predictor.cls_score.bias.data.zero_()
    given = Given(networks[0], networks[1].eval(), None, data.shape, 6, data.train_labels)
    return make(name, given, settings), *networks


def terms_of(method, networks, batch):
    student, teacher = networks
    with torch.no_grad():
        answered = teacher(batch.inputs)
    return method(student.train()(batch.inputs), answered, batch)


def test_the_soft_loss_acts_on_the_students_regions_at_temperature_one(batch):
    method, *networks = built("detection_kd")
    terms = terms_of(method, networks, batch)
    _, regions = method.own(networks[0](batch.inputs), batch)  # the same regions: they are drawn by seed and step
    assert len(regions.labels) <= 12 * networks[0].scale.drawn
    with torch.no_grad():
        taught = networks[1].said(networks[1](batch.inputs), regions.boxes, (SIDE, SIDE))[0]
    expected = F.kl_div(regions.logits.log_softmax(1), taught.softmax(1), reduction="batchmean")
    torch.testing.assert_close(terms["kd"], expected, rtol=1e-3, atol=1e-5)
    assert set(terms) == {"ce", "box", "proposals", "kd"}
    plain = terms_of(built("detection")[0], networks, batch)
    assert set(plain) == {"ce", "box", "proposals"}


def test_regions_are_drawn_by_seed_and_step_and_not_from_the_global_generators(batch):
    method, student, _ = built("detection")
    before = torch.get_rng_state()
    first = method.own(student.train()(batch.inputs), batch)[1].boxes
    assert torch.equal(torch.get_rng_state(), before)
    again = method.own(student(batch.inputs), batch)[1].boxes
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = method.own(student(batch.inputs), batch._replace(step=(0, 1)))[1].boxes
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_ccd_pairs_a_region_with_itself_on_the_twin_and_released_does_not(batch):
    found = {}
    for pairing in ("paired", "released"):
        method, *networks = built("detection_ccd", pairing=pairing)
        found[pairing] = terms_of(method, networks, batch)["kd"].item()
    assert found["paired"] != pytest.approx(found["released"], rel=1e-5)
    method, student, teacher = built("detection_ccd")
    _, regions = method.own(student.train()(batch.inputs), batch)
    with torch.no_grad():
        answers = teacher(batch.inputs)
    ours, theirs, rows = [], [], 0
    sizes = (SIDE, SIDE)
    for k in range(6):
        there = moved(F.pad(regions.boxes[k], (1, 0))[None], batch.moves[6 + k][None].double(), *sizes)[0]
        keep = there[:, 0] != NONE
        rows += int(keep.sum())
        for network, output, kept in ((student, student(batch.inputs), ours), (teacher, answers, theirs)):
            here = [torch.zeros(0, 4)] * 12
            here[k], here[6 + k] = regions.boxes[k][keep], there[keep, 1:]
            with torch.no_grad():
                kept.append(network.said(output, here, sizes)[0].chunk(2))
    ours, theirs = (torch.cat([torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])]) for pairs in (ours, theirs))
    assert len(ours) == 2 * rows > 0
    labels = torch.zeros(2 * rows, dtype=torch.long)
    expected = LOSSES["ccd"](Output(ours, (), ours), Output(theirs, (), theirs), labels, temperature=1.0)["kd"].item()
    assert found["paired"] == pytest.approx(expected, rel=1e-3)


def test_released_pairs_even_with_odd_rows(batch):
    method, *networks = built("detection_ccd", pairing="released")
    soft = terms_of(method, networks, batch)["kd"].item()
    _, regions = method.own(networks[0](batch.inputs), batch)
    with torch.no_grad():
        taught = networks[1].said(networks[1](batch.inputs), regions.boxes, (SIDE, SIDE))[0]
    even = len(taught) // 2 * 2
    rows = F.kl_div(regions.logits[:even].log_softmax(1), taught[:even].softmax(1), reduction="none").sum(1)
    w = 1 + F.cosine_similarity(taught[0:even:2], taught[1:even:2])
    assert soft == pytest.approx((0.5 * (rows[0::2].mean() + (w * rows[1::2]).mean())).item(), rel=1e-3)


def test_the_loss_of_boxes_and_the_count_are_those_by_hand(batch):
    method, student, _ = built("detection")
    terms, regions = method.own(student.train()(batch.inputs), batch)
    total, right = 0.0, 0
    for label, target, logits, offsets in zip(regions.labels, regions.targets, regions.logits, regions.offsets, strict=True):
        right += int(logits.argmax() == label)
        for k in range(4) if label else ():
            apart = abs(offsets[4 * label + k] - target[k]).item()
            total += 0.5 * 9 * apart**2 if apart < 1 / 9 else apart - 1 / 18
    assert regions.labels.count_nonzero() > 10
    assert terms["box"].item() == pytest.approx(total / len(regions.labels), rel=1e-4)
    assert method.counted(None, batch) == (right, len(regions.labels))
    things = [{"boxes": own[:, 1:], "labels": own[:, 0].long() + 1} for own in rows_of(batch.labels)]
    with method._drawing(batch):
        _, losses = student.proposed(student(batch.inputs), batch.inputs, things)
    assert terms["proposals"].item() == pytest.approx(sum(losses.values()).item(), rel=1e-4)


@pytest.mark.parametrize("loss", ["ccd", "ce", "at", "kd_twins"])
def test_a_loss_that_needs_more_than_the_logits_of_regions_is_refused(loss):
    with pytest.raises(CcdError, match=f"loss = '{loss}' of method 'detection_kd'"):
        built("detection_kd", loss=loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet8"}, "model = 'resnet8' with data 'scenes', whose images have boxes: allowed are frcnn_resnet8"),
        ({"method": "ce"}, "method = 'ce' with data 'scenes'.*: allowed are detection, detection_kd, detection_ccd"),
        ({"views": "cutmix"}, "views = 'cutmix' with data 'scenes'"),
        ({"views": "rotation"}, "views = 'rotation' with data 'scenes'"),
        ({"data": "objects"}, "model = 'frcnn_resnet20' with data 'objects', whose images have no boxes"),
        ({"data": "objects", "model": "resnet8"}, "method = 'detection' with data 'objects'"),
        ({"method": "detection_ccd", "teacher": TEACHER}, "method 'detection_ccd' needs two views of each image"),
        ({"views": "base"}, "views = 'base' with data 'scenes'"),
        ({"views": "cifar100", "jda": "after crop"}, "jda = 'after crop' with data 'scenes'"),
        (
            {"method": "detection_kd", "teacher": Checkpoint(model="resnet20", file="ccdlib:resnet20-objects-s0")},
            "the teacher's model = 'resnet20' with data 'scenes', whose images have boxes: allowed are frcnn_resnet8",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    with pytest.raises(CcdError, match=message):
        TEACHER.but(**change)
    assert {*POLICIES} <= {name for name, rule in VIEWS.items() if rule.moves_boxes}


def students(method, **what):
    what = {"eval_every": 2} | what
    needs = {"teacher": TEACHER} if METHODS[method].teacher == "needed" else {}
    return RunConfig(**FEW | {"epochs": 2} | needs | what, model="frcnn_resnet8", method=method, views="cifar100")


@pytest.mark.parametrize("method", DETECTING)
def test_an_interrupted_run_goes_on_to_the_same_bits(method, outputs, monkeypatch):
    config = students(method)
    run = fit(config, show="none")
    expected, curves = (run.folder / "weights.safetensors").read_bytes(), run.curves
    assert run.chance == 0
    assert run.model().detect(torch.zeros(1, 3, SIDE, SIDE))
    shutil.rmtree(run.folder)
    interrupt([config], monkeypatch)
    again = fit(config, show="none")
    assert again.metrics["resumed"]
    assert (again.folder / "weights.safetensors").read_bytes() == expected
    assert [row["proposals"] for row in again.curves] == [row["proposals"] for row in curves]


def test_golden_numbers_of_a_short_training_of_a_detector(outputs):
    # As in tests/test_train.py: another number means another arithmetic, and PROTOCOL and CHANGED_IN must say so.
    short = {"data": "scenes", "n_train": 12, "batch": 6, "epochs": 2, "lr": 0.002, "eval_every": 2}
    taught = RunConfig(**short, seed=7, model="frcnn_resnet20", method="detection")
    config = RunConfig(**short, model="frcnn_resnet8", method="detection_ccd", views="detection", teacher=taught)
    last = fit(config, show="none").curves[-1]
    assert [last[name] for name in ("ce", "box", "proposals", "kd")] == pytest.approx(GOLDEN, rel=5e-3)


def test_a_cohort_of_detectors_has_the_bits_of_its_members_alone(outputs):
    configs = [students("detection_kd"), students("detection_ccd")]
    alone = [(fit(config, show="none").folder / "weights.safetensors").read_bytes() for config in configs]
    for config in configs:
        shutil.rmtree(fit(config, show="none").folder)
    assert [(run.folder / "weights.safetensors").read_bytes() for run in fit_cohort(configs, show="none")] == alone


def test_detectors_train_in_bfloat16(outputs):
    taught = TEACHER.but(precision="bfloat16")
    run = fit(students("detection_ccd", teacher=taught, epochs=1, precision="bfloat16"), show="none")
    assert run.metrics["provenance"]["precision"] == "bfloat16"
    assert all(
        torch.isfinite(torch.tensor(value)) for row in run.curves for name, value in row.items() if name in ("ce", "kd", "box")
    )


def test_by_sam_the_regions_at_the_weights_are_counted():
    data = load_data("scenes", n_train=12)
    right = []
    for how in ({}, {"optimiser": "sam", "rho": 3.0}):
        config = students("detection", **how)
        (trainee,) = prepare([config], data, torch.device("cpu"), untrained(config, data))
        trainee.begin(0)
        right.append(int(step(trainee, next(iter(trainee.views(1).batches(0))))[1]))
    assert right[0] == right[1], "not those where the loss is highest"


def test_a_warm_up_leaves_what_needs_no_teacher():
    data = load_data("scenes", n_train=12)
    config = students("detection_kd", warmup=4)
    (trainee,) = prepare([config], data, torch.device("cpu"), untrained(config, data))
    terms = dict.fromkeys(("ce", "box", "proposals", "kd"), 1.0)
    batch = next(iter(trainee.views(1).batches(0)))
    assert trainee.softened(terms, batch) == terms | {"kd": 0.25}
