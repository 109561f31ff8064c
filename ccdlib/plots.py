"""One function a figure: (data) -> Figure. One style for the whole kit, readable in print and for colour-blind eyes."""

import matplotlib.pyplot as plt
import seaborn as sns
import torch

from ccdlib.augment import OPS, apply_op
from ccdlib.losses import confidence
from ccdlib.stats import collapsed_seeds, interval, said_of_collapse

STYLE = {
    "figure.dpi": 90,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "svg.hashsalt": "ccdlib",  # the same figure gives the same bytes
    "axes.titlesize": "medium",
    "legend.frameon": False,
}
PALETTE = "colorblind"
MARKERS = "osD^vPX*"
MIN_SEEDS = 3  # of two, a t interval is wider than the axis


def style():
    """Set the kit's look; called by every figure function."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, rc=STYLE)


def view_pairs(originals, augmented, z_original, z_augmented, labels, class_names):
    """Pairs of views above each other, with the teacher's most probable class for each view and CCD's weight for the pair.

    originals, augmented: uint8 (n, C, H, W). z_original, z_augmented: the teacher's logits (n, classes). labels: (n,).
    """
    style()
    n = len(originals)
    weights = confidence(torch.cat([z_original, z_augmented]))
    figure, axes = plt.subplots(2, n, figsize=(1.55 * n, 4.1), layout="constrained", squeeze=False)
    for row, (images, logits) in enumerate([(originals, z_original), (augmented, z_augmented)]):
        sure, said = logits.softmax(1).max(1)
        for ax, image, certainty, name in zip(axes[row], images, sure.tolist(), said.tolist(), strict=True):
            _picture(ax, image)
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(f"teacher: {class_names[name]}\n{100 * certainty:.0f} % sure", fontsize="small")
    for ax, label, weight in zip(axes[0], labels.tolist(), weights.tolist(), strict=True):
        ax.set_title(f"label {class_names[label]}\nw = {weight:.2f}")
    axes[0, 0].set_ylabel("original")
    axes[1, 0].set_ylabel("augmented")
    return figure


def ops_on_one_image(image, steps):
    """An image (C, H, W) uint8 as it is, and after each step (op, level) alone; signed ops with both signs side by side."""
    style()
    channels, height, width = image.shape
    white = torch.full((channels, height, width // 2 + 1), 255, dtype=torch.uint8)
    shown = {"original": torch.cat([white, image, white], 2)}
    for op, level in steps:
        made = [apply_op(image[None], op, level, sign)[0] for sign in (1, -1)]
        signed = OPS[op].signed
        parts = [made[0], white[:, :, :2], made[1]] if signed else [white, made[0], white]
        shown[f"{op} {level}" + " (+, -)" * signed] = torch.cat(parts, 2)
    columns = 5
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 1.35 * rows), layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, picture) in zip(axes.flat, shown.items(), strict=False):
        _picture(ax, picture)
        ax.set_title(name)
    return figure


def pictures(rows, captions=None):
    """A grid of images: rows {label: images (n, C, H, W) uint8}, captions for the n columns below the last row."""
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


def _picture(ax, image):
    ax.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.grid(visible=False)


def learning_curves(results, key="test_accuracy"):
    """Mean over seeds of `key` against the epoch, a band from the lowest to the highest seed; results {arm: [Result]}."""
    style()
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for k, (arm, runs) in enumerate(results.items()):
        epochs = [row["epoch"] for row in runs[0].curves if row[key] is not None]
        values = [[row[key] for row in run.curves if row[key] is not None] for run in runs]
        columns = list(zip(*values, strict=True))
        mean = [sum(column) / len(column) for column in columns]
        ax.plot(epochs, mean, label=_named(arm, runs), marker=MARKERS[k], markevery=max(1, len(epochs) // 8), markersize=5)
        ax.fill_between(epochs, [min(c) for c in columns], [max(c) for c in columns], alpha=0.15)
    ax.set(xlabel="epoch", ylabel="test accuracy (%)")
    ax.legend(title=f"mean and range of {len(runs)} seeds", loc="lower right")
    return figure


def accuracies(results):
    """Every seed's last-epoch accuracy as a dot; above the dots the mean and, from three seeds on, its 95 % t interval."""
    style()
    figure, ax = plt.subplots(figsize=(7, 0.75 * len(results) + 1.2), layout="constrained")
    for k, runs in enumerate(results.values()):
        values = [run.accuracy for run in runs]
        colour = sns.color_palette(PALETTE)[k]
        ax.plot(values, [k + 0.18] * len(values), "o", color=colour, alpha=0.45, markersize=5)
        mean, low, high = _ends(values)
        ax.plot([low, high], [k] * 2, color=colour, linewidth=2.5)
        ax.plot(mean, k, MARKERS[k], color=colour, markersize=8)
        above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": "small"}
        ax.annotate(f"{mean:.1f}", (mean, k), **above)
    _rows(ax, [_named(arm, runs) for arm, runs in results.items()])
    ax.set_xlabel(f"test accuracy after the last epoch (%)\n{_what(len(runs))}; dots: {len(runs)} seeds")
    return figure


def gains(results, panels):
    """Paired gains with intervals, one panel beside the other; panels {title: {label: (arm, its baseline)}} of results.

    The thick line is the 95 % t interval of one gain. The thin one is wider, so that all of its panel cover together in 95 % of
    experiments (Bonferroni): of many comparisons, some look clear by chance alone.
    """
    style()
    rows = max(map(len, panels.values()))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels) + 1, 0.34 * rows + 1.6), layout="constrained", squeeze=False
    )
    for ax, (title, compared) in zip(axes[0], panels.items(), strict=True):
        for k, (arm, baseline) in enumerate(compared.values()):
            values = [a.accuracy - b.accuracy for a, b in zip(results[arm], results[baseline], strict=True)]
            ax.plot(sum(values) / len(values), k, "o", color="C0", markersize=6)
            if len(values) >= MIN_SEEDS:
                for level, width in ((0.95, 3), (1 - 0.05 / len(compared), 1)):
                    found = interval(values, level)
                    ax.plot([found.low, found.high], [k] * 2, color="C0", linewidth=width)
        ax.axvline(0, color="0.3", linewidth=1)
        _rows(ax, [_named(label, *(results[arm] for arm in pair)) for label, pair in compared.items()])
        ax.set_title(title)
    _caption(
        figure, f"gain in test accuracy (points); {len(values)} seeds: {_what(len(values))}, thin: all of a panel together"
    )
    return figure


def measured(rows, by, columns):
    """A panel for each of `columns` {key: label}: mean over teachers and 95 % interval of rows[key] for each rows[by]."""
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
            mean, low, high = _ends(values)
            ax.plot([low, high], [k, k], color="C0", linewidth=2.5)
            ax.plot(mean, k, "o", color="C0", markersize=6)
        ax.set_xlabel(label)
        _rows(ax, names)
    _caption(figure, f"{_what(len(values))}; one teacher a seed")
    return figure


def distributions(groups, label):
    """A box for each of groups {name: values (n,)}: middle half, median, and whiskers from 5 to 95 %; a diamond at the mean."""
    style()
    figure, ax = plt.subplots(figsize=(7, 0.32 * len(groups) + 1.3), layout="constrained")
    how = {"orient": "h", "whis": (5, 95), "showfliers": False, "color": "C0", "width": 0.6, "linewidth": 1}
    mean = {"marker": "D", "markerfacecolor": "white", "markeredgecolor": "0.2", "markersize": 5}
    sns.boxplot({name: values.numpy() for name, values in groups.items()}, ax=ax, showmeans=True, meanprops=mean, **how)
    sizes = sorted({len(values) for values in groups.values()})
    counts = f"{sizes[0]} images" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} images"
    ax.set_xlabel(f"{label}\nbox: middle half; whiskers: 5 to 95 %; diamond: mean; {counts} each")
    return figure


def lines(rows, x, y, hue, col=None, log2=False, **labels):
    """Mean over seeds of rows[y] against rows[x] with 95 % intervals; rows: a dict for each arm and seed.

    hue, col: keys that tell lines and panels apart. log2: the axis doubles from tick to tick. labels: {key: text}.
    """
    import pandas as pd

    style()
    frame = pd.DataFrame(rows)
    how = {"kind": "line", "markers": True, "dashes": False, "markersize": 8, "err_style": "bars", "err_kws": {"capsize": 3}}
    grid = sns.relplot(
        frame, x=x, y=y, hue=hue, style=hue, col=col, height=3.9, errorbar=lambda values: _ends(list(values))[1:], **how
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
    said = f"{_what(seeds)}; {seeds} seeds" + f"\ncollapsed: {'; '.join(fallen)}" * bool(fallen)
    grid.figure.text(0.5, -0.03, said, ha="center", va="top", fontsize="small")
    return grid.figure


def _ends(values):
    """(mean, low, high) of the 95 % interval; (mean, mean, mean) of too few values."""
    found = interval(values)
    return found[:3] if found.n >= MIN_SEEDS else (found.estimate,) * 3


def _named(label, *arms):
    """A label that says which seeds of an arm, or of two that are compared, collapsed."""
    said = said_of_collapse(sorted({seed for runs in arms for seed in collapsed_seeds(runs)}))
    return f"{label}\n({said})" if said else label


def _rows(ax, names):
    """A row of the axes for each name, the first on top."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.5, -0.5)


def _what(seeds):
    return "mean and 95 % interval" if seeds >= MIN_SEEDS else f"mean (an interval needs {MIN_SEEDS} seeds)"


def _caption(figure, text):
    figure.supxlabel(text, fontsize="small")
