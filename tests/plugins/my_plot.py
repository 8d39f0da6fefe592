"""Which peers stand apart from the others, before and after forgetting."""

from matplotlib.figure import Figure

from dfl_unlearn.plots import plots
from dfl_unlearn.results.view import ResultsView


@plots.register("peer-distance")
def peer_distance(view: ResultsView, figure: Figure) -> None:
    """Distance of every peer's parameters to their average, before and after."""
    axes = figure.subplots()
    states = {"before": view.run.state}
    for label, outcome in zip(view.labels, view.outcomes, strict=True):
        states[label] = outcome.state
    for label, state in states.items():
        distance = (state.params.double() - state.mean()).norm(dim=1)
        axes.plot(distance.numpy(), marker="o", label=label)
    axes.set_xlabel("peer")
    axes.set_ylabel("distance to the average (L2)")
    axes.legend()
