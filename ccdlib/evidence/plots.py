"""A function for each figure, all in one style that can be read in print and by the colour-blind."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure

from ccdlib.evidence.stats import collapsed_seeds, interval, said_of_collapse
from ccdlib.methods.losses import confidence
from ccdlib.training.cohort import Result
from ccdlib.views.ops import OPS, apply_op

STYLE = {
    "figure.dpi": 80,  # in notebooks, which stay below a megabyte
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "svg.hashsalt": "ccdlib",  # the same figure gives the same bytes
    "axes.titlesize": "medium",
    "legend.frameon": False,
}
PALETTE = "colorblind"
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
MIN_SEEDS = 3  # for an interval; the t interval of two seeds is wider than the axis

Results = Mapping[str, Sequence[Result]]  # {arm: its runs, one for each seed}


def style() -> None:
    """Set the style of the kit, as every figure function does."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, rc=STYLE)


def view_pairs(
    pictures: torch.Tensor,
    twins: torch.Tensor,
    fired: Sequence[Sequence[str]],
    z_original: torch.Tensor,
    z_augmented: torch.Tensor,
    labels: torch.Tensor,
    class_names: Sequence[str],
) -> Figure:
    """Draw images above their twins, with the ops of each, the teacher's answers to both, and CCD's weight of the twin.

    pictures, twins: (n, C, H, W) uint8, in the size to show. fired: the ops of each twin, in words (Policy.fired). z_original,
    z_augmented: the teacher's logits (n, classes). labels: (n,). A tick stands before a right answer, a cross before a
    wrong one.
    """
    style()
    n, weights = len(pictures), confidence(torch.cat([z_original, z_augmented]))
    figure, axes = plt.subplots(2, n, figsize=(1.75 * n, 5.4), layout="constrained", squeeze=False)
    for row, (images, logits) in enumerate([(pictures, z_original), (twins, z_augmented)]):
        sure, said = logits.softmax(1).max(1)
        for k, ax in enumerate(axes[row]):
            _picture(ax, images[k])
            ax.set(xticks=[], yticks=[])
            right = said[k] == labels[k]
            answer = f"{'✓' if right else '✗'} {class_names[said[k]]}, {100 * sure[k]:.0f} %"
            answer += f"\nw = {weights[k]:.2f}" * row
            ax.set_xlabel(answer, color=_answer_colour(right), fontsize="small")
    for k in range(n):
        axes[0, k].set_title(class_names[labels[k]])
        axes[1, k].set_title("\n".join(fired[k]) or "nothing", fontsize="small")
    axes[0, 0].set_ylabel("image")
    axes[1, 0].set_ylabel("augmented twin")
    caption(figure, "above a twin: the operations that fired; below: the teacher's most probable class, right (✓) or wrong (✗)")
    return figure


def _answer_colour(right):
    return sns.color_palette(PALETTE)[2 if right else 3]


def softened(
    picture: torch.Tensor,
    twin: torch.Tensor,
    z_original: torch.Tensor,
    z_augmented: torch.Tensor,
    label: int,
    class_names: Sequence[str],
    temperatures: Sequence[float] = (1, 4),
    most: int = 5,
) -> Figure:
    """Draw an image and its twin with the teacher's `most` most probable classes as bars, at several temperatures.

    picture, twin: (C, H, W) uint8. z_original, z_augmented: the teacher's logits (classes,). label: the class of the image,
    whose bar is hatched.
    """
    style()
    columns, most = 1 + len(temperatures), min(most, len(class_names))
    figure, axes = plt.subplots(2, columns, figsize=(3 * columns, 4.6), layout="constrained")
    for row, (image, z, name) in enumerate([(picture, z_original, "image"), (twin, z_augmented, "augmented twin")]):
        _picture(axes[row, 0], image)
        axes[row, 0].set(xticks=[], yticks=[], ylabel=name)
        for ax, temperature in zip(axes[row, 1:], temperatures, strict=True):
            p, classes = (z / temperature).softmax(0).sort(descending=True)
            bars = ax.barh(range(most), 100 * p[:most], color="C0")
            for k, (bar, which) in enumerate(zip(bars, classes.tolist(), strict=False)):
                if which == label:
                    bar.set(hatch="///", edgecolor="white")
                ax.annotate(f" {100 * p[k]:.0f} %", (bar.get_width(), k), va="center", fontsize="small")
            _rows(ax, [class_names[k] for k in classes[:most]])
            ax.grid(visible=False)
            ax.set(xlim=(0, 118), xticks=[0, 50, 100], title=f"T = {temperature:g}")
    caption(figure, f"the teacher's {most} most probable classes, in percent; hatched: the right one, {class_names[label]}")
    return figure


UNITS = {"rotate": "°", "translateX": " px", "translateY": " px", "posterize": " bits"}
BLENDS = ("color", "contrast", "sharpness", "brightness")


def said_of_op(op: str, level: int, shape: tuple[int, int, int]) -> str:
    """An op with its magnitude in its unit, such as "rotate +10°", and whether it leaves images of `shape` as they are."""
    row = OPS[op]
    if row.is_identity(level, shape[0]):
        return f"{op} (identity)"
    size = row.magnitude(level)
    if size is None:
        return op
    if op.startswith("translate"):
        size *= shape[2] if op.endswith("X") else shape[1]
    number = f"{size:.3g}{UNITS.get(op, '')}"
    if op in BLENDS:
        return f"{op} x 1 ± {number}"
    return f"{op} {'± ' if row.signed else 'from ' if op == 'solarize' else '+' if op == 'rotate' else ''}{number}"


def ops_on_one_image(image: torch.Tensor, steps: Iterable[tuple[str, int]]) -> Figure:
    """Draw an image (C, H, W) uint8 as it is and after each step (op, level) alone, signed ops with both signs side by side."""
    style()
    channels, height, width = image.shape
    white = torch.full((channels, height, width // 2 + 1), 255, dtype=torch.uint8)
    shown = {"original": torch.cat([white, image, white], 2)}
    for op, level in steps:
        made = [apply_op(image[None], op, level, sign)[0] for sign in (1, -1)]
        parts = [made[0], white[:, :, :2], made[1]] if OPS[op].signed else [white, made[0], white]
        shown[said_of_op(op, level, (channels, height, width))] = torch.cat(parts, 2)
    columns = 5
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(10, 1.5 * rows), layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, picture) in zip(axes.flat, shown.items(), strict=False):
        _picture(ax, picture)
        ax.set_title(name, fontsize="small", color="0.55" if "identity" in name else "black")
    return figure


def pictures(rows: Mapping[str, torch.Tensor], captions: Iterable[str] | None = None) -> Figure:
    """Draw a grid of images: rows {label: images (n, C, H, W) uint8}, with captions for the n columns below the last row."""
    style()
    n = max(map(len, rows.values()))
    figure, axes = plt.subplots(
        len(rows), n, figsize=(1.2 * n + 0.6, 1.3 * len(rows) + 0.5), layout="constrained", squeeze=False
    )
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=False):
            _picture(ax, image)
        line[0].set_ylabel(label)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, caption in zip(axes[-1], captions or [], strict=False):
        ax.set_xlabel(caption, fontsize="x-small")
    return figure


def crop_boxes(photograph: torch.Tensor, boxes: Mapping[str, tuple[int, int, int, int]]) -> Figure:
    """Draw a photograph (C, H, W) uint8 with boxes {label: (top, left, height, width)} in pixels."""
    style()
    figure, ax = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
    _picture(ax, photograph)
    for k, (label, (top, left, height, width)) in enumerate(boxes.items()):
        corner = (left - 0.5, top - 0.5)
        ax.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor=f"C{k}", linewidth=2.5, label=label))
    ax.set(xticks=[], yticks=[])
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    return figure


def _picture(ax, image):
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.grid(visible=False)


def learning_curves(results: Results, key: str = "test_accuracy") -> Figure:
    """Draw the mean over seeds of `key`, a column of Result.curves, against the epoch, with the range of the seeds.

    Where there are three evaluations or more, an inset shows the last two of all arms but the lowest.
    """
    style()
    figure, ax = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
    drawn = {}  # {arm: (epochs, mean, colour and look)}
    for k, (arm, runs) in enumerate(results.items()):
        epochs = [row["epoch"] for row in runs[0].curves if row[key] is not None]
        values = [[row[key] for row in run.curves if row[key] is not None] for run in runs]
        columns = list(zip(*values, strict=True))
        mean = [sum(column) / len(column) for column in columns]
        shift = (k - (len(results) - 1) / 2) * 0.05 * epochs[-1] / len(epochs)  # so that the ranges of arms do not overlap
        places = [epoch + shift for epoch in epochs]
        look = {"color": f"C{k}", "linestyle": LINES[k % len(LINES)], "marker": MARKERS[k % len(MARKERS)], "markersize": 6}
        ax.vlines(places, [min(c) for c in columns], [max(c) for c in columns], color=f"C{k}", alpha=0.35, linewidth=2)
        ax.plot(places, mean, **look)
        drawn[_named(arm, runs)] = places, mean, look
    heights = _apart([mean[-1] for _, mean, _ in drawn.values()], ax)
    for (arm, (_, _, look)), height in zip(drawn.items(), heights, strict=True):
        where = {"va": "center", "transform": ax.get_yaxis_transform()}
        ax.text(1.02, height, arm, color=look["color"], fontweight="bold", **where)
    if len(drawn) > 2 and min(len(places) for places, *_ in drawn.values()) > 2:
        _inset(ax, sorted(drawn.values(), key=lambda one: one[1][-1])[1:])
    seeds = max(map(len, results.values()))
    ax.set(xlabel=f"epoch\nmean and range of {seeds} seeds", ylabel="test accuracy (%)")
    return figure


def _inset(ax, drawn):
    """The last two evaluations, enlarged, in the upper left corner, above the beginnings of the curves."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.45 * (high - low))
    inset = ax.inset_axes((0.07, 0.63, 0.34, 0.28))
    for places, mean, look in drawn:
        inset.plot(places[-2:], mean[-2:], **look)
    inset.set_title("the last two evaluations", fontsize="x-small")
    inset.tick_params(labelsize="x-small")
    inset.set_xticks([])


def _apart(values, ax, part=0.065):
    """Heights for labels at these values, with at least `part` of the height of the axes between any two."""
    low, high = ax.get_ylim()
    least, placed = part * (high - low), {}
    for k in sorted(range(len(values)), key=values.__getitem__):
        placed[k] = max([values[k], *(place + least for place in placed.values())])
    return [placed[k] for k in range(len(values))]


def accuracies(results: Results) -> Figure:
    """Draw last-epoch accuracies with a row for each arm: a thin line for each seed, and means with 95 % t intervals.

    There are intervals from three seeds on.
    """
    style()
    figure, ax = plt.subplots(figsize=(8.4, 0.75 * len(results) + 1.4), layout="constrained")
    seeds = max(map(len, results.values()))
    for k in range(seeds):  # of which an arm may have only the first
        values = [runs[k].accuracy if k < len(runs) else float("nan") for runs in results.values()]
        ax.plot(values, range(len(results)), "o-", color="0.55", linewidth=1, markersize=4, alpha=0.8)
    for k, runs in enumerate(results.values()):
        mean, low, high = ends([run.accuracy for run in runs])
        colour, marker = sns.color_palette(PALETTE, len(results))[k], MARKERS[k % len(MARKERS)]
        ax.plot([low, high], [k] * 2, color=colour, linewidth=4, alpha=0.6, solid_capstyle="butt")
        ax.plot(mean, k, marker, color=colour, markersize=10, markeredgecolor="white")
        above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontweight": "bold"}
        ax.annotate(f"{mean:.1f}", (mean, k), **above)
    _rows(ax, [_named(arm, runs) for arm, runs in results.items()])
    ax.set_xlabel(f"test accuracy after the last epoch (%)\n{what(seeds)}; a thin line: one of {seeds} seeds")
    return figure


def gains(
    results: Results,
    panels: Mapping[str, Mapping[str, tuple[str, str]]],
    margin: float | None = None,
    limit: float | None = None,
) -> Figure:
    """Draw paired gains with intervals in panels {title: {label: (arm, its baseline)}}, and a dot for the gain of each seed.

    The thick line is the 95 % t interval of one gain. The thin one is wider, so that in 95 % of experiments all intervals of a
    panel cover (Bonferroni), because of many comparisons some look clear by chance. margin: the gains within it, which count as
    practically zero, are shaded. limit: axes end there, and a mean beyond is written at the edge.
    """
    style()
    rows, columns = max(map(len, panels.values())), min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (4.6 * columns + 1, (0.36 * rows + 1.1) * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax, (title, compared) in zip(axes.flat, panels.items(), strict=False):
        for k, (arm, baseline) in enumerate(compared.values()):
            values = [a.accuracy - b.accuracy for a, b in zip(results[arm], results[baseline], strict=False)]
            _gain(ax, k, values, 1 - 0.05 / len(compared), limit)
        if margin:
            ax.axvspan(-margin, margin, color="0.88", zorder=0)
        ax.axvline(0, color="0.3", linewidth=1)
        if limit:
            ax.set_xlim(-limit, limit)
        _rows(ax, [_named(label, *(results[arm] for arm in pair)) for label, pair in compared.items()])
        ax.set_title(title)
    seeds = sorted({min(len(results[arm]) for arm in pair) for compared in panels.values() for pair in compared.values()})
    n = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    text = f"gain in test accuracy (points); {n}, a dot each; {what(seeds[0])}, thin: all of a panel together"
    caption(figure, text + (f"; grey: practically zero, within ± {margin:g}" if margin else ""))
    return figure


def _gain(ax, row, values, wider, limit):
    """A row of gains(): dots, mean and intervals, or a note at the edge for a mean beyond the limit."""
    mean = sum(values) / len(values)
    ax.plot(values, [row + 0.22] * len(values), ".", color="0.55", markersize=4)
    if len(values) >= MIN_SEEDS:
        for level, width in ((0.95, 3), (wider, 1)):
            found = interval(values, level)
            ax.plot([found.low, found.high], [row] * 2, color="C0", linewidth=width)
    if limit and abs(mean) > limit:
        side = 1 if mean > 0 else -1
        where = {"ha": "right" if mean > 0 else "left", "va": "bottom", "fontsize": "small", "color": "C0"}
        ax.text(side * limit, row, f" {'▶' if mean > 0 else '◀'} {mean:+.1f} ", **where)
    else:
        ax.plot(mean, row, "o", color="C0", markersize=6)


def measured(rows: Sequence[Mapping[str, Any]], by: str, columns: Mapping[str, str]) -> Figure:
    """Draw a panel for each of `columns` {key: label}: for each value of row[by], mean and 95 % interval of row[key].

    rows: such as those of teacher_views(), one teacher for each seed.
    """
    style()
    names = list(dict.fromkeys(row[by] for row in rows))
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(2.6 * len(columns) + 1, 0.3 * len(names) + 1.5),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for ax, (key, label) in zip(axes[0], columns.items(), strict=True):
        for k, name in enumerate(names):
            values = [row[key] for row in rows if row[by] == name]
            mean, low, high = ends(values)
            ax.plot([low, high], [k, k], color="C0", linewidth=2.5)
            ax.plot(mean, k, "o", color="C0", markersize=6)
        ax.set_xlabel(label)
        _rows(ax, names)
    caption(figure, f"{what(len(values))}; one teacher a seed")
    return figure


def distributions(groups: Mapping[str, torch.Tensor], label: str) -> Figure:
    """Draw a box for each of groups {name: values (n,)}: median, middle half, 5 to 95 % as whiskers, a diamond at the mean."""
    style()
    figure, ax = plt.subplots(figsize=(7, 0.32 * len(groups) + 1.3), layout="constrained")
    how = {"orient": "h", "whis": (5, 95), "showfliers": False, "color": "C0", "width": 0.6, "linewidth": 1}
    mean = {"marker": "D", "markerfacecolor": "white", "markeredgecolor": "0.2", "markersize": 5}
    sns.boxplot({name: values.numpy() for name, values in groups.items()}, ax=ax, showmeans=True, meanprops=mean, **how)
    sizes = sorted({len(values) for values in groups.values()})
    counts = f"{sizes[0]} images" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} images"
    ax.set_xlabel(f"{label}\nbox: middle half; whiskers: 5 to 95 %; diamond: mean; {counts} each")
    return figure


def lines(
    rows: Sequence[Mapping[str, Any]], x: str, y: str, hue: str, col: str | None = None, log2: bool = False, **labels: str
) -> Figure:
    """Draw the mean over seeds of row[y] against row[x] with 95 % intervals; rows: a dict for each arm and seed.

    hue, col: keys that tell lines and panels apart. log2: x doubles from tick to tick. labels: {key: text}.
    """
    import pandas as pd

    style()
    frame = pd.DataFrame(rows)
    how = {"kind": "line", "markers": True, "dashes": False, "markersize": 8, "err_style": "bars", "err_kws": {"capsize": 3}}
    grid = sns.relplot(
        frame, x=x, y=y, hue=hue, style=hue, col=col, height=3.9, errorbar=lambda values: ends(list(values))[1:], **how
    )
    grid.set_titles("{col_name}").set_axis_labels(labels.get(x, x), labels.get(y, y))
    for ax in grid.axes.flat:
        if log2:
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(frame[x].unique()), [f"{n:g}" for n in sorted(frame[x].unique())])
        if frame[y].min() < 0 < frame[y].max():
            ax.axhline(0, color="0.3", linewidth=1)
    if grid.legend is not None:
        grid.legend.set_title(labels.get(hue, hue))
    seeds = frame["seed"].nunique()
    fallen = dict.fromkeys(f"{row['arm']}, seed {row['seed']}" for row in rows if row.get("collapsed"))
    said = f"{what(seeds)}; {seeds} seeds" + f"\ncollapsed: {'; '.join(fallen)}" * bool(fallen)
    grid.figure.text(0.5, -0.03, said, ha="center", va="top", fontsize="small")
    return grid.figure


def ends(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of the 95 % interval; (mean, mean, mean) for fewer than MIN_SEEDS values."""
    found = interval(values)
    return found[:3] if found.n >= MIN_SEEDS else (found.estimate,) * 3


def _named(label, *arms):
    """The label with a note of the seeds that collapsed in any of `arms`, which are lists of Results."""
    said = said_of_collapse(sorted({seed for runs in arms for seed in collapsed_seeds(runs)}))
    return f"{label}\n({said})" if said else label


def _rows(ax, names):
    """A row of the axes for each name, the first on top."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.5, -0.5)


def what(seeds: int) -> str:
    """What is drawn of so many seeds, in words."""
    return "mean and 95 % interval" if seeds >= MIN_SEEDS else f"mean (an interval needs {MIN_SEEDS} seeds)"


def caption(figure: Figure, text: str) -> None:
    """Write what there is to know about a figure below it."""
    figure.supxlabel(text, fontsize="small")
