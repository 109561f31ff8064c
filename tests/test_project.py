"""The project's own promises: pins that agree, files that say what is true, commands that work where they are typed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from scheduling import TestByTest

from ccdlib.base import paths
from ccdlib.evidence import stats
from ccdlib.evidence.forest import forest
from ccdlib.evidence.records import Records
from ccdlib.kit import parameters, recorded, verdicts
from ccdlib.training import RECIPES, RunConfig, identity

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
CONDA_NAMES = {"pytorch": "torch"}
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")[:-1]


def pins(lines):
    requirements = map(Requirement, lines)
    return {CONDA_NAMES.get(r.name, r.name): r.specifier for r in requirements}


def test_environment_yml_has_exactly_the_pins_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (row["pip"] for row in environment["dependencies"] if isinstance(row, dict))
    assert pip[-1] == "--editable .[batch]"
    conda = pins([row for row in environment["dependencies"] if isinstance(row, str)] + pip[:-1])
    assert conda.pop("python") == Requirement(f"python{PYPROJECT['requires-python']}").specifier
    conda.pop("pip")
    assert conda == pins(PYPROJECT["dependencies"])
    assert environment["channels"] == ["conda-forge"]


def test_the_pins_that_were_asked_for():
    assert "<10" in str(pins(PYPROJECT["optional-dependencies"]["batch"])["snakemake"])
    wanted = pins(PYPROJECT["dependencies"])
    assert (str(wanted["torch"]), str(wanted["torchvision"])) == ("==2.13.0", "==0.28.0")
    assert "<4" in str(wanted["pandas"])
    assert "<3.13" in str(wanted["matplotlib"])
    assert "<10" in str(wanted["pytest"])
    assert str(wanted["nbval"]) == "==0.11.*"


def test_constraints_are_installable_by_everybody_and_satisfy_the_pins():
    assert not [line for line in CONSTRAINTS if "+" in line or "@" in line or "/" in line]
    exact = {r.name.lower().replace("_", "-"): r.specifier for r in map(Requirement, CONSTRAINTS)}
    for name, wanted in pins(PYPROJECT["dependencies"] + PYPROJECT["optional-dependencies"]["batch"]).items():
        (only,) = exact[name]
        assert only.operator == "=="
        assert wanted.contains(only.version), name


def test_constraints_are_installable_with_the_oldest_python_that_is_promised():
    # pip hides versions that want a newer Python, and then finds no way to keep the constraint.
    oldest = PYPROJECT["requires-python"].removeprefix(">=") + ".0"
    for requirement in map(Requirement, CONSTRAINTS):
        with suppress(PackageNotFoundError):  # some are for other systems
            installed = metadata(requirement.name)
            if requirement.specifier.contains(installed["Version"]):
                assert SpecifierSet(installed["Requires-Python"] or "").contains(oldest), requirement


def test_the_console_script_is_installed():
    done = subprocess.run([Path(sys.executable).with_name("ccd"), "--help"], capture_output=True, text=True, check=True)
    assert "run" in done.stdout


def make(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONDA", "MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=kept | environment)


def test_make_uses_an_active_conda_environment_and_otherwise_a_venv(tmp_path):
    inside = make("-n", "lab", CONDA_PREFIX=str(tmp_path), CONDA_DEFAULT_ENV="ccdlib").stdout
    assert f"{tmp_path}/bin/jupyter lab" in inside
    assert "venv" not in inside
    for outside in ({}, {"CONDA_PREFIX": str(tmp_path), "CONDA_DEFAULT_ENV": "base"}):
        assert ".venv/bin/jupyter lab" in make("-n", "lab", **outside).stdout


def test_make_in_a_conda_environment_that_lacks_packages_says_what_to_do(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    done = make("lab", CONDA_PREFIX=str(tmp_path), CONDA_DEFAULT_ENV="mine")
    assert done.returncode != 0
    assert "conda env update --file environment.yml" in done.stdout


@pytest.mark.parametrize(
    ("refuses", "message"),
    [("ensurepip", "python3-venv is missing: install it"), ("version_info", "Python 3.11 or newer is needed")],
)
def test_make_on_a_machine_that_lacks_something_says_so_in_one_line(tmp_path, refuses, message):
    # A python that fails exactly at the question the Makefile asks it; `.venv/.ready` is remade in a copy of the project.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *{refuses}*) exit 1;; esac\nexit 0\n')
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = make("-s", "-C", str(tmp_path), "lab", f"PYTHON={python}")
    assert done.returncode != 0
    said = [line for line in done.stdout.splitlines() if "directory" not in line]
    assert len(said) == 1
    assert message in said[0]


COMMANDS = ["make lint", "make test", "make drills"]


def test_ci_calls_the_lint_test_and_drill_commands_and_nothing_else():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert [line.split()[0] for line in lines[:-3]] == ["set", "cd"]
    assert lines[-3:] == COMMANDS
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_workflow_runs_what_ci_runs_on_linux_and_macos():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow[True] == ["push", "pull_request"], "what YAML makes of the word on"
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == COMMANDS
    assert job["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    versions = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert versions == [PYPROJECT["requires-python"].removeprefix(">=")]


def test_every_test_is_run_by_one_of_two_commands_and_a_notebook_by_one_worker():
    test, drills = (make("-n", name).stdout.splitlines()[-1] for name in ("test", "drills"))
    assert test.endswith("--dist loadscope --nbval-lax --nbval-current-env -m 'not drill' notebooks tests")
    assert drills.endswith("--dist loadscope --nbval-lax --nbval-current-env -m drill notebooks tests")
    part = TestByTest._split_scope  # of a node id: what one worker gets
    assert part(None, "notebooks/a.ipynb::Cell 0") == part(None, "notebooks/a.ipynb::Cell 1") == "notebooks/a.ipynb"
    assert part(None, "tests/test_a.py::test_b[1]") != part(None, "tests/test_a.py::test_b[2]")


PAGES = ("docs/verdicts.md",)


def computed_here():
    """Whether results were computed in this checkout since its commit, as `make reproduce` does, but are not on the pages."""
    ask = ("git", "status", "--porcelain", "--")
    changed = [subprocess.run([*ask, *of], cwd=ROOT, capture_output=True, text=True).stdout for of in (["outputs"], PAGES)]
    return bool(changed[0]) and not changed[1]


@pytest.mark.skipif(computed_here(), reason="results were computed here; `ccd verdicts` puts them on the pages")
def test_the_verdict_page_says_what_the_results_say():
    assert not verdicts.outdated(), "run `ccd verdicts`"


@pytest.fixture
def results(monkeypatch):
    """The published results, as dicts that a test may change."""
    found = verdicts.published_results()
    monkeypatch.setattr(verdicts, "published_results", lambda: found)
    return {(result["profile"], result["notebook"]): result for result in found}


def test_the_verdict_page_shows_every_contrast_once_and_changes_with_it(results):
    found = verdicts.rows()
    text = verdicts.table(found)
    apart = any(row["notebooks"] == ["07_imagenet"] for row in found)
    assert len([line for line in text.splitlines() if line.startswith("|")]) == len(found) + 2 + 2 * apart
    assert len({(row["profile"], str(row["runs"])) for row in found}) == len(found)
    quick = results["class", "00_quickstart"]
    table = {row["arm"]: row for row in quick["table"]}
    table["KD + JDA"]["accuracies"] = [kd + 1 - 0.02 * k for k, kd in enumerate(table["KD"]["accuracies"])]
    changed = verdicts.table(verdicts.rows())
    said = "(a) augmented views help: KD + JDA is more accurate than KD | class"
    assert f"{said} (float32, portable) | objects, 40 images, 60 epochs | 5 | +0.96 [+0.92, +1.00] | holds | holds" in changed
    # A run that collapsed is named with the verdict.
    table["KD + JDA"]["accuracies"][3] = 5.0
    assert "; KD + JDA: seed 3 collapsed |" in verdicts.table(verdicts.rows())
    assert "[00](outputs/class/00_quickstart.ipynb)" in changed


def test_a_contrast_that_two_notebooks_claim_is_one_row(results, monkeypatch):
    twin = results["class", "00_quickstart"] | {"notebook": "01_joint_augmentation"}
    claims = verdicts.judged(results["class", "00_quickstart"])
    monkeypatch.setattr(verdicts, "judged", lambda result: [dict(claim) for claim in claims])
    before = len(verdicts.rows())
    verdicts.published_results().append(twin)
    after = verdicts.rows()
    assert len(after) == before
    assert all("01_joint_augmentation" in row["notebooks"] for row in after if row["profile"] == "class")


def test_the_verdict_page_marks_what_was_trained_by_an_older_arithmetic_or_recipe(results, monkeypatch):
    result = results["class", "00_quickstart"]
    assert not [claim for claim in verdicts.judged(result) if claim["old"]]
    monkeypatch.setitem(identity.CHANGED_IN["method"], "ce", 3)
    assert [claim["old"] for claim in verdicts.judged(result)] == [["student alone"], []]
    monkeypatch.setitem(identity.CHANGED_IN["recipe"], "small", 3)
    assert [claim["old"] for claim in verdicts.judged(result)] == [["KD", "student alone"], ["KD + JDA", "KD"]]
    assert "holds †" in verdicts.table(verdicts.rows())
    assert "class/00_quickstart (KD, student alone, KD + JDA)" in verdicts.table(verdicts.rows())


def test_the_forest_plot_has_the_headlines():
    headlines = [row for row in verdicts.rows() if row["headline"]]
    figure = forest(headlines)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label for label in labels if label] == list(dict.fromkeys(row["headline"] for row in headlines))
    written = [text.get_text() for text in figure.axes[0].texts]
    assert len(written) == len(headlines)
    said = {verdict for verdict in stats.VERDICTS if any(verdict in text for text in written)}
    assert {row["verdict"].partition(",")[0].partition(" (")[0] for row in headlines} <= said


@pytest.mark.parametrize("results", verdicts.published_results(), ids=lambda r: f"{r['profile']}-{r['notebook']}")
def test_published_results_are_of_the_profile_they_name(results):
    path = parameters.find(results["notebook"])
    if results["provenance"]["protocol"] == identity.PROTOCOL:  # those of an older one are marked, and due to be run again
        today = parameters.profile_parameters(path, results["profile"])
        assert results["parameters"] == today, "run the profile again"
    executed = ROOT / verdicts.page_of(results["profile"], results["notebook"])
    folder = ROOT / "outputs" / results["profile"] / results["notebook"]
    assert executed.stat().st_size < 1_000_000
    assert all((folder / figure).exists() for figure in results["figures"])
    asked = results["parameters"]
    seeds = {len(row["seeds"]) for row in results["table"]}
    assert seeds == {asked["seeds"], asked.get("rival_seeds") or asked["seeds"]}
    records = Records(folder / "records.jsonl")
    runs = {name for names in results["runs"].values() for name in names if not name.startswith("ccdlib:")}
    assert runs <= records.lines.keys(), "commit the records of all runs: ccd record"
    assert records.way.protocol == identity.PROTOCOL
    with pytest.MonkeyPatch.context() as patch:  # from records alone; an error where a run has another name now
        patch.setenv("CCD_FROM", "records")
        planned = recorded.experiment(results["notebook"], results["parameters"], results["profile"])
    assert {*planned.read} == {*planned.runs} >= runs
    assert results["trained_by_other_code"] == 0, "some runs come from another version of the code; train them again"
    assert results["provenance"]["git_dirty"] is False, "commit first, then publish"


@pytest.mark.skipif(computed_here(), reason="results were computed here, so they are not those of the published records")
@pytest.mark.parametrize("results", verdicts.published_results(), ids=lambda r: f"{r['profile']}-{r['notebook']}")
def test_published_results_say_which_records_they_come_from(results):
    records = Records(ROOT / "outputs" / results["profile"] / results["notebook"] / "records.jsonl")
    assert records.digest in results["source"], "execute it again: its records have grown"


def test_the_run_that_the_page_on_large_images_describes_is_one():
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "large_images.md").read_text(), re.DOTALL)
    config = RunConfig(**yaml.safe_load(text))
    assert {name: getattr(config, name) for name in RECIPES["imagenet"]} == RECIPES["imagenet"]


def lines_of_code(path):
    """Lines that are not blank, no comment and no docstring."""
    text = path.read_text()
    lines = {k for k, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_the_library_stays_small():
    # 2,900 for data, views, networks and methods, 1,800 for training, 1,500 for statistics, records and figures, 850 for the
    # analyses, 1,900 for notebooks, batches and the command line, 550 for names, arithmetic, a reader's own rows and files.
    assert sum(map(lines_of_code, (ROOT / "ccdlib").rglob("*.py"))) < 10200


def test_every_room_that_shapes_a_result_is_hashed():
    rooms = {path.name for path in (ROOT / "ccdlib").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms - {*identity.SHAPING} == {"base", "evidence", "analyses", "kit", "cli", "training"}
    # Of the training, these modules compute nothing that a run's name does not hold.
    training = {path.name for path in (ROOT / "ccdlib" / "training").glob("*.py")}
    hashed = {name.removeprefix("training/") for name in identity.LOOP}
    names = {"__init__", "checks", "config", "forecast", "identity", "recipes", "schedule", "store", "work"}
    assert training - hashed == {f"{name}.py" for name in names}
    assert "base/streams.py" in identity.SHAPING
    code = [path for room in identity.SHAPING for path in (ROOT / "ccdlib" / room).rglob("*.py")]
    assert len(code) > 30
    assert all((ROOT / "ccdlib" / room).exists() for room in identity.SHAPING)


def test_the_readme_is_short_and_its_findings_are_those_of_the_verdict_page():
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "verdicts.md").read_text()
    assert len(readme.encode()) <= 7000
    assert "make test" in readme
    found, rest = readme.partition("## What was found")[2].split("\n## ", 1)
    assert rest
    estimates = re.findall(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", found)
    assert len(estimates) >= 2
    assert not [estimate for estimate in estimates if estimate not in page], "the findings in README are older than the page"


def test_links_in_the_pages_lead_somewhere():
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    assert len(docs) >= 9
    for page in ("README.md", "CONTRIBUTING.md", "notebooks/README.md", "outputs/README.md", *docs):
        path = ROOT / page
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{page}: {target}"


@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_results_of_every_profile_can_be_committed_and_others_cannot():
    def ignored(name):
        return subprocess.run(["git", "check-ignore", "-q", f"outputs/{name}/01/results.json"], cwd=ROOT).returncode == 0

    assert not any(ignored(profile) for profile in parameters.profiles() if profile != "smoke")
    assert ignored("smoke")
    assert ignored("lite-abc123")
    assert ignored("paper-abc123")


def test_the_pages_have_no_gaps():
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *paths.NOTEBOOKS.glob("*.ipynb")):
        assert not re.search(r"(SMOKE|LITE)\d\d", path.read_text()), path


@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_the_tree_names_no_machine():
    home = re.escape(str(Path.home()))
    for name in TRACKED:
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        assert not re.search(rf"{home}/|{re.escape(str(ROOT))}".encode(), content), name


def test_torch_and_torchvision_are_the_pinned_pair():
    assert version("torch").partition("+")[0] == "2.13.0"
    assert version("torchvision").partition("+")[0] == "0.28.0"
    assert paths.ROOT == ROOT
