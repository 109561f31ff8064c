"""The notebook's Run, and the strict door: `ccd run`."""

import json
import re
import shutil
from dataclasses import replace

import nbformat
import pytest
import torch
import yaml
from click.testing import CliRunner

from ccdlib import Analysis, cli
from ccdlib.analyses import Experiment
from ccdlib.base import paths
from ccdlib.base.registry import CcdError
from ccdlib.evidence import plots, stats
from ccdlib.evidence.published import REPORTED, published
from ccdlib.kit import door, parameters, recorded
from ccdlib.kit.analysis import _shown
from ccdlib.kit.door import run_notebook
from ccdlib.kit.parameters import label, parameters_of, profile_parameters
from ccdlib.methods import METHODS, settings_of
from ccdlib.models import MODELS
from ccdlib.training import RECIPES, RunConfig, fit, teacher_of_method

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
TINY = {"teacher": "train", "n_train": 20, "seeds": 2, "teacher_epochs": 1, "student_epochs": 1, "teacher_model": "resnet8"}
TINY |= {"lengths": [], "evaluations": 1}

# A notebook as small as can be, with everything the door looks at.
CELLS = {
    "parameters": 'profile: str = "lite"  # a name\nwords: str = "a"\nrate: float = 0.5\ncount: int = 2\nfail: bool = False',
    "work": "from ccdlib import Analysis, RunConfig, fit\nfrom ccdlib.evidence import plots\n"
    "analysis = Analysis('99_small', profile, globals())\nprint(rate, count)",
    "maybe": "if fail:\n    raise RuntimeError('as asked')",
    "train": "result = fit(RunConfig(n_train=20, epochs=1), show='epochs')",
    "figure": "analysis.figure('one', plots.accuracies({'x': [result, result]}))",
    "rows": "analysis.rows = [{'arm': 'x', 'seeds': [0], 'mean': 1.0, 'std': 0.0, 'difference': None, 'baseline': None}]",
    "save": "analysis.save()",
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A checkout's notebooks/ and params/ with one small notebook, 99_small."""
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in CELLS.items()]
    cells[0].metadata["tags"] = ["parameters"]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "params" / "long").mkdir(parents=True)
    (tmp_path / "params" / "long" / "99_small.yaml").write_text("rate: 1e-3\ncount: 7\n")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "99_small.ipynb")
    shutil.copy(NOTEBOOKS[0], folder / "00_real.ipynb")
    monkeypatch.setenv("CCD_ROOT", str(tmp_path))  # for the kernels
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    return folder / "99_small.ipynb"


def without_training(small):
    """The small notebook without its training and its figure, which take seconds of every kernel; its path."""
    book = nbformat.read(small, as_version=4)
    book.cells = [cell for cell in book.cells if cell.id not in ("train", "figure")]
    nbformat.write(book, small)
    return small


def ccd(*arguments):
    return CliRunner().invoke(cli.cli, arguments, catch_exceptions=False)


def refused(capsys, *arguments):
    """The message and exit status of a `ccd` call that ends early."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code, capsys.readouterr().err


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_what_papermill_reads(path):
    import papermill

    inspected = papermill.inspect_notebook(str(path))
    ours = parameters_of(path)
    assert {name: row["inferred_type_name"] for name, row in inspected.items()} == {n: kind for n, (kind, _) in ours.items()}
    assert {name: yaml.safe_load(row["default"]) for name, row in inspected.items()} == {n: v for n, (_, v) in ours.items()}
    assert all(row["help"] for row in inspected.values()), "every parameter has a help comment"
    assert ours["profile"] == ("str", "lite")


def test_every_notebook_has_its_profiles_and_every_profile_its_notebook():
    stems = {path.stem for path in NOTEBOOKS}
    found = {folder.name: {path.stem for path in folder.glob("*.yaml")} for folder in paths.PARAMS.iterdir()}
    assert found.pop("smoke") == found.pop("paper") == stems
    assert found.pop("paper_resnet56") == stems - {"07_imagenet", "08_detection"}
    assert found.pop("lite_cifar100") == {"06_ccd"}
    assert found.pop("class") == {"00_quickstart"}
    # The other pairs of the published table, for the notebooks about compared methods.
    assert len(found) == 6
    assert all(held == {"05_compatibility", "06_ccd"} for held in found.values())


@pytest.mark.parametrize("file", sorted(paths.PARAMS.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_profile_gives_every_parameter(file):
    path = paths.NOTEBOOKS / f"{file.stem}.ipynb"
    values = profile_parameters(path, file.parent.name)
    assert values["profile"] == file.parent.name
    assert values.keys() == parameters_of(path).keys()


def recorded_completely(stem):
    """Whether the published records of lite have all runs of a notebook."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CCD_FROM", "records")
        try:
            recorded.experiment(stem, profile_parameters(paths.NOTEBOOKS / f"{stem}.ipynb", "lite"), "lite")
        except CcdError:
            return False
        return True


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_complete(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert set(book.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    complete = recorded_completely(path.stem)
    if complete:
        assert all(cell.execution_count for cell in code if cell.source), "committed with its outputs: make notebooks"
    else:
        assert not any(cell.outputs for cell in code), "outputs of before its records are complete say something else"
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    checked = [cell for cell in code if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert len(checked) > 3, "nbval compares tables, verdicts and the answer"
    assert all(cell.outputs for cell in checked) == complete
    assert path.stat().st_size < 1_000_000
    assert str(paths.ROOT) not in path.read_text()
    index = (paths.NOTEBOOKS / "README.md").read_text()
    assert f"({path.name})" in index
    prose_before = [cell.cell_type == "markdown" for cell in book.cells[: book.cells.index(code[0])]]
    assert any(prose_before)


def test_a_parameters_cell_that_papermill_could_not_fill(small):
    text = small.read_text()
    for line, message in {
        "count: int = 1 + 1": "with a literal value",
        "count = 2": r"must read `name: type = value`",
        "count: int = 'two'": "must be of type int, not str",
        "count: dict = 2": "type 'dict'; allowed are int, float, str, bool, list",
    }.items():
        small.write_text(text.replace("count: int = 2", line))
        with pytest.raises(CcdError, match=message):
            parameters_of(small)
    small.write_text(text.replace("count: int = 2", "count: int ="))
    with pytest.raises(CcdError, match="the parameters cell is not valid Python"):
        parameters_of(small)
    small.write_text(text[:-30])
    with pytest.raises(CcdError, match="is not a notebook"):
        parameters_of(small)
    small.write_text(text.replace('"parameters"', '"something"'))
    with pytest.raises(CcdError, match="has 0 cells tagged `parameters`"):
        parameters_of(small)


# ---------------------------------------------------------------- the door


def test_the_door_runs_a_notebook_and_reports(small, outputs, tmp_path, monkeypatch, capsys):
    # A port is chosen first and taken later by the kernel: kernels that start together took each other's and died. None is.
    monkeypatch.setattr("jupyter_client.connect.socket", None)
    # Of the profile the rate, of the file the count, of the command line the words: each goes before those in front of it.
    (tmp_path / "mine.yaml").write_text("count: 8\nwords: x\n")
    given = ("run", "99_small", "--profile", "long", "-f", str(tmp_path / "mine.yaml"), "-p", "words", "7")
    result = ccd(*given)
    assert result.exit_code == 0, result.output
    (executed,) = outputs.glob("long-*/99_small.ipynb")
    assert paths.shown(executed) in result.output
    book = nbformat.read(executed, as_version=4)
    assert "0.001 8" in json.dumps(book)
    assert "papermill" not in json.dumps(book.metadata)
    assert all(set(cell.metadata) <= {"tags"} for cell in book.cells)
    results = executed.with_suffix("") / "results.json"
    expected = {"profile": "long", "words": "7", "rate": 0.001, "count": 8, "fail": False}
    assert json.loads(results.read_text())["parameters"] == expected
    assert not list(outputs.rglob("*.part*"))
    assert not [o for cell in book.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
    # The results of this execution are not taken for another one's, which saves nothing.
    kept = results.read_bytes()
    without_training(small).write_text(small.read_text().replace("analysis.save()", "pass"))
    code, message = refused(capsys, *given)
    assert code == 1
    assert "its last cell must call analysis.save()" in message
    assert results.read_bytes() == kept


def test_own_parameters_never_overwrite_a_profiles_results(small):
    values = profile_parameters(small, "lite")
    assert label(small, "lite", values) == "lite"
    assert label(small, "long", profile_parameters(small, "long")) == "long"
    assert parameters.asked_for("99_small", given=[("rate", "1e-3")])[1] == values | {"rate": 0.001}
    other = label(small, "lite", values | {"count": 3})
    assert other.startswith("lite-")
    assert other != label(small, "lite", values | {"count": 4})
    # Plain papermill changes the variables of the notebook, and Run sees it there.
    assert Analysis("99_small", "lite", values | {"count": 3}).profile == other


def test_plain_papermill_works_too(small, outputs, tmp_path):
    import papermill

    without_training(small)
    papermill.execute_notebook(
        str(small), str(tmp_path / "out.ipynb"), parameters={"count": 5}, progress_bar=False, start_timeout=300
    )
    (results,) = outputs.glob("lite-*/99_small/results.json")
    assert json.loads(results.read_text())["parameters"]["count"] == 5


def test_a_failing_notebook_keeps_its_executed_copy_and_exits_1(small, outputs, capsys):
    code, message = refused(capsys, "run", "99_small", "-p", "fail", "true")
    assert code == 1
    assert "RuntimeError: as asked" in message
    (failed,) = outputs.glob("lite-*/99_small.failed.ipynb")
    assert paths.shown(failed) in message
    assert not list(outputs.glob("lite-*/99_small.ipynb"))
    assert not list(outputs.rglob("*.part*"))


def test_a_notebook_that_saves_nothing_is_named(small, capsys):
    without_training(small).write_text(small.read_text().replace("analysis.save()", "pass"))
    code, message = refused(capsys, "run", "99_small")
    assert code == 1
    assert "its last cell must call analysis.save()" in message


@pytest.mark.drill
def test_a_kernel_that_dies_leaves_the_executed_copy(small, outputs, capsys):
    small.write_text(small.read_text().replace("raise RuntimeError('as asked')", "import os; os._exit(9)"))
    code, message = refused(capsys, "run", "99_small", "-p", "fail", "true")
    assert code == 1
    assert "Kernel died" in message
    (failed,) = outputs.glob("lite-*/99_small.failed.ipynb")
    assert "0.5 2" in failed.read_text()
    assert not list(outputs.rglob("*.part*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "99_smal"], "unknown notebook '99_smal'. Did you mean '99_small'"),
        (
            ["run", "99_small", "--profile", "lit"],
            "unknown profile of 99_small 'lit'. Did you mean 'lite'? Allowed: lite, long",
        ),
        (["run", "99_small", "-p", "cuont", "3"], "unknown parameter in -p 'cuont'. Did you mean 'count'"),
        (["run", "99_small", "-p", "count", "many"], "parameter count = 'many' in -p: it must be of type int, not str"),
        (["run", "99_small", "-p", "count", "2.5"], "it must be of type int, not float"),
        (["run", "99_small", "-p", "count", "true"], "it must be of type int, not bool"),
        (["run", "99_small", "-p", "rate", "fast"], "it must be of type float, not str"),
        (["run", "99_small", "-p", "profile", "long"], "choose the profile by --profile"),
        (["run", "00_real", "-p", "data", "npz:nothing.npz"], "there is no nothing.npz"),
        (["run", "00_real", "-p", "data", "mnist"], "unknown dataset 'mnist'"),
        (["run", "99_small", "-p", "count", "[1"], "cannot be read as YAML"),
        (["run", "99_small", "-f", "nothing.yaml"], "nothing.yaml cannot be read"),
        (["run", "99_small", "--colour"], "No such option"),
    ],
)
def test_the_door_refuses_before_anything_runs(small, outputs, capsys, arguments, message):
    code, error = refused(capsys, *arguments)
    assert code == 2
    assert message in error
    assert not outputs.exists()


def test_yaml_that_is_no_table_of_parameters(small, tmp_path):
    for text, message in {"- 1": "holds a list", "a: [": "cannot be read as YAML", "contu: 1": "unknown parameter in"}.items():
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(CcdError, match=message):
            run_notebook("99_small", files=[tmp_path / "bad.yaml"])


def test_refresh_gives_the_same_bytes_again(small):
    assert door.refresh(["99_small"]) == ["notebooks/99_small.ipynb"]
    first = small.read_bytes()
    assert b"0.5 2" in first
    door.refresh(["99_small"])
    assert small.read_bytes() == first


def test_help_has_an_example():
    assert "Example: ccd run 00_quickstart" in ccd("run", "--help").output


# ---------------------------------------------------------------- Run


def small_results():
    config = RunConfig(n_train=20, epochs=1)
    return {arm: [fit(config.but(seed=s, lr=lr)) for s in (0, 1)] for arm, lr in (("a", 0.05), ("b", 0.01))}


def planned(analysis, results):
    """An Analysis with an experiment of the given arms and one claim, as a notebook would have it."""
    arms = {arm: [r.config for r in runs] for arm, runs in results.items()}
    analysis._experiment = Experiment(arms, (stats.more("(x)", "b beats a", "b", "a", least=2),))
    return analysis


def test_tables_need_their_baselines_and_paired_arms(small):
    results = small_results()
    analysis = Analysis("99_small")
    for baseline in ("c", {"b": "c"}, {"c": "a"}):
        with pytest.raises(CcdError, match="unknown baseline arm 'c'"):
            analysis.table(results, baseline)
    with pytest.raises(CcdError, match="every arm needs the same seeds"):
        analysis.table({"a": results["a"], "b": results["b"][::-1]}, baseline="a")


def test_a_run_that_collapsed_is_named_wherever_a_mean_is_shown(small, capsys):
    results = small_results()
    accuracies = {"a": [80.0, 81.0, 79.0, 80.0], "b": [90.0, 91.0, 12.0, 89.0]}
    fallen = {
        arm: [replace(run, accuracy=reached) for run, reached in zip(runs * 2, accuracies[arm], strict=True)]
        for arm, runs in results.items()
    }
    for runs in fallen.values():
        runs[2:] = [replace(run, config=run.config.but(seed=2 + k)) for k, run in enumerate(runs[2:])]
    analysis = planned(Analysis("99_small"), fallen)
    shown = analysis.table(fallen, baseline="a")
    assert shown.loc["b", "collapsed"] == "seed 2 collapsed"
    assert shown.loc["a", "collapsed"] == ""
    assert [row["collapsed"] for row in analysis.rows] == [[], [2]]
    analysis.judge(fallen)
    assert analysis.claims[0]["collapsed"] == {"b": [2]}
    assert "; b: seed 2 collapsed" in capsys.readouterr().out
    assert "collapsed" not in analysis.table(results, baseline="a").columns
    rows = Experiment(analysis._experiment.arms, (), {"b": {"baseline": "a"}}).rows(fallen)
    assert [row["collapsed"] for row in rows] == [False, False, True, False]
    for figure in (plots.accuracies(fallen), plots.gains(fallen, {"": {"b": ("b", "a")}})):
        assert "b\n(seed 2 collapsed)" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
        plots.plt.close(figure)


def test_run_keeps_checks_claims_and_tables(small, outputs, capsys):
    results = small_results()
    analysis = planned(Analysis("99_small"), results)
    declared = analysis.declared()
    assert declared.loc["(x)", "statement"] == "b beats a"
    assert declared.loc["(x)", "refuted when"] == "the 95 % interval lies wholly at or below 0"
    assert list(analysis.table(results, baseline="a").index) == ["a", "b"]
    assert analysis.table(results, baseline={"b": "a"}).loc["b", "gain"].endswith("] over a")
    with pytest.raises(CcdError, match="the claims of the experiment are not judged yet"):
        analysis.save()
    analysis.judge(results)
    analysis.keep("answer", [1, 2])
    analysis.check("two is two", True)
    analysis.save()
    with pytest.raises(AssertionError, match="check failed: two is three"):
        analysis.check("two is three", False)
    saved = json.loads((outputs / "lite" / "99_small" / "results.json").read_text())
    differences = [b.accuracy - a.accuracy for a, b in zip(results["a"], results["b"], strict=True)]
    assert saved["claims"][0]["estimate"] == pytest.approx(sum(differences) / 2)
    assert saved["claims"][0]["per_seed"] == [pytest.approx(differences)]
    assert saved["claims"][0]["verdict"] in stats.VERDICTS
    assert [row["baseline"] for row in saved["table"]] == [None, "a", None, "a"]
    assert saved["table"][1]["accuracies"] == [r.accuracy for r in results["b"]]
    assert saved["checks"] == ["two is two"]
    assert saved["measured"] == {"answer": [1, 2]}
    assert saved["runs"]["a"] == [r.folder.name for r in results["a"]]
    assert "check: two is two" in capsys.readouterr().out


@pytest.mark.parametrize("told", [True, False])
def test_the_runs_of_a_notebook_are_checked_once(monkeypatch, told):
    checks, real = [], Experiment.check
    monkeypatch.setattr(Experiment, "check", lambda self: checks.append(1) or real(self))
    analysis = Analysis("00_quickstart")
    if told:  # by the command that executes the notebook
        monkeypatch.setenv(parameters.CHECKED, parameters.checksum(analysis.stem, analysis.parameters))
    experiment = analysis.experiment()
    assert experiment.checked, "train() would check again"
    assert len(checks) == (0 if told else 1)


def test_a_figure_says_below_everything_else_where_it_comes_from(small, outputs):
    analysis = Analysis("99_small")
    rows = [{"x": x, "y": float(x + seed), "k": k, "seed": seed} for k in "ab" for x in (1, 2) for seed in (0, 1)]
    figure = plots.lines(rows, x="x", y="y", hue="k")
    lowest = figure.get_tightbbox().y0
    analysis.figure("lines", figure)
    source = figure.texts[-1]
    assert source.get_text() == "ccd run 99_small --profile lite", "of data alone, so nothing was trained or read"
    assert source.get_window_extent().y1 / figure.dpi <= lowest
    assert (outputs / "lite" / "99_small" / "lines.png").exists()
    grid = analysis.figure("grid", plots.pictures({name: torch.zeros(8, 3, 9, 9, dtype=torch.uint8) for name in "abc"}))
    grid.draw_without_rendering()
    source, lowest = grid.texts[-1].get_window_extent(), min(ax.get_window_extent().y0 for ax in grid.axes)
    assert source.y1 <= lowest, "also where a layout is computed"
    assert source.y1 > lowest - 60, "and not far below"
    for each in (figure, grid):
        plots.plt.close(each)


def test_claims_come_before_results(small):
    analysis = Analysis("99_small")
    with pytest.raises(CcdError, match=r"call analysis.experiment\(\) before the training"):
        analysis.judge({})
    with pytest.raises(CcdError, match="nothing is planned yet"):
        analysis.declared()


# ---------------------------------------------------------------- published numbers


HERE = {"data": "cifar100", **RECIPES["hsakd"]}  # the recipe of HSAKD's table


def test_published_numbers_stand_only_beside_their_own_recipe_teacher_and_protocol():
    teacher = RunConfig(**HERE, model="wrn_40_2")
    kd = RunConfig(**HERE, method="kd", model="wrn_16_2", teacher=teacher)
    assert published(teacher) == (76.45, True)
    assert published(kd) == published(kd.but(seed=3, eval_every=10)) == (75.23, True)
    assert published(RunConfig(**HERE, model="resnet20")) == (69.62, True)
    for change in ({"epochs": 100}, {"lr": 0.1}, {"nesterov": False}, {"clip": 5.0}, {"warmup": 3}, {"milestones": (0.5,)}):
        assert published(kd.but(**change)) == (75.23, False), "another recipe"
        assert published(kd.but(teacher=teacher.but(**change))) == (75.23, False), "another teacher"
    for recipe in ("paper", "small"):
        assert published(RunConfig(data="cifar100", **RECIPES[recipe], model="resnet20")) == (69.62, False)
    for change in ({"n_train": 0.5}, {"views": "cifar100"}, {"settings": {"temperature": 2.0}}, {"data": "cifar10"}):
        assert published(kd.but(**change)) is None, "something else"
    for change in ({"n_train": 0.5}, {"views": "cifar100"}):
        assert published(kd.but(teacher=teacher.but(**change))) is None
    assert published(kd.but(method="ccd", views="cifar100")) is None
    few = RunConfig(**HERE, method="kd", model="resnet20", teacher=RunConfig(**HERE, model="resnet56"), n_train=25000)
    assert published(few) == (68.61, True)
    assert published(few.but(views="cifar100")) is published(few.but(n_train=5000)) is None


def test_published_numbers_of_compared_methods():
    plain = RunConfig(**HERE, model="vgg13")
    joint = RunConfig(**HERE, model="vgg13", method="hsakd_teacher")
    assert (published(plain), published(joint)) == ((74.64, True), (78.48, True))
    student = {"data": "cifar100", "model": "mobilenet_v2", **RECIPES["hsakd_light"]}
    assert published(RunConfig(**student)) == (73.51, True)
    assert published(RunConfig(**student | RECIPES["hsakd"])) == (73.51, False)  # its learning rate is a fifth
    assert published(RunConfig(**student, method="sp", teacher=plain)) == (75.68, True)
    assert published(RunConfig(**student, method="crd", teacher=plain, settings={"negatives": 16384})) == (76.13, True)
    assert published(RunConfig(**student, method="crd", teacher=plain, settings={"negatives": 32})) is None
    assert published(RunConfig(**student, method="dkd", teacher=plain)) is None
    for method, number in (("sskd", 76.21), ("hsakd", 77.45)):
        taught = teacher_of_method(method, plain, **RECIPES[f"hsakd_{method}_teacher"])
        run = RunConfig(**student, method=method, teacher=taught)
        assert published(run) == (number, True)
        assert published(run.but(**RECIPES["paper"])) == (number, False)
        assert published(run.but(teacher=teacher_of_method(method, plain))) == (number, False)  # heads trained otherwise
        assert published(run.but(teacher=taught.but(n_train=50))) is published(run.but(views="cifar100")) is None
    foreign = plain.but(statistics="cifar10")  # another protocol, and no mistake
    assert published(foreign) == (74.64, False)
    assert published(RunConfig(**student, method="kd", teacher=foreign, statistics="cifar10")) == (75.21, False)
    own = RunConfig(**student, method="sskd", teacher=teacher_of_method("sskd", plain, **RECIPES["hsakd_sskd_teacher"]))
    assert published(own.but(**RECIPES["paper_sskd_light"])) == (76.21, False), "SSKD's own code has no Nesterov momentum"
    assert published(RunConfig(**student, method="hsakd", teacher=joint)) == (79.27, True)


def test_a_number_of_another_recipe_is_shown_as_such_and_not_subtracted():
    row = {"arm": "KD", "mean": 75.0, "std": 0.1, "collapsed": [], "difference": None, "best_on_test": 75.1}
    same = _shown(row | {"published": {"accuracy": 75.23, "same_recipe": True}}, "KD")
    other = _shown(row | {"published": {"accuracy": 75.23, "same_recipe": False}}, "KD")
    assert (same["published (%)"], same["ours - published"]) == ("75.23", "-0.23")
    assert (other["published (%)"], other["ours - published"]) == ("75.23 under HSAKD's recipe", "")


def test_what_others_report_has_source_recipe_and_number_of_runs():
    text = CliRunner().invoke(cli.cli, ["published", "wrn_40_2", "wrn_16_2"]).output
    assert "DKD 75.505 (of 76.24); users of mdistiller, its thread 8; mdistiller's; mean of 4 runs" in text
    assert "KD, standardised 76.11; README of logit-standardization-KD; mdistiller's teachers and recipe; number of" in text
    assert "resnet" not in text
    assert len(CliRunner().invoke(cli.cli, ["published"]).output.splitlines()) == len(REPORTED) == 34
    assert all(
        0 < row.reached < 100 and row.source and row.recipe and {row.teacher, row.student} <= {*MODELS} for row in REPORTED
    )


def test_ccd_methods_lists_every_method_with_its_settings():
    text = CliRunner().invoke(cli.cli, ["methods"]).output
    for name in METHODS:
        assert re.search(rf"^{name} ", text, re.M), name
        for setting, default in settings_of(name).items():
            assert f"{setting}={default!r}" in text
    assert "teacher trained by hsakd_teacher" in text
    assert "Xu et al., ECCV 2020" in text


# ---------------------------------------------------------------- real colour images


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("student_model", "resnet9", "unknown model 'resnet9'"),
        ("student_epochs", "0", "epochs = 0"),
        ("n_train", "5000", "5000 training images were asked for"),
        ("seeds", "0", "without seeds has nothing to train"),
        ("seeds", "1", "the claims rest on intervals over paired seeds, which one seed does not give"),
        ("evaluations", "0", "evaluations = 0: the last epoch is always evaluated"),
        ("recipe", "x", "unknown recipe 'x'"),
        ("policy", "cifar", "unknown policy 'cifar'"),
    ],
)
def test_the_quickstart_refuses_mistakes_before_any_training(outputs, parameter, value, message):
    with pytest.raises(CcdError, match=message):
        run_notebook("00_quickstart", given=[(parameter, value)])
    assert not outputs.exists()  # nothing was trained, and no notebook executed


def test_the_quickstart_on_two_classes_of_an_image_folder(tmp_path, outputs):
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    for k in range(32):
        place = tmp_path / "pictures" / ("train" if k < 24 else "val") / ("cat" if k % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(place / f"{k}.png")
    given = {"data": f"folder:{tmp_path / 'pictures'}", **TINY, "n_train": 4, "n_teacher": 0}
    executed, _ = run_notebook("00_quickstart", given=[(name, str(value)) for name, value in given.items()])
    assert "2 classes; an image is (3, 32, 32)" in executed.read_text()


def test_the_quickstart_on_a_slice_of_real_cifar100(tmp_path, outputs, cifar100_slice):
    import numpy as np

    np.savez(tmp_path / "slice.npz", **cifar100_slice)
    given = {"data": f"npz:{tmp_path / 'slice.npz'}", **TINY, "n_train": 100, "n_teacher": 0}
    executed, _ = run_notebook("00_quickstart", given=[(name, str(value)) for name, value in given.items()])
    results = json.loads((executed.with_suffix("") / "results.json").read_text())
    assert [row["arm"] for row in results["table"]] == ["teacher", "student alone", "KD", "KD + JDA", "CCD"]
    assert all(claim["verdict"].startswith("untested") for claim in results["claims"])
    text = json.dumps(nbformat.read(executed, as_version=4))
    assert "100 classes; an image is (3, 32, 32)" in text
    assert "on these images 12 of 14 can change something" in text
    shutil.rmtree(outputs)
