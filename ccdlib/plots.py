"""One function a figure: (data) -> Figure. One style for the whole kit, readable in print and for colour-blind eyes."""

import matplotlib.pyplot as plt
import seaborn as sns
import torch

from ccdlib.losses import confidence
from ccdlib.stats import interval

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
            ax.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.set_xlabel(f"teacher: {class_names[name]}\n{100 * certainty:.0f} % sure", fontsize="small")
    for ax, label, weight in zip(axes[0], labels.tolist(), weights.tolist(), strict=True):
        ax.set_title(f"label {class_names[label]}\nw = {weight:.2f}")
    axes[0, 0].set_ylabel("original")
    axes[1, 0].set_ylabel("augmented")
    return figure


def learning_curves(results, key="test_accuracy"):
    """Mean over seeds of `key` against the epoch, a band from the lowest to the highest seed; results {arm: [Result]}."""
    style()
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for k, (arm, runs) in enumerate(results.items()):
        epochs = [row["epoch"] for row in runs[0].curves if row[key] is not None]
        values = [[row[key] for row in run.curves if row[key] is not None] for run in runs]
        columns = list(zip(*values, strict=True))
        mean = [sum(column) / len(column) for column in columns]
        ax.plot(epochs, mean, label=arm, marker=MARKERS[k], markevery=max(1, len(epochs) // 8), markersize=5)
        ax.fill_between(epochs, [min(c) for c in columns], [max(c) for c in columns], alpha=0.15)
    ax.set(xlabel="epoch", ylabel="test accuracy (%)")
    ax.legend(title=f"mean and range of {_seeds(runs)}", loc="lower right")
    return figure


def accuracies(results):
    """Every seed's last-epoch accuracy as a dot; above the dots the mean and, from three seeds on, its 95 % t interval."""
    style()
    figure, ax = plt.subplots(figsize=(7, 0.75 * len(results) + 1.2), layout="constrained")
    for k, runs in enumerate(results.values()):
        values = [run.accuracy for run in runs]
        colour = sns.color_palette(PALETTE)[k]
        ax.plot(values, [k + 0.18] * len(values), "o", color=colour, alpha=0.45, markersize=5)
        mean = interval(values)
        if mean.n >= MIN_SEEDS:
            ax.plot([mean.low, mean.high], [k] * 2, color=colour, linewidth=2.5)
        ax.plot(mean.estimate, k, MARKERS[k], color=colour, markersize=8)
        above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": "small"}
        ax.annotate(f"{mean.estimate:.1f}", (mean.estimate, k), **above)
    ax.set_yticks(range(len(results)), list(results))
    ax.set_ylim(len(results) - 0.5, -0.5)
    what = "mean and 95 % interval" if mean.n >= MIN_SEEDS else f"mean (an interval needs {MIN_SEEDS} seeds)"
    ax.set_xlabel(f"test accuracy after the last epoch (%)\n{what}; dots: {_seeds(runs)}")
    return figure


def _seeds(runs):
    return f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
