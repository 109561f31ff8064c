"""What a notebook holds (Run), and the strict papermill door that runs notebooks headlessly (run_notebook)."""

import ast
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from ccdlib import paths, stats
from ccdlib.config import RunConfig
from ccdlib.data import source_of
from ccdlib.experiments import EXPERIMENTS, experiment
from ccdlib.paper import SOURCE, published
from ccdlib.reading import cells_of, check_name, text_of, value_of
from ccdlib.registry import CcdError, unknown
from ccdlib.runs import best_device, hardware, jobs, provenance, source_hash, write_whole
from ccdlib.train import check_surroundings

TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list}


class NotebookFailed(Exception):
    """A notebook raised an error; its executed copy is kept."""


# ---------------------------------------------------------------- parameters


def find(name):
    """The path of a notebook given by path or by stem; CcdError when there is none."""
    stems = sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb"))
    path = Path(name).expanduser()
    if path.suffix != ".ipynb":
        check_name(str(name), "notebook")
        path = paths.NOTEBOOKS / f"{name}.ipynb"
    elif not path.is_absolute() and not path.exists():
        path = paths.ROOT / path
    if not path.is_file():
        raise unknown("notebook", name, stems, " Give a stem, or the path of an .ipynb file.")
    return path.resolve()


def parameters_of(path):
    """{name: (type name, default)} of a notebook's parameters cell.

    Read from the syntax tree, because the kernel needs it too and papermill takes seconds to import; a test holds it
    against papermill.inspect_notebook. CcdError for a line that papermill could not fill in.
    """
    cells = cells_of(path, paths.shown(path))
    tagged = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise CcdError(f"{paths.shown(path)} has {len(tagged)} cells tagged `parameters`; it needs exactly one")
    values = {}
    try:
        lines = ast.parse(tagged[0]).body
    except SyntaxError as error:
        raise CcdError(f"{paths.shown(path)}: the parameters cell is no Python: {error}") from error
    for line in lines:
        try:
            kind, default = line.annotation.id, ast.literal_eval(line.value)
        except (AttributeError, ValueError):
            raise CcdError(
                f"{paths.shown(path)}: `{ast.unparse(line)}` in the parameters cell; each line must read `name: type = value`, "
                "with nothing computed"
            ) from None
        values[line.target.id] = (
            kind,
            _typed(line.target.id, default, kind, f"the parameters cell of {paths.shown(path)}"),
        )
    return values


def checked(path, given, where):
    """`given` as the notebook at `path` wants it; CcdError for an unknown name or a wrong type."""
    known = parameters_of(path)
    values = {}
    for name, value in given.items():
        if name == "profile":
            raise CcdError(f"profile = {value!r} in {where}: the profile is chosen by --profile, because it names the folder")
        if name not in known:
            raise unknown(f"parameter in {where}", name, known, f" They are those of {paths.shown(path)}.")
        values[name] = _typed(name, value, known[name][0], where)
    return values


def _typed(name, value, kind, where):
    if kind == "float" and isinstance(value, str):  # YAML reads 1e-3 as a string
        with suppress(ValueError):
            value = float(value)
    if kind not in TYPES:
        raise CcdError(f"parameter {name} in {where} has the type {kind!r}; allowed are {', '.join(TYPES)}")
    right = isinstance(value, TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not right:
        raise CcdError(f"parameter {name} = {value!r} in {where}: it must be of type {kind}, not {type(value).__name__}")
    return value


def profile_parameters(path, profile):
    """All parameters of a notebook under a profile: its defaults cell (smoke), changed by params/<profile>/<stem>.yaml."""
    values = {name: default for name, (_, default) in parameters_of(path).items()}
    if profile == "smoke":
        return values
    check_name(profile, "profile")
    file = paths.PARAMS / profile / f"{path.stem}.yaml"
    if not file.is_file():
        known = ["smoke", *sorted(p.parent.name for p in paths.PARAMS.glob(f"*/{path.stem}.yaml"))]
        raise unknown(f"profile of {path.stem}", profile, known)
    return values | read_yaml(path, file) | {"profile": profile}


def read_yaml(path, file):
    """The parameters in a yaml file, checked against the notebook at `path`."""
    given = value_of(text_of(file), paths.shown(file)) or {}
    if not isinstance(given, dict):
        raise CcdError(f"{file} holds a {type(given).__name__}; write one `name: value` a line")
    return checked(path, given, paths.shown(file))


def label(path, profile, parameters):
    """The name of the output folder: the profile, with a short hash of whatever differs from it.

    So a run with own parameters never overwrites the profile's results, whichever way the notebook was started.
    """
    expected = profile_parameters(path, profile)
    changed = {name: parameters[name] for name in expected if parameters[name] != expected[name] and name != "profile"}
    if not changed:
        return profile
    return f"{profile}-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]}"


# ---------------------------------------------------------------- what a notebook holds


class Run:
    """One execution of an analysis notebook: where its outputs go, what it checked, claimed and found.

    stem: the notebook's name. profile: "smoke", or a folder of params/. scope: the notebook's globals(), from which the
    values of its parameters are read. Errors: CcdError for an unknown notebook or profile.
    """

    def __init__(self, stem, profile="smoke", scope=None):
        self.stem = stem
        notebook = find(stem)
        self.parameters = profile_parameters(notebook, profile)
        if scope is not None:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a kernel that is interrupted would show its tasks
            self.parameters = {name: scope[name] for name in self.parameters}
        self.profile = label(notebook, profile, self.parameters)
        self.folder = paths.outputs() / self.profile / stem
        self.checks, self.claims, self.rows, self.figures = [], [], [], []
        self.plan, self.results, self.measured = None, {}, {}

    def __repr__(self):
        return f"Run {self.stem}, profile {self.profile}, on {hardware(best_device())}"

    def experiment(self):
        """The Experiment of this notebook under its parameters, all of its runs checked; its claims are declared with it.

        Where runs are trained side by side, with one thread each, this process takes one thread too: a run has the same bits
        whichever notebook trains it.
        """
        if jobs() > 1:
            torch.set_num_threads(1)
        self.plan = experiment(self.stem, self.parameters)
        self.plan.check()
        return self.plan

    def declared(self):
        """A DataFrame of the claims, as they stand before the training."""
        import pandas as pd

        pd.set_option("display.max_colwidth", None)  # a claim is read whole
        columns = ("finding", "statement", "words", "true_where", "refuted_when", "zero_when", "least")
        rows = [{name: getattr(claim, name) for name in columns} for claim in self._planned().claims]
        names = {"words": "estimand (mean over seeds)", "true_where": "true where it is", "refuted_when": "refuted when"}
        names |= {"zero_when": "practically zero when", "least": "seeds needed"}
        shown = pd.DataFrame(rows).rename(columns=names).set_index("finding")
        return shown.loc[:, (shown != "").any()]

    def _planned(self):
        if self.plan is None:
            raise CcdError(
                "nothing is planned yet: call run.experiment() before the training, so that claims come before results"
            )
        return self.plan

    def check(self, text, holds):
        """An invariant of the code, true in every profile: printed, kept, and an AssertionError where it fails."""
        if not holds:
            raise AssertionError(f"check failed: {text}")
        self.checks.append(text)
        print(f"check: {text}")

    def keep(self, name, value):
        """Put something measured, of strings, numbers, lists and dicts, into results.json, and hand it back."""
        self.measured[name] = value
        return value

    def table(self, results, baseline):
        """A DataFrame, one row an arm, of results {arm: [Result, one a seed]}; gains are paired by seed.

        baseline: the arm that all others are compared with, or {arm: its own baseline}, arms without one left out.
        Errors: CcdError for a baseline that is no arm, and for arms with different seeds.
        """
        import pandas as pd

        against = baseline if isinstance(baseline, dict) else {arm: baseline for arm in results if arm != baseline}
        for arm in {baseline} if isinstance(baseline, str) else {*against, *against.values()}:
            if arm not in results:
                raise unknown("baseline arm", arm, results)
        seeds = {arm: [r.config.seed for r in runs] for arm, runs in results.items()}
        if len({tuple(s) for s in seeds.values()}) != 1:
            raise CcdError(f"the arms are not paired: {seeds}; train every arm with the same seeds, in the same order")
        rows = [self._row(arm, runs, against.get(arm), results) for arm, runs in results.items()]
        self.rows += rows
        shown = pd.DataFrame([_shown(row, baseline) for row in rows]).set_index("arm")
        return shown.loc[:, (shown != "").any()]  # a column without any number, such as unpublished ones, is left out

    @staticmethod
    def _row(arm, runs, baseline, results):
        accuracies = [r.accuracy for r in runs]
        mean, std = stats.spread(accuracies)
        base = baseline and [r.accuracy for r in results[baseline]]
        theirs = published(runs[0].config)
        return {
            "arm": arm,
            "seeds": [r.config.seed for r in runs],
            "accuracies": accuracies,
            "mean": mean,
            "std": std,
            "collapsed": stats.collapsed_seeds(runs),
            "baseline": baseline,
            "difference": base and stats.paired(accuracies, base)._asdict(),
            "best_on_test": stats.spread([r.best_on_test for r in runs])[0],
            "published": theirs and theirs._asdict() | {"source": SOURCE},
        }

    def judge(self, results):
        """The verdict on every claim that was declared, printed and kept, whatever it is; results {arm: [Result]}."""
        self.results = results
        accuracies, declared = {arm: [run.accuracy for run in runs] for arm, runs in results.items()}, self._planned().claims
        first = next(iter(results.values()))
        self.claims = [claim.judge(accuracies, 100 / first[0].classes) for claim in declared]
        for claim, verdict in zip(self.claims, stats.corrected(self.claims), strict=True):
            claim["corrected"] = verdict
            claim["collapsed"] = {arm: [first[k].config.seed for k in places] for arm, places in claim["collapsed"].items()}
            print(said_of(claim))

    def answer(self):
        """What was found, claim by claim, in whole sentences with their numbers: Markdown for a notebook to show."""
        from IPython.display import Markdown

        if not self.claims:
            raise CcdError("nothing is judged yet: call run.judge(results) first")
        p = self.parameters
        images = f"{p['n_train']} training images" if p["n_train"] else "all training images"
        where = f"On *{p['data']}*, with {images} for a {p['student_model']} and a {p['teacher_model']} as its teacher:"
        return Markdown("\n".join([where, "", *(f"- {answered(claim)}" for claim in self.claims)]))

    def figure(self, name, figure):
        """Keep a figure as PNG and SVG beside results.json, and hand it back."""
        check_name(name, "figure")
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            write_whole(self.folder / f"{name}.{kind}", buffer.getvalue())
        self.figures.append(f"{name}.png")
        return figure

    def save(self):
        """Write results.json, last: a notebook is finished when it is there."""
        if self.plan and not self.claims:
            raise CcdError("the claims of the experiment are not judged yet: call run.judge(results) before run.save()")
        every = [run for arm in self.results.values() for run in arm if isinstance(run.config, RunConfig)]
        runs = list({run.folder: run for run in every}.values())  # arms may share some
        made = [run.metrics["provenance"] for run in runs]
        results = {
            "notebook": self.stem,
            "profile": self.profile,
            "parameters": self.parameters,
            "table": self.rows,
            "claims": self.claims,
            "measured": self.measured,
            "checks": self.checks,
            "figures": self.figures,
            "runs": {arm: [run.folder.name for run in arms] for arm, arms in self.results.items()},
            "training_seconds": round(sum(run.seconds for run in runs), 1),
            "trained_on": sorted({facts["hardware"] for facts in made}),
            "trained_by_other_code": sum(facts["source"] != source_hash() for facts in made),
            "provenance": provenance(best_device()),
        }
        write_whole(self.folder / "results.json", json.dumps(results, indent=1) + "\n")
        print(f"saved {self.profile}/{self.stem}/results.json")


def said_of(claim):
    """A judged claim on a line: its verdict, also where all claims of the notebook are counted, and what collapsed."""
    said = f"{claim['verdict']}: {claim['finding']} {claim['claim']}: {stats.brief(claim)} {claim['unit']}"
    if claim["corrected"] != claim["verdict"]:
        said += f" (corrected for the number of claims: {claim['corrected']})"
    for arm, seeds in claim["collapsed"].items():
        said += f"; {arm}: {stats.said_of_collapse(seeds)}"
    return said


def answered(claim):
    """A judged claim as whole sentences."""
    verdict, statement = claim["verdict"], claim["claim"]
    said = {
        "holds": f"**It holds** that {statement}.",
        "does not hold": f"**It does not hold** that {statement}.",
        "inconclusive": f"**It stays open** whether {statement}.",
    }.get(verdict)
    if verdict.startswith("untested"):
        said = f"**It was not tested** whether {statement}: that takes {claim['least_seeds']} seeds."
    elif said is None:
        said = f"**There is practically no effect** (within ± {claim['margin']:g} points) where it is claimed that {statement}."
    effect = f"{claim['estimate']:+.1f} {claim['unit']}, with an interval from {claim['low']:+.1f} to {claim['high']:+.1f}"
    said += f" The mean over {claim['n']} seeds was {effect} ({100 * claim['level']:g} %)."
    for arm, seeds in claim["collapsed"].items():
        said += f" Of {arm}, {stats.said_of_collapse(seeds)}."
    return said


def _shown(row, baseline):
    """A row of the table as a person reads it."""
    theirs, said, apart = row["published"], "", ""
    if theirs:
        said = f"{theirs['accuracy']:.2f}" + " under HSAKD's recipe" * (not theirs["same_recipe"])
        apart = f"{row['mean'] - theirs['accuracy']:+.2f}" if theirs["same_recipe"] else ""
    return {
        "arm": row["arm"],
        "accuracy (%)": f"{row['mean']:.2f} ± {row['std']:.2f}",
        "collapsed": stats.said_of_collapse(row["collapsed"]),
        f"gain over {baseline if isinstance(baseline, str) else 'its baseline'}": stats.brief(row["difference"]),
        "best on test (%)": f"{row['best_on_test']:.2f}",
        "published (%)": said,
        "ours - published": apart,
    }


# ---------------------------------------------------------------- the strict papermill door


def asked_for(name, profile="smoke", files=(), given=(), elsewhere=False):
    """(path, all parameters) of a notebook under a profile, yaml `files` and `given` (name, text) pairs.

    Each overrides what came before. Errors: CcdError for an unknown name, a wrong type, or data that is not there, unless it
    may be `elsewhere`.
    """
    path = find(name)
    values = profile_parameters(path, profile)
    for file in files:
        values |= read_yaml(path, file)
    kinds = parameters_of(path)
    parsed = {key: text if kinds.get(key, "?")[0] == "str" else _parsed(key, text) for key, text in given}
    values |= checked(path, parsed, "-p")
    if "data" in values and (present(values["data"]) or not elsewhere):
        values["data"] = _absolute(values["data"])
    return path, values


def run_notebook(name, profile="smoke", files=(), given=()):
    """Execute a notebook by papermill with checked parameters (see asked_for); returns the executed notebook's path.

    The executed notebook lands in outputs/<label>/<stem>.ipynb, whole or not at all; a failing one as <stem>.failed.ipynb,
    with NotebookFailed raised. Errors: CcdError before anything runs.
    """
    path, values = asked_for(name, profile, files, given)
    check_surroundings()
    _check_names_itself(path)
    if path.stem in EXPERIMENTS:
        experiment(path.stem, values).check()
    defaults = profile_parameters(path, "smoke")
    target = paths.outputs() / label(path, profile, values) / f"{path.stem}.ipynb"
    return execute(path, target, {key: value for key, value in values.items() if value != defaults[key]})


def _check_names_itself(path):
    """Raise CcdError unless the notebook writes its results under its own name: a copy under another one trains for nothing."""
    code = [cell["source"] for cell in cells_of(path, paths.shown(path)) if cell["cell_type"] == "code"]
    try:
        calls = [node for node in ast.walk(_python("\n".join(code))) if isinstance(node, ast.Call) and node.args]
    except SyntaxError as error:
        raise CcdError(f"{paths.shown(path)}: a cell is no Python: {error}") from error
    names = [call.args[0].value for call in calls if _is_run(call.func) and isinstance(call.args[0], ast.Constant)]
    if names != [path.stem]:
        said = f"names {', '.join(map(repr, names))} in ccdlib.Run(...)" if names else "has no ccdlib.Run(...)"
        raise CcdError(
            f"{paths.shown(path)} {said}, and its results would not be found; its first lines must say "
            f'run = ccdlib.Run("{path.stem}", profile, globals())'
        )


def _python(code):
    """The syntax tree of the code of notebook cells, which may have magics such as %timeit and shell commands."""
    try:
        return ast.parse(code)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # takes a second to import

        return ast.parse(TransformerManager().transform_cell(code))


def _is_run(function):
    return (function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")) == "Run"


def plan(name, profile="smoke", files=(), given=()):
    """The runs that a notebook asks for (see asked_for), as text: an arm a line, each run counted once."""
    path, values = asked_for(name, profile, files, given, elsewhere=True)
    planned = experiment(path.stem, values)
    if "data" in values and not present(values["data"]):
        arms = "\n".join(f"  {arm}" for arm in planned.arms)
        title = f"{path.stem}, profile {profile}, {values['seeds']} seeds; {values['data']} is not here, nothing was looked up"
        return f"{title}\n{arms}\n{gpu_hours(planned.configs)}"
    planned.check()
    rows = planned.plan()
    width = max(len(row["arm"]) for row in rows)
    lines = [f"{path.stem}, profile {profile}, {values['seeds']} seeds", f"  {'':{width}}  runs  done  begun  missing  seconds"]
    total = {key: sum(row[key] for row in rows) for key in ("runs", "done", "begun", "seconds", "expected")}
    for row in [*rows, total | {"arm": "all", "missing": []}]:
        took = f"{row['seconds']:.0f} spent" if row["done"] else ""
        will = f"{row['expected']:.0f} expected" if row["done"] < row["runs"] else ""
        which = f"(seeds {' '.join(map(str, row['missing']))})" if row["missing"] else "" if row["runs"] else "(as above)"
        counts = f"{row['runs']:4}  {row['done']:4}  {row['begun']:5}  {row['runs'] - row['done']:7}"
        said = ", ".join(filter(None, (took, will)))
        lines.append(f"  {row['arm']:{width}}  {counts}  {said} {which}".rstrip())
    if total["expected"]:
        lines.append(f"about {total['expected'] / jobs():.0f} s of training to go, {jobs()} at once")
        missing = [folder.config for _, folder in planned.runs.values() if not folder.finished]
        lines[-1:-1] = [said] if (said := gpu_hours(missing)) else []
    return "\n".join(lines)


RATE = 100.0  # TFLOP/s that a GPU keeps up in training, where CCD_TFLOPS says nothing


def gpu_hours(configs):
    """The work of trainings in words, where it is worth any: counted, so that neither a GPU nor the data must be here."""
    from ccdlib.measure import training_macs  # a kernel does not need it

    flop = 2.0 * sum(training_macs(config) for config in configs)
    given = os.environ.get("CCD_TFLOPS", str(RATE))
    try:
        rate = float(given)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise CcdError(f"CCD_TFLOPS = {given!r}: give the TFLOP/s that your GPU keeps up in training, a number above 0")
    hours = flop / (rate * 1e12) / 3600
    if hours < 0.05:
        return ""
    return (
        f"{len(configs)} runs, {flop:.2g} operations: {hours:,.{0 if hours >= 10 else 1}f} GPU hours at {rate:g} TFLOP/s "
        "(CCD_TFLOPS: what your GPU keeps up)"
    )


def present(data):
    """Whether a data set that is named by a path is there; True for the others."""
    _, path = source_of(data)
    return path is None or path.exists() or (paths.ROOT / path).exists()


def _absolute(data):
    """A data set's name with an absolute path, because the kernel runs elsewhere; CcdError when it is not there."""
    _, path = source_of(data)
    if path is None:
        return data
    found = path if path.exists() else paths.ROOT / path
    if not found.exists():
        raise CcdError(
            f"there is no {path} (data {data!r}); give an existing file (npz:PATH) or folder (folder:PATH, imagenet:PATH)"
        )
    return f"{data.partition(':')[0]}:{found.resolve()}"


def _parsed(name, text):
    return value_of(text, f"-p {name} {text!r}", "write a number, a word, or a list such as [1, 2]")


def execute(path, target, parameters, failed=None):
    """Execute notebook `path` with papermill into `target`, through a temporary name; times are stripped.

    Whatever ends it early (an error in a cell, a kernel that died), what was executed is kept as `failed`.
    """
    import nbformat  # takes seconds to import, which a kernel should not pay
    import papermill
    from traitlets.config import Config

    failed = failed or target.with_suffix(".failed.ipynb")
    mine = f"{platform.node()}-{os.getpid()}"
    beside = target.with_name(f".{target.stem}.{mine}.part.ipynb")
    _sweep([*target.parent.glob(f".{target.stem}.*.part.ipynb"), *Path("/tmp").glob("ccd-*-*.sockets")])
    results = target.with_suffix("") / "results.json"
    before = results.stat().st_mtime_ns if results.exists() else None
    # Files as sockets: network ports are chosen before the kernel takes them, and notebooks that start side by side
    # took each other's. Under /tmp, because the path of such a file must be short, which that of TMPDIR need not be.
    sockets = tempfile.TemporaryDirectory(prefix=f"ccd-{mine}.", suffix=".sockets", dir="/tmp", ignore_cleanup_errors=True)
    quiet = ["--IPKernelApp.log_level=50"]  # a kernel that is interrupted would show where
    config = {
        "KernelManager": {"transport": "ipc", "ip": f"{sockets.name}/kernel"},
        "NotebookClient": {"extra_arguments": quiet},
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            str(path),
            str(beside),
            parameters=parameters,
            cwd=str(paths.ROOT),
            config=Config(config),
            progress_bar=False,
            coalesce_streams=True,  # how prints are cut into outputs depends on timing
            start_timeout=300,
        )
        if not results.exists() or results.stat().st_mtime_ns == before:
            raise NotebookFailed(f"{paths.shown(path)} ran, but its last cell wrote no {paths.shown(results)}")
        executed = nbformat.read(beside, as_version=4)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would show what became of the cell that was interrupted
        raise
    except OSError as error:
        raise CcdError(f"{target} could not be written ({error}); free some space or name a folder in CCD_OUTPUTS") from error
    except Exception as error:
        if not beside.exists():
            raise
        failed.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(beside, failed)
        said = f"{error.ename}: {error.evalue}" if isinstance(error, papermill.PapermillExecutionError) else str(error)
        raise NotebookFailed(f"{said}\nThe executed notebook is {paths.shown(failed)}") from None
    finally:
        beside.unlink(missing_ok=True)
        sockets.cleanup()
    write_whole(target, nbformat.writes(without_times(executed)) + "\n")
    failed.unlink(missing_ok=True)
    return target


def _sweep(found):
    """Remove what processes of this machine that were killed have left behind, of files and folders named ...HOST-PID...."""
    for path in found:
        owner = re.search(rf"\b{re.escape(platform.node())}-(\d+)\.", path.name)
        if owner and not alive(int(owner[1])):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def alive(pid):
    """Whether a process of this machine goes on."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def without_times(notebook):
    """The notebook without what differs from run to run: times, papermill's notes, the Python version."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"  # papermill draws one by chance
    return notebook


def refresh(name):
    """Execute a notebook with its own defaults, all training anew, and keep the outputs in the notebook itself."""
    path = find(name)
    before = os.environ.get("CCD_OUTPUTS")
    failed = paths.outputs() / "smoke" / f"{path.stem}.failed.ipynb"
    with tempfile.TemporaryDirectory(prefix="ccdlib-") as folder:
        os.environ["CCD_OUTPUTS"] = folder
        try:
            # The folder that the notebook's Run writes to, so that the results are found beside the executed copy.
            executed = execute(path, Path(folder) / "smoke" / path.name, {}, failed).read_bytes()
        finally:
            if before is None:
                del os.environ["CCD_OUTPUTS"]
            else:
                os.environ["CCD_OUTPUTS"] = before
    write_whole(path, executed)
    return path


def report(executed):
    """A few lines about an executed notebook: its table, its verdicts, and where everything is."""
    folder = executed.with_suffix("")
    results = json.loads((folder / "results.json").read_text())
    rows = results["table"]
    width = max(len(row["arm"]) for row in rows)
    lines = [
        f"{results['notebook']}, profile {results['profile']}, {len(rows[0]['seeds'])} seeds",
        f"  {'':{width}}  test accuracy   gain, paired [95 % interval]",
    ]
    for row in rows:
        gain = f"{stats.brief(row['difference'])} over {row['baseline']}" if row["baseline"] else ""
        fallen = stats.said_of_collapse(row.get("collapsed"))
        lines.append(f"  {row['arm']:{width}}  {row['mean']:6.2f} % ± {row['std']:<5.2f} {gain}  {fallen}".rstrip())
    lines += [f"  {said_of(claim)}" for claim in results["claims"]]
    if results["trained_by_other_code"]:
        lines.append(f"  note: {results['trained_by_other_code']} of the runs were trained by an earlier version of the code")
    lines += [f"notebook  {paths.shown(executed)}", f"results   {paths.shown(folder / 'results.json')}"]
    lines += [f"figure    {paths.shown(folder / name)}" for name in results["figures"]]
    return "\n".join(lines)
