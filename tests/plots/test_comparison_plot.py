"""Gap against cost: every method is named once, and no name covers another."""

from itertools import pairwise

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.comparison import MINIMUM, Line, compare
from dfl_unlearn.plots._style import STYLE
from dfl_unlearn.plots.comparison import gap_against_cost

METHODS = ("salun", "salun + dual", "r2d", "ssd", "scrub", "sfron", "fine-tune")


def line(setting, method, seed, off, gradients, certificate="none"):
    claimed = certificate in ("exact", "certified")
    return Line(
        setting=setting,
        method=method,
        seed=seed,
        values=dict.fromkeys(MINIMUM, 0.5 + off),
        seconds=1.0,
        sample_gradients=gradients,
        certificate=certificate,
        epsilon=1.0 if claimed else None,
        delta=1e-5 if claimed else None,
    )


def near(k):
    """Several with the same gap."""
    return 0.01 * (k // 3 + 1)


def comparison(original=0.3, methods=METHODS, off=near):
    lines = []
    for setting in ("first", "second"):
        for seed in range(5):
            lines += [
                line(setting, "original", seed, original, 0),
                line(setting, "retrain", seed, 0.0, 1000, "exact"),
                line(setting, "retrain-2", seed, 0.002, 1000, "exact"),
            ]
            lines += [
                line(
                    setting,
                    name,
                    seed,
                    off(k),
                    100 * (k // 3 + 1),
                    ("certified", "heuristic", "none")[k % 3],
                )
                for k, name in enumerate(methods)
            ]
    return compare(lines)


def drawn(**fields):
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        gap_against_cost(comparison(**fields), figure)
        figure.draw_without_rendering()
    return figure


def test_every_method_is_named_once_in_every_panel_and_no_name_covers_another():
    figure = drawn()
    for axes in figure.axes:
        texts = [text for text in axes.texts if text.get_text() in METHODS]
        assert sorted(text.get_text() for text in texts) == sorted(METHODS)
        # Of an annotation itself that would be the box of its line, too.
        boxes = [Text.get_window_extent(text) for text in texts]
        for below, above in pairwise(sorted(boxes, key=lambda box: box.y0)):
            # A box has room above and below the letters.
            assert above.y0 - below.y0 >= 0.7 * below.height


@pytest.mark.parametrize("count", [1, 8, 26])
def test_names_stay_between_title_and_axis(count):
    names = [f"method {k}" for k in range(count)]
    figure = drawn(methods=names, off=lambda k: (0.001, 0.4)[k % 2])
    for axes in figure.axes:
        inside = axes.get_window_extent()
        texts = [text for text in axes.texts if text.get_text() in names]
        assert len(texts) == count
        for text in texts:
            box = Text.get_window_extent(text)
            assert inside.y0 < box.y0
            assert box.y1 < inside.y1


def test_what_claims_something_is_marked_apart():
    labels = [text.get_text() for text in drawn().legends[0].get_texts()]
    assert labels == ["exact", "certified", "heuristic", "no claim"]


def test_a_setting_that_cannot_rank_methods_says_so():
    plain = [axes.get_title(loc="left") for axes in drawn().axes]
    assert plain == ["first", "second"]
    mute = [axes.get_title(loc="left") for axes in drawn(original=0.003).axes]
    assert mute == ["first: cannot rank methods", "second: cannot rank methods"]


def test_there_must_be_something_to_draw():
    with pytest.raises(MissingInputError, match="at least one setting"):
        gap_against_cost(compare([]), Figure())


def test_a_method_without_any_cost_is_inside_its_panel():
    lines = list(comparison().lines)
    lines += [line("first", "dp-gossip", seed, 0.2, 0) for seed in range(5)]
    figure = Figure(layout="constrained")
    gap_against_cost(compare(lines), figure, settings=["first"])
    axes = figure.axes[0]
    (name,) = [text for text in axes.texts if text.get_text() == "dp-gossip"]
    assert axes.get_xlim()[0] < name.xy[0]
