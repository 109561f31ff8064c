"""Experiments as data: one function an analysis, from a notebook's parameters to the runs it needs and the claims it makes.

A notebook trains what the run store lacks of its list and reads the rest; `ccd plan` shows the list. A run that two notebooks
list is the same run, because it is described the same.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from math import log2
from statistics import median

import torch
from loky import ProcessPoolExecutor

from ccdlib.augment import policy_named
from ccdlib.bundled import PREFIX, cards
from ccdlib.config import RECIPES, Checkpoint, RunConfig, recipe_of, teacher_of_method
from ccdlib.data import sizes_of
from ccdlib.group import launch
from ccdlib.methods import METHODS
from ccdlib.registry import CcdError, Registry, unknown
from ccdlib.runs import jobs
from ccdlib.stats import (
    INFINITY,
    Claim,
    Contrast,
    Peak,
    collapsed_seeds,
    equivalent,
    more,
    no_better,
    said_of_collapse,
    slope,
)
from ccdlib.train import check, data_of, fit, fit_cohort, folder_of, measured, network_of, pace, steps_an_epoch

EXPERIMENTS = Registry("experiment")  # notebook stem -> function of its parameters
MOST_SEEDS = 1000
MOST_STEPS = 1000  # that are timed


@dataclass(frozen=True)
class Experiment:
    """arms: {name: [RunConfig, one a seed]}, paired; Checkpoints stand for teachers that are not trained here. claims:
    declared with the arms, so before any result.

    facts: {arm: numbers that tables and axes show}. Errors: CcdError for no seed or one, arms that are not paired, and a
    claim about an arm that is not there.
    """

    arms: Mapping[str, list]
    claims: tuple[Claim, ...]
    facts: Mapping[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        seeds = {arm: [config.seed for config in configs] for arm, configs in self.arms.items()}
        first = next(iter(seeds.values()), [])
        if not first:
            raise CcdError("an experiment without seeds has nothing to train; give parameter seeds = 2 or more")
        if len(first) == 1:
            raise CcdError(
                "seeds = 1: the claims rest on intervals over paired seeds, which one seed does not give; give 2 or more "
                "(verdicts ask for more still)"
            )
        if any(given != first for given in seeds.values()) or len(set(first)) < len(first):
            raise CcdError(f"the arms are not paired: {seeds}; give every arm the same seeds, each once, in the same order")
        for claim in self.claims:
            claim.needs(self.arms)

    @property
    def configs(self):
        """Every RunConfig once, teachers before their students; nothing is looked up, so the data need not be here."""
        found = {}
        for configs in self.arms.values():
            for config in configs:
                found |= {needed.model_dump_json(exclude={"device", "processes"}): needed for needed in _with_teachers(config)}
        return list(found.values())

    @property
    def runs(self):
        """Every run once, teachers before their students: {folder name: (arm that first needs it, Folder)}."""
        found = {}
        for arm, configs in self.arms.items():
            for config in configs:
                for needed in _with_teachers(config):
                    folder = folder_of(needed)
                    found.setdefault(folder.path.name, (arm, folder))
        return found

    @property
    def _trained(self):
        """The RunConfigs of all arms, some more than once."""
        return [config for configs in self.arms.values() for config in configs if isinstance(config, RunConfig)]

    def check(self):
        """Raise CcdError where one of the runs could not be trained."""
        check(self._trained)

    def teacher(self, show="epochs"):
        """The network of the first seed's teacher, in eval mode on the CPU; show: see fit()."""
        return network_of(self.arms["teacher"][0], data_of(self._trained[0]), show)

    def train(self):
        """Train what the run store lacks, read the rest: {arm: [Result, one a seed]}. Prints a line an arm.

        Runs that see the same batches and have the same teacher are trained together, as a cohort. On a CPU as many cohorts at
        once as there are cores ($CCD_JOBS, when it is set), one thread each: small networks gain next to nothing from a
        second thread.
        """
        self.check()
        results, width = {}, max(map(len, self.arms))
        with side_by_side(cohorts_of(self._trained)) as trained:
            for arm, configs in self.arms.items():
                trained(configs)
                results[arm] = [self._result(config) for config in configs]
                mean = sum(result.accuracy for result in results[arm]) / len(configs)
                said = f"; {said}" if (said := said_of_collapse(collapsed_seeds(results[arm]))) else ""
                print(f"{arm:{width}}  {mean:.1f} % on average of {len(configs)} seeds{said}", flush=True)
        return results

    def _result(self, config):
        if isinstance(config, Checkpoint):
            return measured(config, data_of(self._trained[0]))
        return fit(config, show="none")

    def rows(self, results):
        """Long form, for figures: a dict for each arm that has facts and each seed, with "accuracy", the facts, and "gain",
        the paired difference, for those whose facts name a "baseline"."""
        rows = []
        for arm, facts in self.facts.items():
            base = results[facts["baseline"]] if "baseline" in facts else results[arm]
            for run, other in zip(results[arm], base, strict=True):
                row = {"arm": arm, "seed": run.config.seed, "accuracy": run.accuracy, **facts}
                row["collapsed"] = run.config.seed in {*collapsed_seeds(results[arm]), *collapsed_seeds(base)}
                rows.append(row | ({"gain": run.accuracy - other.accuracy} if "baseline" in facts else {}))
        return rows

    def plan(self):
        """One row an arm, each run counted once: {"arm", "runs", "done", "begun", "missing" (seeds), "seconds", "expected"}.

        A run that an earlier arm needs is counted there. seconds: spent on those that are done. expected: for the others, from
        a few steps of each kind timed here.
        """
        rows = {
            arm: {"arm": arm, "runs": 0, "done": 0, "begun": 0, "missing": [], "seconds": 0.0, "expected": 0.0}
            for arm in self.arms
        }
        missing = []  # (configuration, its row)
        for arm, folder in self.runs.values():
            row, config = rows[arm], folder.config
            row["runs"] += 1
            if folder.finished:
                row["done"] += 1
                row["seconds"] += folder.metrics["seconds"]
                continue
            row["begun"] += folder.file("resume.pt").exists()
            row["missing"].append(config.seed)
            missing.append((config, row))
        expected = expected_seconds([config for config, _ in missing])
        for (_, row), seconds in zip(missing, expected, strict=True):
            row["expected"] += seconds
        return list(rows.values())


def grouped(things, key):
    """Lists of those of `things` that have the same key, in the order of their first."""
    groups = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return list(groups.values())


def cohorts_of(configs):
    """The RunConfigs in lists of those that are trained together."""
    return grouped(configs, lambda config: config.cohort)


def _with_teachers(config):
    """The run, after those it learns from."""
    return [*_with_teachers(config.teacher), config] if isinstance(config, RunConfig) else []


def expected_seconds(configs):
    """How long the training of each of `configs` takes here, from a few steps of every kind of cohort, timed three times."""
    paces, seconds, threads = {}, {}, torch.get_num_threads()
    if jobs() > 1:  # they have one thread each; more would wait for each other where the machine is busy
        torch.set_num_threads(1)
    try:
        for cohort in grouped(range(len(configs)), lambda k: configs[k].cohort):
            members = [configs[k] for k in cohort]
            kinds = str([_kind(config) for config in members])
            paces[kinds] = paces.get(kinds) or [pace(members) for _ in range(3)]
            seconds |= {k: median(each(configs[k]) for each in paces[kinds]) for k in cohort}
    finally:
        torch.set_num_threads(threads)
    return [seconds[k] for k in range(len(configs))]


def _kind(config):
    """Runs of one kind take equally long a step."""
    teacher = config.teacher and config.teacher.model
    work = config.model, teacher, config.method, str(config.settings), config.views, config.twins, config.share, config.batch
    return (config.data, config.side, config.n_train, *work)


@contextmanager
def side_by_side(cohorts):
    """A function that comes back when all of a list of configurations are trained, those of `cohorts` in worker processes where
    there are several jobs.

    Workers take the cohorts in their order, whichever are asked for first, and end with the context, whatever ends it.
    """
    missing = [[config for config in cohort if not folder_of(config).finished] for cohort in cohorts]
    missing = [cohort for cohort in missing if cohort]
    pool, together = None, [config for cohort in missing for config in cohort]
    if any(config.processes > 1 for config in together):  # one group of processes for all: they take seconds to start
        once = cache(lambda: launch([config for needed in together for config in _with_teachers(needed)], "none"))
        begun = [(together, once)]
    elif jobs() == 1 or not missing:
        begun = [(cohort, lambda cohort=cohort: _fit(cohort)) for cohort in missing]
    else:
        pool = ProcessPoolExecutor(jobs(), timeout=60, env={"OMP_NUM_THREADS": "1"}, initializer=_end_with_parent)
        begun = [(cohort, pool.submit(_fit_in_worker, cohort).result) for cohort in _spread(missing, jobs())]

    def trained(configs):
        for cohort, result in begun:
            if any(config in cohort for config in configs):
                result()

    try:
        yield trained
    finally:
        if pool:
            pool.shutdown(wait=True, kill_workers=sys.exc_info()[0] is not None)


def _end_with_parent():
    """In a worker: end when the process that started it was killed, which otherwise nobody tells a worker that trains."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _spread(cohorts, n):
    """The same runs in at least n cohorts, where there are as many: the largest is halved, so that no core is idle."""
    cohorts = list(cohorts)
    while len(cohorts) < n and max(map(len, cohorts)) > 1:
        largest = cohorts.pop(max(range(len(cohorts)), key=lambda k: len(cohorts[k])))
        cohorts += [largest[::2], largest[1::2]]
    return cohorts


def _fit(cohort):
    fit_cohort(cohort, show="none")


def _fit_in_worker(cohort):
    with redirect_stdout(None):  # that it waits for the teacher that another worker trains is nobody's concern
        _fit(cohort)


# ---------------------------------------------------------------- what all analyses share


def experiment(stem, parameters):
    """The Experiment of the notebook `stem` under its `parameters` (a dict)."""
    if parameters.get("seeds", 1) > MOST_SEEDS:
        raise CcdError(f"seeds = {parameters['seeds']}: allowed are up to {MOST_SEEDS} paired repetitions")
    if "policy" in parameters:
        policy_named(parameters["policy"])  # a RunConfig would call it `views`
    return EXPERIMENTS[stem](parameters)


def _timing(p, epochs):
    if p["evaluations"] < 1:
        raise CcdError(f"evaluations = {p['evaluations']}: the last epoch is always evaluated; give 1 or more")
    return {"epochs": epochs, "eval_every": max(1, epochs // p["evaluations"])}


def _teachers(p, /, **what):
    """The teacher of every seed, with plain cross entropy unless `what` says more; a bundled one where parameter `teacher`
    says so and nothing else is wanted of it."""
    if p.get("teacher", TEACHERS[1]) not in TEACHERS:
        raise unknown("teacher", p["teacher"], TEACHERS)
    if p.get("teacher") == TEACHERS[0] and not what:
        return _bundled(p)
    base = {"data": p["data"], "n_train": p["n_teacher"] or None, "model": p["teacher_model"]}
    base |= recipe_of(p["recipe"], p["teacher_model"], "teacher") | _timing(p, p["teacher_epochs"]) | what
    return [RunConfig(**base, seed=s, subset_seed=_subset_seed(p, s)) for s in range(p["seeds"])]


TEACHERS = ("bundled", "train")


def _bundled(p):
    """The teachers that come with the package, one a seed; CcdError where there are none for these parameters."""
    names = [f"{p['teacher_model']}-{p['data']}-s{seed}" for seed in range(p["seeds"])]
    known = cards()
    if missing := [name for name in names if name not in known]:
        raise CcdError(
            f"teacher = 'bundled': {missing[0]} does not come with the package; there are {', '.join(known)}. Give "
            "teacher = train, or data, teacher_model and seeds for which there are some"
        )
    if p["n_teacher"]:
        raise CcdError(
            f"n_teacher = {p['n_teacher']} with teacher = 'bundled': bundled teachers have seen all training images; give "
            "n_teacher = 0, or teacher = train"
        )
    model = p["teacher_model"]
    return [
        Checkpoint(model=model, file=PREFIX + name, accuracy=known[name]["accuracy"], seed=seed)
        for seed, name in enumerate(names)
    ]


def _students(p, teachers, /, epochs=None, **what):
    """The student of every seed, distilled by KD unless `what` says more; teachers None: alone."""
    base = {"data": p["data"], "n_train": p["n_train"] or None, "model": p["student_model"]}
    base |= (
        recipe_of(p["recipe"], p["student_model"])
        | _timing(p, epochs or p["student_epochs"])
        | {"method": "kd" if teachers else "ce"}
        | what
    )
    return [
        RunConfig(**base, teacher=teachers and teachers[s], seed=s, subset_seed=_subset_seed(p, s)) for s in range(p["seeds"])
    ]


def _least(p, large=False):
    """Seeds that a verdict needs: three in the paper profiles, as the papers have, four in class for an effect that is large
    there, and ten elsewhere."""
    if p["profile"].startswith("paper"):
        return {"least": 3}
    return {"least": 4 if large and p["profile"] == "class" else 10}


def _needs(p, large=False):
    """What a verdict on an effect that the papers claim needs: seeds, and the margin within which there is practically none."""
    return _least(p, large) | {"margin": p["margin"]}


SPLITS = ("per seed", "fixed")


def _subset_seed(p, seed):
    """The seed by which training images are drawn: each seed's own or, with a fixed split (the authors' way), one for all."""
    split = p.get("split", SPLITS[0])
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return seed if split == SPLITS[0] else 0


def _sweep(p, name, kind, low, high):
    """The values of a sweep, in order; CcdError for duplicates, for what is outside, and for fewer than two."""
    values = p[name]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise CcdError(f"{name} holds {value!r}; allowed are {'whole ' * (kind is int)}numbers from {low:g} to {high:g}")
    if len(set(values)) < max(2, len(values)):
        raise CcdError(f"{name} = {values}: a sweep needs at least two values, each once; take out the duplicates")
    return sorted(values)


def _images(p):
    """How many training images the students have; CcdError for a number that leaves a class empty, or is not there."""
    sizes = sizes_of(p["data"])
    n = p["n_train"] or sizes.images
    if not sizes.classes <= n <= sizes.images:
        raise CcdError(
            f"n_train = {n}: allowed are {sizes.classes} training images (one of each class) to {sizes.images}, or 0 for all"
        )
    return n


# ---------------------------------------------------------------- the analyses


@EXPERIMENTS.add("00_quickstart")
def quickstart(p):
    """Student alone, KD, KD + JDA, CCD: claim (a) in the small, and CCD's weight."""
    teachers = _teachers(p)
    arms = {
        "teacher": teachers,
        "student alone": _students(p, None),
        "KD": _students(p, teachers),
        "KD + JDA": _students(p, teachers, views=p["policy"]),
        "CCD": _students(p, teachers, method="ccd", views=p["policy"]),
    }
    claims = (
        more(
            "KD", "a teacher helps: KD is more accurate than the student alone", "KD", "student alone", **_needs(p, large=True)
        ),
        more("(a)", "augmented views help: KD + JDA is more accurate than KD", "KD + JDA", "KD", **_needs(p, large=True)),
        more("CCD", "the cosine weight helps: CCD is more accurate than KD + JDA", "CCD", "KD + JDA", **_needs(p)),
    )
    return Experiment(arms, claims)


@EXPERIMENTS.add("01_joint_augmentation")
def joint_augmentation(p):
    """(a): KD with kinds of views that the teacher never saw, and every op of the policy alone and left out."""
    teachers = _teachers(p)
    kinds = {"KD, not cropped": "raw", "KD": "none", "KD + crop and flip": "base", "KD + rotation": "rotation"}
    arms = {"teacher": teachers} | {arm: _students(p, teachers, views=views) for arm, views in kinds.items()}
    arms["KD + JDA"] = _students(p, teachers, views=p["policy"])
    ops = effective_ops(p)
    # Alone, an op is applied to every twin: with the policy's own p most twins would be plain copies.
    arms |= {f"only {op}": _students(p, teachers, views=p["policy"], ops=(op,), p=p["single_p"]) for op in ops}
    every = [name for name, _ in policy_named(p["policy"]).steps]
    for op in ops:
        rest = tuple(dict.fromkeys(name for name in every if name != op))
        arms[f"without {op}"] = _students(p, teachers, views=p["policy"], ops=rest)
    claims = (
        more("(a)", "KD gains from JDA, though the teacher never saw such views", "KD + JDA", "KD", **_needs(p)),
        more("(a)", "KD gains more from JDA than from rotation", "KD + JDA", "KD + rotation", **_needs(p)),
        more("(a)", "KD gains more from JDA than from a second crop and flip", "KD + JDA", "KD + crop and flip", **_needs(p)),
    )
    return Experiment(arms, claims)


def effective_ops(p):
    """The ops that 01 looks at: parameter `ops`, or all of the policy that can change an image of the data."""
    policy = policy_named(p["policy"])
    known = dict.fromkeys(name for name, _ in policy.effective(sizes_of(p["data"]).channels))
    for op in p["ops"]:
        if op not in known:
            raise CcdError(
                f"ops holds {op!r}, which changes nothing here or is no op of {p['policy']}; allowed: {', '.join(known)}"
            )
    if len(set(p["ops"])) < len(p["ops"]):
        raise CcdError(f"ops = {p['ops']}: name each op once")
    return p["ops"] or list(known)


@EXPERIMENTS.add("02_augmented_teacher")
def augmented_teacher(p):
    """(b): teachers without and with JDA, each teaching students without and with JDA."""
    plain, rich = _teachers(p), _teachers(p, views=p["policy"])
    arms = {
        "teacher": plain,
        "teacher + JDA": rich,
        "KD": _students(p, plain),
        "KD + JDA": _students(p, plain, views=p["policy"]),
        "KD from teacher + JDA": _students(p, rich),
        "KD + JDA from teacher + JDA": _students(p, rich, views=p["policy"]),
    }
    margin, least = p["margin"], _least(p)
    without = "without JDA in distillation, a teacher trained with JDA makes no better student"
    within = "with JDA in distillation, a teacher trained with JDA makes no better student"
    claims = (
        more("(b)", "training with JDA improves the teacher", "teacher + JDA", "teacher", **_needs(p)),
        no_better("(b)", without, "KD from teacher + JDA", "KD", margin, **least),
        no_better("(b)", within, "KD + JDA from teacher + JDA", "KD + JDA", margin, **least),
    )
    trained = {arm: "with JDA" if "teacher + JDA" in arm else "without JDA" for arm in arms}
    who = {arm: "the teacher" if arm.startswith("teacher") else f"student, {arm.partition(' from ')[0]}" for arm in arms}
    facts = {arm: {"who": who[arm], "teacher": trained[arm]} for arm in arms}
    return Experiment(arms, claims, facts)


EPOCHS, STEPS = "equal epochs", "equal steps"


@EXPERIMENTS.add("03_proportion")
def proportion(p):
    """(c): the policy's p, the twins of an image (r) and the share of images with twins (q), each swept.

    A step sees about as many network inputs as a step of KD + JDA, as near as whole batches come. So more augmented views of
    an image make an epoch longer, in steps; "equal epochs" leaves it so, "equal steps" gives every arm the same number of
    steps, to a whole epoch.
    """
    teachers, n = _teachers(p), _images(p)
    policy = policy_named(p["policy"])
    changing = len(policy.effective(sizes_of(p["data"]).channels))
    batch = recipe_of(p["recipe"], p["student_model"])["batch"]
    target = p["student_epochs"] * steps_an_epoch(n, batch)
    arms, facts = {"teacher": teachers}, {}

    def add(sweep, value, schedule, fires=policy.p, twins=1, share=1.0):
        augmented = share * twins
        images = -(-2 * batch // (1 + augmented))  # rounded up
        steps = steps_an_epoch(n, images)
        epochs = p["student_epochs"] if schedule == EPOCHS else max(1, round(target / steps))
        what = {"batch": int(images), "epochs": epochs}
        if augmented and fires:
            what |= {"views": p["policy"], "p": fires, "twins": twins, "share": share}
        elif augmented:
            what |= {"views": "base"}  # a policy that never fires leaves a second crop and flip
        name = f"{sweep} {value:g}, {schedule}"
        arms[name] = _students(p, teachers, **what)
        part = augmented / (1 + augmented)  # of all network inputs
        facts[name] = {
            "sweep": sweep,
            "value": value,
            "schedule": schedule,
            "expected_ops": part * changing * fires,
            "p_no_op": 1 - part * (1 - (1 - fires) ** changing),
            "steps": epochs * steps,
        }

    for schedule in (STEPS, EPOCHS):
        for fires in _sweep(p, "sweep_p", (int, float), 0, 1):
            add("p", fires, schedule, fires=fires)  # the same runs twice: p changes neither inputs nor steps
        for twins in _sweep(p, "sweep_r", int, 0, 16):
            add("r", twins, schedule, twins=max(1, twins), share=float(twins > 0))
        for share in _sweep(p, "sweep_q", (int, float), 0, 1):
            add("q", share, schedule, share=float(share))
    return Experiment(arms, tuple(_suitable_ranges(p, facts)), facts)


SWEEPS = {"p": "probabilities p of the policy", "r": "numbers r of twins", "q": "shares q of images with a twin"}


def _suitable_ranges(p, facts):
    """(c) for every sweep with something inside it."""
    for sweep, what in SWEEPS.items():
        for schedule in (STEPS,) if sweep == "p" else (STEPS, EPOCHS):
            ladder = [arm for arm, fact in facts.items() if (fact["sweep"], fact["schedule"]) == (sweep, schedule)]
            if len(ladder) > 2:
                at = "at equal epochs and steps" if sweep == "p" else f"at {schedule}"
                first, last = (f"{sweep} {facts[arm]['value']:g}" for arm in (ladder[0], ladder[-1]))
                words = f"accuracy(best inside) - accuracy({first}), and accuracy(best inside) - accuracy({last})"
                statement = f"{what} have a suitable range, where the student beats both ends of the sweep, {at}"
                yield Claim("(c)", statement, words, Peak(tuple(ladder)), **_least(p))


@EXPERIMENTS.add("04_few_shot")
def few_shot(p):
    """(d): KD without and with JDA on fractions of the training set and on a few images of each class.

    "equal epochs": the epochs are not rescaled, as the papers do, so fewer images also mean fewer steps. "equal steps": every
    amount is trained for as many steps as the largest is, to a whole epoch.
    """
    teachers, amounts = _teachers(p), few_shot_amounts(p)
    batch = recipe_of(p["recipe"], p["student_model"])["batch"]
    target, every = p["student_epochs"] * steps_an_epoch(amounts[-1], batch), sizes_of(p["data"]).images
    arms, facts = {"teacher": teachers}, {}
    for schedule in (EPOCHS, STEPS):
        for n in amounts:
            given = None if n == every else n  # described as the other notebooks do, so that it is the same run
            steps = steps_an_epoch(n, batch)
            epochs = p["student_epochs"] if schedule == EPOCHS else max(1, round(target / steps))
            for method, views in (("KD", "none"), ("KD + JDA", p["policy"])):
                name = f"{method}, {n} images, {schedule}"
                arms[name] = _students(p, teachers, n_train=given, views=views, epochs=epochs)
                facts[name] = {"method": method, "images": n, "schedule": schedule, "steps": epochs * steps}
                if views != "none":
                    facts[name]["baseline"] = f"KD, {n} images, {schedule}"
    return Experiment(arms, tuple(_few_shot_claims(p, amounts)), facts)


def few_shot_amounts(p):
    """The numbers of training images of 04, ascending. Errors: CcdError for amounts that leave a class empty."""
    sizes, whole = sizes_of(p["data"]), _images(p)
    fractions = [round(f * whole) for f in _sweep(p, "fractions", (int, float), 0, 1)]
    counts = [k * sizes.classes for k in _sweep(p, "per_class", int, 1, whole // sizes.classes)]
    if fractions[0] < sizes.classes:
        raise CcdError(
            f"fractions holds {min(p['fractions'])}: {fractions[0]} of {whole} training images leave some of the "
            f"{sizes.classes} classes empty; allowed are fractions from {sizes.classes / whole:g}"
        )
    return sorted({*fractions, *counts})


def _few_shot_claims(p, amounts):
    few, many = amounts[0], amounts[-1]
    for schedule in (EPOCHS, STEPS):
        at = f"at {schedule}"
        pair = [f"{method}, {few} images, {schedule}" for method in ("KD + JDA", "KD")]
        yield more("(d)", f"with {few} images KD gains from JDA, {at}", *pair, **_needs(p))
        weights = {}
        for n, weight in zip(amounts, slope([log2(n) for n in amounts]), strict=True):
            weights |= {f"KD + JDA, {n} images, {schedule}": weight, f"KD, {n} images, {schedule}": -weight}
        words = f"slope of the gain from JDA over log2(images), {few} to {many} images"
        statement = f"the gain from JDA is larger the fewer the images, {at}"
        unit = "points per doubling"
        yield Claim("(d)", statement, words, Contrast(weights), -INFINITY, 0.0, unit=unit, **_least(p))


# The compared methods as tables name them.
NAMES = {
    "kd": "KD",
    "fitnet": "FitNet",
    "at": "AT",
    "sp": "SP",
    "sp_released": "SP, released",
    "rkd": "RKD",
    "crd": "CRD",
    "dkd": "DKD",
    "kd_std": "KD, standardised",
    "sskd": "SSKD",
    "hsakd": "HSAKD",
}


def _own_recipe(p, method):
    """The settings that `method` is trained with, where they are not those of all others."""
    if not METHODS[method].rotates and f"{p['recipe']}_{method}" not in RECIPES:
        return {}
    recipe = recipe_of(p["recipe"], p["student_model"], method)
    return {key: value for key, value in recipe.items() if key != "epochs"}


# The epochs of the heads of a frozen teacher, as a part of the teacher's own: 60 and 100 of 240.
HEAD_EPOCHS = {"sskd_teacher": 60 / 240, "hsakd_teacher": 100 / 240}


def _ready_for(p, method, teachers):
    """The teachers of `method`: with the heads that it needs, where it needs some, trained while the teacher is frozen."""
    needed = METHODS[method].teacher_method
    if needed is None:
        return teachers
    epochs = max(1, round(HEAD_EPOCHS[needed] * p["teacher_epochs"]))
    stage = RECIPES[f"{p['recipe']}_{needed}"] | {"epochs": epochs, "eval_every": epochs}
    if isinstance(teachers[0], Checkpoint):  # what a RunConfig says of itself
        stage |= {"data": p["data"], "n_train": p["n_teacher"] or None}
    return [
        teacher_of_method(method, teacher, **stage, seed=teacher.seed, subset_seed=_subset_seed(p, teacher.seed))
        for teacher in teachers
    ]


def _compared(p, method, teachers, own=True, **what):
    """The students of a compared method under its own recipe or, not `own`, the one that all methods can share."""
    fields = (_own_recipe(p, method) if own else {}) | {"method": method}
    if method == "crd":
        fields["settings"] = {"negatives": p["negatives"]}
    if method == "dkd":
        fields |= {"settings": {"beta": p["dkd_beta"]}, "warmup": p["dkd_warmup"]}
    return _students(p, _ready_for(p, method, teachers), **fields | what)


@EXPERIMENTS.add("05_compatibility")
def compatibility(p):
    """(e): compared methods without augmentation, with rotation and with JDA, under their own recipe and one matched recipe."""
    teachers = _teachers(p)
    arms, facts, claims = {"teacher": teachers}, {}, []
    for method in _methods(p):
        recipes = (True, False) if METHODS[method].rotates else (True,)
        for own in recipes:
            name = NAMES[method] + ", matched" * (not own)
            kinds = {"none": "none", "rotation": "rotation", "JDA": p["policy"]}
            if METHODS[method].rotates:
                del kinds["rotation"]  # it turns every view itself
            for kind, views in kinds.items():
                arm = name + f" + {kind}" * (kind != "none")
                arms[arm] = _compared(p, method, teachers, own, views=views)
                facts[arm] = {"method": name, "views": kind} | ({} if kind == "none" else {"baseline": name})
            how = "under its own recipe" if own else "under the matched recipe"
            how = how if len(recipes) > 1 else "under the common recipe"
            claims.append(more("(e)", f"{NAMES[method]} gains from JDA, {how}", f"{name} + JDA", name, **_needs(p)))
    return Experiment(arms, tuple(claims), facts)


def _methods(p):
    """The methods that 05 compares, as parameter `methods` names them; CcdError for one that cannot be or is named twice."""
    for method in p["methods"]:
        if method not in NAMES:
            raise unknown("method to compare in `methods`", method, NAMES)
    if len(set(p["methods"])) < len(p["methods"]) or not p["methods"]:
        raise CcdError(f"methods = {p['methods']}: name each method once, at least one")
    return p["methods"]


CONTROLS = ("constant", "shuffled", "normalised", "probabilities", "centred")


def check_timed(steps):
    """Raise CcdError for a number of training steps that cannot be timed."""
    if not 1 <= steps <= MOST_STEPS:
        raise CcdError(f"timed steps = {steps}: allowed are 1 to {MOST_STEPS}, of which the median is taken")


@EXPERIMENTS.add("06_ccd")
def cosine_confidence(p):
    """CCD against KD + JDA, its own controls, SSKD, HSAKD and HSAKD*."""
    check_timed(p["timed_steps"])
    teachers = _teachers(p)
    recipe = recipe_of(p["recipe"], p["teacher_model"], "hsakd") | _timing(p, p["teacher_epochs"])
    jointly = _teachers(p, method="hsakd_teacher", **recipe)
    arms = {
        "teacher": teachers,
        "teacher, joint": jointly,
        "KD": _students(p, teachers),
        "KD + JDA": _students(p, teachers, views=p["policy"]),
        "CCD": _students(p, teachers, method="ccd", views=p["policy"]),
    }
    for weight in CONTROLS:
        arms[f"CCD, {weight}"] = _students(p, teachers, method="ccd", views=p["policy"], settings={"weight": weight})
    for name, (method, taught) in {
        "SSKD": ("sskd", teachers),
        "HSAKD": ("hsakd", teachers),
        "HSAKD*": ("hsakd", jointly),
    }.items():
        arms[name] = _compared(p, method, taught)
        arms[f"{name}, matched"] = _compared(p, method, taught, own=False)
    return Experiment(arms, tuple(_ccd_claims(p)))


def _ccd_claims(p):
    statements = {
        "KD + JDA": "the weight, size and spread, helps: CCD is more accurate than KD + JDA",
        "CCD, constant": "it is not only the size of the loss: CCD is more accurate than with the batch's mean weight for all",
        "CCD, shuffled": "each image needs its own weight: CCD is more accurate than with the weights shuffled",
        "CCD, normalised": "the size of the loss helps: CCD is more accurate than with weights of mean 1",
        "CCD, probabilities": "logits are the right place: CCD is more accurate than with the cosine of probabilities",
        "CCD, centred": "raw logits are the right ones: CCD is more accurate than with the cosine of centred logits",
    }
    for name in ("SSKD", "HSAKD", "HSAKD*"):
        statements[name] = f"CCD is more accurate than {name}, each under its own recipe"
        statements[f"{name}, matched"] = f"CCD is more accurate than {name}, under one recipe"
    for arm, statement in statements.items():
        yield more("CCD", statement, "CCD", arm, **_needs(p))
    yield more(
        "CCD",
        "the spread of the weights helps at an unchanged size: CCD with weights of mean 1 is more accurate than KD + JDA",
        "CCD, normalised",
        "KD + JDA",
        **_needs(p),
    )


@EXPERIMENTS.add("07_imagenet")
def imagenet(p):
    """KD, KD + JDA and CCD from images in files, JDA on whole images and, once more, after the crop."""
    every = {"side": p["side"], "processes": p["processes"]}
    arms = {}
    if p["teacher"] == "train":
        arms["teacher"] = teachers = _teachers(p, **every)
    else:
        least = p["teacher_accuracy"] or None
        teachers = [Checkpoint(model=p["teacher_model"], file=p["teacher"], accuracy=least)] * p["seeds"]
    arms |= {
        "student alone": _students(p, None, **every),
        "KD": _students(p, teachers, **every),
        "KD + JDA": _students(p, teachers, views=p["policy"], **every),
        "CCD": _students(p, teachers, method="ccd", views=p["policy"], **every),
        "CCD, JDA after the crop": _students(p, teachers, method="ccd", views=p["policy"], jda="after crop", **every),
    }
    same = f"JDA after the crop is as good as on whole images, within {p['margin']:g} points"
    claims = (
        more("KD", "a teacher helps: KD is more accurate than the student alone", "KD", "student alone", **_needs(p)),
        more("(a)", "augmented views help: KD + JDA is more accurate than KD", "KD + JDA", "KD", **_needs(p)),
        more("CCD", "the cosine weight helps: CCD is more accurate than KD + JDA", "CCD", "KD + JDA", **_needs(p)),
        equivalent("kit", same, "CCD, JDA after the crop", "CCD", p["margin"], **_least(p)),
    )
    return Experiment(arms, claims)
