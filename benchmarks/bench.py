"""`make bench`: this kit against the usual way (usual.py), side by side in one run; prints the table and keeps it.

    python benchmarks/bench.py [--only views,step,...] [--repeats 5] [--threads N] [--rgb npz:PATH] [--dry]

Run nothing else meanwhile. Every comparison takes turns, so that a machine whose speed drifts slows both sides; a ratio is the
median over repeats, with the smallest and the largest. Images are the bundled digits (16 x 16, grey) and, in CIFAR's place, the
same digits as 32 x 32 RGB or the data set of --rgb. Networks are untrained where only time counts. results.json keeps the rows
of each processor or GPU under its name. --dry: every line once, on few images, and nothing is kept.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import usual

from ccdlib.base.arithmetic import SWITCHES, processor
from ccdlib.base.devices import best_device, cores
from ccdlib.data import Sizes, load_data
from ccdlib.evidence.cost import step_cost
from ccdlib.models import build, folded, in_bfloat16
from ccdlib.training import Checkpoint, RunConfig, fit_cohort, prepare, train_epoch, untrained
from ccdlib.training.identity import provenance
from ccdlib.training.schedule import Schedule, Trainings, cohorts_of, folders_of
from ccdlib.training.store import save_weights
from ccdlib.training.work import cost
from ccdlib.views import EpochViews, steps_an_epoch

HERE = Path(__file__).parent
POLICY = "cifar100"
DEVICE = best_device()
PAIRS = {  # name: (data, teacher, student, images a step)
    "digits: resnet20 -> resnet8": ("digits", "resnet20", "resnet8", 25),
    "ResNet56 -> ResNet20": ("rgb", "resnet56", "resnet20", 32),
    "WRN-40-2 -> WRN-16-2": ("rgb", "wrn_40_2", "wrn_16_2", 32),
    "ResNet32x4 -> ResNet8x4": ("rgb", "resnet32x4", "resnet8x4", 32),
}
SECTIONS = {}
DRY = "--dry" in sys.argv
if DRY:  # the same lines with small networks
    PAIRS = {name: (kind, "resnet8", "resnet8", 8) for name, (kind, *_) in PAIRS.items()}
# Of whole CIFAR-sized runs: (training images, images a step). A GPU is filled by a step as large as the papers'.
WHOLE = (32, 16) if DRY else (25_600, 128) if DEVICE.type == "cuda" else (256, 32)


def section(function):
    """Register a section: a generator of rows (dicts)."""
    SECTIONS[function.__name__] = function
    return function


# ---------------------------------------------------------------- data, configurations, clocks


def rgb_digits(folder, side=32):
    """The digits in RGB with a side of 16 times a whole number, as an npz data set.

    On a CPU 1,000 training and 50 test images; on a GPU as many as CIFAR-100 has, each many times.
    """
    data = load_data("digits")
    arrays, sizes = {}, (128, 50) if DRY else (50_000, 10_000) if DEVICE.type == "cuda" else (1000, 50)
    for split, n in zip(("train", "test"), sizes, strict=True):
        images, labels = (getattr(data, f"{split}_{what}") for what in ("images", "labels"))
        rows = torch.arange(n) % len(labels)
        images = images[rows].expand(-1, 3, -1, -1)
        images = images.repeat_interleave(side // 16, 2).repeat_interleave(side // 16, 3)
        arrays[f"{split}_images"] = images.permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = labels[rows].numpy()
    np.savez(Path(folder) / f"rgb{side}.npz", **arrays)
    return f"npz:{folder}/rgb{side}.npz"


def configuration(pair, n_train=None, epochs=1, method="ccd", teacher=None, **changes):
    """The RunConfig of a pair with an untrained teacher."""
    kind, taught, student, batch = PAIRS[pair]
    data = {"data": DATA[kind], "n_train": n_train, "epochs": epochs, "batch": batch}
    teacher = teacher or RunConfig(model=taught, **data)
    return RunConfig(**data | {"model": student, "method": method, "views": POLICY, "teacher": teacher} | changes)


def data_of(config):
    """Its Data."""
    return load_data(config.data, side=config.side, n_train=config.n_train)


def seconds(work):
    """How long a call takes, the device's work included."""
    began = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turns(repeats, warm=True, **sides):
    """{name: [seconds, one a repeat]} of calls that take turns; warm: after one of each that does not count."""
    for work in sides.values() if warm else ():
        work()
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            times[name].append(seconds(work))
    return times


def ratios(slow, fast):
    """{"ratio", "least", "most"} of seconds that were taken in turns."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"ratio": median(each), "least": min(each), "most": max(each)}


# ---------------------------------------------------------------- sections


@section
def rate(repeats):
    """What the machine gives at best: a float32 matrix product."""
    a = torch.randn(2048, 2048, device=DEVICE)
    times = in_turns(10 * repeats, product=lambda: a @ a)["product"]
    yield {"what": "matrix product", "GFLOP/s": 2 * 2048**3 / min(times) / 1e9}


@section
def views(repeats):
    """Pairs of original and JDA twin, drawn, cropped, normalised, ready for the network; one thread, workers apart."""
    for kind in ("rgb", "digits"):
        config = configuration("WRN-40-2 -> WRN-16-2", data=DATA[kind], batch=64, teacher=RunConfig(data=DATA[kind]))
        data = data_of(config)
        ready, n = data.to(DEVICE), len(data.train_labels)
        sides = {"ours": lambda c=config, d=ready: _one_thread(lambda: _exhaust(EpochViews(c, d, 1).batches()))}
        loaders = {w: usual.loader(data, POLICY, 64, w) for w in (0, 2, 4)}
        for w, loader in loaders.items():
            sides[f"usual, {w} workers"] = lambda loader=loader: _one_thread(lambda: _exhaust(loader))
        times = in_turns(repeats, **sides)
        for side, taken in times.items():
            yield {
                "what": f"{kind}: {side}",
                "pairs/s": n / median(taken),
                "us a pair": 1e6 * median(taken) / n,
                **({} if side.startswith("ours") else ratios(taken, times["ours"])),
            }


def _exhaust(batches):
    for _ in batches:
        pass


def _one_thread(work):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work()
    torch.set_num_threads(threads)


@section
def step(repeats):
    """A CCD step: the whole loop, the plain step on ready tensors, and the floor: both networks alone on ready tensors."""
    peak = next(rate(repeats))["GFLOP/s"]
    for pair, (_, teacher, student, batch) in PAIRS.items():
        count = 8 if pair.startswith("digits") else 2
        config = configuration(pair, n_train=count * batch)
        data = data_of(config)
        ready = data.to(DEVICE)
        trainees = prepare([config], ready, DEVICE, untrained(config, data))
        batches = list(EpochViews(config, ready, 0).batches())
        plain = usual.networks((teacher, student), data, device=DEVICE)
        floor = _floor(data, teacher, student, trainees[0].half)
        times = in_turns(
            5 * repeats,  # a few hundredths are looked for, on machines that waver by tenths
            ours=lambda t=trainees: train_epoch(t, 0),
            usual=lambda b=batches, p=plain: [usual.distil(*p, x.inputs.contiguous(), x.labels[: x.sizes[0]], True) for x in b],
            floor=lambda b=batches, f=floor: [f(x) for x in b],
        )
        sizes = Sizes(data.classes, data.channels, len(data.train_labels))
        macs = cost(config, sizes, ready.train_images.shape[-1])["training_macs"]
        at_rate = 2 * macs / peak / 1e9
        over = [a / b - 1 for a, b in zip(times["ours"], times["floor"], strict=True)]
        yield {
            "what": pair,
            "inputs": 2 * batch,
            **{f"{side} ms": 1e3 * median(taken) / count for side, taken in times.items()},
            "at the matrix rate ms": 1e3 * at_rate,
            "overhead %": 100 * median(over),
            "overhead least": 100 * min(over),
            "overhead most": 100 * max(over),
            **ratios(times["usual"], times["ours"]),
        }


def _floor(data, teacher, student, half):
    """Forward and backward of the two networks in the form in which they are used here, and nothing else."""
    both = [build(name, data.classes, data.channels) for name in (teacher, student)]
    teacher, student = (
        part.to(DEVICE, memory_format=torch.channels_last) for part in (folded(both[0].eval()), both[1].train())
    )
    if half:
        in_bfloat16(teacher)

    def run(batch):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            with torch.no_grad():
                teacher(batch.inputs)
            student(batch.inputs).logits.sum().backward()

    return run


@section
def fit(repeats):
    """Whole runs end to end: views, training, as many tests, files, workers and their start.

    The usual way computes in float32, ours of CIFAR-sized networks in precision "fast".
    """
    repeats, (images, batch) = min(repeats, 2), WHOLE
    for pair in ("ResNet56 -> ResNet20", "WRN-40-2 -> WRN-16-2", "ResNet32x4 -> ResNet8x4"):
        config = _taught(configuration(pair, n_train=images, batch=batch, precision="fast"))
        ours_in = ", ours in bfloat16" * config.arithmetic().half
        if pair.startswith("ResNet32x4"):
            times = in_turns(repeats, warm=False, ours=lambda c=config: _fresh([c]), usual=lambda c=config: _usually([c]))
            yield _compared(f"{pair}, one run{ours_in}", times, "usual", "ours")
            continue
        seeds = [config.but(seed=s, draws=0) for s in range(2 if DRY else 5)]
        times = in_turns(
            repeats,
            warm=False,
            ours=lambda c=config: _fresh([c]),
            usual=lambda c=config: _usually([c]),
            together=lambda s=seeds: _fresh(s),
            five=lambda s=seeds: _usually(s),
        )
        yield _compared(f"{pair}, one run{ours_in}", times, "usual", "ours")
        yield _compared(f"{pair}, five seeds that share their draws{ours_in}", times, "five", "together")
    digits = _taught(configuration("digits: resnet20 -> resnet8", n_train=50, epochs=2 if DRY else 80, eval_every=40))
    ten = [digits.but(seed=s) for s in range(2 if DRY else 10)]
    shared = [c.but(draws=0) for c in ten]
    arms = [c.but(method=m, settings=w) for c in ten[:2] for m, w in ARMS]
    times = in_turns(
        repeats,
        warm=False,
        ours=lambda: _fresh(ten),
        usual=lambda: _usually(ten),
        shared=lambda: _fresh(shared),
        arms=lambda: _fresh(arms),
        many=lambda: _usually(arms),
    )
    yield _compared("digits, ten seeds with their own draws", times, "usual", "ours")
    yield _compared("digits, ten seeds that share their draws", times, "usual", "shared")
    yield _compared(f"digits, two paired seeds of {len(ARMS)} arms", times, "many", "arms")


ARMS = [("kd", {}), ("ccd", {}), ("ccd", {"weight": "shuffled"}), ("ccd", {"weight": "centred"})]


def _compared(what, times, slow, fast):
    row = {"what": what, "usual s": median(times[slow]), "ours s": median(times[fast])}
    return row | ratios(times[slow], times[fast])


def _taught(config):
    """The configuration with its untrained teacher in a file, so that no teacher's training is timed."""
    data = data_of(config)
    file = f"{FOLDER}/{config.teacher.model}-{data.channels}.safetensors"
    save_weights(file, build(config.teacher.model, data.classes, data.channels), config.teacher.model)
    return config.but(teacher=Checkpoint(model=config.teacher.model, file=file))


def _fresh(configs):
    """Train them all in an empty run store, as an experiment does: digits side by side, larger networks on all threads."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        before = os.environ.get("CCD_OUTPUTS")
        os.environ["CCD_OUTPUTS"] = folder
        try:
            if configs[0].data == "digits":
                with Trainings(Schedule(folders_of(configs))) as trainings:
                    trainings.wait(configs)
            else:
                for cohort in cohorts_of(configs):
                    fit_cohort(cohort, show="none")
        finally:
            os.environ.pop("CCD_OUTPUTS")
            if before is not None:
                os.environ["CCD_OUTPUTS"] = before


def _usually(configs):
    for c in configs:
        weighted = c.method == "ccd"
        pair = c.teacher.model, c.model
        usual.train(pair, data_of(c), POLICY, c.batch, c.epochs, c.eval_every, weighted, c.seed, device=DEVICE)


@section
def precision(repeats):
    """A CCD step of the whole loop in bfloat16 and in float32."""
    for pair, (*_, batch) in PAIRS.items():
        sides = {}
        for kind in ("float32", "bfloat16"):
            config = configuration(pair, n_train=2 * batch, precision=kind)
            data = data_of(config)
            trainees = prepare([config], data.to(DEVICE), DEVICE, untrained(config, data))
            sides[kind] = lambda t=trainees: train_epoch(t, 0)
        times = in_turns(3 * repeats, **sides)
        row = {f"{kind} ms": 1e3 * median(taken) / 2 for kind, taken in times.items()}
        yield {"what": pair, **row, **ratios(times["float32"], times["bfloat16"])}


@section
def portable(repeats):
    """Whole runs with portable bits and without, each in a process of its own that times the training alone."""
    for pair, images, epochs in (("digits: resnet20 -> resnet8", 50, 20), ("ResNet56 -> ResNet20", 64, 2)):
        config = configuration(pair, n_train=images, epochs=1 if DRY else epochs, eval_every=epochs)
        times = {False: [], True: []}
        for _ in range(repeats):
            for side, taken in times.items():
                taken.append(_trained_alone(config, side))
        row = {"what": pair, "plain s": median(times[False]), "portable s": median(times[True])}
        yield row | ratios(times[True], times[False])


def _trained_alone(config, portable):
    """The seconds of a run on one thread, with an untrained teacher, in a new process."""
    config = _taught(config).but(portable=portable).model_dump_json()
    code = f"import ccdlib; c = ccdlib.RunConfig.model_validate_json({config!r})\n"
    code += "ccdlib.fit(c.but(epochs=1, seed=1), show='none'); print(ccdlib.fit(c, show='none').seconds)"
    plain = dict.fromkeys(SWITCHES, "") if not portable else {}
    return float(_process([sys.executable, "-c", code], **plain | {"OMP_NUM_THREADS": "1"})[1].split()[-1])


@section
def paper(repeats):
    """The papers' protocol: 240 epochs of CCD on 50,000 images, 128 a step, from the time of one epoch and one evaluation."""
    pair = "WRN-40-2 -> WRN-16-2"
    images = 128 if DRY else 50_000 if DEVICE.type == "cuda" else 512
    config = _taught(configuration(pair, n_train=images, batch=128, precision="fast"))
    data = data_of(config)
    ready = data.to(DEVICE)
    trainees = prepare([config], ready, DEVICE, untrained(config, data))
    times = in_turns(
        1 if DRY else 2,
        warm=DEVICE.type == "cuda",
        epoch=lambda: train_epoch(trainees, 0),
        test=lambda: trainees[0].tested(),
    )
    images_a_second = len(ready.train_labels) / median(times["epoch"])
    minutes = 240 * (50_000 / images_a_second + median(times["test"]) * 10_000 / len(ready.test_labels)) / 60
    yield {"what": f"CCD, {pair}", "images/s": images_a_second, "minutes of 240 epochs": minutes}


@section
def reproduce(repeats):
    """`make reproduce` without the set-up: new, again, and in the fastest precision; and from the records of lite."""
    ccd, notebook = str(Path(sys.executable).with_name("ccd")), ["run", "00_quickstart"]
    quick = [ccd, *notebook, "--profile", "smoke" if DRY else "class", "--from", "scratch"]
    for more in ([], ["-p", "precision", "fast"]):
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            first = _process([*quick, *more], CCD_OUTPUTS=folder)[0]
            trained = sum(json.loads(file.read_text())["seconds"] for file in Path(folder).glob("runs/*/metrics.json"))
            again = _process([*quick, *more], CCD_OUTPUTS=folder)[0]
            shared = trained / (1 if DEVICE.type == "cuda" else cores())
        row = {"seconds": first, "of training": shared, "over it": first - shared, "again": again}
        yield {"what": f"make reproduce{' in ' + more[-1] if more else ''}"} | row
    if not DRY:
        records = [ccd, *notebook, "--profile", "class", "--from", "records"]
        yield {"what": "00_quickstart in class, from records", "seconds": _process(records)[0]}


@section
def starting(repeats):
    """A new process, from its start to the end of the first training step; and of a whole notebook in smoke."""
    first = "import ccdlib; ccdlib.fit(ccdlib.RunConfig(n_train=10, epochs=1, batch=10, side=16), show='none')"
    imports = "import ccdlib"
    for what, code in (
        ("python -c 'import torch'", "import torch"),
        ("import ccdlib", imports),
        ("to the first step and its test", first),
    ):
        taken = [_process([sys.executable, "-c", code])[0] for _ in range(repeats)]
        yield {"what": what, "seconds": median(taken), "least": min(taken), "most": max(taken)}
    ccd = str(Path(sys.executable).with_name("ccd"))
    taken = [_process([ccd, "run", "00_quickstart", "--profile", "smoke"])[0] for _ in range(min(repeats, 2))]
    yield {"what": "00_quickstart in smoke", "seconds": median(taken), "least": min(taken), "most": max(taken)}


@section
def notebooks(repeats):
    """All notebooks with nbval, from their records, as `make test` and `make drills` check them."""
    command = "-m pytest -q -n 2 --dist loadfile --nbval-lax --nbval-current-env notebooks"
    taken, _ = _process([sys.executable, *command.split()], OMP_NUM_THREADS="1", CCD_JOBS="1")
    yield {"what": "all notebooks from records, nbval", "seconds": taken}


def _process(command, **environment):
    """(seconds, what it printed) of a command with a run store of its own."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        began = time.perf_counter()
        # An empty text is not a value that torch takes for a switch.
        environment = {k: v for k, v in (os.environ | {"CCD_OUTPUTS": folder} | environment).items() if v}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
        if done.returncode:
            sys.exit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
        return time.perf_counter() - began, done.stdout


@section
def memory(repeats):
    """Peak resident memory of a process that trains 96 images for an epoch; on a GPU, what was allocated there."""
    for side in ("ours",) if DRY else ("the import alone", "ours", "ours, five seeds", "usual"):
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import bench; bench.one_process({side!r}, {DATA['rgb']!r})"
        said = _process([sys.executable, "-W", "ignore", "-c", code])[1]
        yield {"what": f"WRN-40-2 -> WRN-16-2: {side}", "peak MB": float(said.split()[-1])}


def one_process(side, data):
    """What a process does whose memory is measured; prints its peak in MB."""
    DATA.update(rgb=data)
    config = configuration("WRN-40-2 -> WRN-16-2", n_train=96)
    if side == "usual":
        usual.train(("wrn_40_2", "wrn_16_2"), data_of(config), POLICY, config.batch, 1, device=DEVICE)
    elif side.startswith("ours"):
        ready, seeds = data_of(config).to(DEVICE), 5 if "five" in side else 1
        configs = [config.but(seed=s, draws=0) for s in range(seeds)]
        train_epoch(prepare(configs, ready, DEVICE, untrained(config, ready)), 0)
    if DEVICE.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
        return
    status = Path("/proc/self/status")  # getrusage() would count what the parent process had before this one began
    if status.exists():
        print(int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1000)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


@section
def growth(repeats):
    """How a step's time and memory grow with images a step, the side of an image, and the runs of a cohort."""
    pair = "ResNet56 -> ResNet20"
    for batch in (16, 32, 64):
        yield _grown(f"{batch} images a step", configuration(pair, n_train=2 * batch, batch=batch), 1, repeats)
    digits = "digits: resnet20 -> resnet8"
    for side in (16, 32, 64):
        data = rgb_digits(FOLDER, side)
        config = configuration(pair, n_train=64, data=data, teacher=RunConfig(model="resnet56", data=data))
        yield _grown(f"{side} x {side} pixels", config, 1, repeats)
    for runs in (1, 2, 4, 8):
        yield _grown(f"digits, {runs} runs in a cohort", configuration(digits, n_train=100), runs, repeats)


def _grown(what, config, runs, repeats):
    data = data_of(config)
    ready = data.to(DEVICE)
    configs = [config.but(seed=s, draws=0) for s in range(runs)]
    trainees = prepare(configs, ready, DEVICE, untrained(config, data))
    count = steps_an_epoch(len(data.train_labels), config.batch)
    taken = median(in_turns(repeats, epoch=lambda: train_epoch(trainees, 0))["epoch"])
    used = step_cost(config, steps=1)["peak_bytes"] if runs == 1 else None
    row = {"what": what, "ms a step and run": 1e3 * taken / count / runs}
    return row | ({} if used is None else {"peak MB of a step": used / 1e6})


# ---------------------------------------------------------------- the door


DATA, FOLDER = {}, None


def prepare_data(folder, rgb=None):
    """Make the data sets of this process."""
    global FOLDER
    FOLDER = folder
    DATA.update(digits="digits", rgb=rgb or rgb_digits(folder))


def shown(row):
    """A row as one line."""
    numbers = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, int | float))
    return f"  {row['what']:52} {numbers}"


def main():
    """Run the sections, print and keep what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rgb", help="a data set of 32 x 32 RGB images, such as npz:PATH or cifar100")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--dry", action="store_true", help="every line once, and nothing is kept")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    every = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else processor()
    kept = every.setdefault(machine, {})
    print(machine)
    with tempfile.TemporaryDirectory(prefix="ccdlib-bench-") as folder:
        prepare_data(folder, asked.rgb)
        for name in asked.only.split(","):
            print(f"{name}: {SECTIONS[name].__doc__.splitlines()[0]}", flush=True)
            rows = []
            for row in SECTIONS[name](1 if DRY else asked.repeats):
                rows.append({key: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for key, v in row.items()})
                print(shown(rows[-1]), flush=True)
            kept[name] = {
                "rows": rows,
                "repeats": asked.repeats,
                "rgb": asked.rgb or "digits",
                "provenance": provenance(DEVICE),
            }
            if not DRY:
                asked.out.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
