"""Cases of the comparison: other seeds forget other rows; a peer is measured alone."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.evaluation.comparison import FOUR
from dfl_unlearn.evaluation.view import evaluate
from dfl_unlearn.unlearning.methods.fine_tune import FineTune

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    import forget_sets
    import method_cases

    yield forget_sets, method_cases
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_setting_has_another_forget_set_for_another_seed(scripts):
    sets, _ = scripts
    source = sets.load("digits", rows=400)
    unlike = {"partition": "dirichlet", "alpha": 0.1, "min_per_peer": 20}
    for plain in (PeerData.load(source, 1), PeerData.load(source, 4, **unlike)):
        for setting in sets.SETTINGS:
            masks = []
            for seed in (0, 1):
                peer = seed % plain.n
                data, request = sets.forget_set(setting, plain, peer=peer, seed=seed)
                mask = request.resolve(data).mask(data)
                assert mask.any()
                assert not mask.all()
                assert not mask[data.owner != peer].any()
                masks.append(mask)
            assert (masks[0] != masks[1]).any(), setting


def test_validation_rows_are_training_rows_and_nothing_of_the_test_set(scripts):
    sets, _ = scripts
    source = sets.load("digits")
    split = sets.held_out(source, 3)
    assert len(split.train) + len(split.test) == len(source.train)
    known = {row.numpy().tobytes() for row in source.train.inputs}
    assert all(row.numpy().tobytes() in known for row in split.test.inputs)
    train = {row.numpy().tobytes() for row in split.train.inputs}
    assert not any(row.numpy().tobytes() in train for row in split.test.inputs)


def test_where_methods_are_mixed_both_retrained_networks_are(scripts, monkeypatch):
    _, cases = scripts
    training = replace(cases.TRAININGS["digits"], rounds=2, hidden=(8,))
    case = cases.Case(training=training, setting="random-50", network=True, seed=1)
    prepared = cases.prepare(case, {})
    seen = {}
    monkeypatch.setattr(
        cases, "measure", lambda outcome, **more: seen.update({more["method"]: outcome})
    )
    weights = prepared.run.topology.weights.toarray()
    for place, rounds in (("at a peer", 0), ("at a peer, mixed", cases.MIXING_ROUNDS)):
        row = np.linalg.matrix_power(weights, rounds)[case.requester]
        seen.clear()
        list(cases.lines(prepared, place, {"fine-tune": FineTune(epochs=1)}))
        states = {
            "original": prepared.run.state,
            "retrain": prepared.retrained.state,
            "retrain-2": prepared.again.state,
        }
        wanted = {name: row @ x.params.double().numpy() for name, x in states.items()}
        assert set(seen) == {*wanted, "fine-tune"}
        for name, outcome in seen.items():
            close = {"rtol": 1e-5, "atol": 1e-6}
            if name in wanted:
                np.testing.assert_allclose(
                    outcome.state.params[0], wanted[name], **close
                )
            reference = outcome.reference.state.params[0]
            np.testing.assert_allclose(reference, wanted["retrain"], **close)


def test_a_peer_measured_alone_has_the_values_it_has_in_the_network(scripts):
    _, cases = scripts
    training = replace(cases.TRAININGS["digits"], rounds=2, hidden=(8,))
    case = cases.Case(training=training, setting="backdoor", network=True, seed=2)
    prepared = cases.prepare(case, {})
    outcome = cases.tried(prepared, FineTune(epochs=1), 1)
    rows = evaluate(outcome, FOUR, worlds="after").rows
    inside = {r["metric"]: r["value"] for r in rows if r["peer"] == case.requester}
    np.testing.assert_allclose(
        cases.four(outcome), [inside[name] for name in FOUR], rtol=1e-12
    )
