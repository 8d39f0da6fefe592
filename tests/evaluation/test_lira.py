"""Likelihood-ratio attacks: what shadows hold, and what they can and cannot see."""

import numpy as np
import pytest
from evaluation.outcomes import class_outcome, random_outcome
from oracles.attacks import log_normal

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import InvalidArgumentError, UnsupportedRequestError
from dfl_unlearn.evaluation import lira
from dfl_unlearn.evaluation.lira import Shadows, Targets, attack_method, attack_network
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.models.zoo import models
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.methods.original import Original
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer


@pytest.fixture
def view():
    return EvaluationView.of(random_outcome())


@pytest.fixture
def made(monkeypatch):
    """Networks that are trained, with their requests."""
    found = []
    simulated, unlearned = lira.simulate, lira.unlearn

    def noted_simulate(*args):
        found.append([simulated(*args), None])
        return found[-1][0]

    def noted_unlearn(run, request, protocol):
        found[-1][1] = request.resolve(run.data)
        return unlearned(run, request, protocol)

    monkeypatch.setattr(lira, "simulate", noted_simulate)
    monkeypatch.setattr(lira, "unlearn", noted_unlearn)
    return found


def rows_of(batch):
    return {tuple(row) for row in batch.inputs.tolist()}


def test_targets_are_forgotten_rows_and_test_rows_of_their_classes(view):
    targets = Targets.of(view)
    gone, tests = view.rows("forget"), view.rows("test")
    k = targets.pairs
    assert rows_of(targets.others) | {
        tuple(x) for x in targets.batch.inputs[:k].tolist()
    } == rows_of(gone)
    assert {tuple(x) for x in targets.batch.inputs[k:].tolist()} <= rows_of(tests)
    labels = targets.batch.labels
    assert labels[:k].equal(labels[k:])


def test_every_shadow_has_as_much_data_as_the_run_and_forgets_its_targets(view, made):
    attack_method(view, shadows=6)
    targets = Targets.of(view)
    everything = rows_of(targets.batch) | rows_of(targets.others)
    kept = rows_of(view.rows("retain"))
    assert len(made) == 6
    for shadow, request in made:
        assert shadow.data.sizes.tolist() == view.data.sizes.tolist()
        stored = rows_of(shadow.data.store)
        assert kept <= stored <= kept | everything
        gone = rows_of(
            type(targets.batch)(
                shadow.data.store.inputs[request.mask(shadow.data)],
                shadow.data.store.labels[request.mask(shadow.data)],
            )
        )
        assert gone == stored - kept
    for (first, _), (second, _) in zip(made[::2], made[1::2], strict=True):
        halves = [
            rows_of(s.data.store) & rows_of(targets.batch) for s in (first, second)
        ]
        assert not halves[0] & halves[1]
        assert halves[0] | halves[1] == rows_of(targets.batch)


def test_shadows_have_seeds_of_their_own_and_come_again(view, made):
    attack_method(view, shadows=6)
    assert len({shadow.config.seed for shadow, _ in made}) == 6
    other = EvaluationView.of(random_outcome())
    attack_method(other, shadows=6)
    assert [a.digest for a, _ in made[:6]] == [b.digest for b, _ in made[6:]]


def test_all_worlds_share_their_shadows(view, made):
    for world in ("before", "after", "reference"):
        attack_network(view.at(world), unlearned=True, shadows=6)
    attack_method(view, shadows=6)
    assert len(made) == 6


def test_statistics_equal_the_loop_over_targets():
    draw = np.random.default_rng(0)
    half = draw.permuted(np.repeat([True, False], 3)[None].repeat(4, 0), axis=1)
    inside = np.concatenate([[h, ~h] for h in half])  # 8 shadows, 6 targets
    shadows = Shadows(scores=draw.normal(size=(8, 2, 6)), inside=inside)
    scores = draw.normal(size=(2, 6))
    for without, used in ((None, range(8)), (5, [0, 1, 2, 3, 6, 7])):
        found = shadows.statistic(scores, without)
        for i in range(2):
            sides = [
                [
                    [shadows.scores[s, i, x] for s in used if inside[s, x] == side]
                    for x in range(6)
                ]
                for side in (True, False)
            ]
            stds = [
                np.sqrt(np.mean([np.var(x, ddof=1) for x in side])) for side in sides
            ]
            for x in range(6):
                dense = [
                    log_normal(scores[i, x], np.mean(side[x]), std)
                    for side, std in zip(sides, stds, strict=True)
                ]
                assert found[i, x] == pytest.approx(dense[0] - dense[1], rel=1e-10)


def test_a_whole_peer_is_attacked_as_a_whole_peer(made):
    outcome = random_outcome()
    request = ForgetRequest.whole_peer(1, request_id="r0").resolve(outcome.run.data)
    outcome.request, outcome.protocol = request, AtPeer(method=Original())
    attack_method(EvaluationView.of(outcome), shadows=6)
    assert {request.kind for _, request in made} == {"peer"}


def test_rows_of_several_owners_are_refused():
    with pytest.raises(UnsupportedRequestError, match=r"one owner.*got 3"):
        attack_method(EvaluationView.of(class_outcome()))


@pytest.mark.parametrize(("shadows", "match"), [(7, "even, got 7"), (4, ">= 6, got 4")])
def test_shadows_come_in_enough_pairs(view, shadows, match):
    with pytest.raises(InvalidArgumentError, match=match):
        attack_method(view, shadows=shadows)


def memorized():
    """One model that learns the random labels of its rows by heart."""
    draw = np.random.default_rng(3)

    def rows(count):
        return draw.normal(size=(count, 8)), draw.integers(3, size=count)

    data = PeerData.from_tensors([rows(120)], rows(90), num_classes=3)
    config = SimulationConfig(
        rounds=30, local=LocalSteps(epochs=1, batch_size=40, momentum=0.9)
    )
    model = models.build("mlp", input_shape=(8,), num_classes=3, hidden=(32,))
    run = simulate(Topology.single(), data, model, config)
    return run, ForgetRequest.samples(peer=0, indices=range(40))


@pytest.mark.slow
@pytest.mark.statistical
def test_exact_retraining_is_not_told_and_doing_nothing_is():
    # 320 decisions a side about 40 rows and 16 models: where nothing is to be seen the
    # standard error of the area is 0.023, and 0.07 is three of them.
    run, request = memorized()
    exact = attack_method(EvaluationView.of(unlearn(run, request, "retrain")))
    assert abs(exact.auc[0] - 0.5) < 0.07
    assert exact.tpr_at_1[0] < 0.05
    nothing = AtPeer(method=Original())
    found = attack_method(EvaluationView.of(unlearn(run, request, nothing)))
    assert (found.positives, found.negatives) == (320, 320)
    assert found.auc[0] > 0.8
    assert found.tpr_at_1[0] > 0.1


@pytest.mark.slow
def test_a_network_that_did_nothing_is_told_from_a_retrained_one():
    run, request = memorized()
    nothing = AtPeer(method=Original())
    view = EvaluationView.of(unlearn(run, request, nothing, reference=True))
    after, reference = (
        attack_network(view.at(world), unlearned=True).auc[0]
        for world in ("after", "reference")
    )
    assert after > 0.75
    assert abs(reference - 0.5) < 0.2  # 40 against 40 rows, one model: 0.065 each
