"""The command line: help, exit statuses, errors without tracebacks, tab completion, and what `clean` may remove."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from filelock import FileLock

from ccdlib import cli
from ccdlib.base import paths
from ccdlib.base.files import write_whole
from ccdlib.base.registry import CcdError
from ccdlib.data import DATASETS
from ccdlib.kit import clean
from ccdlib.models import MODELS

SHOWN = {name for name, command in cli.cli.commands.items() if not command.hidden}


def ccd(*arguments, **options):
    return CliRunner().invoke(cli.cli, arguments, catch_exceptions=False, **options)


def ended(capsys, *arguments):
    """(exit status, what was said on stderr) of a call that ends early."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code, capsys.readouterr().err


def test_the_commands_that_were_asked_for_are_there():
    assert {
        "run",
        "record",
        "check",
        "power",
        "fit",
        "plan",
        "batch",
        "verdicts",
        "methods",
        "models",
        "data",
        "published",
        "clean",
        "completion",
        "refresh",
    } == SHOWN


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_every_command_has_help_with_an_example(name):
    said = ccd(name, "--help")
    assert said.exit_code == 0
    assert f"ccd {name}" in said.output.replace("\n", " ").partition("Example")[2]
    assert cli.cli.commands[name].get_short_help_str(limit=200) in " ".join(ccd("--help").output.split())


def test_the_help_says_what_an_exit_status_means():
    assert "0 when all is well, 1 when something failed, 2 for a mistake" in " ".join(ccd("--help").output.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["run"], "Missing argument 'NOTEBOOK'"),
        (["data", "mnist"], "unknown dataset 'mnist'"),
        (["models", "--classes", "1"], "1 is not in the range"),
        (["fit", "nothing.yaml"], "nothing.yaml cannot be read"),
        (["run", "00_quickstart", "-p", "n_train", "-5"], "-5 training images leave some of the 20 classes empty"),
        (["run", "00_quickstart", "-p", "recipe", "big"], "unknown recipe 'big'"),
        (["batch", "00_quickstrat"], "Did you mean '00_quickstart'"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_message(arguments, says, capsys):
    status, said = ended(capsys, *arguments)
    assert status == 2
    assert says in said
    assert "Traceback" not in said


def test_what_should_not_happen_is_one_line_and_a_traceback_only_when_asked_for(monkeypatch, capsys):
    monkeypatch.setattr("ccdlib.kit.verdicts.write", lambda: {}["missing"])
    status, said = ended(capsys, "verdicts")
    assert status == 1
    assert said == "ccd: KeyError: 'missing'\nThis should not happen. `ccd --debug ...` shows where it did.\n"
    with pytest.raises(KeyError):
        cli.main(["--debug", "verdicts"])
    monkeypatch.setenv("CCD_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["verdicts"])


def test_a_diverged_training_is_a_failure_and_no_mistake(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("n_train: 40\nepochs: 1\nlr: 1.0e+20\n")
    status, said = ended(capsys, "fit", str(tmp_path / "run.yaml"))
    assert status == 1
    assert "lower lr" in said


def test_fit_trains_what_a_file_describes_and_finds_it_again(tmp_path, outputs):
    run = {"n_train": 40, "epochs": 1, "method": "kd", "teacher": {"n_train": 40, "epochs": 1}}
    (tmp_path / "run.yaml").write_text(json.dumps([run, run | {"seed": 1}]))
    first = ccd("fit", str(tmp_path / "run.yaml"), "--show", "run")
    assert first.exit_code == 0
    assert len(list(outputs.glob("runs/kd-*/metrics.json"))) == 2
    again = ccd("fit", str(tmp_path / "run.yaml"), "--show", "run")
    assert again.output == first.output


def test_folders_may_be_named_relative_to_where_a_command_is_given(tmp_path):
    # The notebook's kernel, the engine and the processes of a group start in other folders.
    environment = os.environ | {"CCD_OUTPUTS": "here", "CCD_DATA": "there", "CCD_ROOT": "checkout"}
    command = [
        sys.executable,
        "-c",
        "import os; from ccdlib.base import paths; "
        "print(paths.outputs(), *map(os.environ.get, ('CCD_OUTPUTS', 'CCD_DATA')), paths.NOTEBOOKS)",
    ]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True).stdout.split()
    assert said == [str(tmp_path / place) for place in ("here", "here", "there", "checkout/notebooks")]


def test_slurm_without_slurm_is_a_mistake(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CCD_DEVICE", "cpu")
    status, said = ended(capsys, "batch", "00_quickstart", "--slurm")
    assert status == 2
    assert "sbatch, which is not installed here" in said


def test_a_pipe_that_is_closed_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m ccdlib methods | head -1", shell=True, capture_output=True, text=True, env=os.environ
    )
    assert "Error" not in done.stderr
    assert done.stdout.startswith("ce")


def test_models_and_data_list_every_row():
    said = ccd("models").output.splitlines()
    assert [line.split()[0] for line in said] == list(MODELS)
    assert next(line for line in said if line.startswith("wrn_40_2")).split()[1:] == [
        *("2,255,156", "parameters", "327.6", "million", "multiply-adds")
    ]
    rows = [line.split()[0].removesuffix(":PATH") for line in ccd("data").output.splitlines()]
    assert rows == list(DATASETS)
    assert all(len(line.split()) > 3 for line in ccd("data").output.splitlines())
    assert "digits: 1000 training and 797 test images, 10 classes" in ccd("data", "digits").output
    assert "classes: flower, palace, portrait" in ccd("data", "photos").output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_completion(shell):
    assert "_CCD_COMPLETE" in ccd("completion", shell).output


@pytest.mark.parametrize(
    ("words", "expected"), [("ccd run 03", "03_proportion"), ("ccd plan --profile lite_", "lite_cifar100")]
)
def test_completion_knows_notebooks_and_profiles(monkeypatch, capsys, words, expected):
    environment = {"_CCD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.cli(prog_name="ccd")
    assert capsys.readouterr().out == f"plain,{expected}\n"


# ---------------------------------------------------------------- clean


@pytest.fixture
def littered(outputs):
    """An outputs folder with published and unpublished things; the published results name one run."""
    results = {"runs": {"KD": ["kd-aaa"]}}
    for name in (
        "runs/kd-aaa/metrics.json",
        "runs/kd-bbb/metrics.json",
        "runs/kd-bbb.damaged-20260101-000000/metrics.json",
        "lite/00_quickstart.ipynb",
        "lite/01_joint_augmentation.failed.ipynb",
        "smoke/00_quickstart.ipynb",
        "lite-abc123/00_quickstart.ipynb",
        "paper_resnet56-abc123/00_quickstart/results.json",
        "mine/keep",
        ".batch/lite/done/kd-aaa",
        "README.md",
    ):
        write_whole(outputs / name, "x")
    write_whole(outputs / "lite/00_quickstart/results.json", json.dumps(results))
    return outputs


def names(found, outputs):
    return {path.relative_to(outputs).as_posix() for path, _ in found}


UNPUBLISHED = {
    ".batch",
    "lite-abc123",
    "lite/01_joint_augmentation.failed.ipynb",
    "paper_resnet56-abc123",
    "runs/kd-bbb.damaged-20260101-000000",
    "smoke",
}


def test_clean_removes_nothing_published_and_asks_first(littered):
    before = {file for file in littered.rglob("*") if file.is_file()}
    refused = ccd("clean", "--runs", input="n\n")
    assert "Remove all of this?" in refused.output
    assert {file for file in littered.rglob("*") if file.is_file()} == before
    assert names(clean.removable(), littered) == UNPUBLISHED
    assert names(clean.removable(runs=True), littered) == UNPUBLISHED | {"runs/kd-bbb"}
    assert ccd("clean", "--runs", input="y\n").exit_code == 0
    left = {file.relative_to(littered).as_posix() for file in littered.rglob("*") if file.is_file()}
    published = {"lite/00_quickstart.ipynb", "lite/00_quickstart/results.json", "runs/kd-aaa/metrics.json"}
    assert left == published | {"mine/keep", "README.md"}
    assert ccd("clean", "--runs").output == "nothing to remove\n"


def test_clean_waits_for_nobody_and_takes_nothing_from_a_training(littered):
    with FileLock(littered / "runs" / ".kd-bbb.lock"), pytest.raises(CcdError, match="kd-bbb is being trained"):
        clean.removable(runs=True)
    lock = littered / ".batch" / "lite" / "locks" / "batch.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(CcdError, match="a batch is running"):
        clean.removable()
    assert paths.outputs() == littered
