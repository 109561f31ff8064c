"""Figures of one quantity against another: accuracy against compute or cost, and a gain against what might explain it."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from ccdlib.evidence.plots import LINES, MARKERS, PALETTE, caption, ends, style, what
from ccdlib.evidence.sharpness import Plane

Rows = Sequence[Mapping[str, Any]]


def against_compute(rows: Rows, unit: str = "network inputs of the student for each image") -> Figure:
    """Draw accuracy against compute, a line for each method, with 95 % intervals and the epochs of each point.

    rows: a dict for each arm and seed with "method", "epochs", "inputs" (the compute, in `unit`s), "seed" and "accuracy".
    """
    style()
    figure, ax = plt.subplots(figsize=(8.4, 5), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for k, method in enumerate(methods):
        points = {}  # (inputs, epochs) -> accuracies
        for row in rows:
            if row["method"] == method:
                points.setdefault((row["inputs"], row["epochs"]), []).append(row["accuracy"])
        places = sorted(points)
        spans = [ends(points[place]) for place in places]
        x, y = [place[0] for place in places], [span[0] for span in spans]
        errors = [[mean - low for mean, low, _ in spans], [high - mean for mean, _, high in spans]]
        look = {"color": f"C{k}", "linestyle": LINES[k % len(LINES)], "marker": MARKERS[k], "capsize": 3, "markersize": 8}
        ax.errorbar(x, y, errors, label=method, **look)
        for (inputs, epochs), mean in zip(places, y, strict=True):
            note = {"xytext": (6, -12), "textcoords": "offset points", "fontsize": "small", "color": f"C{k}"}
            ax.annotate(f"{epochs}", (inputs, mean), **note)
    ax.set_xscale("log", base=2)
    ticks = sorted({row["inputs"] for row in rows})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set(xlabel=f"compute: {unit}", ylabel="test accuracy after the last epoch (%)")
    ax.legend()
    seeds = len({row["seed"] for row in rows})
    caption(figure, f"{what(seeds)}, {seeds} seeds; a number is the epochs of a point; one above the other costs the same")
    return figure


def explained(rows: Rows, x: str, y: str, labels: Mapping[str, str]) -> tuple[Figure, float]:
    """Draw the mean of row[y] against that of row[x], a point with 95 % intervals for each row["name"].

    rows: a dict for each name and seed. labels: {x: text, y: text} of the axes. Returns the figure, and Pearson's r of the
    points, which is NaN where one of the two does not vary.
    """
    style()
    figure, ax = plt.subplots(figsize=(8.4, 5.4), layout="constrained")
    ax.axhline(0, color="0.3", linewidth=1)
    ax.set(xlabel=labels[x], ylabel=labels[y])
    r = _labelled(ax, rows, x, y)
    seeds = len({row["seed"] for row in rows})
    caption(figure, f"a point: one operation, {what(seeds)} of {seeds} seeds; Pearson's r of the points {r:.2f}")
    return figure, r


def _labelled(ax, rows, x, y):
    """Draw the mean of row[y] against that of row[x] for each row["name"], a colour for each row["kind"], with intervals where
    there are several rows; Pearson's r of the points."""
    import numpy as np
    from adjustText import adjust_text

    kinds = list(dict.fromkeys(row.get("kind", "") for row in rows))
    texts, places = [], []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        along, up = (ends([row[key] for row in own]) if len(own) > 1 else (own[0][key],) * 3 for key in (x, y))
        ax.plot(along[1:], [up[0]] * 2, color="0.7", linewidth=1.5)
        ax.plot([along[0]] * 2, up[1:], color="0.7", linewidth=1.5)
        k = kinds.index(own[0].get("kind", ""))
        ax.plot(along[0], up[0], MARKERS[k], color=f"C{k}", markersize=7)
        texts.append(ax.text(along[0], up[0], name, fontsize="small"))
        places.append((along[0], up[0]))
    for k, kind in enumerate(kinds if len(kinds) > 1 else ()):
        ax.plot([], [], MARKERS[k], color=f"C{k}", label=kind)
    if len(kinds) > 1:
        ax.legend(fontsize="small")
    ax.margins(0.08)  # room for names
    ax.figure.draw_without_rendering()  # which settles how large the axes are
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6}
    places = np.array(places).T
    adjust_text(texts, *places, ax=ax, expand=(1.15, 1.5), arrowprops=line, iter_lim=500)
    return float(np.corrcoef(places)[0, 1]) if len(texts) > 2 and places.std(1).all() else float("nan")


def beside(panels: Mapping[str, Rows], x: str, y: str, labels: Mapping[str, str]) -> Figure:
    """Draw the mean of row[y] against that of row[x] in panels {title: rows}, each with axes of its own, and Pearson's r.

    rows: dicts with "name", x, y and perhaps "kind", several of a name for several seeds. labels: {x: text, y: text}.
    """
    style()
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 5.4), layout="constrained", squeeze=False)
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        ax.set(xlabel=labels[x], ylabel=labels[y])
        ax.set_title(f"{title}: r {_labelled(ax, rows, x, y):.2f}", fontsize="medium")
    caption(
        figure, "a point: one kind of views, with 95 % intervals where there are several seeds; r: Pearson's, of the points"
    )
    return figure


def scattered(rows: Rows, x: str, label: str) -> Figure:
    """Draw the accuracy of every run against row[x] on a logarithmic axis: a colour for each method, a marker for each
    optimiser, small for a run and large for the mean of an arm.

    rows: a dict for each arm and seed with "method", "optimiser", "accuracy" and x, which is above 0. label: of the axis.
    """
    style()
    figure, ax = plt.subplots(figsize=(8.4, 5.2), layout="constrained")
    methods, optimisers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "optimiser"))
    for k, method in enumerate(methods):
        for marker, optimiser in zip(MARKERS, optimisers, strict=False):
            arm = [row for row in rows if (row["method"], row["optimiser"]) == (method, optimiser)]
            places, accuracies = [math.log(row[x]) for row in arm], [row["accuracy"] for row in arm]
            ax.scatter([row[x] for row in arm], accuracies, s=14, marker=marker, color=f"C{k}", alpha=0.4, linewidth=0)
            middle, look = (math.exp(fmean(places)), fmean(accuracies)), {"color": f"C{k}", "edgecolor": "black", "zorder": 3}
            ax.scatter(*middle, s=110, marker=marker, label=f"{method}, {optimiser}", **look)
    ax.set_xscale("log")
    ax.set(xlabel=label, ylabel="test accuracy after the last epoch (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    seeds = len({row["seed"] for row in rows})
    caption(figure, f"a small marker: one of {seeds} seeds; a large one: the mean (geometric along the axis)")
    return figure


def planes(found: Mapping[str, Plane]) -> Figure:
    """Draw the losses of planes through the weights of several networks, {name: Plane}, in panels with one scale."""
    style()
    figure, panels = plt.subplots(1, len(found), figsize=(4.2 * len(found), 4), layout="constrained", squeeze=False)
    low = min(plane.losses.min().item() for plane in found.values())
    high = max(plane.losses.max().item() for plane in found.values())
    levels = [low + (high - low) * (k / 12) ** 2 for k in range(13)]  # finer where the loss is low
    for ax, (name, plane) in zip(panels[0], found.items(), strict=True):
        places, losses = plane.places.tolist(), plane.losses.tolist()
        filled = ax.contourf(places, places, losses, levels=levels, cmap="viridis_r")
        ax.contour(places, places, losses, levels=levels, colors="white", linewidths=0.6)
        ax.plot(0, 0, "+", color="black", markersize=10)
        ax.set(title=name, xlabel="along the second direction", aspect="equal")
    panels[0][0].set_ylabel("along the first direction")
    figure.colorbar(filled, ax=panels[0].tolist(), label="loss (nats)", format="%.2g")
    caption(figure, "+: the trained network; a step of 1 is as long as the filters of the network itself")
    return figure


def pareto(points: Mapping[str, tuple[float, Sequence[float]]], cost: str) -> Figure:
    """Draw accuracy against cost with the Pareto front: the methods that no other one beats in both.

    points: {method: (cost, its accuracies, one for each seed)}. cost: the label of the axis, with its unit.
    """
    style()
    figure, ax = plt.subplots(figsize=(8.4, 5), layout="constrained")
    spans = {name: (at, *ends(list(values))) for name, (at, values) in points.items()}
    best = front({name: (at, mean) for name, (at, mean, *_) in spans.items()})
    colours = sns.color_palette(PALETTE)
    for name, (at, mean, low, high) in spans.items():
        colour = colours[2] if name in best else colours[7]
        ax.plot([at, at], [low, high], color=colour, linewidth=2)
        ax.plot(at, mean, "o", color=colour, markersize=8)
        ax.annotate(name, (at, mean), xytext=(6, 5), textcoords="offset points", fontsize="small")
    ax.step([spans[name][0] for name in best], [spans[name][1] for name in best], where="post", color=colours[2], linewidth=1)
    ax.set(xlabel=cost, ylabel="test accuracy after the last epoch (%)")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    ax.margins(x=0.16)  # room for the labels
    seeds = max(len(values) for _, values in points.values())
    caption(figure, f"{what(seeds)}, {seeds} seeds; green: no other method is both cheaper and more accurate on average")
    return figure


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of {name: (cost, accuracy)} that no other name beats in both, from the cheapest to the dearest."""
    best = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best
