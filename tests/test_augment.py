"""Augmentation against Pillow, pixel by pixel, and the facts of the policies."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.data import load_data
from ccdlib.training import RunConfig
from ccdlib.views import (
    OPS,
    POLICIES,
    VIEWS,
    EpochViews,
    Policy,
    apply_op,
    crop_and_flip,
    draw_crops,
    normalise,
    policy_named,
    rotations,
)
from ccdlib.views.sampled import subpolicies

GREY = {"L": 128, "RGB": (128, 128, 128)}
STEPS = [(op, level) for op in OPS for level in range(10)]


def pillow(image, op, level, sign):
    """The pixel rule of methods.md, section 1, one Pillow image at a time."""
    fill = GREY[image.mode]
    affine = Image.Transform.AFFINE

    def at(high, low=0):
        return float(np.linspace(low, high, 10)[level])

    side = at(150 / 331) * sign
    match op:
        case "shearX":
            return image.transform(image.size, affine, (1, at(0.3) * sign, 0, 0, 1, 0), Image.BICUBIC, fillcolor=fill)
        case "shearY":
            return image.transform(image.size, affine, (1, 0, 0, at(0.3) * sign, 1, 0), Image.BICUBIC, fillcolor=fill)
        case "translateX":
            return image.transform(image.size, affine, (1, 0, side * image.width, 0, 1, 0), fillcolor=fill)
        case "translateY":
            return image.transform(image.size, affine, (1, 0, 0, 0, 1, side * image.height), fillcolor=fill)
        case "rotate":
            turned = image.convert("RGBA").rotate(at(30))
            return Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned).convert(image.mode)
        case "color" | "contrast" | "sharpness" | "brightness":
            return getattr(ImageEnhance, op.title())(image).enhance(1 + at(0.9) * sign)
        case "posterize":
            return ImageOps.posterize(image, (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)[level])
        case "solarize":
            return ImageOps.solarize(image, at(0, low=256))
        case _:
            return getattr(ImageOps, op)(image)


@cache
def random_images(n, channels, height, width):
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (n, channels, height, width))
    # Flat, dark, and narrow-ranged images reach the corner cases of autocontrast, equalize and contrast.
    noise[0] = 77
    noise[1] = noise[1] // 5 + 3
    noise[2, :, : height // 2] = 200
    return torch.from_numpy(noise.astype(np.uint8))


@cache
def real_images():
    china = Image.fromarray(load_sample_image("china.jpg"))
    crops = [china.crop((x, y, x + 96, y + 96)).resize((32, 32)) for x, y in ((0, 0), (200, 150), (420, 280))]
    return torch.from_numpy(np.stack([np.array(c) for c in crops])).permute(0, 3, 1, 2).contiguous()


def to_pillow(image):
    return Image.fromarray(
        image.permute(1, 2, 0).numpy().squeeze(2) if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
    )


def from_pillow(image):
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def difference(images, op, level, sign):
    ours = apply_op(images, op, level, sign)
    theirs = torch.stack([from_pillow(pillow(to_pillow(image), op, level, sign)) for image in images])
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.uint8
    return (ours.int() - theirs.int()).abs().max().item()


@pytest.mark.parametrize(("op", "level"), STEPS)
def test_every_op_equals_pillow(op, level):
    # The issue allows one grey level for the enhance ops and the bicubic shear; the tables of Pillow make it zero.
    batches = [random_images(4, c, h, w) for c in (1, 3) for h, w in ((32, 32), (16, 16), (7, 13), (29, 18), (2, 5))]
    batches += [real_images(), real_images()[:, 1:2]]
    for images in batches:
        for sign in (1, -1) if OPS[op].signed else (1,):
            assert difference(images, op, level, sign) == 0, f"{op} {level} {sign:+d} on {tuple(images.shape)}"


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_policies_equal_pillow_image_by_image(name, channels):
    # What single ops cannot show: their order, which image each draw belongs to, and the signs.
    policy, images = POLICIES[name], torch.cat([real_images()] * 8)[:, :channels]
    draws = policy.draw(len(images), stream(0, "policy"))
    ours = policy.apply(images, draws)
    for k, image in enumerate(images):
        theirs = to_pillow(image)
        for step, (op, level) in enumerate(policy.steps):
            if draws.fires[k, step]:
                theirs = pillow(theirs, op, level, draws.signs[k, step].item())
        assert torch.equal(ours[k], from_pillow(theirs)), f"image {k} of policy {name}"


def test_apply_leaves_the_originals_alone_and_is_repeatable():
    images = real_images()
    kept = images.clone()
    policy = POLICIES["cifar10"]
    draws = policy.draw(len(images), stream(5, "policy"))
    first = policy.apply(images, draws)
    assert torch.equal(images, kept)
    assert torch.equal(first, policy.apply(images, draws))
    assert torch.equal(draws.fires, policy.draw(len(images), stream(5, "policy")).fires)
    assert not torch.equal(draws.fires, policy.draw(len(images), stream(6, "policy")).fires)
    # Each image is treated on its own: any part of the batch gives the same pixels.
    assert torch.equal(policy.apply(images[1:], draws[1:]), first[1:])


def test_draws_fire_with_p_independently():
    policy = POLICIES["cifar100"]
    fires = policy.draw(20_000, stream(0, "policy")).fires.double()
    assert fires.mean(0).sub(0.3).abs().max() < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    together = torch.corrcoef(fires.T) - torch.eye(len(policy.steps))
    assert together.abs().max() < 5 / 20_000**0.5
    assert policy.draw(20_000, stream(0, "policy")).signs.double().mean().abs() < 5 / (20_000 * 14) ** 0.5


def test_a_larger_p_fires_the_same_steps_and_more():
    few, many = (POLICIES["cifar100"].with_p(p).draw(500, stream(0, "policy")).fires for p in (0.1, 0.6))
    assert (few & ~many).sum() == 0
    assert many.sum() > few.sum()


def test_describe_gives_the_facts_of_the_paper():
    cifar100, cifar10, imagenet = (POLICIES[name].describe() for name in ("cifar100", "cifar10", "imagenet"))
    assert cifar100["identities"] == ["posterize 0", "shearY 0"]
    assert cifar100["expected_ops"] == pytest.approx(3.6)
    assert cifar100["p_no_op"] == pytest.approx(0.7**12)
    assert cifar10["identities"] == []
    assert cifar10["expected_ops"] == pytest.approx(7)
    assert cifar10["p_no_op"] == pytest.approx(0.5**14)
    assert imagenet["identities"] == ["color 0"]
    assert imagenet["steps"] == 25
    assert "color 4" in POLICIES["cifar100"].describe(channels=1)["identities"]


@pytest.mark.parametrize("name", POLICIES)
def test_identities_are_exactly_the_steps_that_change_no_image(name):
    images = torch.cat([real_images(), random_images(4, 3, 32, 32)])
    for op, level in POLICIES[name].steps:
        same = all(torch.equal(apply_op(images, op, level, sign), images) for sign in (1, -1))
        assert same == OPS[op].is_identity(level), (op, level)


def test_magnitudes_of_the_paper():
    def at(op, level):
        return OPS[op].magnitude(level)

    assert 32 * at("translateY", 8) == pytest.approx(12.9, abs=0.05)
    assert 32 * at("translateX", 1) == pytest.approx(1.6, abs=0.05)
    assert at("rotate", 3) == pytest.approx(10)
    # To the bit, as numpy spaces them: a shear by a tenth puts some pixels exactly on an edge.
    for name, low, high in (("shearX", 0, 0.3), ("shearY", 0, 0.3), ("translateX", 0, 150 / 331), ("color", 0, 0.9)):
        assert [at(name, level) for level in range(10)] == list(np.linspace(low, high, 10)), name
    assert (at("shearX", 3), at("shearX", 6)) == (0.1, 0.2)
    assert [at("posterize", level) for level in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert [round(at("solarize", level), 1) for level in range(10)] == [
        256,
        227.6,
        199.1,
        170.7,
        142.2,
        113.8,
        85.3,
        56.9,
        28.4,
        0,
    ]


def test_rotate_turns_counter_clockwise_whatever_the_sign():
    image = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    image[..., 16, 24:] = 255  # a hand pointing right turns upwards
    for sign in (1, -1):
        turned = apply_op(image, "rotate", 9, sign)[0, 0]
        assert (turned[:16] == 255).any()
        assert not (turned[18:] == 255).any()


def test_base_crop_and_flip_pixel_by_pixel():
    images = torch.cat([random_images(6, 3, 9, 12), random_images(6, 3, 9, 12).flip(0)])
    crops = draw_crops(len(images), 2, True, stream(0, "base"))
    assert 0 < crops.flips.sum() < len(images)
    ours = crop_and_flip(images, crops, 2)
    for k, image in enumerate(images):
        top, left = crops.corners[k].tolist()
        padded = torch.zeros(3, 13, 16, dtype=torch.uint8)
        padded[:, 2:11, 2:14] = image
        theirs = padded[:, top : top + 9, left : left + 12]
        assert torch.equal(ours[k], theirs.flip(2) if crops.flips[k] else theirs)


def test_crops_cover_all_places_and_flips_half():
    crops = draw_crops(20_000, 4, True, stream(0, "base"))
    counts = torch.bincount(crops.corners[:, 0] * 9 + crops.corners[:, 1], minlength=81)
    assert counts.min() > 150
    assert len(counts) == 81
    assert abs(crops.flips.double().mean().item() - 0.5) < 0.02
    assert not draw_crops(100, 4, False, stream(0, "base")).flips.any()


def test_normalise_and_rotations():
    images = random_images(4, 3, 6, 6)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = torch.stack([(images[:, c] / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(normalise(images, mean, std), expected)
    views = rotations(images)
    assert torch.equal(views[:4], images)
    quarter = to_pillow(images[3]).transpose(Image.Transpose.ROTATE_90)
    assert torch.equal(views[4 + 3], from_pillow(quarter))
    assert torch.equal(views[8:12], images.flip(2, 3))
    with pytest.raises(CcdError, match="square"):
        rotations(random_images(4, 3, 6, 8))


def test_wrong_requests_say_what_is_allowed():
    images = real_images()
    draws = POLICIES["cifar10"].draw(3, stream(0, "policy"))
    with pytest.raises(CcdError, match=r"unknown op 'shearx'\. Did you mean 'shearX'"):
        apply_op(images, "shearx", 3)
    with pytest.raises(CcdError, match="level 10 of op 'rotate': allowed are the whole numbers 0 to 9"):
        apply_op(images, "rotate", 10)
    with pytest.raises(CcdError, match="unknown policy"):
        POLICIES["cifar"]
    with pytest.raises(CcdError, match="unknown policy"):
        policy_named("cifar")
    with pytest.raises(CcdError, match="p = 1.5"):
        policy_named("cifar10", 1.5)
    with pytest.raises(CcdError, match="unknown op 'blur'"):
        Policy("mine", 0.5, (("blur", 3),))
    with pytest.raises(CcdError, match="must be a uint8 tensor"):
        POLICIES["cifar10"].apply(images.float(), draws)
    with pytest.raises(CcdError, match="allowed are 1"):
        POLICIES["cifar10"].apply(images.permute(0, 2, 3, 1), draws)
    with pytest.raises(CcdError, match=r"do not fit 2 images"):
        POLICIES["cifar10"].apply(images[:2], draws)


# ---------------------------------------------------------------- what JDA is compared with


def pictures(n, channels):
    return torch.randint(256, (n, channels, 16, 16), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


def test_every_sample_has_operations_of_its_own():
    made = VIEWS["randaugment"]
    assert len(made.ops) == 14
    assert "invert" not in made.ops
    draws = made.draw(3000, torch.Generator().manual_seed(0))
    assert draws.ops.shape == (3000, 2)
    assert torch.bincount(draws.ops.flatten(), minlength=14).min() > 3000 * 2 / 14 * 0.8
    assert draws.levels.unique().tolist() == [4]
    assert torch.bincount(VIEWS["trivialaugment"].draw(3000, torch.Generator().manual_seed(0)).levels[:, 0]).min() > 200


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "autoaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sampled_operations_are_those_of_pillow_one_after_the_other(name, channels):
    made, images = VIEWS[name], pictures(60, channels)
    draws = made.draw(60, torch.Generator().manual_seed(1))
    out = made.apply(images, draws)
    for i in range(60):
        expected = images[i : i + 1]
        for op, level, sign in zip(*(field[i].tolist() for field in (draws.ops, draws.levels, draws.signs)), strict=True):
            if made.ops[op] == "rotate":
                turned = [Image.fromarray(c.numpy()).rotate(sign * level * 30 / 9, fillcolor=128) for c in expected[0]]
                expected = torch.stack([torch.from_numpy(np.array(c)) for c in turned])[None]
            elif made.ops[op] != "identity":
                expected = apply_op(expected, made.ops[op], level, sign)
        assert torch.equal(out[i : i + 1], expected), [made.ops[k] for k in draws.ops[i]]
    assert torch.equal(out[7:9], made.apply(images[7:9], draws[7:9])), "draws belong to images"


def test_autoaugment_draws_the_steps_of_25_sub_policies_with_their_probabilities():
    made, n = VIEWS["autoaugment"], 50_000
    assert len(subpolicies()) == 25
    assert subpolicies()[0] == (("invert", 0.1, None), ("contrast", 0.2, 6))  # the first row of the paper's table for CIFAR-10
    draws = made.draw(n, torch.Generator().manual_seed(0))
    for place in (0, 1):
        expected = dict.fromkeys(made.ops, 0.0)
        for steps in subpolicies():
            op, p, _ = steps[place]
            expected[op] += p / 25
        expected["identity"] = 1 - sum(expected.values())
        found = torch.bincount(draws.ops[:, place], minlength=len(made.ops)) / n
        torch.testing.assert_close(found.tolist(), list(expected.values()), atol=0.01, rtol=0)
    pairs = {tuple(op for op, *_ in steps) for steps in subpolicies() if all(p for _, p, _ in steps)}
    whole = (draws.ops != made.ops.index("identity")).all(1)
    assert {tuple(made.ops[op] for op in row) for row in draws.ops[whole].tolist()} == pairs
    levels = {(op, level or 0) for steps in subpolicies() for op, _, level in steps}
    fired = draws.ops != made.ops.index("identity")
    found = zip(draws.ops[fired].tolist(), draws.levels[fired].tolist(), strict=True)
    assert {(made.ops[op], level) for op, level in found} <= levels


def test_cutout_makes_a_box_of_a_quarter_of_the_side_grey():
    made, n = VIEWS["cutout"], 2000
    images = torch.full((n, 3, 32, 32), 255, dtype=torch.uint8)
    draws = made.draw(n, torch.Generator().manual_seed(0))
    cut = made.apply(images, draws)
    assert set(cut.unique().tolist()) == {128, 255}
    assert torch.equal(cut[:, 0], cut[:, 2])
    grey = (cut[:, 0] == 128).sum((1, 2))
    inside = (draws.centres - 0.5).abs().amax(1) < 0.5 - 0.125
    assert set(grey[inside].tolist()) == {64}, "8 x 8 pixels, as for CIFAR-100"
    assert grey[~inside].max() <= 64
    assert grey.min() >= 9, "a box at a corner is clipped, and still there"
    row, column = (cut[5, 0] == 128).nonzero().double().mean(0) + 0.5
    assert inside[5]
    assert (torch.stack([row, column]) - 32 * draws.centres[5]).abs().max() <= 0.5


def test_flip_flips_the_images_that_are_flipped_where_they_are_cropped_too():
    data = load_data("objects", n_train=40)
    seen = {views: EpochViews(RunConfig(data="objects", views=views, seed=3), data, 0) for views in ("raw", "flip", "none")}
    rows, flips = torch.arange(40), seen["none"].crops[0].flips
    assert 10 < flips.sum() < 30
    raw, flipped = (seen[views].batch(rows).inputs for views in ("raw", "flip"))
    assert torch.equal(flipped, torch.where(flips[:, None, None, None], raw.flip(3), raw))


def test_mixup_is_the_weighted_mean_of_two_images():
    mix, images = VIEWS["mixup"], pictures(8, 3)
    draws = mix.draw(8, torch.Generator().manual_seed(0))
    assert sorted(draws.partners.tolist()) == list(range(8))
    mixed, shares = mix.apply(images, draws, images[mix.partners_of(draws)]), mix.shares(draws, 16, 16)
    for i in range(8):
        a, b, part = images[i].double(), images[draws.partners[i]].double(), draws.shares[i].item()
        assert (mixed[i].double() - (part * a + (1 - part) * b)).abs().max() <= 0.501
    assert torch.equal(shares, draws.shares)


def test_cutmix_puts_a_box_of_the_partner_into_the_image():
    mix, n = VIEWS["cutmix"], 2000
    images, partners = torch.zeros(n, 1, 16, 16, dtype=torch.uint8), torch.full((n, 1, 16, 16), 255, dtype=torch.uint8)
    draws = mix.draw(n, torch.Generator().manual_seed(0))
    mixed, shares = mix.apply(images, draws, partners), mix.shares(draws, 16, 16)
    assert set(mixed.unique().tolist()) == {0, 255}
    torch.testing.assert_close(shares, (mixed == 0).float().mean((1, 2, 3)))
    for i in range(0, n, 50):
        box = (mixed[i, 0] == 255).nonzero()
        if len(box):  # a full rectangle
            (top, left), (bottom, right) = box.amin(0).tolist(), box.amax(0).tolist()
            assert len(box) == (bottom - top + 1) * (right - left + 1)
    inside = (draws.centres - 0.5).abs().amax(1) < 0.5 - (1 - draws.shares).sqrt() / 2  # not cut off at an edge
    assert inside.sum() > 50
    assert (shares[inside] - draws.shares[inside]).abs().mean() < 0.03


def test_mixed_views_have_mixed_labels_and_pair_with_the_others():
    data, rows = load_data("digits", n_train=40), torch.arange(40)
    plain = EpochViews(RunConfig(n_train=40, views="cifar100"), data, 2).batch(rows)
    for name in ("mixup", "cutmix"):
        views = EpochViews(RunConfig(n_train=40, views=name), data, 2)
        batch = views.batch(rows)
        assert torch.equal(batch.inputs[:40], plain.inputs[:40]), "the same originals as with JDA"
        hard = torch.nn.functional.one_hot(data.train_labels, 10).float()
        assert torch.equal(batch.labels[:40], hard)
        share = batch.labels[40:].gather(1, data.train_labels[:, None])[:, 0]
        partner = data.train_labels[views.draws[0].partners]
        other = batch.labels[40:].gather(1, partner[:, None])[:, 0]
        assert torch.allclose(torch.where(partner == data.train_labels, share, share + other), torch.ones(40))
