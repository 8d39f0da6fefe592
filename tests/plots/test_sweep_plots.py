"""Figures of sweeps: what is in them, how claims look, and that they repeat."""

from functools import partial

import numpy as np
import pytest
from matplotlib.colors import to_hex
from results.made_sweep import claimed, make_sweep, per_peer, row

from dfl_unlearn.errors import InvalidArgumentError, MissingInputError
from dfl_unlearn.plots import render
from dfl_unlearn.plots._style import COLUMN, GREY, SMALLEST, TWO_COLUMNS
from dfl_unlearn.plots._sweep_parts import scale_of
from dfl_unlearn.plots.sweeps import (
    axis_lines,
    draw_sweep,
    front_against_gap,
    heat,
    privacy_utility,
    save_sweep_figures,
)
from dfl_unlearn.results.sweep import SweepView

EPSILON = "unlearning.0.epsilon"
CLAIMS = {"newton-fisher": "certified", "fine-tune": "heuristic", "scrub": None}


def accuracies(point, seed):
    found = []
    for k, name in enumerate(CLAIMS):
        for world in ("before", "after", "reference"):
            value = 0.9 - 0.1 * k - 0.05 / point[EPSILON] + 0.01 * seed
            values = (value, value + 0.02)
            found += per_peer("test-accuracy", values, world=world, protocol=name)
    return found


def attempts(point, seed):
    return [
        ({"use": name}, None if status is None else claimed(point[EPSILON], status))
        for name, status in CLAIMS.items()
    ]


@pytest.fixture(scope="module")
def privacy(tmp_path_factory):
    root = tmp_path_factory.mktemp("privacy") / "made"
    axes = {EPSILON: [0.5, 1.0, 2.0]}
    return SweepView.open(make_sweep(root, axes, accuracies, attempts=attempts))


FAMILIES = {"ring": 1.0, "torus": 2.0, "star": 3.0, "complete": 5.0}


def fronts(point, seed):
    n, family = point["topology.n"], FAMILIES[point["topology.use"]]
    gap = family / n + 0.001 * seed
    return [
        row("spectral-gap", gap, world="before"),
        row("front-time", 10 / gap, world="before", unit="rounds"),
        row("effective-spread", n * gap, world="before", unit="peers"),
        *per_peer("test-accuracy", [0.5 + 0.01 * family] * n),
    ]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks") / "made"
    axes = {"topology.use": list(FAMILIES), "topology.n": [6, 9]}
    return SweepView.open(
        make_sweep(
            root,
            axes,
            fronts,
            seeds=(0, 1),
            config=lambda p, s: {"topology": {"use": p["topology.use"]}},
        )
    )


def drawn(entry, *args, **kwargs):
    view, *more = args
    return draw_sweep(lambda figure: entry(view, figure, *more, **kwargs))


def texts(figure):
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return " | ".join(artist.get_text() for artist in found)


def markers(figure):
    """Edge colour and marker of every mark in the first panel."""
    lines = figure.axes[0].get_lines()
    marked = [line for line in lines if line.get_marker() not in ("None", None, "")]
    return {(to_hex(m.get_markeredgecolor()), m.get_marker()) for m in marked}


def test_what_has_no_guarantee_is_grey_and_never_a_filled_mark(privacy):
    figure = drawn(privacy_utility, privacy)
    lines = figure.axes[0].get_lines()
    grey = {to_hex(GREY)}
    filled = [
        line
        for line in lines
        if line.get_marker() not in ("None", None, "", "x")
        and line.get_markerfacecolor() != "white"
    ]
    assert filled
    assert not grey & {to_hex(line.get_markerfacecolor()) for line in filled}
    assert (to_hex(GREY), "x") in markers(figure)
    words = texts(figure)
    for word in ("heuristic, nominal ε", "no claim", "scrub, no ε", "retrained"):
        assert word in words
    assert "3 seeds" in words


def test_utility_is_drawn_at_the_mean_and_its_epsilon(privacy):
    axes = drawn(privacy_utility, privacy).axes[0]
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    expected = [0.92 - 0.05 / epsilon for epsilon in (0.5, 1.0, 2.0)]
    assert list(curves[0].get_xdata()) == [0.5, 1.0, 2.0]
    np.testing.assert_allclose(curves[0].get_ydata(), expected, rtol=1e-12)
    assert axes.get_xscale() == "log"


def test_the_rank_correlation_is_in_the_title(networks):
    figure = drawn(front_against_gap, networks)
    left, right = (axes.get_title(loc="left") for axes in figure.axes)
    assert left.startswith("rank correlation -1.00 (8 networks)")
    assert "1.00 (N=6), 1.00 (N=9)" in right
    words = texts(figure)
    assert all(name in words for name in (*FAMILIES, "N = 6", "N = 9"))
    assert "front time, rounds" in words


def test_a_metric_of_the_network_alone_is_one_line(networks):
    figure = drawn(
        axis_lines, networks, "front-time", "topology.n", where={"topology.use": "ring"}
    )
    curves = [ln for ln in figure.axes[0].get_lines() if len(ln.get_xdata()) == 2]
    assert len({tuple(line.get_ydata()) for line in curves}) == 1


def test_a_line_is_split_by_the_axes_that_tell_its_points_apart(networks):
    words = texts(drawn(axis_lines, networks, "test-accuracy", "topology.n"))
    assert "fine-tune ring" in words
    assert "fine-tune complete" in words


def test_heat_has_a_cell_per_point(networks):
    axes = ("topology.use", "topology.n")
    figure = drawn(heat, networks, "test-accuracy", axes)
    (image,) = figure.axes[0].get_images()
    expected = [[0.5 + 0.01 * family for family in FAMILIES.values()]] * 2
    np.testing.assert_allclose(image.get_array(), expected, rtol=1e-12)


def test_heat_refuses_to_average_over_another_axis(tmp_path):
    axes = {"a.x": [1, 2], "a.y": [1, 2], "a.z": [1, 2]}
    root = make_sweep(
        tmp_path / "made", axes, lambda p, s: [row("test-accuracy", 0.1 * p["a.z"])]
    )
    view = SweepView.open(root)
    with pytest.raises(InvalidArgumentError, match=r"differ in a\.z; fix them with"):
        drawn(heat, view, "test-accuracy", ("a.x", "a.y"))
    figure = drawn(heat, view, "test-accuracy", ("a.x", "a.y"), where={"a.z": 2})
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array(), 0.2)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.1, 1.0, 10.0], "log"),
        ([1, 2, 4, 8], "log"),
        ([1, 2, 3, 4], "linear"),
        ([0.0, 1.0, 10.0], "linear"),
        ([5, 10], "linear"),
        (["ring", "torus"], "names"),
        ([1, "none"], "names"),
        ([True, False], "names"),
    ],
)
def test_even_ratios_stand_on_a_logarithmic_scale(values, kind):
    assert scale_of(values).kind == kind


@pytest.mark.parametrize("plot", ["privacy", "front", "lines", "heat"])
def test_figures_fit_a_column_with_letters_of_a_readable_size(privacy, networks, plot):
    figure = {
        "privacy": lambda: drawn(privacy_utility, privacy),
        "front": lambda: drawn(front_against_gap, networks),
        "lines": lambda: drawn(axis_lines, privacy, "test-accuracy", EPSILON),
        "heat": lambda: drawn(
            heat, networks, "test-accuracy", ("topology.use", "topology.n")
        ),
    }[plot]()
    assert figure.get_size_inches()[0] in (COLUMN, TWO_COLUMNS)
    figure.canvas.draw()
    for artist in figure.findobj(lambda a: hasattr(a, "get_fontsize")):
        assert artist.get_fontsize() >= SMALLEST


def test_what_the_data_can_feed_is_saved(privacy, networks, tmp_path):
    paths = save_sweep_figures(privacy, tmp_path / "p", ("png", "pdf"))
    assert [p.name for p in paths] == [
        f"{name}.{format}"
        for name in ("privacy-utility", "test-accuracy-by-unlearning-0-epsilon")
        for format in ("png", "pdf")
    ]
    names = {p.stem for p in save_sweep_figures(networks, tmp_path / "n")}
    assert names == {
        "front-against-gap",
        "test-accuracy-by-topology-use",
        "test-accuracy-by-topology-n",
        "test-accuracy-heat-topology-use-topology-n",
    }


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_equal_sweeps_give_equal_bytes(privacy, format):
    one, two = (render(drawn(privacy_utility, privacy), format) for _ in range(2))
    assert one == two


def test_wrong_names_say_what_there_is(privacy, tmp_path):
    with pytest.raises(InvalidArgumentError, match=f"one of {EPSILON}, got 'n'"):
        drawn(axis_lines, privacy, "test-accuracy", "n")
    with pytest.raises(MissingInputError, match="lira: must be measured"):
        drawn(axis_lines, privacy, "lira", EPSILON)
    with pytest.raises(InvalidArgumentError, match=r"it has 0\.5, 1\.0, 2\.0"):
        drawn(axis_lines, privacy, "test-accuracy", EPSILON, where={EPSILON: 7})
    with pytest.raises(InvalidArgumentError, match="where: must name axes, got 'n'"):
        drawn(axis_lines, privacy, "test-accuracy", EPSILON, where={"n": 7})
    with pytest.raises(InvalidArgumentError, match="format: must be one of"):
        save_sweep_figures(privacy, tmp_path, ("gif",))
    with pytest.raises(MissingInputError, match="got 0 with a gap"):
        drawn(front_against_gap, privacy)


def test_too_many_lines_are_refused(tmp_path):
    axes = {"a.x": [1, 2], "a.y": list(range(13))}
    rows = partial(lambda p, s: [row("test-accuracy", 0.5)])
    view = SweepView.open(make_sweep(tmp_path / "made", axes, rows, seeds=(0,)))
    with pytest.raises(InvalidArgumentError, match="at most 12 lines, got 13"):
        drawn(axis_lines, view, "test-accuracy", "a.x")


def test_equal_results_of_protocols_keep_their_own_claims(tmp_path):
    """Two heuristic lines on top of each other are no certified one."""

    def equal(point, seed):
        return [row("test-accuracy", 0.9, protocol=name) for name in ("a", "b")]

    def heuristic(point, seed):
        claim = claimed(point[EPSILON], "heuristic")
        return [({"use": "a"}, claim), ({"use": "b"}, claim)]

    axes = {EPSILON: [0.5, 1.0]}
    made = make_sweep(tmp_path / "made", axes, equal, attempts=heuristic)
    for figure in (
        drawn(privacy_utility, SweepView.open(made)),
        drawn(axis_lines, SweepView.open(made), "test-accuracy", EPSILON),
    ):
        assert markers(figure) == {(to_hex(GREY), "x")}


def test_a_network_counts_once_and_only_with_a_value_in_every_seed(tmp_path):
    def unfinished(point, seed):
        gap, front, *more = fronts(point | {"topology.n": 6}, 0)
        if point["topology.use"] == "ring" and seed == 1:
            front |= {"value": None, "note": "inf"}
        return [gap, front, *more]

    axes = {"topology.use": list(FAMILIES), EPSILON: [0.5, 1.0, 2.0]}
    made = make_sweep(
        tmp_path / "made",
        axes,
        unfinished,
        seeds=(0, 1),
        config=lambda p, s: {"topology": {"use": p["topology.use"]}},
    )
    figure = drawn(front_against_gap, SweepView.open(made))
    left, right = (axes.get_title(loc="left") for axes in figure.axes)
    assert left.splitlines() == [
        "rank correlation -1.00 (3 networks)",
        "left out: 1 without a value in every seed",
    ]
    assert right == "rank correlation 1.00 (4 networks)"
