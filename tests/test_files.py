"""Images that stay in their files: their views, whoever makes them; JDA before and after the crop; torchvision's teachers."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_augment import from_pillow, pillow, real_images, to_pillow

from ccdlib import cli, models, training
from ccdlib.analyses import experiment
from ccdlib.base import paths
from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.base.vision import torchvision
from ccdlib.data import IMAGENET, load_data, photos, sizes_of
from ccdlib.data import files as data_files
from ccdlib.kit.parameters import profile_parameters
from ccdlib.models import build
from ccdlib.training import Checkpoint, RunConfig, checks, evaluate, fit, teachers
from ccdlib.views import OPS, POLICIES, as_bytes, epoch_views, in_files, pillow_op

functional = torchvision.transforms.functional
PHOTOS = {"data": "photos", "n_train": 48, "batch": 16, "model": "resnet8", "epochs": 1}
TEACHER = RunConfig(**PHOTOS, seed=3)


@pytest.fixture
def folder(tmp_path):
    """An image folder of two classes, pictures of several sizes and modes."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("val", 2)):
        for k, name in enumerate(("ant", "bee")):
            for i in range(n):
                pixels = rng.integers(0, 256, (40 + 7 * i, 60 - 3 * i, 3)).astype(np.uint8)
                file = tmp_path / "set" / part / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(pixels)
                (image.convert("L") if i == 1 + k else image).save(file)
    return tmp_path / "set"


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("workers", [1, 2])
def test_views_are_the_same_whoever_makes_them(workers):
    data = load_data("photos", n_train=48)
    config = RunConfig(**PHOTOS, views="imagenet", method="kd", teacher=TEACHER)
    made = list(epoch_views(config, replace(data, workers=workers), 0).batches())
    alone = list(epoch_views(config, replace(data, workers=0), 0).batches())
    assert len(made) == 3
    for one, other in zip(made, alone, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)
        assert one.sizes == (16, 16)
        assert torch.equal(one.labels, data.train_labels[one.images])
    again = epoch_views(config, data, 0).batch(made[1].images[:16])
    assert torch.equal(again.inputs, made[1].inputs)
    assert not torch.equal(next(epoch_views(config, data, 1).batches()).inputs, made[0].inputs)


def test_a_view_is_a_crop_of_its_image_with_the_draws_of_its_own_stream():
    data = load_data("photos", n_train=48)
    batch = epoch_views(RunConfig(**PHOTOS, flip=False), data, 0).batch(torch.arange(8))
    for k, view in enumerate(as_bytes(batch.inputs, data.mean, data.std)):
        image = data.read(data.train_files[k])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(0, "base", 0, 0, k).initial_seed())
            box = torchvision.transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        assert torch.equal(view, data_files.tensor(functional.resized_crop(image, *box, (32, 32))))
    flipped = epoch_views(RunConfig(**PHOTOS), data, 0).batch(torch.arange(24)).inputs
    plain = epoch_views(RunConfig(**PHOTOS, flip=False), data, 0).batch(torch.arange(24)).inputs
    same = [torch.equal(a, b) for a, b in zip(flipped, plain, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, plain, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 4 < sum(same) < 20


def test_jda_comes_before_the_crop_or_after_it_with_the_same_draws():
    data = load_data("photos", n_train=48)
    jda = POLICIES["imagenet"].with_p(0.6)
    config = RunConfig(**PHOTOS, views="imagenet", p=0.6)
    before, after, plain = (
        as_bytes(epoch_views(c, data, 0).batch(torch.arange(6)).inputs, data.mean, data.std)
        for c in (config, config.but(jda="after crop"), RunConfig(**PHOTOS, views="base"))
    )
    assert torch.equal(before[:6], after[:6])
    assert torch.equal(before[:6], plain[:6])
    draws = [jda.draw(1, stream(0, "policy", 0, 1, k)) for k in range(6)]
    for k, draw in enumerate(draws):
        # After the crop: the batched operations on the second crop. Before: Pillow on the whole image, then that crop.
        assert torch.equal(after[6 + k], jda.apply(plain[6 + k][None], draw)[0])
        whole = data.read(data.train_files[k])
        for step, (op, level) in enumerate(jda.steps):
            if draw.fires[0, step]:
                whole = pillow(whole, op, level, int(draw.signs[0, step]))
        maker = in_files._OfFile(config, data, 0, torch.ones(48, dtype=torch.bool), 2, None)
        assert torch.equal(before[6 + k], maker._base(whole, 1, k))
    assert not torch.equal(before[6:], after[6:])


def test_twins_shares_and_ops_work_as_in_memory():
    data = load_data("photos", n_train=48)
    config = RunConfig(**PHOTOS, views="imagenet", share=0.5, twins=2, ops=("invert",), p=1.0)
    batches = list(epoch_views(config, data, 0).batches())
    assert sum(batch.sizes[0] for batch in batches) == 48
    assert sum(batch.sizes[1] for batch in batches) == sum(batch.sizes[2] for batch in batches) == 24
    for batch in batches:
        assert torch.equal(batch.labels, data.train_labels[batch.images])
    turned = next(epoch_views(RunConfig(**PHOTOS, views="rotation"), data, 0).batches())
    assert torch.equal(turned.inputs[16:32], turned.inputs[:16].rot90(1, (2, 3)))
    sampled = RunConfig(**PHOTOS, views="randaugment", jda="after crop")
    assert next(epoch_views(sampled, data, 0).batches()).sizes == (16, 16)


def test_jda_after_the_crop_works_in_memory_too():
    data = load_data("digits", n_train=40)
    config = RunConfig(n_train=40, views="cifar100", p=1.0, jda="after crop")
    rows = torch.arange(6)
    plain = as_bytes(epoch_views(RunConfig(n_train=40, views="base"), data, 0).batch(rows).inputs, data.mean, data.std)
    views = epoch_views(config, data, 0)
    after = as_bytes(views.batch(rows).inputs, data.mean, data.std)
    assert torch.equal(after[6:], config.rule.apply(plain[6:], views.draws[0][rows]))


@pytest.mark.parametrize("views", ["raw", "mixup", "cutmix", "trivialaugment"])
def test_views_that_images_of_many_sizes_cannot_have_are_refused(views):
    with pytest.raises(CcdError, match="images in files have many sizes. Allowed views: none, base, rotation"):
        checks.check([RunConfig(**PHOTOS, views=views)])


@pytest.mark.parametrize("op", OPS)
def test_an_op_on_one_pillow_image_is_the_batched_one(op):
    for level in range(10):
        for sign in (1, -1) if OPS[op].signed else (1,):
            for image in (*real_images(), real_images()[0, :1]):
                assert np.array_equal(pillow_op(to_pillow(image), op, level, sign), pillow(to_pillow(image), op, level, sign))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_on_one_pillow_image_is_the_batched_one(name):
    images = torch.cat([real_images()] * 6)
    draws = POLICIES[name].draw(len(images), stream(0, "policy"))
    for k, expected in enumerate(POLICIES[name].apply(images, draws)):
        assert torch.equal(from_pillow(POLICIES[name].apply_to(to_pillow(images[k]), draws[[k]])), expected)


# ---------------------------------------------------------------- the data


def test_every_test_image_counts_once_by_its_centre_crop(folder):
    data = load_data(f"imagenet:{folder}", side=16)
    assert (len(data.train_files), len(data.test_files), data.class_names) == (12, 4, ("ant", "bee"))
    parts = list(data.in_parts(torch.arange(4), 3))
    assert [len(images) for images, _ in parts] == [3, 1]
    assert torch.cat([labels for _, labels in parts]).tolist() == [0, 0, 1, 1]
    assert torch.equal(torch.cat([images for images, _ in parts]), data.tests([0, 1, 2, 3]))
    by_hand = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(round(16 * 256 / 224)), torchvision.transforms.CenterCrop(16)]
    )
    assert torch.equal(data.tests([1])[0], data_files.tensor(by_hand(data.read(data.test_files[1]))))
    network = build("resnet8", classes=2)
    logits = training.predict(network, data, data.tests(range(4)))
    right = (logits.argmax(1) == data.test_labels).double().mean().item()
    assert evaluate(network, data, batch=3)["accuracy"] == 100 * right


def test_names_and_sizes_of_the_files_name_a_run(folder):
    config = RunConfig(data=f"imagenet:{folder}", side=16, batch=4, model="resnet8", epochs=1)
    before = training.folder_of(config).path
    assert training.folder_of(config.but(side=24)).path != before
    (folder / "train" / "ant" / "0.png").rename(folder / "train" / "ant" / "9.png")
    assert training.folder_of(config).path != before
    fit(config, show="none")


def test_the_files_are_looked_at_once_until_one_comes_or_goes(folder, monkeypatch):
    def load():
        load_data.__globals__["_load"].cache_clear()  # as another process begins
        return load_data(f"imagenet:{folder}", side=16)

    looked = []
    look = data_files.class_folders
    monkeypatch.setattr(data_files, "class_folders", lambda *given: looked.append(given) or look(*given))
    first, again = load(), load()
    assert len(looked) == 1
    assert again.fingerprint == first.fingerprint
    for name in ("train_files", "test_files", "train_labels", "test_labels"):
        assert getattr(again, name).tolist() == getattr(first, name).tolist()
    assert (folder / again.train_files[0]).parts[-3:-1] == ("train", "ant")
    assert [again.class_names[label] for label in again.train_labels] == [file.split("/")[1] for file in again.train_files]
    (folder / "val" / "bee" / "0.png").unlink()
    assert len(load().test_files) == len(first.test_files) - 1
    assert len(looked) == 2
    with pytest.raises(CcdError, match="side = 4"):
        load_data(f"imagenet:{folder}", side=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_whoever_finds_it(folder, workers):
    (folder / "train" / "ant" / "2.png").write_bytes(b"no image")
    data = replace(load_data(f"imagenet:{folder}", side=16), workers=workers)
    config = RunConfig(data=data.name, side=16, batch=4, model="resnet8")
    with pytest.raises(CcdError, match="2.png cannot be read as an image.*repair or remove it") as error:
        list(epoch_views(config, data, 0).batches())
    assert "Traceback" not in str(error.value)


def test_there_are_as_many_workers_as_threads_and_none_for_a_few_images(monkeypatch):
    asked = []
    monkeypatch.setattr(data_files, "DataLoader", lambda *_, num_workers, **options: asked.append(num_workers) or [])
    monkeypatch.setattr(data_files, "cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for n in (100, 300):
        list(data_files.loaded([], [list(range(n))], list, None))
    assert asked == [0, 4]


def test_folders_and_files_that_are_none_are_named(folder):
    with pytest.raises(CcdError, match="An image folder has train/CLASS"):
        load_data(f"imagenet:{folder}/train")
    (folder / "val" / "cat").mkdir()
    (folder / "val" / "bee").rename(folder / "val" / "dog")
    with pytest.raises(CcdError, match="no .*valid file|they must be the same"):
        load_data(f"imagenet:{folder}")
    (folder / "val" / "dog").rename(folder / "val" / "bee")
    (folder / "val" / "cat").rmdir()
    with pytest.raises(CcdError, match="side = 4"):
        load_data("photos", side=4)


def test_the_photographs_are_made_once_and_their_tiles_do_not_overlap(tmp_path):
    made = photos.photos(tmp_path / "photos")
    times = {file: file.stat().st_mtime_ns for file in made.rglob("*.jpg")}
    assert len(times) == 291
    assert photos.photos(made) == made
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*.jpg")} == times
    for picture in photos._pictures().values():
        boxes = list(photos._boxes(picture))
        assert all(0 <= x < x2 <= picture.width and 0 <= y < y2 <= picture.height for x, y, x2, y2 in boxes)
        assert len({(x // photos.TILE, y // photos.TILE) for x, y, *_ in boxes}) == len(boxes)
        assert all(x2 - x <= photos.TILE >= y2 - y for x, y, x2, y2 in boxes)


# ---------------------------------------------------------------- teachers from torchvision


def test_torchvisions_weights_become_a_backbone_that_says_the_same(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torchvision.models.resnet34(num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet34.pth")
    ours = teachers.from_checkpoint(Checkpoint(model="resnet34", file=str(tmp_path / "resnet34.pth")), 3, 3)
    x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x).logits, theirs(x), atol=1e-5)


def test_named_weights_are_downloaded_by_torchvision(monkeypatch):
    asked = []
    weights = torchvision.models.get_model_weights("resnet34")

    def state(self, **options):
        asked.append((self.name, options))
        return torchvision.models.resnet34(num_classes=1000).state_dict()

    monkeypatch.setattr(weights, "get_state_dict", state)
    with torch.random.fork_rng(devices=[]):
        network = build("resnet34", classes=1000)
        network.load_state_dict(models.pretrained("resnet34", "torchvision:IMAGENET1K_V1"))
    assert asked == [("IMAGENET1K_V1", {"progress": False, "check_hash": True})]

    def offline(self, **options):
        raise OSError("no network")

    monkeypatch.setattr(weights, "get_state_dict", offline)
    with pytest.raises(CcdError, match="could not be read or downloaded .no network.. Connect to the network once"):
        models.pretrained("resnet34", "torchvision:IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("model", "file", "says"),
    [
        ("resnet34", "torchvision:V9", "unknown weights of resnet34 'V9'.*IMAGENET1K_V1"),
        ("resnet8", "torchvision:IMAGENET1K_V1", "fit resnet18 and resnet34, not 'resnet8'"),
        ("resnet34", "nowhere.pth", "there is no teacher checkpoint nowhere.pth"),
    ],
)
def test_teachers_that_cannot_be_had_are_refused(model, file, says):
    with pytest.raises(CcdError, match=says):
        teachers.from_checkpoint(Checkpoint(model=model, file=file), 3, 3)


def test_files_that_are_no_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CcdError, match="holds no weights of torchvision's resnet34"):
        models.pretrained("resnet34", str(tmp_path / "a.pth"))
    with torch.random.fork_rng(devices=[]):
        torch.save(torchvision.models.resnet34(num_classes=7).state_dict(), tmp_path / "b.pth")
    with pytest.raises(CcdError, match="does not fit resnet34 with 3 classes"):
        teachers.from_checkpoint(Checkpoint(model="resnet34", file=str(tmp_path / "b.pth")), 3, 3)


def test_a_teachers_accuracy_is_measured_before_anything_is_trained(outputs):
    taught = fit(TEACHER.but(epochs=3), show="none")
    file = str(taught.folder / "weights.safetensors")
    student = RunConfig(**PHOTOS, method="kd", teacher=Checkpoint(model="resnet8", file=file, accuracy=99.9))
    with pytest.raises(CcdError, match=rf"reaches {taught.accuracy:.2f} % on the 72 test images.*99.90 % was expected"):
        fit(student, show="none")
    folder = training.folder_of(student).path
    assert not (folder / "resume.pt").exists()
    right = student.but(teacher=Checkpoint(model="resnet8", file=file, accuracy=taught.accuracy))
    assert training.folder_of(right).path == folder  # what is expected of the teacher names no run
    assert fit(right, show="none").accuracy > 0


# ---------------------------------------------------------------- the paper's profile


def test_the_paper_profile_is_valid_and_its_gpu_hours_are_stated_without_the_data(capsys, monkeypatch):
    values = profile_parameters(paths.NOTEBOOKS / "07_imagenet.ipynb", "paper")
    plan = experiment("07_imagenet", values)
    student = plan.arms["CCD"][0]
    assert (student.batch, student.accumulate, student.clip, student.lr, student.weight_decay) == (768, 2, 20.0, 0.1, 1e-4)
    assert [round(student.lr_at(epoch), 6) for epoch in (59, 60, 120, 180)] == [0.1, 0.01, 0.001, 0.0001]
    assert (student.teacher.file, student.teacher.accuracy) == ("torchvision:IMAGENET1K_V1", 73.31)
    assert sizes_of(values["data"]) == IMAGENET
    monkeypatch.setenv("CCD_TFLOPS", "200")
    cli.main(["plan", "07_imagenet", "--profile", "paper"])
    text = capsys.readouterr().out
    hours = float(re.search(r"15 runs, .*: ([\d,]+) GPU hours at 200 TFLOP/s", text)[1])
    # By hand: 2 operations a multiply-add; three passes' worth of ResNet-18 and one of ResNet-34 (methods.md, section 8).
    passes = 1_281_167 * 200 * 3  # images, epochs, seeds
    operations = 2e6 * passes * (3 * 1814.1 + (3 * 1814.1 + 3663.8) * (1 + 2 + 2 + 2))
    assert hours == pytest.approx(operations / 200e12 / 3600, abs=1)
    monkeypatch.setenv("CCD_TFLOPS", "fast")
    with pytest.raises(SystemExit):
        cli.main(["plan", "07_imagenet", "--profile", "paper"])
    assert "CCD_TFLOPS = 'fast'" in capsys.readouterr().err


def test_running_without_the_data_says_where_it_was_looked_for(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "07_imagenet", "--profile", "paper", "-p", "data", "imagenet:nowhere"])
    assert stop.value.code == 2
    assert "nowhere (data 'imagenet:nowhere')" in capsys.readouterr().err


def test_every_epoch_and_image_in_a_file_has_draws_of_its_own():
    data, jda, rows = load_data("photos", n_train=48), POLICIES["imagenet"], torch.arange(20)
    config = RunConfig(**PHOTOS, views="imagenet")
    first, second = (epoch_views(config, data, epoch).drawn(1, rows) for epoch in (0, 1))
    assert not torch.equal(first.fires, second.fires)
    assert epoch_views(config, data, 1).drawn(0, rows) is None
    for row in (0, 7):
        by_hand = jda.draw(1, stream(config.draws_seed, "policy", 1, 1, row))
        assert torch.equal(second.fires[[row]], by_hand.fires)
