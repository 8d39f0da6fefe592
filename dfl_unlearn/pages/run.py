"""The page of a run: its sections, in the order of a reader's questions."""

from importlib.resources import files

from dfl_unlearn import _html as h
from dfl_unlearn.pages import (
    claims,
    dilution,
    influence,
    methods,
    outcome,
    settings,
    training,
    wording,
)
from dfl_unlearn.pages.document import document
from dfl_unlearn.results.view import ResultsView


def run_page(view: ResultsView) -> str:
    """Return the page of a run as text; equal runs give equal pages.

    Sections without content are left out.

    Args:
        view: The run, and what was tried on it.

    Returns:
        A whole HTML document.
    """
    sections = (
        outcome.result(view),
        outcome.question(view),
        claims.claims(view),
        influence.influence(view),
        training.training(view),
        outcome.measured(view),
        methods.methods(view),
        dilution.dilution(view),
        claims.audits(view),
        claims.limits(view),
        settings.settings(view),
    )
    return document(
        f"dfl_unlearn: {wording.run_name(view)}",
        h.join(*sections, between="\n"),
        scripts=[files("dfl_unlearn.pages").joinpath("network.js").read_text("utf-8")],
    )
