"""Precision and portable bits: what they name, what stays float32, and that bits are those of the list of processors."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stepping import interrupt, step

from ccdlib.analyses import Experiment, experiment
from ccdlib.base import arithmetic, paths
from ccdlib.base.arithmetic import SWITCHES, resolved
from ccdlib.base.files import sha256
from ccdlib.base.registry import CcdError
from ccdlib.data import load_data
from ccdlib.kit.parameters import find, profile_parameters
from ccdlib.methods import CLASSIFYING, METHODS
from ccdlib.training import Diverged, RunConfig, fit, fit_cohort, folder_of, group, prepare, teacher_of_method, untrained
from ccdlib.training.config import work_of
from ccdlib.training.schedule import Schedule, Trainings, folders_of
from ccdlib.views import EpochViews

SMALL = {"n_train": 40, "batch": 20, "epochs": 2, "model": "resnet8"}
TEACHER = RunConfig(**SMALL, seed=7)
HALF = SMALL | {"views": "cifar100", "teacher": TEACHER, "precision": "bfloat16"}


# ---------------------------------------------------------------- what is meant, and what it names


def test_what_a_precision_stands_for(monkeypatch):
    monkeypatch.setattr(arithmetic, "can_be_portable", lambda: True)
    for amx in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx})
        cpu = [resolved(precision, True, "cpu") for precision in ("auto", "float32", "bfloat16", "fast")]
        assert cpu == [("float32", True), ("float32", True), ("bfloat16", False), ("bfloat16" if amx else "float32", not amx)]
        gpu = [resolved(precision, True, "cuda") for precision in ("auto", "float32", "bfloat16", "fast")]
        assert [one.precision for one in gpu] == ["bfloat16", "float32", "bfloat16", "bfloat16"]
        assert not any(one.portable for one in gpu)
    monkeypatch.setattr(arithmetic, "can_be_portable", lambda: False)
    assert resolved("float32", True, "cpu") == ("float32", False)
    assert resolved("auto", False, "cpu").said == "float32"


def test_only_x86_64_with_avx2_can_be_portable(monkeypatch):
    for machine, avx2, possible in (("x86_64", True, True), ("x86_64", False, False), ("arm64", True, False)):
        monkeypatch.setattr(arithmetic.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda avx2=avx2: {"avx2": avx2})
        assert arithmetic.can_be_portable() == possible


def test_the_arithmetic_that_is_meant_names_a_run_and_its_cohort():
    def name(**changes):
        return folder_of(RunConfig(**SMALL | changes, method="kd", teacher=TEACHER.but(**changes))).path.name

    plain = name()
    assert name(precision="float32") == plain, "what auto means on a CPU"
    assert len({plain, name(precision="bfloat16"), name(portable=True)}) == 3
    assert name(precision="bfloat16", portable=True) == name(precision="bfloat16")
    student = RunConfig(**SMALL, method="kd", teacher=TEACHER)
    mixed = student.but(teacher=TEACHER.but(precision="bfloat16"))
    assert folder_of(student).path.name != folder_of(mixed).path.name, "the teacher's arithmetic, too"
    assert student.cohort != student.but(precision="bfloat16").cohort
    assert student.work == student.but(precision="float32").work != student.but(precision="bfloat16").work
    stored = student.model_dump(mode="json")
    del stored["precision"], stored["portable"]
    assert work_of(stored) == student.work, "runs of before these fields"


def test_arms_that_are_compared_compute_in_one_way():
    arms = [[RunConfig(**SMALL, seed=seed, precision=precision) for seed in (0, 1)] for precision in ("float32", "bfloat16")]
    assert Experiment({"a": arms[0], "b": arms[0]}, ())
    with pytest.raises(CcdError, match=r"the arms differ in \(precision, portable\): \[\('bfloat16', False\), \('float32'"):
        Experiment({"a": arms[0], "b": arms[1]}, ())


@pytest.mark.parametrize("stem", sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
def test_every_run_of_a_notebook_has_its_arithmetic(stem):
    asked = profile_parameters(find(stem), "smoke")
    several = asked.get("processes", 1) > 1
    assert asked["portable"] != several, "smoke is portable"
    changed = experiment(stem, asked | {"precision": "bfloat16", "portable": not several})
    every = [config for config in changed.configs if isinstance(config, RunConfig)]
    assert {(config.precision, config.portable) for config in every} == {("bfloat16", not several)}


def test_which_profiles_are_portable():
    one = [path for path in YAML if path.stem != "07_imagenet"]  # which is trained by two processes in smoke
    found = {path.parent.name: profile_parameters(find(path.stem), path.parent.name)["portable"] for path in one}
    assert {profile for profile, portable in found.items() if portable} == {"class", "smoke"}


YAML = sorted(paths.PARAMS.glob("*/*.yaml"))


def test_several_processes_cannot_be_portable():
    with pytest.raises(CcdError, match="processes = 2 with portable = True: the bits would depend on the number of processes"):
        RunConfig(**SMALL, processes=2, portable=True)


# ---------------------------------------------------------------- bfloat16


def test_networks_compute_in_bfloat16_and_all_else_is_float32(monkeypatch):
    config, data = RunConfig(**HALF, method="at"), load_data("digits", n_train=40)
    trainee = prepare([config], data, torch.device("cpu"), untrained(config, data))[0]
    seen = []
    outputs = type(trainee)._forward
    monkeypatch.setattr(type(trainee), "_forward", lambda *given: seen.append(outputs(*given)) or seen[-1])
    batch = next(EpochViews(config, data, 0).batches())
    terms, _, _ = step(trainee, batch)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    for output in seen:
        assert {feature.dtype for feature in output.feats} == {torch.bfloat16}
        assert output.logits.dtype == output.pooled.dtype == torch.float32
    assert len(seen) == 2
    convolutions = [m for m in trainee.teacher.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert {m.weight.dtype for m in convolutions} == {torch.bfloat16}, "the frozen teacher"
    state = [*trainee.network.state_dict().values(), *(part["momentum_buffer"] for part in trainee.optimiser.state.values())]
    assert {tensor.dtype for tensor in state} == {torch.float32, torch.int64}
    full = config.but(precision="float32")
    other = prepare([full], data, torch.device("cpu"), untrained(full, data))[0]
    expected, _, _ = step(other, batch)
    for name, term in terms.items():
        assert term.item() == pytest.approx(expected[name].item(), rel=0.05), name
        assert term.item() != expected[name].item(), "these were bfloat16"


@pytest.mark.parametrize("method", CLASSIFYING)
def test_every_method_trains_in_bfloat16(method, trained):
    teacher = teacher_of_method(method, TEACHER) if METHODS[method].teacher == "needed" else None
    trained(TEACHER)
    settings = {"negatives": 8} if method == "crd" else {}
    rotates = METHODS[method].rotates
    config = RunConfig(**HALF | {"teacher": teacher, "epochs": 1}, method=method, settings=settings)
    result = fit(config.but(views="none") if rotates else config, show="none")
    made = result.metrics["provenance"]
    assert (made["precision"], made["portable"]) == ("bfloat16", False)
    weights = load_file(result.folder / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.int64}


def test_a_cohort_in_bfloat16_has_the_bits_of_its_members_alone_and_goes_on_to_them(trained, once, outputs, monkeypatch):
    trained(TEACHER)
    configs = [RunConfig(**HALF, method=method) for method in ("kd", "ccd")]
    alone = [sha256(result.folder / "weights.safetensors") for result in once(*configs)]
    interrupt(configs, monkeypatch)
    results = fit_cohort(configs, show="none")
    assert all(result.metrics["resumed"] for result in results)
    assert [sha256(result.folder / "weights.safetensors") for result in results] == alone


def test_joint_batch_norms_are_float32_for_inputs_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(16, 4, 8, 8, generator=generator) * 3 + 2).bfloat16()
    joint, usual = group.JointNorm(4), torch.nn.BatchNorm2d(4)
    ours, theirs = joint(x), usual(x.float())
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - theirs).abs().max() < 0.02
    assert joint.running_var.dtype == torch.float32
    assert torch.allclose(joint.running_mean, usual.running_mean, rtol=1e-4)
    assert torch.allclose(joint.running_var, usual.running_var, rtol=1e-4)


@pytest.mark.drill
def test_two_processes_train_in_bfloat16(outputs):
    config = RunConfig(**HALF | {"batch": 40}, method="ccd")
    fit(TEACHER, show="none")
    alone = fit(config, show="none")
    first = alone.curves[0]
    os.rename(alone.folder, outputs / "alone")
    together = fit(config.but(processes=2), show="none")
    assert together.folder == alone.folder
    assert together.curves[0]["kd"] == pytest.approx(first["kd"], rel=0.03)


# ---------------------------------------------------------------- portable bits


def processors():
    spec = spec_from_file_location("processors", paths.ROOT / "benchmarks" / "processors.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not arithmetic.can_be_portable(), reason="portable bits are those of x86-64 processors with AVX2")
def test_portable_trainings_have_the_bits_that_are_on_record():
    ours, name = processors(), arithmetic.processor()
    known = json.loads(ours.FILE.read_text())
    found = ours.trained()
    if found != known["sha256"] and not known["processors"].get(name, {}).get("agrees"):
        pytest.skip(f"{name} is not on the list of processors, and its bits are others: {found}")
    assert found == known["sha256"], f"{name} is on the list of processors that agree; see benchmarks/processors.json"


def test_the_tests_compute_portably():
    if arithmetic.can_be_portable():
        assert arithmetic.is_portable()
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("switch", "said"), [("AVX2", "613ec213 False"), ("COMPATIBLE", "2894a252 True")])
@pytest.mark.skipif(not arithmetic.can_be_portable(), reason="MKL's switch is for x86-64")
def test_a_product_tells_whether_mkl_has_heard_of_its_switch(switch, said, outputs):
    code = "import os, torch\nfrom ccdlib.base import arithmetic\n(torch.ones(64, 64) @ torch.ones(64, 64)).sum()\n"
    code += "os.environ['MKL_CBWR'] = 'COMPATIBLE'; print(arithmetic._product(), arithmetic.is_portable())"
    found = in_a_process(code, outputs, **SWITCHES | {"MKL_CBWR": switch})
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():  # where these digits are from
        assert found == said


def in_a_process(code, outputs, **variables):
    """The last line that `code` prints in a process without any switch."""
    plain = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment = plain | {"CCD_OUTPUTS": str(outputs)} | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


LATE = f"""
import torch
(torch.randn(64, 64) @ torch.randn(64, 64)).sum()
import ccdlib
from ccdlib.training.schedule import Schedule, Trainings, folders_of
config = ccdlib.RunConfig(**{SMALL!r}, portable=True)
"""


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_f"),
    reason="without AVX-512 only the product tells, by one maker's digits",
)
def test_where_it_is_too_late_a_run_is_refused_in_this_process_and_trained_in_another(outputs):
    expected = fit(RunConfig(**SMALL, portable=True), show="none")
    expected = sha256(expected.folder / "weights.safetensors")
    refused = "try:\n    ccdlib.fit(config)\nexcept ccdlib.CcdError as error:\n    print(error)"
    assert "already computed with the widest instructions" in in_a_process(LATE + refused, outputs / "late")
    workers = "with Trainings(Schedule(folders_of([config]))) as trainings:\n    trainings.wait([config])\n"
    there = "from ccdlib.base.files import sha256\nprint(sha256(ccdlib.fit(config).folder / 'weights.safetensors'))"
    assert in_a_process(LATE + workers + there, outputs / "late", CCD_JOBS="1") == expected
    early = "import ccdlib" + LATE + there  # CCD_PORTABLE=1 is read when ccdlib is imported
    assert in_a_process(early, outputs / "early", CCD_PORTABLE="1") == expected


def test_a_portable_run_of_a_file_is_trained_from_any_shell(outputs, tmp_path):
    config = RunConfig(**SMALL, portable=True)
    file = tmp_path / "run.json"
    file.write_text(config.model_dump_json())
    code = f"import sys; from ccdlib.cli import main; sys.argv = ['ccd', 'fit', {str(file)!r}, '--show', 'run']; main()"
    in_a_process(code, outputs)
    assert folder_of(config).finished


def test_the_switches_are_on_for_what_is_started_and_off_again(monkeypatch):
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    with arithmetic.switched(True):
        assert SWITCHES.items() <= os.environ.items()
    assert os.environ["MKL_CBWR"] == "AVX2"
    assert "ATEN_CPU_CAPABILITY" not in os.environ
    with arithmetic.switched(False):
        assert os.environ["MKL_CBWR"] == "AVX2"


def test_no_core_idles_while_a_first_teacher_is_trained(monkeypatch, outputs):
    monkeypatch.setenv("CCD_JOBS", "2")
    teachers = [RunConfig(**SMALL, seed=seed) for seed in (0, 1)]
    students = [RunConfig(**SMALL, method="kd", seed=seed, teacher=teacher) for seed, teacher in enumerate(teachers)]
    planned = Experiment({"teacher": teachers, "KD": students}, ())
    planned.teacher("none")
    assert not planned.trainings.closed, "the others go on"
    results = planned.train()
    assert planned.trainings.closed
    assert [len(runs) for runs in results.values()] == [2, 2]


def test_teachers_are_trained_first_and_then_what_takes_longest(outputs):
    students = [RunConfig(**SMALL, seed=5), *(RunConfig(**SMALL, seed=k, method="kd", teacher=TEACHER) for k in (0, 1))]
    long = RunConfig(**SMALL | {"epochs": 4, "views": "cifar100"}, seed=2, method="kd", teacher=TEACHER)
    schedule = Schedule(folders_of([*students, long]))
    first = [schedule.cohorts[key][0].config for key in schedule.in_order()]
    assert first[:2] == [TEACHER, long]
    assert first[2:4] == students[1:]
    assert first[4] == students[0], "without a teacher it is the shortest"


def test_trainings_end_with_their_first_mistake(monkeypatch, outputs):
    monkeypatch.setenv("CCD_JOBS", "2")
    broken = RunConfig(**SMALL, lr=1e30)
    trainings = Trainings(Schedule(folders_of([broken, TEACHER])))
    with pytest.raises(Diverged):
        trainings.wait([broken])
    assert trainings.closed
