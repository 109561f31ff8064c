"""Bad input and faults: what is silently wrong, what is noticed too late, and what is said. Each test failed once."""

import csv
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import torch as safetensors
from stepping import interrupt

import ccdlib
from ccdlib import Analysis, cli
from ccdlib.base import paths
from ccdlib.base.reading import value_of
from ccdlib.base.registry import CcdError
from ccdlib.data import files as data_files
from ccdlib.data import load_data
from ccdlib.kit import door, parameters
from ccdlib.kit.batch import Grid, stems_of
from ccdlib.kit.door import run_notebook
from ccdlib.kit.parameters import cells_of
from ccdlib.training import Checkpoint, DamagedRun, RunConfig, cohort, fit, folder_of
from ccdlib.training.checks import check

ROOT = Path(__file__).parent.parent
SMALL = {"n_train": 40, "batch": 20, "epochs": 2, "model": "resnet8"}
TEACHER = RunConfig(**SMALL, seed=7)
STUDENT = {"method": "kd", "model": "resnet8"} | SMALL


def ended(capsys, *arguments):
    """(exit status, what was said on stderr) of a call of `ccd` that ends early."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "should not happen" not in said
    return stop.value.code, said


def never(*args, **kwargs):
    raise AssertionError("a training was begun")


# ---------------------------------------------------------------- silently wrong


def interrupted(config, monkeypatch, epochs=1):
    """The folder of a run that was interrupted after some epochs."""
    interrupt([config], monkeypatch, epochs)
    return folder_of(config)


def test_no_flipped_byte_of_a_kept_state_goes_unseen(monkeypatch):
    config = RunConfig(**SMALL)
    file = interrupted(config, monkeypatch).file("resume.pt")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    monkeypatch.setattr(cohort, "train_epoch", never)
    for place in [0, 31, 32, len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()]:
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        with pytest.raises(DamagedRun, match=r"resume.pt is damaged .*checksum"):
            fit(config, show="none")
    file.write_bytes(whole[:100])
    with pytest.raises(DamagedRun, match="resume.pt is damaged"):
        fit(config, show="none")


@pytest.mark.parametrize("name", ["accuracy", "best_on_test", "seconds", "provenance"])
def test_a_changed_number_of_a_finished_run_is_damage(name, trained):
    trained(RunConfig(**SMALL))
    result = fit(RunConfig(**SMALL), show="none")
    file = result.folder / "metrics.json"
    recorded = json.loads(file.read_text())
    recorded[name] = {"git_commit": "another"} if name == "provenance" else recorded[name] + 1
    file.write_text(json.dumps(recorded))
    with pytest.raises(DamagedRun, match=r"metrics.json is damaged"):
        fit(RunConfig(**SMALL), show="none")


def test_a_run_of_protocol_1_without_a_checksum_of_its_own_is_held_against_its_curves(trained):
    trained(RunConfig(**SMALL))
    result = fit(RunConfig(**SMALL), show="none")
    file = result.folder / "metrics.json"
    recorded = json.loads(file.read_text())
    del recorded["sha256"]["metrics.json"], recorded["sha256"]["config.json"]
    file.write_text(json.dumps(recorded))
    assert fit(RunConfig(**SMALL), show="none").accuracy == result.accuracy
    file.write_text(json.dumps(recorded | {"accuracy": recorded["accuracy"] + 3}))
    with pytest.raises(DamagedRun, match=r"its accuracies are not those of curves.csv"):
        fit(RunConfig(**SMALL), show="none")


def test_every_file_of_a_run_is_hashed(trained):
    trained(RunConfig(**SMALL))
    result = fit(RunConfig(**SMALL), show="none")
    files = {file.name for file in result.folder.iterdir()}
    assert {*result.metrics["sha256"]} == files == {"metrics.json", "weights.safetensors", "curves.csv", "config.json"}
    rows = list(csv.DictReader(io.StringIO((result.folder / "curves.csv").read_text())))
    assert float(rows[-1]["test_accuracy"]) == result.accuracy
    (result.folder / "config.json").write_text("{}")
    with pytest.raises(DamagedRun, match="config.json is damaged"):
        fit(RunConfig(**SMALL), show="none")


def test_a_configuration_is_changed_with_all_checks_or_not_at_all(monkeypatch):
    config = RunConfig(**SMALL)
    assert config.but(seed=3) == RunConfig(**SMALL, seed=3)
    with pytest.raises(CcdError, match="unknown views 'cifar1000'. Did you mean 'cifar100'"):
        config.but(views="cifar1000")
    with pytest.raises(CcdError, match="unknown RunConfig parameter 'viws'"):
        config.but(viws="cifar100")
    with pytest.raises(CcdError, match=r"would not check the values; write config.but"):
        config.model_copy(update={"views": "cifar1000"})
    assert config.model_copy() == config
    monkeypatch.setattr(cohort, "train_epoch", never)
    for made in (RunConfig.model_construct(**dict(config) | {"views": "cifar1000"}), changed_inside(config)):
        for use in (fit, lambda made: check([made])):
            with pytest.raises(CcdError, match="unknown views 'cifar1000'|unknown setting of method 'kd' 'temperatur'"):
                use(made)


def changed_inside(config):
    kd = RunConfig(**STUDENT, teacher=config)
    kd.settings["temperatur"] = 2.0  # a dict can be changed in place
    return kd


def test_sixteen_bits_of_a_pixel_are_no_white(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert image.mode.startswith("I;16")
    read = np.array(ccdlib.data.read_rgb(tmp_path / "deep.png"))
    assert (read == (ramp >> 8)[..., None]).all()
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(CcdError, match="save it with 8 or 16 bits"):
        ccdlib.data.read_rgb(tmp_path / "float.tiff")


def image_folder(path, side=16, count=4):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (path / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / part / name / f"{k}.png")
    return path


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
@pytest.mark.parametrize("target", ["..", "../dog", "../..", "."])
def test_a_link_that_leads_back_into_the_data_is_refused(tmp_path, kind, target):
    image_folder(tmp_path)
    assert len(load_data(f"{kind}:{tmp_path}", side=16).train_labels) == 8
    (tmp_path / "train" / "cat" / "more").symlink_to(target)
    with pytest.raises(CcdError, match="are one folder, by a link, and its images would count twice; remove the link"):
        load_data(f"{kind}:{tmp_path}", side=16)


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_links_that_lead_around_outside_the_data_or_from_one_part_to_the_other_are_refused(tmp_path, kind):
    image_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "dog").rename(tmp_path / "dogs")
    (tmp_path / "data" / "train" / "dog").symlink_to(tmp_path / "dogs")
    (tmp_path / "dogs" / "again").symlink_to(tmp_path / "dogs")
    with pytest.raises(CcdError, match=r"train/dog/again and .*train/dog are one folder"):
        load_data(f"{kind}:{tmp_path}/data", side=16)
    image_folder(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "val")
    (tmp_path / "other" / "val").symlink_to("train")
    with pytest.raises(CcdError, match=r"other/val and .*other/train are one folder"):
        load_data(f"{kind}:{tmp_path}/other", side=16)


def test_a_link_to_a_folder_elsewhere_is_fine(tmp_path):
    image_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "dog").rename(tmp_path / "dogs")
    (tmp_path / "data" / "train" / "dog").symlink_to(tmp_path / "dogs")
    assert len(load_data(f"folder:{tmp_path}/data", side=16).train_labels) == 8


def test_a_checkpoints_accuracy_is_looked_at_where_a_run_is_found_or_resumed_too(monkeypatch, trained):
    trained(TEACHER)
    taught = fit(TEACHER, show="none")
    file = str(taught.folder / "weights.safetensors")
    student = RunConfig(**STUDENT, teacher=Checkpoint(model="resnet8", file=file))
    right, wrong = (
        student.but(teacher=Checkpoint(model="resnet8", file=file, accuracy=min(100, taught.accuracy + more)))
        for more in (0, 5)
    )
    interrupted(student, monkeypatch)
    with pytest.raises(CcdError, match="reaches .* was expected"):
        fit(wrong, show="none")  # resumed
    first = fit(right, show="none")
    assert first.metrics["teacher_accuracy"] == pytest.approx(taught.accuracy)
    assert fit(right, show="none").folder == first.folder
    with pytest.raises(CcdError, match="reaches .* was expected"):
        fit(wrong, show="none")  # found
    recorded = json.loads((first.folder / "metrics.json").read_text())
    del recorded["teacher_accuracy"], recorded["sha256"]["metrics.json"]  # as protocol 1 had it: measured now
    (first.folder / "metrics.json").write_text(json.dumps(recorded))
    assert fit(right, show="none").folder == first.folder
    with pytest.raises(CcdError, match="reaches .* was expected"):
        fit(wrong, show="none")


# ---------------------------------------------------------------- too late


def test_a_list_of_runs_is_checked_before_the_first_is_trained(tmp_path, monkeypatch, capsys):
    bad = {"data": f"npz:{tmp_path}/nothing.npz"}
    (tmp_path / "list.yaml").write_text(json.dumps([SMALL, SMALL | bad]))
    monkeypatch.setattr(cohort, "train_epoch", never)
    status, said = ended(capsys, "fit", str(tmp_path / "list.yaml"))
    assert (status, "there is no" in said) == (2, True)


def checkpoint(tmp_path, how):
    """A teacher file that is not what it should be."""
    state = ccdlib.build("resnet8", channels=1).state_dict()
    file = tmp_path / "teacher.safetensors"
    content = safetensors.save(state, metadata={"model": "resnet8"})
    if how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "foreign":
        file.write_bytes(safetensors.save({"a": torch.zeros(3)}))
    elif how == "not finite":
        safetensors.save_file(state | {"head.weight": state["head.weight"] * float("nan")}, file)
    else:
        file = tmp_path / "teacher.pth"
        with torch.random.fork_rng(devices=[]):
            torch.save({"model": torch.nn.Linear(1, 1)}, file)  # a pickled module, which could run code
    return str(file)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "is incomplete or not a safetensors file"),
        ("foreign", "does not fit resnet8"),
        ("not finite", "1 tensors that are not finite numbers, such as head.weight"),
        ("pickled", "only named tensors are read, nothing that could run code"),
    ],
)
def test_check_reads_checkpoints(tmp_path, monkeypatch, how, says):
    model = "resnet18" if how == "pickled" else "resnet8"
    config = RunConfig(**STUDENT, teacher=Checkpoint(model=model, file=checkpoint(tmp_path, how)))
    with pytest.raises(CcdError, match=says) as refused:
        check([config])
    for advice in ("weights_only", "allow_pickle", "unsafe", "trust"):
        assert advice not in str(refused.value)


def test_an_npz_with_objects_is_refused_without_advice_to_load_it(tmp_path):
    np.savez(tmp_path / "objects.npz", **dict.fromkeys(ccdlib.data.ARRAYS, np.array([{"a": 1}], dtype=object)))
    with pytest.raises(CcdError, match="arrays of numbers only") as refused:
        load_data(f"npz:{tmp_path}/objects.npz")
    assert "allow_pickle" not in str(refused.value)


def npz(path, shape):
    arrays = {f"{split}_images": np.zeros((8, *shape), np.uint8) for split in ("train", "test")}
    np.savez(path / "d.npz", **arrays | {f"{split}_labels": np.arange(8) % 2 for split in ("train", "test")})
    return f"npz:{path / 'd.npz'}"


@pytest.mark.parametrize("shape", [(0, 0, 3), (1, 1, 3), (7, 32, 3)])
def test_images_without_an_inside_are_refused(tmp_path, shape):
    with pytest.raises(CcdError, match="allowed are 8 x 8 and larger"):
        load_data(npz(tmp_path, shape))


def test_check_knows_that_only_squares_can_be_turned(tmp_path):
    config = RunConfig(data=npz(tmp_path, (16, 24, 3)), views="rotation", batch=4)
    with pytest.raises(CcdError, match="views 'rotation' need square images"):
        check([config])
    check([config.but(views="none")])


def broken_image(path, how):
    whole = (path / "val" / "dog" / "3.png").read_bytes()
    content = {"empty": b"", "text": b"no image\n", "truncated": whole[:-200]}[how]
    (path / "val" / "dog" / "3.png").write_bytes(content)


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
def test_check_and_ccd_data_open_the_files_of_an_image_folder(tmp_path, monkeypatch, capsys, how):
    image_folder(tmp_path, side=32)
    check([RunConfig(data=f"imagenet:{tmp_path}", side=32, batch=4)])
    name = f"imagenet:{shutil.copytree(tmp_path, tmp_path / 'copy')}"
    broken_image(tmp_path / "copy", how)
    with pytest.raises(CcdError, match=r"1 of 16 files cannot be read as images. The first: .*3.png"):
        check([RunConfig(data=name, side=32, batch=4)])
    status, said = ended(capsys, "data", name)
    assert (status, "3.png" in said) == (2, True)
    monkeypatch.setattr(data_files, "DECODED", 0)  # where there are many, their headers are looked at
    refused = pytest.raises(CcdError, match="The first") if how != "truncated" else nothing_refused()
    with refused:
        load_data(name, side=32).check_files()


class nothing_refused:  # noqa: N801
    """The other side of pytest.raises."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_files_that_were_in_order_are_not_opened_again(tmp_path, monkeypatch):
    data = load_data(f"imagenet:{image_folder(tmp_path)}", side=16)
    data.check_files()
    opened = []
    monkeypatch.setattr(data_files, "read_rgb", lambda file: opened.append(Path(file).name))
    data.check_files()
    assert not opened
    os.utime(tmp_path / "train" / "cat" / "1.png", ns=(1, 1))  # one of them changed, its size did not
    data.check_files()
    assert len(opened) == 16


def test_what_was_in_order_of_a_part_of_the_data_says_nothing_of_the_rest(tmp_path):
    data = load_data(f"imagenet:{image_folder(tmp_path)}", side=16)
    part = data.subset(2)
    (other, *_) = sorted({*data.train_files} - {*part.train_files})
    (tmp_path / other).write_bytes(b"no image")
    part.check_files()
    with pytest.raises(CcdError, match=f"1 of 16 files .*{other}"):
        data.check_files()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 10**21),
        ("side", 10**8),
        ("twins", 10**8),
        ("batch", 10**9),
        ("accumulate", 10**6),
        ("processes", 10**6),
        ("seed", 10**30),
        ("warmup", 10**9),
    ],
)
def test_huge_values_are_refused_at_once(field, value):
    with pytest.raises(CcdError, match=f"{field} = {value}: Input should be less than"):
        RunConfig(**{"views": "cifar100", field: value})


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("kd", {"temperature": 1e300}, "allowed are numbers above 0 up to 1,000"),
        ("kd", {"temperature": float("inf")}, "allowed are numbers above 0 up to 1,000"),
        ("kd", {"temperature": float("nan")}, "allowed are numbers above 0 up to 1,000"),
        ("at", {"gamma": 1e9}, "allowed are numbers from 0 up to 1,000,000"),
        ("crd", {"negatives": 10**12}, "allowed are whole numbers from 1 up to 1,000,000"),
    ],
)
def test_huge_settings_are_refused_at_once(method, settings, says):
    with pytest.raises(CcdError, match=says):
        RunConfig(method=method, settings=settings, teacher=TEACHER)


def test_huge_numbers_of_seeds_are_refused_at_once(capsys):
    status, said = ended(capsys, "run", "00_quickstart", "-p", "seeds", "100000000")
    assert (status, "allowed are at most 1000 seeds" in said) == (2, True)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CCD_JOBS", "many", "CCD_JOBS = 'many'"),
        ("CCD_SAVE_EVERY", "-1", "CCD_SAVE_EVERY = '-1'"),
        ("CCD_DEVICE", "tpu", "CCD_DEVICE = 'tpu'"),
        ("CCD_DEVICE", "cuda", "CCD_DEVICE = 'cuda' was asked for and no CUDA device is there"),
    ],
)
@pytest.mark.parametrize("command", ["run", "batch"])
def test_environment_variables_are_looked_at_before_anything_starts(monkeypatch, capsys, command, name, value, says):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(door, "execute", never)
    monkeypatch.setattr("ccdlib.kit.engine.run", never)
    status, said = ended(capsys, command, "00_quickstart")
    assert (status, says in said) == (2, True), said


def test_a_notebook_copied_under_another_name_is_refused_before_it_runs(tmp_path, monkeypatch):
    copied = shutil.copy(paths.NOTEBOOKS / "00_quickstart.ipynb", tmp_path / "mine.ipynb")
    monkeypatch.setattr(door, "execute", never)
    with pytest.raises(
        CcdError, match=r"names '00_quickstart' in ccdlib.Analysis.*analysis = ccdlib.Analysis\(\"mine\", profile"
    ):
        run_notebook(str(copied))
    content = json.loads(copied.read_text() if isinstance(copied, Path) else Path(copied).read_text())
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"]).replace("ccdlib.Analysis(", "print(")
    Path(copied).write_text(json.dumps(content))
    with pytest.raises(CcdError, match=r"has no ccdlib.Analysis\(...\)"):
        run_notebook(str(copied))


# ---------------------------------------------------------------- goes on unseen


needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")


def in_training(outputs):
    """Wait until a run is in the middle of its training."""
    deadline = time.time() + 120
    while time.time() < deadline:
        if list((outputs / "runs").glob("*/resume.pt")):
            return
        time.sleep(0.05)
    raise AssertionError("nothing was trained")


def alive(outputs):
    """The processes that work for these outputs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"CCD_OUTPUTS={outputs}".encode() in file.read_bytes().split(b"\0") and int(file.parent.name) != os.getpid():
                found.append(file.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.drill
@needs_proc
@pytest.mark.parametrize("how", ["INT", "TERM"])
def test_an_interrupted_run_says_one_line_and_leaves_nothing(outputs, how):
    arguments = ("-p", "data", "digits", "-p", "teacher", "train", "-p", "student_epochs", "2000", "-p", "n_teacher", "20")
    process = subprocess.Popen(
        [sys.executable, "-m", "ccdlib", "run", "00_quickstart", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    in_training(outputs)
    os.kill(process.pid, getattr(signal, f"SIG{how}"))
    text = process.communicate(timeout=120)[0]
    first, last = filter(None, text.splitlines())
    assert " runs are to be trained, in about " in first
    assert last == "interrupted. The same command goes on from here; what is finished is kept."
    assert process.returncode == 130
    assert not list(outputs.glob("*/.*.part*"))
    assert not [path for path in Path("/tmp").glob("ccd-*") if f"-{process.pid}." in path.name]


@pytest.mark.drill
@needs_proc
def test_an_interrupted_command_that_keeps_nothing_does_not_speak_of_going_on():
    program = (
        "import time\nfrom ccdlib import cli\n@cli.cli.command()\ndef idle():\n    print('here', flush=True)\n"
        "    time.sleep(60)\ncli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "idle"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0].strip() == "interrupted."
    assert process.returncode == 130


@pytest.mark.drill
@needs_proc
def test_workers_end_with_the_process_that_started_them(outputs):
    program = """
from ccdlib import RunConfig
from ccdlib.training.schedule import Schedule, Trainings, folders_of
configs = [RunConfig(n_train=40, batch=20, epochs=1000, eval_every=1000, seed=s) for s in range(2)]
with Trainings(Schedule(folders_of(configs))) as trainings:
    trainings.wait(configs)
"""
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"CCD_JOBS": "2"})
    in_training(outputs)
    assert len(alive(outputs)) >= 3
    process.kill()
    process.wait()
    deadline = time.time() + 20
    while alive(outputs) and time.time() < deadline:
        time.sleep(0.1)
    assert not alive(outputs)


@pytest.mark.drill
@needs_proc
def test_a_process_that_ends_early_does_not_wait_for_the_trainings_that_it_began(outputs):
    program = """
import time
from ccdlib import RunConfig
from ccdlib.training.schedule import Schedule, Trainings, folders_of
configs = [RunConfig(n_train=40, batch=20, epochs=3000, eval_every=3000, seed=s) for s in range(6)]
trainings = Trainings(Schedule(folders_of(configs)))
input()
raise SystemExit("a cell failed")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"CCD_JOBS": "2"}, stdin=subprocess.PIPE, start_new_session=True
    )
    in_training(outputs)
    process.communicate(b"\n", timeout=30)
    assert process.returncode == 1
    assert not alive(outputs)


def test_what_a_killed_run_left_behind_is_swept_away(tmp_path):
    host = platform.node()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".00_quickstart.{host}-{pid}.part.ipynb" for pid in (dead.pid, os.getpid())] + [
        ".00_quickstart.elsewhere-1.part.ipynb"
    ]
    for name in names:
        (tmp_path / name).write_text("")
    door._sweep(tmp_path.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


# ---------------------------------------------------------------- escapes


@pytest.mark.parametrize("name", ["../params/lite", "/tmp/x", "a/b", "..", "", ".hidden"])
def test_names_of_profiles_notebooks_and_figures_are_no_paths(name, capsys):
    for arguments in (["run", "00_quickstart", "--profile", name], ["batch", "--profile", name], ["run", name or "."]):
        status, said = ended(capsys, *arguments)
        assert (status, "is not a valid name; allowed are letters" in said) == (2, True), (arguments, said)
    with pytest.raises(CcdError, match="is not a valid name"):
        stems_of(name)
    with pytest.raises(CcdError, match="is not a valid name"):
        Analysis("00_quickstart").figure(name, None)


# ---------------------------------------------------------------- each gets its sentence


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seeds: 3\nseeds: 4\n", "the key 'seeds' appears 2 times; write it once"),
        (b"3: seeds\n", "the key 3 is of type int; keys must be strings"),
        (b"on: 1\n", "the key True is of type bool"),
        (b"seeds: \xff\n", "is not UTF-8 text"),
        (b"seeds: &a [*a]\n", "found unconstructable recursive node"),
        (b"seeds: &a {b: *a}\n", "found unconstructable recursive node"),
        (b"&a [*a]", "found unconstructable recursive node"),
        (b"[" * 3000, "is nested too deeply"),
        (b"seeds: 2026-02-30\n", "has a value that cannot be read (day is out of range for month)"),
        (b"seeds: " + b"9" * 5000, "has a value that cannot be read"),
        (b"seeds: [1\n", "cannot be read as YAML"),
        (b"- 1\n", "holds a list"),
    ],
)
@pytest.mark.parametrize("command", ["run", "fit"])
def test_yaml_that_is_not_what_it_seems(tmp_path, capsys, command, content, says):
    (tmp_path / "a.yaml").write_bytes(content)
    arguments = ["fit"] if command == "fit" else ["run", "00_quickstart", "-f"]
    status, said = ended(capsys, *arguments, str(tmp_path / "a.yaml"))
    assert status == 2
    assert says in said or (command == "fit" and says == "holds a list" and "does not describe a run" in said)


def test_values_on_the_command_line_are_read_as_strictly(capsys):
    status, said = ended(capsys, "run", "00_quickstart", "-p", "seeds", "{a: 1, a: 2}")
    assert (status, "the key 'a' appears 2 times" in said) == (2, True)
    assert value_of("[1, 2]", "here") == [1, 2]
    assert value_of("a: {b: 1}", "here") == {"a": {"b": 1}}
    assert value_of("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}", "here")["d"] == {"b": 1, "c": 3}  # another mapping's keys


BROKEN = {
    "no cells": {},
    "cells that are no list": {"cells": 3},
    "a cell that is a word": {"cells": ["word"]},
    "no metadata": {"cells": [{"cell_type": "code", "source": []}]},
    "no source": {"cells": [{"cell_type": "code", "metadata": {}}]},
    "tags that are a word": {"cells": [{"cell_type": "code", "source": [], "metadata": {"tags": 3}}]},
    "a list": [],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_notebook_is_called_one(tmp_path, capsys, what):
    file = tmp_path / "broken.ipynb"
    file.write_text(json.dumps(BROKEN[what]))
    status, said = ended(capsys, "run", str(file))
    assert (status, "is not a notebook" in said) == (2, True), said
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CcdError, match="is not UTF-8 text"):
        cells_of(file, "it")


def test_links_that_lead_nowhere_and_paths_of_another_kind(tmp_path, capsys, monkeypatch):
    (tmp_path / "away").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_text("a: 1")
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nothing")
    for name in ("npz:{}/away", "folder:{}/away", "folder:{}/file", "imagenet:{}/file", "npz:{}/images", "folder:{}/images"):
        status, said = ended(capsys, "data", name.format(tmp_path))
        assert status == 2, (name, said)
    for arguments in (
        ["fit", str(tmp_path)],
        ["run", "00_quickstart", "-f", str(tmp_path)],
        ["run", str(tmp_path / "away.ipynb")],
    ):
        assert ended(capsys, *arguments)[0] == 2
    with pytest.raises(CcdError, match="there is no file"):
        check([RunConfig(**STUDENT, teacher=Checkpoint(model="resnet8", file=str(tmp_path)))])
    monkeypatch.setenv("CCD_OUTPUTS", str(tmp_path / "file"))
    with pytest.raises(CcdError, match="is not a folder that can be written"):
        fit(RunConfig(**SMALL), show="none")
    status, said = ended(capsys, "batch", "00_quickstart", "--no-expectation")
    assert status == 2


def test_a_checkout_without_params_is_no_batch_with_nothing_to_do(tmp_path, monkeypatch, capsys):
    # As CCD_ROOT names it, where a process begins; tests/test_cli.py begins one.
    for name, path in {"ROOT": tmp_path, "NOTEBOOKS": tmp_path / "notebooks", "PARAMS": tmp_path / "params"}.items():
        monkeypatch.setattr(paths, name, path)
    status, said = ended(capsys, "batch")
    assert status == 2
    assert "has no folders notebooks/ and params/; set CCD_ROOT to a checkout that has them" in said


def test_what_is_no_configuration_or_device():
    with pytest.raises(CcdError, match="expected a RunConfig, .*, got None"):
        fit(None)
    with pytest.raises(CcdError, match="expected a RunConfig"):
        check([{"model": "resnet8"}])
    with pytest.raises(CcdError, match="device = 'tpu': allowed are 'cpu' and 'cuda'"):
        load_data("digits", device="tpu")
    with pytest.raises(CcdError, match=r"ops = \[\]: a policy without operations"):
        RunConfig(views="cifar100", ops=())


def test_a_teachers_mistake_is_called_the_teachers():
    for teacher, says in (
        ({"model": "resnet9"}, "teacher: unknown model 'resnet9'"),
        ({"epochs": 0}, "teacher: RunConfig: epochs = 0"),
        ({"fille": "x"}, "teacher: unknown RunConfig parameter 'fille'"),
        ({"file": "x", "modle": "resnet8"}, "teacher: unknown Checkpoint parameter 'modle'"),
        (3, "teacher = 3: give a RunConfig, a Checkpoint, the fields of one"),
    ):
        with pytest.raises(CcdError, match=f"^{says}"):
            RunConfig(method="kd", teacher=teacher)


def test_a_recipe_is_a_family_and_no_part_of_one():
    for name in ("small_sskd", "small_teacher", "hsakd_light"):
        with pytest.raises(CcdError, match=f"unknown recipe '{name}'.* Allowed: small, paper, hsakd, imagenet"):
            door.run_notebook("00_quickstart", given=[("recipe", name)])


def test_every_teacher_is_checked_however_deep():
    small = {"n_train": 20, "epochs": 1}
    deepest = RunConfig(**small, data="npz:nowhere.npz")
    chain = RunConfig(**small, method="kd", teacher=RunConfig(**small, method="kd", teacher=deepest))
    with pytest.raises(CcdError, match="nowhere.npz"):
        check([chain])


def test_times_of_no_or_endless_steps_are_refused_before_the_training(capsys):
    for steps in ("0", "1000000"):
        status, said = ended(capsys, "run", "06_ccd", "-p", "timed_steps", steps)
        assert (status, f"timed steps = {steps}: allowed are 1 to 1000" in said) == (2, True)
    status, said = ended(capsys, "models", "--side", "100000")
    assert (status, "32<=x<=4096" in said) == (2, True)


def test_a_notebook_may_have_magics(tmp_path):
    content = json.loads((paths.NOTEBOOKS / "00_quickstart.ipynb").read_text())
    cell = {"cell_type": "code", "source": ["%time 1 + 1\n", "!ls"], "metadata": {}, "outputs": [], "execution_count": 1}
    file = tmp_path / "00_quickstart.ipynb"
    file.write_text(json.dumps(content | {"cells": [*content["cells"], cell]}))
    door._check_names_itself(file)
    cell["source"] = ["%time 1 + 1\n", "1 +"]
    file.write_text(json.dumps(content | {"cells": [*content["cells"], cell]}))
    with pytest.raises(CcdError, match="a cell is not valid Python"):
        door._check_names_itself(file)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CCD_OUTPUTS", "~/results")
    assert paths.outputs() == (tmp_path / "results").resolve()
    npz(tmp_path, (16, 16, 3))
    assert len(load_data("npz:~/d.npz").train_labels) == 8
    (tmp_path / "a.yaml").write_text("seeds: 3\n")
    assert parameters.asked_for("00_quickstart", files=["~/a.yaml"])[1]["seeds"] == 3
    shutil.copy(paths.NOTEBOOKS / "00_quickstart.ipynb", tmp_path)
    assert parameters.find("~/00_quickstart.ipynb") == (tmp_path / "00_quickstart.ipynb").resolve()


def test_an_executed_notebook_has_the_same_bytes_with_parameters_too():
    def executed():
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seeds = 3")])
        made.cells[0].metadata["tags"] = ["injected-parameters"]
        return nbformat.writes(door.without_times(made))

    assert executed() == executed()


def test_the_grid_of_a_profile_that_is_there_is_still_made():
    assert Grid("lite", ["00_quickstart"], check=False).stems == ("00_quickstart",)
