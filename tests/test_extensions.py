"""A reader's own losses, methods, views, ops, weights, networks and data: trained, and named by their source."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import ccdlib
from ccdlib.base import extensions, paths, registry, sources
from ccdlib.base.registry import REGISTRIES, CcdError
from ccdlib.training import folder_of
from ccdlib.training.schedule import Schedule, Trainings, folders_of

TEACHER = ccdlib.RunConfig(data="digits", model="resnet8", n_train=20, epochs=1)
STUDENT = {"data": "digits", "model": "resnet8", "method": "kd", "teacher": TEACHER, "n_train": 20, "epochs": 1}

# One of each, as a module would have it: (kind of registry, name, source, an edited source, what a run says to use it).
LOSS = """
import torch.nn.functional as F
import ccdlib

def distance(a, b):
    return F.mse_loss(a, b)

@ccdlib.LOSSES.add("mine")
def mine(student, teacher, labels, strength=1.0):
    return {"ce": F.cross_entropy(student.logits, labels), "mse": strength * distance(student.logits, teacher.logits)}
"""
METHOD = """
import torch
import torch.nn.functional as F
import ccdlib

@ccdlib.METHODS.add("headed")
class Headed(ccdlib.Method):
    hard_labels = False

    def __init__(self, given, gamma=1.0):
        super().__init__(given)
        self.gamma = gamma
        self.regressor = torch.nn.Linear(given.student.head.in_features, given.teacher.head.in_features)

    def heads(self, output):
        return self.headed(self.regressor, output.pooled)

    def forward(self, student, teacher, batch):
        hint = self.gamma * F.mse_loss(self.heads(student), teacher.pooled)
        return {"ce": F.cross_entropy(student.logits, batch.labels), "hint": hint}
"""
POLICY = """
import ccdlib
ccdlib.VIEWS.add("twice")(ccdlib.Policy("twice", 0.5, (("invert", 4), ("rotate", 3))))
"""
RULE = """
import torch
import ccdlib

MOST = 50

@ccdlib.VIEWS.add("brighter")
class Brighter(ccdlib.ViewRule):
    def draw(self, n, generator):
        return torch.randint(0, MOST, (n, 1, 1, 1), generator=generator)

    def apply(self, images, draws, partners=None):
        return (images.int() + draws.to(images.device)).clamp(0, 255).to(torch.uint8)
"""
OP = """
import ccdlib

@ccdlib.OPS.add("mirror", low=0, high=1)
def mirror(images, magnitude):
    return images.flip(3)

ccdlib.VIEWS.add("mirrored")(ccdlib.Policy("mirrored", 1.0, (("mirror", 5),)))
"""
TWINS_ROW = """
import ccdlib

@ccdlib.TWINS.add("even", by_image=True)
def even(original, augmented, labels):
    return labels % 2 == 0
"""
ANSWERS_ROW = """
import ccdlib

@ccdlib.ANSWERS.add("softer", by_image=True)
def softer(augmented):
    return 0.5 * augmented
"""
WEIGHT = """
import torch
import ccdlib

@ccdlib.WEIGHTS.add("half", by_image=True)
def half(original, augmented):
    return 0.5 * torch.ones_like(original[:, 0])
"""
NETWORK = """
from torch import nn
import ccdlib

def unit(inputs, outputs, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())

@ccdlib.MODELS.add("tiny")
def tiny(classes, channels):
    return ccdlib.Backbone(unit(channels, 8, 1), [unit(8, 16, 2), unit(16, 32, 2)], nn.Identity(), 32, classes)
"""
DATA = """
import numpy as np
import ccdlib

@ccdlib.DATASETS.add("stripes")
def stripes(side):
    images, labels = np.random.default_rng(0).integers(0, 255, (40, 16, 16), dtype=np.uint8), np.arange(40) % 2
    images[labels == 1, ::2] = 0
    arrays = {"train_images": images[:30], "train_labels": labels[:30], "test_images": images[30:], "test_labels": labels[30:]}
    return arrays, ("plain", "striped")
"""
ALONE = {"method": "ce", "teacher": None}
ROWS = {
    "loss": ("mine", LOSS, "F.mse_loss(a, b)", "F.l1_loss(a, b)", {"method": "mine"}),
    "method": ("headed", METHOD, "self.gamma * F", "2 * self.gamma * F", {"method": "headed"}),
    "policy": ("twice", POLICY, "0.5", "0.25", {"views": "twice"}),
    "views": ("brighter", RULE, "MOST = 50", "MOST = 60", {"views": "brighter"}),
    "op": ("mirror", OP, "flip(3)", "flip(2)", {"views": "mirrored"}),
    "choice of twins": (
        "even",
        TWINS_ROW,
        "% 2 == 0",
        "% 2 == 1",
        {"method": "kd_twins", "views": "cifar100", "settings": {"twins": "even"}},
    ),
    "answers": (
        "softer",
        ANSWERS_ROW,
        "0.5 *",
        "0.25 *",
        {"method": "kd_twins", "views": "cifar100", "settings": {"answers": "softer"}},
    ),
    "weight": ("half", WEIGHT, "0.5 *", "0.25 *", {"method": "ccd", "views": "cifar100", "settings": {"weight": "half"}}),
    "model": ("tiny", NETWORK, "nn.ReLU()", "nn.LeakyReLU()", ALONE | {"model": "tiny"}),
    "dataset": ("stripes", DATA, "::2", "::3", ALONE | {"data": "stripes", "n_train": None}),
}


@pytest.fixture(autouse=True)
def _taken_out_again(monkeypatch):
    monkeypatch.setenv(extensions.VARIABLE, "")
    yield
    for row in extensions.added():
        REGISTRIES[row.kind].remove(row.name)
    for name in ("my_methods", "ccd_extension_my_methods"):
        sys.modules.pop(name, None)


def use(tmp_path, source):
    """Write a module and load it, as CCD_EXTENSIONS would."""
    sys.modules.pop("my_methods", None)
    file = tmp_path / "my_methods.py"
    file.write_text(source)
    extensions.load([str(file)])
    return file


@pytest.mark.parametrize("kind", ROWS)
def test_one_of_each_is_trained_edited_and_found_again(kind, tmp_path):
    _, source, old, new, what = ROWS[kind]
    config = STUDENT | what
    use(tmp_path, source)
    result = ccdlib.fit(ccdlib.RunConfig(**config), show="none")
    assert 0 <= result.accuracy <= 100
    # Comments, docstrings and layout are not what it does.
    use(tmp_path, "# A comment.\n" + source.replace("import ccdlib\n", "\n\nimport ccdlib\n", 1))
    assert folder_of(ccdlib.RunConfig(**config)).path == result.folder
    assert old in source
    use(tmp_path, source.replace(old, new))
    assert folder_of(ccdlib.RunConfig(**config)).path != result.folder
    use(tmp_path, source)
    assert folder_of(ccdlib.RunConfig(**config)).finished


def test_every_registry_of_what_shapes_a_run_is_tried():
    tried = {*ROWS} - {"policy"}
    assert tried == {row.kind for row in REGISTRIES.values()} - {"recipe", "experiment", "sskd weights"}


def test_settings_are_checked_like_the_kits_own(tmp_path):
    use(
        tmp_path,
        LOSS.replace(
            "strength=1.0", "strength: Annotated[float, ccdlib.Range(0, 10)] = 1.0, kind: Literal['a', 'b'] = 'a'"
        ).replace("import ccdlib\n", "import ccdlib\nfrom typing import Annotated, Literal\n", 1),
    )
    for settings, said in (
        ({"strenght": 1.0}, "Did you mean 'strength'"),
        ({"strength": "1"}, "it must be a float"),
        ({"strength": 11.0}, "numbers from 0 up to 10"),
        ({"kind": "c"}, "Allowed: a, b"),
    ):
        with pytest.raises(CcdError, match=said):
            ccdlib.RunConfig(**STUDENT | {"method": "mine", "settings": settings})
    assert ccdlib.RunConfig(**STUDENT | {"method": "mine", "settings": {"strength": 2.0, "kind": "b"}})


def test_names_of_the_kit_are_not_taken_and_options_are_known():
    with pytest.raises(CcdError, match="'kd' is the kit's own; give yours another name"):
        ccdlib.LOSSES.add("kd")(lambda student, teacher, labels: {})
    with pytest.raises(CcdError, match="'crd' is the kit's own"):  # a loss is a method, too
        ccdlib.LOSSES.add("crd")(lambda student, teacher, labels: {})
    with pytest.raises(CcdError, match="unknown option of a loss 'hard'.*hard_labels"):
        ccdlib.LOSSES.add("mine", hard=True)
    with pytest.raises(CcdError, match="allowed are letters, digits"):
        ccdlib.LOSSES.add("my loss")(lambda student, teacher, labels: {})
    with pytest.raises(CcdError, match="expected a subclass of ccdlib.Method, got"):
        ccdlib.METHODS.add("mine")(lambda student, teacher, batch: {})
    with pytest.raises(CcdError, match="expected a Policy or an object of a subclass of ViewRule"):
        ccdlib.VIEWS.add("mine")(3)


def test_an_op_that_is_added_changes_no_other_row(tmp_path):
    before = [
        folder_of(ccdlib.RunConfig(**STUDENT | {"views": views})).path
        for views in ("randaugment", "trivialaugment", "cifar100")
    ]
    draws = ccdlib.VIEWS["randaugment"].draw(50, torch.Generator().manual_seed(0))
    use(tmp_path, OP)
    after = [
        folder_of(ccdlib.RunConfig(**STUDENT | {"views": views})).path
        for views in ("randaugment", "trivialaugment", "cifar100")
    ]
    assert before == after
    again = ccdlib.VIEWS["randaugment"].draw(50, torch.Generator().manual_seed(0))
    assert torch.equal(draws.ops, again.ops)


def test_what_a_function_refers_to_is_part_of_it():
    class Odd:
        __slots__ = ()

    space = {"__name__": "__main__", "constant": 3, "odd": Odd()}
    exec("def f(x):\n    return x * constant\ndef g(x):\n    return odd", space)
    first = sources.digest(space["f"])
    space["constant"] = 4
    assert sources.digest(space["f"]) != first
    with pytest.raises(TypeError, match="refers to a .*Odd, whose content cannot be read"):
        sources.digest(space["g"])
    tensor = torch.zeros(3)
    assert sources.digest(tensor) != sources.digest(tensor + 1)
    policy = ccdlib.Policy("a", 0.5, (("invert", 4),))
    assert sources.digest(policy) != sources.digest(replace(policy, p=0.25))


def in_a_cell(code):
    """Execute code as a notebook cell is: its source is kept, and no file can be imported."""
    import linecache

    name = f"/tmp/ipykernel_0/{abs(hash(code))}.py"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    space = {"__name__": "__main__"}
    exec(compile(code, name, "exec"), space)
    return space


@pytest.mark.parametrize("kind", ["loss", "method", "views"])
def test_what_a_cell_defines_is_sent_to_worker_processes_and_named_there_alike(kind, monkeypatch):
    _, source, old, new, what = ROWS[kind]
    in_a_cell(source)
    configs = [ccdlib.RunConfig(**STUDENT | what | {"seed": seed}) for seed in (0, 1)]
    folders = [folder_of(config) for config in configs]
    in_a_cell(source.replace(old, new))
    assert folder_of(configs[0]).path != folders[0].path, "the source of a cell is read"
    in_a_cell(source)
    monkeypatch.setenv("CCD_JOBS", "2")
    with Trainings(Schedule(folders_of(configs))) as trainings:
        trainings.wait(configs)
    assert all(folder.finished for folder in folders)


def test_what_another_process_cannot_import_is_refused_before_any_training():
    in_a_cell(LOSS.replace('add("mine")', 'add("mine", by_image=True)'))
    config = ccdlib.RunConfig(**STUDENT | {"method": "mine", "processes": 2})
    for asked in (lambda: ccdlib.fit(config, show="none"), lambda: ccdlib.check([config])):
        with pytest.raises(
            CcdError, match=r"the loss 'mine' was defined in an interactive session or a script.*CCD_EXTENSIONS"
        ):
            asked()
    assert not folder_of(TEACHER).finished
    from ccdlib.kit.batch import Grid

    with pytest.raises(CcdError, match="a batch trains in processes of its own"):
        Grid("smoke", ["00_quickstart"])


def test_a_cohort_and_a_table_take_it(tmp_path):
    use(tmp_path, LOSS)
    from ccdlib.training.recipes import comparable

    assert comparable()["mine"] == "mine"
    pair = [ccdlib.RunConfig(**STUDENT), ccdlib.RunConfig(**STUDENT | {"method": "mine"})]
    assert [result.config.method for result in ccdlib.fit_cohort(pair, show="none")] == ["kd", "mine"]
    parameters = ccdlib.Analysis("05_compatibility", "smoke").parameters | {"methods": ["kd", "mine"]}
    planned = ccdlib.experiment("05_compatibility", parameters)
    assert "mine + JDA" in planned.arms
    assert any("mine gains from JDA" in claim.statement for claim in planned.claims)


def ccd(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ccdlib", *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=300
    )


def test_the_command_line_uses_a_module_and_says_what_is_wrong_with_one(tmp_path):
    (tmp_path / "my_methods.py").write_text(LOSS)
    config = ccdlib.RunConfig(**STUDENT).model_dump(mode="json") | {"method": "mine"}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    done = ccd("--use", str(tmp_path / "my_methods.py"), "fit", str(tmp_path / "run.yaml"))
    assert done.returncode == 0, done.stderr
    use(tmp_path, LOSS)
    assert folder_of(ccdlib.RunConfig(**STUDENT | {"method": "mine"})).finished, "this process names the run alike"
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    broken = ccd("methods", CCD_EXTENSIONS=str(tmp_path / "broken.py"))
    assert broken.returncode == 2
    assert "broken.py" in broken.stderr
    assert "ModuleNotFoundError" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_a_module_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CcdError, match=r"the extension .*missing.py .* cannot be loaded"):
        extensions.load([str(tmp_path / "missing.py")])


@pytest.mark.drill
def test_processes_of_torchrun_load_the_module(tmp_path):
    use(tmp_path, LOSS.replace('add("mine")', 'add("mine", by_image=True)'))
    config = ccdlib.RunConfig(**STUDENT | {"method": "mine", "processes": 2})
    assert ccdlib.fit(config, show="none").folder == folder_of(config.but(processes=1)).path


def test_the_examples_of_the_page_are_trained_as_they_stand():
    page = (paths.ROOT / "docs" / "extend.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    shorter = (
        code.replace("resnet20", "resnet8")
        .replace("n_train=200, epochs=50", "n_train=20, epochs=1")
        .replace("epochs=5", "epochs=1")
    )
    in_a_cell(shorter)
    added = {row.kind: row.name for row in extensions.added()}
    assert {*added} == {*ROWS} - {"policy"}
    ccdlib.VIEWS.add("dimmed")(ccdlib.Policy("dimmed", 1.0, ((added["op"], 5),)))
    uses = [
        {"method": added["method"]},
        {"views": "gentle"},
        {"views": added["views"]},
        {"views": "dimmed"},
        {"model": added["model"]},
    ]
    uses.append({"method": "ccd", "views": "cifar100", "settings": {"weight": added["weight"]}})
    parts = {"twins": added["choice of twins"], "answers": added["answers"]}
    uses.append({"method": "kd_twins", "views": "cifar100", "settings": parts})
    for what in [*uses, ALONE | {"data": added["dataset"], "n_train": None}]:
        assert ccdlib.fit(ccdlib.RunConfig(**STUDENT | what), show="none").accuracy >= 0


def test_rows_of_the_kit_have_no_digest():
    assert not extensions.added()
    assert registry._sealed


def test_the_loss_of_the_readme_is_trained_as_it_stands(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (paths.ROOT / "README.md").read_text(), re.DOTALL)
    in_a_cell(code.replace("epochs=5", "epochs=1"))
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 100
