"""Figures of one quantity against another, the forest plot, and the answers of notebooks."""

import math

import matplotlib.pyplot as plt
import pytest

from ccdlib.evidence import plots, relations
from ccdlib.evidence.forest import forest
from ccdlib.evidence.stats import more
from ccdlib.kit import answers
from ccdlib.views import POLICIES


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_accuracy_against_compute_has_a_line_a_method_and_the_epochs_of_a_point():
    rows = [
        {"method": method, "epochs": epochs, "inputs": epochs * views, "seed": seed, "accuracy": 50 + epochs / 10 + seed}
        for method, views in (("KD", 1), ("KD + JDA", 2))
        for epochs in (60, 120)
        for seed in range(3)
    ]
    figure = relations.against_compute(rows)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["KD", "KD + JDA"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["60", "120", "240"]
    assert sorted(text.get_text() for text in ax.texts) == ["120", "120", "60", "60"]
    points = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xydata()) == 2 and line.get_marker() in "os"]
    assert [[60.0, 57.0], [120.0, 63.0]] in points
    assert [[120.0, 57.0], [240.0, 63.0]] in points


def test_what_explains_a_gain_is_told_with_its_correlation():
    rows = [
        {"name": name, "seed": seed, "teacher": x + seed, "gain": 2 * x - seed}
        for name, x in (("invert", 10.0), ("rotate", 20.0), ("shearX", 40.0))
        for seed in range(3)
    ]
    figure, r = relations.explained(rows, "teacher", "gain", {"teacher": "accuracy", "gain": "points"})
    assert r == pytest.approx(1.0)
    assert {text.get_text() for text in figure.axes[0].texts} == {"invert", "rotate", "shearX"}
    assert "Pearson's r of the points 1.00" in figure._supxlabel.get_text()
    flat = [row | {"gain": 1.0} for row in rows]
    assert math.isnan(relations.explained(flat, "teacher", "gain", {"teacher": "", "gain": ""})[1])


def test_the_pareto_front():
    points = {"a": (1.0, 50.0), "b": (2.0, 60.0), "c": (2.0, 55.0), "d": (4.0, 60.0), "e": (3.0, 70.0), "f": (1.0, 40.0)}
    assert relations.front(points) == ["a", "b", "e"]
    figure = relations.pareto({name: (cost, [mean - 1, mean, mean + 1]) for name, (cost, mean) in points.items()}, "cost")
    assert {text.get_text() for text in figure.axes[0].texts} == {*points}


def judged(finding="(a)", values=(4.0, 5.0, 6.0), **options):
    """A judged claim that b beats a by these differences."""
    claim = more(finding, "b beats a", "b", "a", least=3, **options).judge({"a": [0.0] * len(values), "b": list(values)})
    return claim | {"corrected": claim["verdict"]}


def test_the_forest_plot_names_verdicts_and_data():
    rows = [
        judged() | {"headline": "(a) b over a", "data": "objects", "profile": "lite"},
        judged(values=(-1.0, 0.0, 1.0)) | {"headline": "CCD", "data": "objects", "profile": "lite"},
        judged() | {"headline": "(a) b over a", "data": "cifar100", "profile": "cifar100"},
    ]
    (ax,) = forest(rows).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["(a) b over a", "", "CCD"]
    said = [text.get_text() for text in ax.texts]
    assert ["holds" in text for text in said] == [True, True, False]
    assert "inconclusive, 3 seeds" in said[2]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["objects (lite)", "cifar100 (cifar100)"]


def test_an_answer_says_what_would_change_our_mind():
    claims = [judged(), judged(values=(-1.0, 0.2, 1.0)), judged(values=(-0.1, 0.0, 0.1), margin=1.0)]
    text = answers.answer("Does b beat a?", "On some data", claims)
    assert text.startswith(
        "**Does b beat a?** Of 3 claims, 1 holds, 1 concerns an effect that is practically zero and 1 stays open."
    )
    assert text.count("\n- **") == 3
    assert "**What would change our mind.** A verdict turns if the interval of a repetition" in text
    assert "Nearest to it, in half-widths of its interval, is the verdict on whether b beats a." in text
    assert "with the spread seen here, " in text
    assert " seeds would show an effect of one point in 80 % of cases." in text
    open_only = answers.answer("?", "Here", [judged(values=(-1.0, 0.2, 1.0))])
    assert "A verdict turns" not in open_only
    assert "Of 1 claim, 1 stays open." in open_only


def test_ops_are_named_with_their_units():
    said = [plots.said_of_op(op, level, (3, 32, 32)) for op, level in POLICIES["cifar100"].steps]
    assert said == [
        "autocontrast",
        "contrast x 1 ± 0.3",
        "posterize (identity)",
        "solarize from 142",
        "translateY ± 12.9 px",
        "shearX ± 0.167",
        "brightness x 1 ± 0.3",
        "shearY (identity)",
        "translateX ± 1.61 px",
        "sharpness x 1 ± 0.5",
        "invert",
        "color x 1 ± 0.4",
        "equalize",
        "rotate +10°",
    ]
    assert plots.said_of_op("color", 4, (1, 32, 32)) == "color (identity)"
