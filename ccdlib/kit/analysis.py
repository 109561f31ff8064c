"""What a notebook holds: an Analysis, with what it planned, checked, measured, found and where its outputs go."""

import io
import json
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ccdlib.analyses import Experiment
from ccdlib.base import paths
from ccdlib.base.arithmetic import TOO_LATE, make_portable
from ccdlib.base.devices import best_device, hardware, jobs
from ccdlib.base.files import write_whole
from ccdlib.base.reading import check_name
from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence import estimands, stats
from ccdlib.evidence.published import SOURCE, published
from ccdlib.kit import answers, measures, recorded
from ccdlib.kit.parameters import CHECKED, DEFAULT, arithmetic_of, checksum, find, label, profile_parameters, title_of
from ccdlib.training import Result, RunConfig
from ccdlib.training.identity import provenance

if TYPE_CHECKING:  # these take seconds to import
    from IPython.display import Markdown
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Analysis:
    """One execution of an analysis notebook: where its outputs go, what it checked, claimed and found.

    stem: the notebook's name. profile: "lite", or a folder of params/. scope: the notebook's globals(), from which the
    values of its parameters are read. Errors: CcdError for an unknown notebook or profile.
    """

    def __init__(self, stem: str, profile: str = DEFAULT, scope: dict | None = None):
        self.stem, self.asked = stem, profile
        notebook = find(stem)
        self.parameters = profile_parameters(notebook, profile)
        if scope is not None:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a kernel that is interrupted would show its tasks
            self.parameters = {name: scope[name] for name in self.parameters}
        self.arithmetic = arithmetic_of(self.parameters)
        if self.arithmetic.portable and not make_portable():
            print(f"Not portable: {TOO_LATE}. What this notebook trains in processes of its own is portable.")
        self.profile = label(notebook, profile, self.parameters)
        self.folder = paths.outputs() / self.profile / stem
        self.checks, self.claims, self.rows, self.figures = [], [], [], []
        self._experiment, self.results, self.measured, self.measures = None, {}, {}, {}

    def __repr__(self):
        return f"Analysis {self.stem}, profile {self.profile}, {self.arithmetic.said}, on {hardware(best_device())}"

    def experiment(self) -> Experiment:
        """The Experiment of this notebook under its parameters, all of its runs checked; its claims are declared with it.

        Where runs are trained side by side, with one thread each, this process takes one thread too: a run has the same bits
        whichever notebook trains it.
        """
        if jobs() > 1:
            torch.set_num_threads(1)
        recorded.confirmed(self.asked)  # a file that cannot be read gets its error before the training
        # A command that executes the notebook has checked its runs.
        checked = os.environ.get(CHECKED) == checksum(self.stem, self.parameters)
        self._experiment = replace(recorded.experiment(self.stem, self.parameters, self.asked), checked=checked)
        if self._experiment.read:
            self.arithmetic = self._experiment.records.way.arithmetic
        if not checked:
            self._experiment.check()
        return self._experiment

    def declared(self) -> "DataFrame":
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
        if self._experiment is None:
            raise CcdError(
                "nothing is planned yet: call analysis.experiment() before the training, so that claims come before results"
            )
        return self._experiment

    def check(self, text: str, holds: bool) -> None:
        """An invariant of the code, true in every profile: printed, kept, and an AssertionError where it fails."""
        if not holds:
            raise AssertionError(f"check failed: {text}")
        self.checks.append(text)
        print(f"check: {text}")

    def keep(self, name: str, value: Any) -> Any:
        """Put something measured, of strings, numbers, lists and dicts, into results.json, and return it."""
        self.measured[name] = value
        return value

    def table(self, results: dict[str, list[Result]], baseline: str | dict[str, str]) -> "DataFrame":
        """A DataFrame, one row an arm, of results {arm: [Result, one a seed]}; gains are paired by seed.

        baseline: the arm that all others are compared with, or {arm: its own baseline}, arms without one left out.
        Errors: CcdError for a baseline that is no arm, and for arms whose seeds are not the first of the longest arm's.
        """
        import pandas as pd

        against = baseline if isinstance(baseline, dict) else {arm: baseline for arm in results if arm != baseline}
        for arm in {baseline} if isinstance(baseline, str) else {*against, *against.values()}:
            if arm not in results:
                raise unknown("baseline arm", arm, results)
        seeds = {arm: [r.config.seed for r in runs] for arm, runs in results.items()}
        longest = max(seeds.values(), key=len)
        if any(given != longest[: len(given)] for given in seeds.values()):
            raise CcdError(f"every arm needs the same seeds, or the first of them, in the same order; the arms have {seeds}")
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
            "difference": base and stats.paired(*_common(accuracies, base))._asdict(),
            # Of one evaluation there is no best.
            "best_on_test": stats.spread([r.best_on_test for r in runs])[0] if all(map(_several, runs)) else None,
            "published": theirs and theirs._asdict() | {"source": SOURCE},
        }

    def measure(self, results: dict[str, list[Result]]) -> dict[str, list[dict[str, float]]]:
        """What the experiment measures of the networks of its arms, {arm: [{name: number}, one a seed]}, for its claims.

        It is read from the records and from what is kept beside the runs; the rest is computed on every core. results {arm:
        [Result]}. Errors: CcdError for an experiment without a measure, and where weights are needed that are not here.
        """
        planned = self._planned()
        if planned.measure is None:
            raise CcdError(f"the experiment of {self.stem} has no measure")
        every = [run for arm in planned.facts for run in results[arm]]
        found = iter(measures.of_runs(every, planned.measure))
        values = {arm: [next(found) for _ in results[arm]] for arm in planned.facts}
        for arm, rows in values.items():
            self.measures |= {estimands.values_of(name, arm): [row[name] for row in rows] for name in rows[0]}
        return values

    def judge(self, results: dict[str, list[Result]]) -> None:
        """The verdict on every claim that was declared, printed and kept, whatever it is; results {arm: [Result]}."""
        self.results = results
        accuracies = {arm: [run.accuracy for run in runs] for arm, runs in results.items()} | self.measures
        declared = self._planned().claims
        first = next(iter(results.values()))
        self.claims = [claim.judge(accuracies, first[0].chance) for claim in declared]
        for claim, verdict in zip(self.claims, stats.corrected(self.claims), strict=True):
            claim["corrected"] = verdict
            claim["collapsed"] = {arm: [first[k].config.seed for k in places] for arm, places in claim["collapsed"].items()}
            print(answers.said_of(claim))

    def answer(self) -> "Markdown":
        """The question, what was found, claim by claim with numbers, and what would change our mind, as Markdown."""
        from IPython.display import Markdown

        if not self.claims:
            raise CcdError("nothing is judged yet: call analysis.judge(results) first")
        p, seeds = self.parameters, max(claim["n"] for claim in self.claims)
        images = f"{p['n_train']} training images" if p["n_train"] else "all training images"
        networks = f"a {p['teacher_model']} that teaches a {p['student_model']}"
        how = f"up to {seeds} seeds (profile {self.profile}, {self.arithmetic.said})"
        where = f"On *{p['data']}*, with {images}, {networks}, and {how}"
        return Markdown(answers.answer(title_of(find(self.stem)), where, self.claims))

    def figure(self, name: str, figure: "Figure") -> "Figure":
        """Keep a figure as PNG and SVG beside results.json, and return it. Errors: CcdError for a name that is none."""
        check_name(name, "figure")
        figure.draw_without_rendering()  # which settles the layout
        below = figure.get_tightbbox().y0 / figure.get_figheight() - 0.02  # whatever the figure has at its lower end
        figure.text(0.0, below, self.source, ha="left", va="top", fontsize=6, color="0.5", transform=figure.transFigure)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            write_whole(self.folder / f"{name}.{kind}", buffer.getvalue())
        self.figures.append(f"{name}.png")
        return figure

    @property
    def source(self) -> str:
        """Where the numbers of this notebook come from, on a line: the code, the records, and the command."""
        planned = self._experiment
        command = f"ccd run {self.stem} --profile {self.asked}" + ", with other parameters" * (self.profile != self.asked)
        if planned is None:  # a figure of data alone
            return command
        read = planned.read
        if not read:
            return f"trained here; {command}"
        part = "" if len(read) == len(planned.runs) else f"{len(read)} of {len(planned.runs)} runs "
        records = planned.records
        return f"{part}trained at {', '.join(records.commits(read))}; records {records.digest}; {command}"

    def save(self) -> None:
        """Write results.json, by which a notebook is finished, and add the runs that were trained here to the records."""
        if self._experiment and not self.claims:
            raise CcdError(
                "the claims of the experiment are not judged yet: call analysis.judge(results) before analysis.save()"
            )
        every = [run for arm in self.results.values() for run in arm if isinstance(run.config, RunConfig)]
        runs = list({run.folder: run for run in every}.values())  # arms may share some
        made = [run.metrics["provenance"] for run in runs]
        results = {
            "notebook": self.stem,
            "profile": self.profile,
            "parameters": self.parameters,
            "arithmetic": self.arithmetic.said,
            "source": self.source,
            "table": self.rows,
            "claims": self.claims,
            "measured": self.measured,
            "measures": self.measures,
            "checks": self.checks,
            "figures": self.figures,
            "runs": {arm: [run.folder.name for run in arms] for arm, arms in self.results.items()},
            "training_seconds": round(sum(run.seconds for run in runs), 1),
            "trained_on": sorted({facts["hardware"] for facts in made}),
            "trained_by_other_code": sum(
                not recorded.by_this_code(run.metrics["provenance"], run.config, self.asked) for run in runs
            ),
            "provenance": provenance(best_device()),
        }
        write_whole(self.folder / "results.json", json.dumps(results, indent=1) + "\n")
        if self._experiment and self.profile == self.asked:  # records are of profiles, without own parameters
            self._record()
        print(f"saved {self.profile}/{self.stem}/results.json")

    def _record(self):
        """Add the runs that were trained here to the records of the profile."""
        try:
            recorded.keep(self._experiment, self.stem, self.asked)
        except CcdError as error:  # such as runs of another precision: their results are kept all the same
            print(f"Not recorded: {error}")


def _common(*arms):
    """The arms cut to the seeds that all of them have."""
    return [arm[: min(map(len, arms))] for arm in arms]


def _several(run):
    """Whether a run was evaluated more than once."""
    return sum(row["test_accuracy"] is not None for row in run.curves) > 1


def _shown(row, baseline):
    """A row of the table as a person reads it."""
    theirs, said, apart = row["published"], "", ""
    gain = stats.brief(row["difference"])
    if gain and not isinstance(baseline, str):
        gain += f" over {row['baseline']}"
    if theirs:
        said = f"{theirs['accuracy']:.2f}" + " under HSAKD's recipe" * (not theirs["same_recipe"])
        apart = f"{row['mean'] - theirs['accuracy']:+.2f}" if theirs["same_recipe"] else ""
    return {
        "arm": row["arm"],
        "accuracy (%)": f"{row['mean']:.2f} ± {row['std']:.2f}",
        "collapsed": stats.said_of_collapse(row["collapsed"]),
        f"gain over {baseline}" if isinstance(baseline, str) else "gain": gain,
        "best on test (%)": "" if row["best_on_test"] is None else f"{row['best_on_test']:.2f}",
        "published (%)": said,
        "ours - published": apart,
    }
