"""What comes with the package: photographs and teachers are what their cards and checksums say, and notebooks can use them."""

import hashlib
import io
import json
import runpy
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import ccdlib
from ccdlib import Analysis
from ccdlib.analyses import experiment
from ccdlib.base.registry import CcdError
from ccdlib.data import bundled
from ccdlib.data.bundled.objects import rebuild
from ccdlib.kit.answers import answered
from ccdlib.kit.parameters import find, profile_parameters
from ccdlib.training import Checkpoint, RunConfig, cohort, evaluate, fit, folder_of
from ccdlib.training.checks import data_of

NAMES = list(bundled.cards())
FINGERPRINT = "17ead342b97b481ee54566f074be343b2352085a3394e06c51bf48559dacae02"


def test_files_have_their_checksums():
    lines = (bundled.OBJECTS / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((bundled.OBJECTS / name).read_bytes()).hexdigest() == digest, name
    assert len(lines) == 23


def test_objects_are_the_photographs_that_the_list_says():
    data, (rows, _) = ccdlib.load_data("objects"), bundled._listed()
    assert data.fingerprint == FINGERPRINT
    assert (data.shape, data.classes, len(data.train_labels), len(data.test_labels)) == ((3, 32, 32), 20, 1000, 929)
    assert (data.train_labels.bincount() == 50).all()
    assert (data.test_labels.bincount().min(), data.test_labels.bincount().max()) == (28, 60)
    assert len({row["source"] for row in rows}) == len(rows) == 1929, "no photograph is in it twice"
    pixels = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(pixels.unique(dim=0)) == 1929
    assert data.flip
    for name in ("LICENSE.txt", "README.md"):
        assert "Attribution 4.0 International" in (bundled.OBJECTS / name).read_text()


def test_pictures_are_larger_copies_of_the_first_test_images():
    data = ccdlib.load_data("objects")
    large, small = data.pictures(20), data.test_images[data.examples(20)]
    assert large.shape == (20, 3, 160, 160)
    for picture, image in zip(large, small, strict=True):
        reduced = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(reduced).astype(int) - image.permute(1, 2, 0).numpy()).mean() < 1.5
    digits = ccdlib.load_data("digits")
    assert torch.equal(digits.pictures(3), digits.test_images[digits.examples(3)])


def archive_of(photographs, file):
    with tarfile.open(file, "w:gz") as archive:
        for name, pixels in photographs.items():
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            entry = tarfile.TarInfo(f"101_ObjectCategories/{name}")
            entry.size = content.tell()
            content.seek(0)
            archive.addfile(entry, content)


def test_the_script_makes_the_mosaics_of_an_archive_again(tmp_path, monkeypatch, capsys):
    with Image.open(bundled.OBJECTS / "train.webp") as picture:
        assert picture.width == rebuild.COLUMNS * rebuild.SIDE
    monkeypatch.setattr(rebuild, "COLUMNS", 5)  # a small mosaic of two rows: the best packing of a large one takes seconds
    rng = np.random.default_rng(0)
    names = [f"cats/image_{k:04}.jpg" for k in range(14)]
    photographs = {name: rng.integers(0, 256, (40, 48, 3), dtype=np.uint8) for name in names}
    archive_of(photographs, tmp_path / "a.tar.gz")
    here = tmp_path / "here"
    here.mkdir()
    rows = [("train", "cat", name) for name in names[:7]] + [("test", "cat", name) for name in names[7:]]
    (here / "images.csv").write_text("split,label,source\n" + "".join(",".join(row) + "\n" for row in rows))
    square = [Image.fromarray(photographs[name][:, 4:44]).resize((32, 32), Image.Resampling.LANCZOS) for name in names]
    rebuild.mosaic(np.stack(square[:7])).save(here / "train.webp", lossless=True)
    changed = np.stack(square[7:]).copy()
    changed[3, 5, 5] ^= 255
    rebuild.mosaic(changed).save(here / "test.webp", lossless=True)
    monkeypatch.setattr(rebuild, "HERE", here)
    with pytest.raises(SystemExit) as ended:
        rebuild.main(tmp_path / "a.tar.gz", tmp_path / "made")
    assert ended.value.code == 1
    assert "14 images written" in (text := capsys.readouterr().out)
    assert "; 1 have other pixels" in text
    with Image.open(tmp_path / "made" / "test.webp") as made:
        assert (rebuild.tiles(made, 7) == np.stack(square[7:])).all()
    archive_of({names[0]: photographs[names[0]]}, tmp_path / "b.tar.gz")
    with pytest.raises(SystemExit, match="lacks 13 photographs, such as cats/image_0001.jpg"):
        rebuild.main(tmp_path / "b.tar.gz", tmp_path / "made")


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_is_what_its_card_says(name):
    card = bundled.cards()[name]
    config = RunConfig(**card["configuration"])
    assert folder_of(config).path.name == card["run"], "the kit would train another network today; train the teachers again"
    assert (config.seed, config.data, card["data_sha256"]) == (int(name[-1]), "objects", FINGERPRINT)
    data = ccdlib.load_data("objects")
    network = cohort.network_of(Checkpoint(model=card["model"], file=f"ccdlib:{name}"), data, show="none")
    few = data.test_labels[:200]
    right = (ccdlib.predict(network, data, data.test_images[:200]).argmax(1) == few).float().mean().item()
    assert right > 0.6
    if name == NAMES[0]:
        assert evaluate(network, data)["accuracy"] == pytest.approx(card["accuracy"], abs=0.25)


def test_a_bundled_teacher_that_there_is_not_or_that_is_damaged(tmp_path, monkeypatch):
    wrong = RunConfig(data="objects", method="kd", teacher=Checkpoint(model="resnet20", file="ccdlib:resnet20-objects-s99"))
    with pytest.raises(CcdError, match="unknown bundled teacher 'resnet20-objects-s99'. Did you mean"):
        fit(wrong)
    (tmp_path / "cards.json").write_text(json.dumps(bundled.cards()))
    whole = (bundled.TEACHERS / f"{NAMES[0]}.safetensors").read_bytes()
    (tmp_path / f"{NAMES[0]}.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    monkeypatch.setattr(bundled, "TEACHERS", tmp_path)
    with pytest.raises(CcdError, match="is missing or damaged; install the package again"):
        bundled.teacher(f"ccdlib:{NAMES[0]}")


def parameters(stem="00_quickstart", **changes):
    return profile_parameters(find(stem), "smoke") | changes


def test_a_notebook_takes_a_bundled_teacher_for_each_seed():
    plan = experiment("00_quickstart", parameters(seeds=3))
    assert [teacher.file for teacher in plan.arms["teacher"]] == [f"ccdlib:resnet20-objects-s{k}" for k in range(3)]
    assert [config.teacher for config in plan.arms["KD"]] == plan.arms["teacher"]
    assert all(config.method != "ce" or config.model == "resnet8" for config in plan.configs), "no teacher is trained"
    many = experiment("00_quickstart", parameters(seeds=len(NAMES) + 2)).arms["teacher"]
    assert [teacher.file for teacher in many[-2:]] == [f"ccdlib:{name}" for name in NAMES[:2]], "the teachers take turns"
    assert [teacher.seed for teacher in many] == list(range(len(NAMES) + 2))
    trained = experiment("00_quickstart", parameters(teacher="train"))
    assert isinstance(trained.arms["teacher"][0], RunConfig)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": "digits"}, "no resnet20-digits-s0 comes with the package; it has resnet20-objects-s0.* Give teacher = train"),
        ({"teacher_model": "resnet56"}, "no resnet56-objects-s0 comes with the package"),
        ({"n_teacher": 100}, "n_teacher = 100 with teacher = 'bundled'"),
        ({"teacher": "bundle"}, "unknown teacher 'bundle'. Did you mean 'bundled'"),
    ],
)
def test_what_no_bundled_teacher_fits_is_refused(change, says):
    with pytest.raises(CcdError, match=says):
        experiment("00_quickstart", parameters(**change))


def test_a_bundled_teacher_stands_in_the_table_and_is_not_trained(capsys):
    small = {"n_train": 20, "student_epochs": 1, "evaluations": 1, "lengths": []}
    run = Analysis("00_quickstart")
    run.parameters = parameters(**small)
    plan = run.experiment()
    assert sum(p.numel() for p in plan.teacher().parameters()) == 278_324 - 80 * 65
    assert "ccdlib:resnet20-objects-s0: 79.2 % on the test images, from its file" in capsys.readouterr().out
    results = plan.train()
    shown = run.table(results, baseline="KD")
    cards = bundled.cards()
    assert [result.accuracy for result in results["teacher"]] == [cards[name]["accuracy"] for name in NAMES[:2]]
    assert shown.loc["teacher", "accuracy (%)"].startswith("80.6")
    run.judge(results)
    run.save()
    saved = json.loads((run.folder / "results.json").read_text())
    assert saved["runs"]["teacher"] == [f"ccdlib:{name}" for name in NAMES[:2]]
    metrics = results["KD"][0].metrics
    assert metrics["teacher_accuracy"] == cards[NAMES[0]]["accuracy"]


def test_heads_are_trained_on_a_bundled_teacher():
    plan = experiment("05_compatibility", parameters("05_compatibility", teacher="bundled", n_teacher=0, methods=["hsakd"]))
    taught = plan.arms["HSAKD"][1].teacher
    assert (taught.method, taught.data, taught.n_train, taught.seed) == ("hsakd_teacher", "objects", None, 1)
    assert taught.teacher.file == "ccdlib:resnet20-objects-s1"
    assert data_of(taught).fingerprint == FINGERPRINT


def test_class_gives_verdicts_on_its_large_effects_with_four_seeds():
    def least(profile):
        values = profile_parameters(find("00_quickstart"), profile)
        return [claim.least for claim in experiment("00_quickstart", values).claims]

    assert (least("class"), least("paper")) == ([4, 4], [3, 3])
    assert {*least("smoke"), *least("lite")} == {10}


def test_what_fired_is_said_in_words():
    policy = ccdlib.POLICIES["cifar100"]
    draws = policy.draw(2, torch.Generator().manual_seed(0))
    draws.fires[:] = False
    names = [name for name, _ in policy.steps]
    for op, sign in (("posterize", 1), ("shearX", -1), ("color", 1), ("rotate", -1)):
        draws.fires[1, names.index(op)] = True
        draws.signs[1, names.index(op)] = sign
    assert policy.fired(draws) == [[], ["shearX -", "color +", "rotate"]]
    assert policy.fired(draws, channels=1)[1] == ["shearX -", "rotate"]


def test_an_answer_is_made_of_whole_sentences():
    def said(verdict, **more):
        claim = {"claim": "a beats b", "estimate": 1.26, "low": 0.5, "high": 2.04, "n": 4, "level": 0.95, "unit": "points"}
        return answered(claim | {"margin": 1.0, "least_seeds": 10, "collapsed": {}, "verdict": verdict} | more)

    mean = " The mean over 4 seeds was +1.3 points, with an interval from +0.5 to +2.0 (95 %)."
    assert said("holds") == "**It holds** that a beats b." + mean
    assert said("does not hold") == "**It does not hold** that a beats b." + mean
    assert said("inconclusive") == "**It stays open** whether a beats b." + mean
    assert said("untested (needs 10 seeds)") == "**It was not tested** whether a beats b: that takes 10 seeds." + mean
    assert said("practically zero, within ± 1").startswith(
        "**There is practically no effect** (within ± 1 points) where it is claimed that a beats b."
    )
    assert said("holds", collapsed={"a": [2]}).endswith(" Of a, seed 2 collapsed.")


def test_the_rebuild_script_says_how_it_is_used(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rebuild.py"])
    with pytest.raises(SystemExit, match="its exit status is 1 where there are any"):
        runpy.run_path(str(bundled.OBJECTS / "rebuild.py"), run_name="__main__")
