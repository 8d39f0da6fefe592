"""What every registered metric must do, plugins included."""

import re
from functools import partial

import pytest
import torch
from evaluation.outcomes import class_outcome, hidden_outcome, random_outcome

from dfl_unlearn.errors import MissingInputError, UnsupportedRequestError
from dfl_unlearn.evaluation.metrics import info_of, metrics
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.store.table import WORLDS

every_metric = pytest.mark.parametrize("name", metrics.names())


def views(name):
    """Fresh views in every world of the metric, on the first data that it serves."""
    metric = metrics.get(name)
    kinds = (
        random_outcome,
        partial(random_outcome, regression=True),
        class_outcome,
        hidden_outcome,
    )
    for kind in kinds:
        view = EvaluationView.of(kind())
        try:
            metric(view.at(info_of(metric).worlds[0]))
        except (MissingInputError, UnsupportedRequestError):
            continue
        break
    return [view.at(world) for world in info_of(metric).worlds]


@every_metric
def test_a_metric_gives_one_finite_number_per_peer_or_one_for_the_network(name):
    for view in views(name):
        values = metrics.get(name)(view)
        assert isinstance(values, torch.Tensor)
        assert values.shape in ((), (view.n,))
        assert torch.isfinite(values.double()).all()


@every_metric
def test_a_metric_gives_the_same_bits_again(name):
    for first, second in zip(views(name), views(name), strict=True):
        assert metrics.get(name)(first).equal(metrics.get(name)(second))
        assert metrics.get(name)(first).equal(metrics.get(name)(second))


@every_metric
def test_a_metric_changes_nothing(name):
    def tensors(view):
        data = view.data
        return [
            *(s.params for s in (view.before, view.after, view.reference)),
            *(data.store.inputs, data.store.labels),
            *(view.holdout.inputs, view.holdout.labels),
        ]

    for view in views(name):
        copies = [t.clone() for t in tensors(view)]
        metrics.get(name)(view)
        assert all(a.equal(b) for a, b in zip(tensors(view), copies, strict=True))


@every_metric
def test_a_metric_says_what_it_is(name):
    info = info_of(metrics.get(name))
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert metrics.help(name)
    assert info.set in ("test", "retain", "forget", "")
    assert info.worlds
    assert set(info.worlds) <= set(WORLDS)


@pytest.mark.parametrize(
    "name",
    [n for n in metrics.names() if n.startswith("mia-") or n in ("lira", "u-lira")],
)
def test_an_attack_is_measured_on_the_reference_too(name):
    assert info_of(metrics.get(name)).worlds == WORLDS
