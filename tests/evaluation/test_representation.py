"""The attack on representations, where it is known what it must say."""

import numpy as np
import pytest
import torch
from evaluation.outcomes import hidden_outcome, outcome_of, random_outcome
from torch import nn

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import MissingInputError
from dfl_unlearn.evaluation.metrics import metrics
from dfl_unlearn.evaluation.metrics import representation as module
from dfl_unlearn.evaluation.metrics.representation import attack_rows
from dfl_unlearn.evaluation.view import EvaluationView, evaluate
from dfl_unlearn.models.flat import FlatModel

NAME = "mia-representation"


def planted(*, gone_class=None, peers=2):
    """Training rows lie on the right and test rows on the left of a first feature.

    The hidden layer is (x, -x); "after" mirrors the rows at peer 0 and keeps them at
    peer 1; the reference sets all features to 0.
    """
    draw = np.random.default_rng(0)

    def rows(count, side):
        x = draw.normal(size=(count, 2))
        x[:, 0] = side * (2 + draw.random(count))
        return x, np.arange(count) % 3

    data = PeerData.from_tensors(
        [rows(60, 1) for _ in range(peers)], rows(90, -1), num_classes=3
    )
    stack = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    model = FlatModel.from_module(stack, "cross-entropy")
    eye = torch.eye(2, dtype=torch.float64)
    head = torch.zeros(model.size - 8, dtype=torch.float64)
    straight = torch.cat([torch.cat([eye, -eye]).reshape(-1), head])
    mirrored = torch.cat([torch.cat([-eye, eye]).reshape(-1), head])
    before = torch.stack([straight] * peers)
    after = torch.stack([mirrored, *[straight] * (peers - 1)])
    request = ForgetRequest.samples(peer=0, indices=range(10), request_id="r0")
    if gone_class is not None:
        request = ForgetRequest.class_(gone_class, request_id="r0")
    return outcome_of(data, model, before, after, torch.zeros_like(before), request)


def test_rows_are_members_where_they_lie_and_none_where_they_were_moved():
    view = EvaluationView.of(planted())
    metric = metrics.get(NAME)
    assert metric(view.at("before")).tolist() == [0, 0]
    assert metric(view.at("after")).tolist() == [1, 0]
    reference = metric(view.at("reference"))
    assert set(reference.tolist()) <= {0, 1}  # all rows lie in one place


def test_the_attack_is_fitted_once_and_never_to_another_world(monkeypatch):
    outcome, calls = planted(), []
    fitted = module._fitted

    def noted(members, others, rng):
        calls.append((members, others))
        return fitted(members, others, rng)

    monkeypatch.setattr(module, "_fitted", noted)
    table = evaluate(outcome, NAME)
    assert len(table.rows) == 3 * 3  # network and two peers in three worlds
    assert len(calls) == 2  # one per peer
    inside, outside = attack_rows(EvaluationView.of(outcome))
    model, state = outcome.run.model, outcome.run.state
    for peer, (members, others) in enumerate(calls):
        for seen, batch in ((members, inside), (others, outside)):
            expected = model.features(state.params[peer], batch.inputs.double())
            np.testing.assert_allclose(seen, expected.detach().numpy(), rtol=1e-6)


def test_it_is_fitted_to_equally_many_rows_of_every_class_and_none_that_goes():
    view = EvaluationView.of(planted(gone_class=2))
    inside, outside = attack_rows(view)
    assert inside.labels.bincount(minlength=3).tolist() == [30, 30, 0]
    assert outside.labels.bincount(minlength=3).tolist() == [30, 30, 0]
    forgotten = {tuple(x) for x in view.rows("forget").inputs.tolist()}
    tests = {tuple(x) for x in view.rows("test").inputs.tolist()}
    members = [tuple(x) for x in inside.inputs.tolist()]
    assert len(set(members)) == len(members)
    assert not forgotten & set(members)
    assert not tests & set(members)
    assert {tuple(x) for x in outside.inputs.tolist()} <= tests


def test_many_rows_are_thinned_class_by_class(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 12)
    inside, outside = attack_rows(EvaluationView.of(planted()))
    assert inside.labels.bincount().tolist() == [4, 4, 4]
    assert outside.labels.bincount().tolist() == [4, 4, 4]


def test_without_a_reference_the_other_worlds_are_the_same():
    full, bare = (EvaluationView.of(hidden_outcome()) for _ in range(2))
    object.__setattr__(bare, "reference", None)
    metric = metrics.get(NAME)
    for world in ("before", "after"):
        assert metric(full.at(world)).equal(metric(bare.at(world)))
    with pytest.raises(MissingInputError, match="reference=True"):
        metric(bare.at("reference"))


def test_a_peer_seen_alone_has_the_value_it_has_among_all():
    view = EvaluationView.of(hidden_outcome())
    metric = metrics.get(NAME)
    for world in ("before", "after", "reference"):
        alone = [metric(view.only(i).at(world)) for i in range(view.n)]
        assert torch.cat(alone).equal(metric(view.at(world)))


def test_a_model_without_features_is_refused_with_the_remedy():
    with pytest.raises(MissingInputError, match="feature_layer"):
        metrics.get(NAME)(EvaluationView.of(random_outcome()))
