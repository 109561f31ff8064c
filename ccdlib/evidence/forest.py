"""The forest plot: judged claims in rows. Its libraries, which take seconds to import, are imported when it is drawn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"holds": "C2", "does not hold": "C3", "practically zero": "C0"}  # of verdicts; grey for the others
SHAPES = "osD^vPX"


def forest(claims: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw judged claims in rows: estimate and interval, with the verdict as colour and in words, data as the marker.

    claims: dicts of Claim.judge() with "headline" (the label), "data" and "profile". Rows with the same label lie together.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"savefig.bbox": "tight", "savefig.dpi": 150})
    names = [claim["headline"] for claim in claims]
    kinds = list(dict.fromkeys((claim["data"], claim["profile"]) for claim in claims))
    claims = sorted(claims, key=lambda claim: names.index(claim["headline"]))
    figure, ax = plt.subplots(figsize=(10, 0.36 * len(claims) + 1.5), layout="constrained")
    for row, claim in enumerate(claims):
        verdict = claim["verdict"].partition(",")[0].partition(" (")[0]
        shape = SHAPES[kinds.index((claim["data"], claim["profile"])) % len(SHAPES)]
        colour = COLOURS.get(verdict, "0.5")
        ax.plot([claim["low"], claim["high"]], [row, row], color=colour, linewidth=2.5)
        ax.plot(claim["estimate"], row, shape, color=colour, markersize=7)
        said = f" {claim['estimate']:+.1f} [{claim['low']:+.1f}, {claim['high']:+.1f}]  {verdict}, {claim['n']} seeds"
        ax.text(1.01, row, said, transform=ax.get_yaxis_transform(), va="center", fontsize="small", color=colour)
    ax.axvline(0, color="0.3", linewidth=1)
    names = [claim["headline"] for claim in claims]
    ax.set_yticks(range(len(claims)), [name if name not in names[:k] else "" for k, name in enumerate(names)])
    ax.set_ylim(len(claims) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    for shape, (data, profile) in zip(SHAPES, kinds, strict=False):
        ax.plot([], [], shape, color="0.3", label=f"{data} ({profile})")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(kinds), fontsize="small", frameon=False)
    ax.set_xlabel("points of test accuracy, 95 % interval")
    return figure
