"""Every registered plot, a plugin's too, keeps the contract on tiny views."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from results.handmade import made_outcome, made_run, three_outcomes

from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.plots import draw, plots, render
from dfl_unlearn.results.view import ResultsView

VIEWS = {
    "two peers": lambda: three_outcomes(made_run(n=2)),
    "twelve peers": lambda: three_outcomes(made_run(n=12, kind="hubs")),
    "no reference": lambda: three_outcomes(made_run(n=4), reference=False),
    "no record": lambda: three_outcomes(made_run(n=4, record=False)),
    "one outcome": lambda: [made_outcome(made_run(n=3), "retrain", "exact")],
    "conditional": lambda: [
        made_outcome(made_run(n=3), status="certified_conditional")
    ],
}


@pytest.fixture(scope="module")
def views():
    return {name: ResultsView.of(make()) for name, make in VIEWS.items()}


def contents(view):
    """Every array a plot may be tempted to write to."""
    history = view.run.history
    states = [view.run.state, *(outcome.state for outcome in view.outcomes)]
    arrays = [state.params.numpy() for state in states]
    arrays += [history.accuracy, history.consensus, history.rounds]
    arrays += [view.influence().norms, view.topology.weights.toarray()]
    arrays += [np.array([row["value"] for row in view.table.rows])]
    return [array.copy() for array in arrays]


@pytest.mark.parametrize("view_name", VIEWS)
@pytest.mark.parametrize("name", plots.names())
def test_a_plot_fills_its_figure_and_leaves_the_view_as_it_was(name, view_name, views):
    view = views[view_name]
    before = contents(view)
    figure = draw(name, view)
    assert any(axes.has_data() or axes.texts for axes in figure.axes), "empty figure"
    for a, b in zip(before, contents(view), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", plots.names())
def test_a_plot_takes_any_figure_and_draws_the_same_again(name, views):
    plots.get(name)(views["twelve peers"], Figure())
    first, again = (render(draw(name, views["two peers"])) for _ in range(2))
    assert first == again
    assert first.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", plots.names())
def test_a_plot_says_in_one_line_what_it_shows(name):
    assert plots.help(name).endswith(".")


@pytest.mark.parametrize("name", plots.names())
def test_a_plot_without_its_input_says_so(name):
    view = ResultsView.of(made_run(history=False, record=False))
    try:
        figure = draw(name, view)
    except MissingInputError as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert figure.axes
