"""Records: an analysis without its training, grown run by run, and never mixed."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from click.testing import CliRunner

from ccdlib import cli
from ccdlib.analyses import Experiment, experiment
from ccdlib.base import paths
from ccdlib.base.registry import CcdError
from ccdlib.evidence.records import FILE, Records
from ccdlib.kit import recheck, recorded
from ccdlib.kit.batch import Grid
from ccdlib.kit.parameters import find, profile_parameters
from ccdlib.training import RunConfig, cohort, fit, folder_of, identity
from ccdlib.training import config as config_module
from ccdlib.training.schedule import unfinished
from ccdlib.training.store import Folder

ROOT_NOTEBOOKS = paths.NOTEBOOKS
STEM, PROFILE = "00_quickstart", "tiny"
TINY = {"data": "digits", "teacher": "train", "n_teacher": 20, "n_train": 20, "teacher_model": "resnet8", "seeds": 3}
TINY |= {"teacher_epochs": 1, "student_epochs": 4, "evaluations": 2, "lengths": [], "portable": False, "precision": "auto"}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A checkout with one notebook and one very short profile, for this process and for kernels."""
    root = tmp_path / "lab"
    for folder in ("notebooks", f"params/{PROFILE}", "docs"):
        (root / folder).mkdir(parents=True)
    shutil.copy(find(STEM), root / "notebooks")
    values = "\n".join(f"{name}: {json.dumps(value)}" for name, value in TINY.items())
    (root / "params" / PROFILE / f"{STEM}.yaml").write_text(values + "\n")
    monkeypatch.setenv("CCD_DATA", str(paths.downloads()))
    monkeypatch.setenv("CCD_ROOT", str(root))
    monkeypatch.setenv("CCD_OUTPUTS", str(root / "outputs"))
    monkeypatch.setenv("CCD_JOBS", "1")
    for name, path in {"ROOT": root, "NOTEBOOKS": root / "notebooks", "PARAMS": root / "params"}.items():
        monkeypatch.setattr(paths, name, path)
    return root


def planned():
    return recorded.experiment(STEM, profile_parameters(find(STEM), PROFILE), PROFILE)


@pytest.fixture(scope="module")
def _once(tmp_path_factory):
    """All runs of the profile, trained once for all tests: their Results, and a folder with their records and networks."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CCD_OUTPUTS", str(folder))
        patch.setenv("CCD_JOBS", "1")
        plan = experiment(STEM, profile_parameters(find(STEM), "smoke") | TINY)
        results = plan.train()
        records = Records(folder / "records" / FILE)
        assert records.add(run for _, run in plan.runs.values()) == 15
        records.publish(plan.shown)
    return results, folder / "records"


@pytest.fixture
def kept(lab, _once):
    """The lab with the records of all runs, and without their weights; the Results that they had."""
    results, folder = _once
    shutil.copytree(folder, file_of(lab).parent)
    return results


def ccd(*arguments):
    result = CliRunner().invoke(cli.cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code, capsys.readouterr().err


def file_of(lab):
    return lab / "outputs" / PROFILE / STEM / FILE


def test_finished_runs_are_recorded(lab):
    planned().train()
    said = ccd("record", STEM, "--profile", PROFILE)
    assert "15 new, 15 of 15 runs are recorded in outputs/tiny/00_quickstart/records.jsonl" in said
    assert "0 new, 15 of 15" in ccd("record", STEM, "--profile", PROFILE)


@pytest.fixture
def no_training(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("a run is trained")

    monkeypatch.setattr(cohort, "_train", never)


def test_recorded_results_are_those_of_the_training(kept, no_training, capsys):
    again = planned().train()
    assert (
        "15 of 15 runs are read from outputs/tiny/00_quickstart/records.jsonl (float32, trained at" in capsys.readouterr().out
    )
    for arm, runs in kept.items():
        for run, known in zip(runs, again[arm], strict=True):
            assert (run.config, run.accuracy, run.best_on_test) == (known.config, known.accuracy, known.best_on_test)
            assert [row["test_accuracy"] for row in run.curves] == [row["test_accuracy"] for row in known.curves]
            assert [row["lr"] for row in run.curves] == [row["lr"] for row in known.curves]
            for name in run.curves[0].keys() - {"seconds", "test_accuracy"}:
                values = [row[name] for row in run.curves]
                assert [row[name] for row in known.curves] == pytest.approx(values, rel=1e-3, abs=5e-3), name
            assert known.seconds == run.seconds
            assert known.metrics["provenance"]["hardware"] == run.metrics["provenance"]["hardware"]
    with pytest.raises(CcdError, match="the weights of .* are not here, only its record; train it with"):
        again["KD"][0].model()


def test_what_is_recorded_is_not_missing(kept):
    rows = planned().plan()
    assert sum(row["recorded"] for row in rows) == 15
    assert not any(row["missing"] or row["expected"] or row["done"] for row in rows)
    assert ccd("plan", STEM, "--profile", PROFILE).splitlines()[-1].split()[:6] == ["all", "15", "0", "15", "0", "0"]
    assert not [folder for _, folder in experiment(STEM, TINY | small()).runs.values() if folder.recorded]


def small():
    return profile_parameters(find(STEM), PROFILE)


def test_a_run_that_is_not_recorded_is_trained_and_so_is_the_teacher_it_needs(kept, lab):
    file = file_of(lab)
    lines = file.read_text().splitlines()
    student = folder_of(kept["KD"][1].config).path.name
    file.write_text("\n".join(line for line in lines if f'"{student}"' not in line) + "\n")
    missing = {folder.path.name for folder in unfinished(folder for _, folder in planned().runs.values())}
    teacher = folder_of(kept["teacher"][1].config).path.name
    assert missing == {student, teacher}
    again = planned().train()
    assert again["KD"][1].accuracy == kept["KD"][1].accuracy, "the same run, trained again"
    assert {path.parent.name for path in (lab / "outputs" / "runs").glob("*/metrics.json")} == missing
    assert "1 new, 15 of 15 runs are recorded" in ccd("record", STEM, "--profile", PROFILE)


def test_records_grow_run_by_run_and_stay_as_they_are(lab):
    configs = [RunConfig(n_train=20, epochs=1, seed=seed) for seed in range(3)]
    file, sizes = lab / FILE, []
    for config in configs:
        fit(config, show="none")
        assert Records(file).add([folder_of(c) for c in configs]) == 1
        sizes.append(len(Records(file)))
    assert sizes == [1, 2, 3]
    before = file.read_bytes()
    assert Records(file).add([folder_of(c) for c in configs]) == 0
    assert file.read_bytes() == before
    assert Records(file).digest == Records(file).digest != Records(lab / "none").digest
    assert len(file.read_bytes()) < 5000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "bfloat16"}, "precision bfloat16 instead of float32. Records are not mixed"),
        ({"portable": True}, "portable True instead of False. Records are not mixed"),
        ({"data": "objects"}, "data {.*objects.*} instead of {.*digits.*}. Records are not mixed"),
    ],
)
def test_records_are_not_mixed(lab, change, says):
    one = RunConfig(n_train=20, epochs=1)
    other = one.but(seed=1, **change)
    for config in (one, other):
        fit(config, show="none")
    records = Records(lab / FILE)
    records.add([folder_of(one)])
    with pytest.raises(CcdError, match=says):
        records.add([folder_of(other)])
    assert len(Records(lab / FILE)) == 1


def test_a_run_of_another_protocol_is_not_recorded(lab, monkeypatch):
    config = RunConfig(n_train=20, epochs=1)
    fit(config, show="none")
    folder = folder_of(config)
    monkeypatch.setattr("ccdlib.evidence.records.PROTOCOL", identity.PROTOCOL + 1)
    with pytest.raises(CcdError, match=f"was trained by protocol {identity.PROTOCOL} of the arithmetic, which is"):
        Records(lab / FILE).add([folder])


def as_bfloat16(file):
    """Pretend that all records of a file were computed in bfloat16, under the names that their runs would have then."""
    first, *lines = file.read_text().splitlines()
    head = json.dumps(json.loads(first) | {"precision": "bfloat16"})
    file.write_text("\n".join([head, *lines]) + "\n")
    records = Records(file)
    configs = {folder.path.name: folder.config for folder in every_folder()}
    renamed = [json.dumps(line | {"run": records.name(configs[line["run"]])}) for line in map(json.loads, lines)]
    file.write_text("\n".join([head, *renamed]) + "\n")
    for network in (file.parent / "networks").iterdir():
        network.rename(network.with_name(records.name(configs[network.name])))
    return renamed


def every_folder():
    return [folder for _, folder in experiment(STEM, profile_parameters(find(STEM), PROFILE)).runs.values()]


def test_what_is_trained_beside_records_computes_as_they_do(kept, lab):
    file = file_of(lab)
    renamed = as_bfloat16(file)
    assert len(planned().read) == 15, "precision auto leaves it to the machine"
    file.write_text("\n".join([file.read_text().splitlines()[0], *renamed[:-1]]) + "\n")
    with pytest.raises(CcdError, match=r"\(bfloat16, on cpu\) and others computed in another way \(float32, on cpu\)"):
        _ = planned().read


def test_what_is_stored_beside_records_was_computed_as_they_were(kept, lab, monkeypatch):
    as_bfloat16(file_of(lab))
    fit(kept["KD"][0].config, show="none")
    with pytest.raises(CcdError, match="would be read from records .* and the two are not compared. Give the precision"):
        _ = planned().read
    monkeypatch.setenv("CCD_FROM", "records")
    assert len(planned().read) == 15, "the run store is not looked at"


def test_records_are_found_on_a_machine_that_would_compute_in_another_way(kept, lab, monkeypatch):
    records = Records(file_of(lab))
    config = kept["KD"][0].config
    monkeypatch.setattr(config_module, "best_device", lambda: torch.device("cuda"))
    assert config.arithmetic().precision == "bfloat16", "what auto means on a GPU"
    facts = identity.identity(config, lambda c: cohort.whole_data(c).facts, "cuda")
    assert Folder(config, facts).path.name not in records.lines
    assert records.name(config) in records.lines
    assert records.has(config)
    assert records.has(config.but(precision="float32"))
    assert not records.has(config.but(precision="fast")), "which is bfloat16 there"
    for change in ({"precision": "bfloat16"}, {"portable": True}, {"epochs": 5}):
        assert not records.has(config.but(**change)), "which asks for another run"


def test_own_records_stand_beside_published_ones_and_other_notebooks(kept, lab, monkeypatch, no_training):
    published, text = file_of(lab), file_of(lab).read_text().splitlines()
    first, *lines = text
    published.write_text("\n".join([first, *lines[:5]]) + "\n")
    own = lab / "elsewhere" / PROFILE / STEM / FILE
    shutil.copytree(published.parent, own.parent)
    own.write_text("\n".join([first, *lines[4:9]]) + "\n")
    other = lab / "outputs" / PROFILE / "01_joint_augmentation" / FILE
    other.parent.mkdir()
    other.write_text("\n".join([first, *lines[9:]]) + "\n")
    monkeypatch.setenv("CCD_OUTPUTS", str(lab / "elsewhere"))
    assert len(planned().train()["KD"]) == 3
    other.write_text("\n".join([json.dumps(json.loads(first) | {"device": "cuda"}), *lines[9:]]) + "\n")
    assert len(planned().read) < 15, "records of another kind are left aside"


def test_what_is_published_stays_in_own_records(kept, lab, monkeypatch):
    monkeypatch.setenv("CCD_OUTPUTS", str(lab / "elsewhere"))
    assert "0 new, 15 of 15 runs are recorded" in ccd("record", STEM, "--profile", PROFILE)
    own = lab / "elsewhere" / PROFILE / STEM / FILE
    assert own.read_text() == file_of(lab).read_text()


def test_a_batch_needs_what_one_of_its_notebooks_needs(kept, lab):
    second = lab / "notebooks" / "01_joint_augmentation.ipynb"
    shutil.copy(ROOT_NOTEBOOKS / second.name, second)
    values = {**TINY, "ops": ["invert"], "single_p": 1.0, "left_out": False}
    values.pop("lengths")
    text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in values.items())
    (lab / "params" / PROFILE / "01_joint_augmentation.yaml").write_text(text + "\n")
    grid = Grid(PROFILE)
    missing = {job for job in grid.missing() if job in grid.cohorts}
    assert missing
    for job in grid.missing():
        assert {needed for needed in grid.needs(job) if needed in grid.cohorts} <= missing


def test_from_records_trains_nothing_and_says_what_is_missing(kept, lab, capsys, monkeypatch):
    monkeypatch.setenv("CCD_FROM", "records")
    assert len(planned().train()["CCD"]) == 3
    file = file_of(lab)
    file.write_text("\n".join(file.read_text().splitlines()[:-2]) + "\n")
    code, error = refused(capsys, "run", STEM, "--profile", PROFILE, "--from", "records")
    assert code == 2
    assert "2 of 15 runs of 00_quickstart have no record, or lack the network that a figure needs or what" in error
    assert "`ccd plan 00_quickstart --profile tiny` lists them" in error
    monkeypatch.setenv("CCD_FROM", "recrods")
    with pytest.raises(CcdError, match=r"unknown \$CCD_FROM 'recrods'. Did you mean 'records'"):
        planned()


def test_from_scratch_looks_at_no_records(kept, monkeypatch):
    monkeypatch.setenv("CCD_FROM", "scratch")
    assert planned().records is None
    assert len(unfinished(folder for _, folder in planned().runs.values())) == 15


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: text.replace('"format":1', '"format":9'),
        lambda text: "[]\n" + text,
        lambda text: text + text.splitlines()[1] + "\n",
        lambda text: text.replace('"provenance":0', '"provenance":7', 1),
    ],
)
def test_records_that_cannot_be_read_are_refused(kept, lab, damage):
    file_of(lab).write_text(damage(file_of(lab).read_text()))
    with pytest.raises(CcdError, match="holds no records that can be read .*restore it, for example from git"):
        planned()


def test_an_accuracy_that_was_edited_is_found(kept, lab):
    first, line, *rest = file_of(lab).read_text().splitlines()
    edited = json.loads(line)
    edited["accuracy"] += 5
    file_of(lab).write_text("\n".join([first, json.dumps(edited), *rest]) + "\n")
    with pytest.raises(CcdError, match="the accuracies of .* are not those of its curve"):
        planned()


@pytest.mark.drill
def test_a_notebook_is_executed_from_records_alone(kept, lab):
    said = ccd("run", STEM, "--profile", PROFILE, "--from", "records")
    kd = sum(run.accuracy for run in kept["KD"]) / 3
    assert re.search(rf"^  KD +{kd:.2f} %", said, re.MULTILINE)
    assert not (lab / "outputs" / "runs").exists()
    saved = json.loads((lab / "outputs" / PROFILE / STEM / "results.json").read_text())
    assert saved["source"].startswith("trained at ")
    assert f"records {Records(file_of(lab)).digest}; ccd run {STEM} --profile {PROFILE}" in saved["source"]
    assert saved["runs"]["KD"] == [folder_of(run.config).path.name for run in kept["KD"]]


@pytest.mark.drill
def test_a_notebook_that_trains_records_its_runs(lab):
    ccd("run", STEM, "--profile", PROFILE, "--from", "scratch")
    assert len(Records(file_of(lab))) == 15


# ---------------------------------------------------------------- records checked, and what they can decide


def test_runs_that_are_trained_again_are_what_their_records_say(kept, lab, monkeypatch):
    said = ccd("check", PROFILE, STEM, "--runs", "2")
    assert said.count("the same bits; within the spread of its arm") == 2
    assert not (lab / "outputs" / "runs").exists(), "the store of the check is its own"
    other = ccd("check", PROFILE, STEM, "--runs", "2", "--sample", "7")
    assert other != said


def test_a_record_that_no_training_gives_is_found(kept, lab, capsys):
    file, edited = file_of(lab), []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if row.get("run", "").startswith("ce-") and "teacher" not in row["config"]:
            tested = row["curves"]["test_accuracy"]
            last = max(tested, key=int)
            tested[last] = row["accuracy"] = 96.0 + row["accuracy"] / 100
            row["best_on_test"] = max(tested.values())
        edited.append(json.dumps(row))
    file.write_text("\n".join(edited) + "\n")
    code, _ = refused(capsys, "check", PROFILE, STEM, "--runs", "15")
    assert code == 1


@pytest.fixture
def other_code(monkeypatch):
    """The code that shapes results has changed since the records were made."""
    for module in (recorded, recheck):
        monkeypatch.setattr(module, "source_hash", lambda: "of other code")


def test_records_are_confirmed_for_code_that_gives_the_same_bits(kept, lab, other_code):
    assert "15 were trained by another version of the code" in ccd("record", STEM, "--profile", PROFILE)
    said = ccd("check", PROFILE, STEM, "--confirm").splitlines()
    assert said[0] == f"{len(kept)} kinds of run were trained by other code, and are trained again", "one an arm"
    assert len([line for line in said if line.endswith("the same bits")]) == len(kept) == len(said) - 2
    assert "another version" not in ccd("record", STEM, "--profile", PROFILE)
    (fact,) = recorded.confirmed(PROFILE)
    assert fact["source"] == "of other code"
    assert {source: len(kinds) for source, kinds in fact["kinds"].items()} == {identity.source_hash(): len(kept)}
    assert ccd("check", PROFILE, STEM, "--confirm").startswith("0 kinds of run were trained by other code")
    here, config = {"source": identity.source_hash()}, kept["KD"][0].config
    assert recorded.by_this_code(here, config.but(seed=7, epochs=9), PROFILE), "the same kind"
    assert not recorded.by_this_code({"source": "a third"}, config, PROFILE)
    assert not recorded.by_this_code(here, config.but(method="sp"), PROFILE), "another kind, which was not trained again"
    recorded.confirmed_file(PROFILE).write_text("[")
    with pytest.raises(CcdError, match=r"confirmed\.json cannot be read .*restore it, for example from git"):
        ccd("record", STEM, "--profile", PROFILE)


def test_code_that_gives_other_bits_is_not_confirmed(kept, lab, other_code, capsys):
    file, weights = file_of(lab), Records(file_of(lab)).line(kept["KD"][0].config)["weights"]
    lines = [re.sub(r'"weights": ?"\w+"', f'"weights":"{"0" * 64}"', line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    assert weights not in file.read_text()
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", PROFILE, STEM, "--confirm"])
    assert (stop.value.code, recorded.confirmed(PROFILE)) == (1, [])
    assert "not confirmed: code, or a processor, that gives other bits" in capsys.readouterr().out


def test_the_spread_of_an_arm_needs_three_runs(kept, lab, capsys):
    file, keep = file_of(lab), {kept["KD"][0].folder.name, kept["KD"][1].folder.name}
    first, *lines = file.read_text().splitlines()
    file.write_text("\n".join([first, *(line for line in lines if json.loads(line)["run"] in keep)]) + "\n")
    code, error = refused(capsys, "check", PROFILE, STEM)
    assert (code, "no arm has three recorded runs" in error) == (2, True)


def test_a_portable_run_must_have_the_same_bits():
    again = recheck.Again(STEM, "KD", 0, 50.0, [50.0, 52.0, 49.0], True, False)
    assert not again.passed
    assert "OTHER BITS" in again.said
    assert again._replace(same_bits=True).passed
    assert again._replace(portable=False).passed
    far = again._replace(portable=False, accuracy=10.0)
    assert not far.passed
    assert "OUTSIDE the spread of its arm" in far.said


def test_without_records_there_is_nothing_to_check(lab, capsys):
    code, error = refused(capsys, "check", PROFILE, STEM)
    assert code == 2
    assert "profile tiny has no records of 00_quickstart" in error


def test_how_many_seeds_a_claim_needs(kept, lab, capsys):
    said = ccd("power", STEM, "--profile", PROFILE, "--difference", "2").splitlines()
    assert said[0] == "00_quickstart, profile tiny: how many seeds decide a claim in 80 % of cases"
    assert len(said) == 2 + 2
    seeds, sd, detect, exclude = said[2].split()[:4]
    assert (int(seeds), float(sd) > 0) == (3, True)
    assert 2 <= int(detect) <= int(exclude)
    code, error = refused(capsys, "power", STEM, "--profile", PROFILE, "--difference", "0")
    assert (code, "give the size of an effect in points, above 0" in error) == (2, True)


def test_the_networks_that_figures_need_are_published_with_a_card(lab):
    configs = [RunConfig(n_train=20, epochs=1, seed=seed) for seed in range(3)]
    trained = [fit(config, show="none") for config in configs]
    shown = Experiment({"a": configs}, (), networks={"a": 2}).shown
    assert [folder.config for folder in shown] == configs[:2]
    records = Records(lab / FILE)
    records.add([folder_of(config) for config in configs])
    records.publish(shown)
    published = sorted((lab / "networks").glob("*/card.json"))
    assert {file.parent.name for file in published} == {folder.path.name for folder in shown}
    card = json.loads((lab / "networks" / shown[0].path.name / "card.json").read_text())
    assert (card["model"], card["accuracy"], card["seed"], card["licence"]) == ("resnet8", trained[0].accuracy, 0, "Apache-2.0")
    weights = (lab / "networks" / shown[0].path.name / "weights.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == card["sha256"]
    assert {"config", "data", "provenance"} <= card.keys()
    shutil.rmtree(lab / "outputs" / "runs")
    assert Records(lab / FILE).result(configs[0]).model()
    with pytest.raises(CcdError, match="only its record"):
        Records(lab / FILE).result(configs[2]).model()


def test_a_network_with_other_bits_is_neither_published_nor_taken(lab):
    config = RunConfig(n_train=20, epochs=1)
    fit(config, show="none")
    folder, records = folder_of(config), Records(lab / FILE)
    records.add([folder])
    file = lab / FILE
    file.write_text(file.read_text().replace(records.line(config)["weights"], "0" * 64))
    records = Records(file)
    records.publish([folder])
    assert not (lab / "networks").exists()
    target = lab / "networks" / folder.path.name
    target.mkdir(parents=True)
    shutil.copy(folder.file("weights.safetensors"), target)
    assert not records.has_network(config)


def test_one_run_that_is_refused_keeps_no_other_from_being_recorded(lab):
    configs = [RunConfig(n_train=20, epochs=1, seed=seed) for seed in range(3)]
    for config in configs:
        fit(config, show="none")
    folders = [folder_of(config) for config in configs]
    folders[1].file("curves.csv").write_text("epoch\n")
    with pytest.raises(CcdError, match="curves.csv is damaged"):
        Records(lab / FILE).add(folders)
    assert {*Records(lab / FILE).lines} == {folders[0].path.name, folders[2].path.name}


def test_a_published_network_is_found(kept, lab):
    records = Records(file_of(lab))
    assert records.has_network(kept["teacher"][0].config), "of the teacher whose answers a figure shows"
    config = kept["teacher"][1].config
    assert not records.has_network(config)
    trained = fit(config, show="none")
    folder = file_of(lab).parent / "networks" / records.name(config)
    folder.mkdir(parents=True)
    shutil.copy(trained.folder / "weights.safetensors", folder)
    weights = list(trained.model().parameters())
    shutil.rmtree(lab / "outputs" / "runs")
    network = records.result(config).model()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), weights, strict=True))
    assert not planned().teacher(show="none").training
    assert not (lab / "outputs" / "runs").exists()
