"""The training loop as a whole: repeatable, equivariant, and clear when it refuses."""

import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from networks import blobs, full_batch, path4, r4_data, ridge

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine import memory, simulator
from dfl_unlearn.engine.backends.contract import RoundInfo
from dfl_unlearn.engine.callbacks import ProgressLog
from dfl_unlearn.engine.config import ExecutionConfig, LocalSteps, SimulationConfig
from dfl_unlearn.engine.gossip import as_csr, mix
from dfl_unlearn.engine.memory import training_memory
from dfl_unlearn.engine.simulator import continue_training, retrain, simulate
from dfl_unlearn.engine.threads import blas_report, limited_threads
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    NumericalError,
    ResourceError,
    TopologyError,
    UnknownNameError,
)
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.topology.graph import Topology

DATA = blobs([20, 7, 12, 9, 15])
SHORT = SimulationConfig(rounds=6, local=LocalSteps(batch_size=5), evaluate_every=2)


@pytest.fixture(scope="module")
def run():
    return simulate("ring", DATA, "logistic", SHORT)


def same(a, b):
    return torch.equal(a.state.params, b.state.params)


def test_the_same_arguments_give_the_same_bits_and_digest(run):
    again = simulate(
        load_topology("ring", n=5),
        DATA,
        models.build("logistic", input_shape=(6,), num_classes=3),
        SHORT,
    )
    assert same(run, again)
    assert run.digest == again.digest
    np.testing.assert_array_equal(
        run.record.gradient_norms, again.record.gradient_norms
    )


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"rounds": 7}, {"trainer": DSgd(form="cta")}, {"block_peers": 2}],
)
def test_what_changes_results_changes_the_digest(run, changed):
    other = simulate("ring", DATA, "logistic", replace(SHORT, **changed))
    assert not same(run, other)
    assert run.digest != other.digest


@pytest.mark.parametrize(
    "changed", [{"chunk_peers": 2}, {"kernel": "loop"}, {"threads": 2}]
)
def test_the_arithmetic_is_part_of_the_digest(run, changed):
    other = simulate("ring", DATA, "logistic", replace(SHORT, **changed))
    name, value = next(iter(changed.items()))
    assert other.info["arithmetic"][name] == value
    assert run.digest != other.digest
    np.testing.assert_allclose(run.state.params, other.state.params, atol=1e-5)


def test_speed_settings_do_not_change_the_digest(run, caplog):
    caplog.set_level("INFO")
    other = simulate(
        "ring", DATA, "logistic", SHORT, execution=ExecutionConfig(progress=True)
    )
    assert run.digest == other.digest
    assert "training: round 6 of 6" in caplog.text


def test_the_info_says_how_it_was_computed(run):
    assert run.info["arithmetic"]["kernel"] == "stacked"
    assert run.info["arithmetic"]["block_peers"] == 16
    assert set(run.info["versions"]) >= {"dfl_unlearn", "torch", "numpy"}
    assert run.requests == 0
    # batches of 5 from 20, 7, 12, 9 and 15 rows hold 5, 3.5, 4, 4.5 and 5 on average
    assert run.info["sample_gradients"] == 6 * 22


def test_one_peer_is_centralized_descent():
    data = blobs([30], dtype=np.float64)
    config = SimulationConfig(
        rounds=5, local=LocalSteps(batch_size=None, learning_rate=0.2), dtype="float64"
    )
    alone = simulate(Topology.single(), data, "logistic", config)
    theta = alone.record.initial[0].clone()
    for _ in range(5):
        theta.requires_grad_()
        loss = alone.model.loss(theta, data.store)
        theta = theta.detach() - 0.2 * torch.autograd.grad(loss, theta)[0]
    np.testing.assert_allclose(alone.state.params[0], theta, rtol=1e-12)
    assert alone.state.consensus_distance() == 0


def test_pooled_data_train_on_the_one_peer_network():
    pooled = simulate(Topology.single(), DATA.pooled(), "logistic", SHORT)
    assert pooled.state.params.shape == (1, 21)


@pytest.mark.parametrize("form", ["atc", "cta"])
def test_relabelling_the_peers_relabels_the_result(form):
    sizes, order = [9, 4, 7, 5, 6], [3, 0, 4, 1, 2]  # new peer k is old order[k]
    data = blobs(sizes, dtype=np.float64)
    pairs = [(data.local(i).inputs, data.local(i).labels) for i in range(5)]
    moved = PeerData.from_tensors([pairs[i] for i in order], test=pairs[0])
    graph = nx.path_graph(5)
    graph.add_edge(0, 3)
    place = {old: new for new, old in enumerate(order)}
    relabelled = nx.relabel_nodes(graph, place)
    config = full_batch(form, rounds=8, peer_weighting="size")
    a = simulate(Topology.from_graph(graph), data, "logistic", config)
    b = simulate(Topology.from_graph(relabelled), moved, "logistic", config)
    np.testing.assert_allclose(
        b.state.params, a.state.params[order], rtol=1e-10, atol=1e-13
    )
    np.testing.assert_allclose(
        b.record.gradient_norms, a.record.gradient_norms[:, order], rtol=1e-10
    )


@pytest.mark.parametrize("name", ["ring", "star", "erdos-renyi"])
def test_gossip_keeps_the_mean(name):
    topology = load_topology(name, n=9)
    rows = torch.randn(9, 40, dtype=torch.float64, generator=torch.Generator())
    mixed = mix(rows, as_csr(topology.weights, torch.float64))
    np.testing.assert_allclose(mixed.mean(0), rows.mean(0), atol=1e-14)
    np.testing.assert_allclose(mixed, topology.weights @ rows.numpy(), atol=1e-14)
    assert float((mixed - mixed.mean(0)).norm()) < float((rows - rows.mean(0)).norm())


def test_forgetting_at_one_peer_leaves_the_first_local_work_of_others_alone():
    config = replace(SHORT, rounds=1, trainer=DSgd(form="cta"), block_peers=2)
    whole = simulate("ring", DATA, "logistic", config)
    request = ForgetRequest.samples(peer=2, indices=[0, 1, 2, 3])
    left = simulate("ring", DATA.without(request), "logistic", config)
    others = [0, 1, 3, 4]
    assert torch.equal(whole.state.params[others], left.state.params[others])
    assert not torch.equal(whole.state.params[2], left.state.params[2])
    np.testing.assert_array_equal(
        whole.record.gradient_norms[0, others], left.record.gradient_norms[0, others]
    )


def test_only_neighbours_feel_a_change_after_one_mixing():
    config = replace(SHORT, rounds=2, trainer=DSgd(form="cta"))
    whole = simulate("path", DATA, "logistic", config)
    request = ForgetRequest.samples(peer=0, indices=[0, 1, 2, 3])
    left = simulate("path", DATA.without(request), "logistic", config)
    moved = (whole.state.params != left.state.params).any(dim=1)
    assert moved.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("kernel", ["stacked", "loop"])
def test_ten_rounds_and_ten_more_are_twenty(kernel, momentum):
    config = SimulationConfig(
        rounds=20,
        local=LocalSteps(batch_size=4, epochs=0.7, momentum=momentum),
        kernel=kernel,
        block_peers=3,
    )
    whole = simulate("ring", DATA, "logistic", config)
    half = simulate("ring", DATA, "logistic", replace(config, rounds=10))
    state, gradients = continue_training(half, DATA, half.state, 10)
    assert state.round == 20
    assert torch.equal(state.params, whole.state.params)
    assert gradients == half.info["sample_gradients"]


def test_no_more_rounds_are_no_work(run):
    state, gradients = continue_training(run, DATA, run.state, 0)
    assert state is run.state
    assert gradients == 0


def test_retraining_repeats_the_draws_or_takes_others(run):
    assert same(retrain(run, DATA), run)
    other = retrain(run, DATA, seed_offset=1)
    assert not same(other, run)
    assert same(other, simulate("ring", DATA, "logistic", replace(SHORT, seed=1)))
    assert other.record.initial is None
    assert not other.record.checkpoints


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt"])
def test_rates_fall_as_the_schedule_says(schedule):
    local = LocalSteps(learning_rate=0.3, lr_schedule=schedule)
    falling = simulate("ring", DATA, "logistic", replace(SHORT, local=local))
    t = np.arange(6)
    expected = {
        "cosine": 0.15 * (1 + np.cos(np.pi * t / 6)),
        "inverse_sqrt": 0.3 / np.sqrt(1 + t),
    }[schedule]
    np.testing.assert_allclose(falling.record.step_sizes, expected, rtol=1e-14)
    assert local.rate(50, 6) == local.rate(5, 6)  # recovery keeps the last rate


def test_float64_stays_float64():
    exact = simulate("ring", DATA, "logistic", replace(SHORT, dtype="float64"))
    single = simulate("ring", DATA, "logistic", SHORT)
    assert exact.state.params.dtype == torch.float64
    assert single.state.params.dtype == torch.float32
    np.testing.assert_allclose(exact.state.params, single.state.params, atol=1e-5)


def test_every_peer_may_start_from_its_own_parameters():
    own = simulate("ring", DATA, "logistic", replace(SHORT, common_init=False))
    assert len({tuple(row.tolist()) for row in own.record.initial}) == 5
    common = simulate("ring", DATA, "logistic", SHORT)
    assert len({tuple(row.tolist()) for row in common.record.initial}) == 1


@pytest.mark.parametrize(
    ("every", "expected"), [(0, [6]), (2, [2, 4, 6]), (4, [4, 6]), (100, [6])]
)
def test_evaluation_keeps_its_cadence(every, expected):
    done = simulate("ring", DATA, "logistic", replace(SHORT, evaluate_every=every))
    assert done.history.rounds.tolist() == expected
    assert done.history.accuracy.shape == (len(expected), 5)
    assert ((done.history.accuracy >= 0) & (done.history.accuracy <= 1)).all()


def test_a_regression_is_scored_by_its_error():
    fit = simulate(path4(), r4_data(), ridge(), full_batch(rounds=3))
    test = fit.data.test
    predicted = test.inputs @ fit.state.params[1]
    expected = -float((predicted - test.labels).square().mean())
    assert fit.history.accuracy[-1, 1] == pytest.approx(expected)


class Recorder:
    def __init__(self):
        self.calls = []

    def on_round(self, info):
        self.calls.append(("round", info.round, info.loss.shape))

    def on_evaluate(self, history):
        self.calls.append(("evaluate", history.rounds.tolist()))

    def on_end(self, run):
        self.calls.append(("end", run.digest))


def test_callbacks_hear_of_rounds_evaluations_and_the_end():
    recorder = Recorder()
    config = replace(SHORT, rounds=3)
    done = simulate("ring", DATA, "logistic", config, callbacks=(recorder, object()))
    assert recorder.calls == [
        ("round", 1, (5,)),
        ("evaluate", [2]),
        ("round", 2, (5,)),
        ("evaluate", [2, 3]),
        ("round", 3, (5,)),
        ("end", done.digest),
    ]


def test_a_bar_is_drawn_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = ProgressLog(2)
    bar.on_round(
        RoundInfo(round=1, loss=np.ones(2), gradient_norms=np.ones(2), seconds=0.0)
    )
    assert bar._bar.tasks[0].completed == 1
    bar.close()


# --- record ------------------------------------------------------------------


def test_checkpoints_are_the_states_after_their_rounds():
    config = replace(SHORT, record=RecordPlan(every=2))
    kept = simulate("ring", DATA, "logistic", config)
    assert sorted(kept.record.checkpoints) == [2, 4]
    state, _ = continue_training(
        kept, DATA, simulator.initial_state(kept.model, 5, config, kept.rng), 4
    )
    assert torch.equal(kept.record.checkpoints[4], state.params)
    assert kept.record.nbytes == 2 * 5 * 21 * 4 + 6 * 5 * 8


@pytest.mark.parametrize(
    ("rounds", "budget", "expected"),
    [
        (100, 2**30, 8),
        (100, 3 * 1000, 3),
        (100, 999, 0),
        (4, 2**30, 3),
        (1, 2**30, 0),
        (9, 2**30, 8),
    ],
)
def test_automatic_checkpoints_fit_the_budget(rounds, budget, expected):
    found = RecordPlan(memory_budget=budget).checkpoint_rounds(rounds, 1000)
    assert len(found) == expected
    assert all(0 < t < rounds for t in found)
    assert len(set(np.diff((0, *found)))) <= 1


def test_a_cadence_that_does_not_fit_is_refused_with_one_that_does():
    plan = RecordPlan(every=1, memory_budget=3000)
    with pytest.raises(InvalidArgumentError, match=r"record.every: must be >= 3"):
        plan.checkpoint_rounds(10, 1000)
    assert replace(plan, every=3).checkpoint_rounds(10, 1000) == (3, 6, 9)


def test_a_plan_keeps_only_what_is_asked_for():
    config = replace(SHORT, record=RecordPlan(parts=frozenset({"gradient_norms"})))
    kept = simulate("ring", DATA, "logistic", config)
    assert kept.record.initial is None
    assert not kept.record.checkpoints
    assert kept.record.gradient_norms.shape == (6, 5)


def test_a_plan_for_protocols_unites_their_needs():
    class First:
        needs = frozenset({"checkpoints"})

    class Second:
        needs = frozenset({"gradient_norms"})

    assert RecordPlan.for_protocols(First, Second(), object()).parts == {
        "checkpoints",
        "gradient_norms",
    }
    assert RecordPlan.for_protocols().parts == frozenset()


def test_weight_decay_is_no_part_of_the_objective_in_the_record():
    local = LocalSteps(weight_decay=0.3)
    kept = simulate("ring", DATA, "logistic", replace(SHORT, local=local))
    plain = simulate("ring", DATA, "logistic", SHORT)
    assert kept.record.dynamics.weight_decay == 0.3
    assert kept.record.dynamics.decay == 0.01
    assert kept.record.dynamics.smoothness == plain.record.dynamics.smoothness


def test_clipped_softmax_steps_have_no_known_smoothness():
    local = LocalSteps(clip_norm=0.1)
    kept = simulate("ring", DATA, "logistic", replace(SHORT, local=local))
    assert kept.record.dynamics.smoothness is None


# --- refusals ------------------------------------------------------------------


def test_network_and_data_must_have_the_same_peers():
    with pytest.raises(TopologyError, match=r"got 4 peers and data for 5"):
        simulate(path4(), DATA, "logistic", SHORT)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"data": [1, 2]}, "data: must be a PeerData"),
        ({"topology": nx.cycle_graph(5)}, "topology: must be a Topology"),
        ({"model": torch.nn.Linear(6, 3)}, "model: must be a FlatModel"),
        ({"config": {"rounds": 3}}, "config: must be a SimulationConfig"),
        ({"execution": 3}, "execution: must be a ExecutionConfig"),
    ],
)
def test_arguments_of_another_type_are_named(arguments, match):
    given = {"topology": "ring", "data": DATA, "model": "logistic", "config": SHORT}
    with pytest.raises(InvalidTypeError, match=match):
        simulate(**{**given, **arguments})


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'ring'"):
        simulate("rnig", DATA, "logistic", SHORT)
    with pytest.raises(UnknownNameError, match="logistic"):
        simulate("ring", DATA, "logistics", SHORT)


@pytest.mark.parametrize("kernel", ["stacked", "loop"])
def test_diverging_training_names_peer_and_round(kernel):
    config = replace(SHORT, rounds=200, local=LocalSteps(learning_rate=1e6))
    mlp = models.build("mlp", input_shape=(6,), num_classes=3, hidden=(8,))
    with pytest.raises(NumericalError, match=r"peer \d became non-finite in round \d+"):
        simulate("ring", DATA, mlp, replace(config, kernel=kernel))


def test_parameters_that_overflow_in_the_last_round_are_found():
    config = replace(full_batch(rounds=1, rate=1e300), dtype="float64")
    data = blobs([5, 5], dtype=np.float64)
    big = PeerData.from_tensors(
        [(1e100 * data.local(i).inputs, data.local(i).labels) for i in range(2)],
        test=(data.test.inputs, data.test.labels),
    )
    with pytest.raises(NumericalError, match="peer 0 became non-finite in round 1"):
        simulate("complete", big, "logistic", config)


def test_a_run_that_would_not_fit_into_memory_is_refused(monkeypatch):
    model = models.build("logistic", input_shape=(6,), num_classes=3)
    lean = replace(SHORT, record=RecordPlan(parts=frozenset()))
    need = training_memory(DATA, model, lean, ExecutionConfig()).coming
    monkeypatch.setattr(memory, "available_memory", lambda: math.ceil(need / 0.8))
    with pytest.raises(ResourceError, match=r"5 peers x 21 parameters need about"):
        simulate("ring", DATA, "logistic", SHORT)
    simulate("ring", DATA, "logistic", lean)  # without checkpoints it fits
    large = ExecutionConfig(allow_large=True)
    simulate("ring", DATA, "logistic", SHORT, execution=large)


def test_a_folder_that_is_taken_is_refused_before_training(tmp_path, monkeypatch):
    simulate("ring", DATA, "logistic", SHORT, folder=tmp_path / "a")
    monkeypatch.setattr(simulator, "train", None)
    with pytest.raises(InvalidArgumentError, match="must not hold a finished run"):
        simulate("ring", DATA, "logistic", SHORT, folder=tmp_path / "a")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rounds": 0}, "rounds"),
        ({"seed": -1}, "seed"),
        ({"trainer": "d-sgd"}, "trainer: must be a Trainer"),
        ({"dtype": "float16"}, "dtype"),
        ({"kernel": "fast"}, "kernel"),
        ({"chunk_peers": 0}, "chunk_peers"),
        ({"threads": 0}, "threads"),
        ({"evaluate_every": -1}, "evaluate_every"),
        ({"peer_weighting": "rows"}, "peer_weighting"),
        ({"local": {"steps": 1}}, "local"),
    ],
)
def test_settings_out_of_bounds_are_named(fields, match):
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match=match):
        SimulationConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"epochs": 1.0, "steps": 2}, "steps: must stay at its default 1"),
        ({"epochs": 0.0}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"lr_schedule": "step"}, "lr_schedule"),
    ],
)
def test_local_steps_out_of_bounds_are_named(fields, match):
    with pytest.raises(InvalidArgumentError, match=match):
        LocalSteps(**fields)


def test_the_number_of_threads_is_restored(run):
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    blas = blas_report()
    with limited_threads(other):
        assert torch.get_num_threads() == other
        assert {pool["num_threads"] for pool in blas_report()} == {other}
    assert torch.get_num_threads() == before
    assert blas_report() == blas
    assert run.info["arithmetic"]["threads"] == 1


def test_a_run_shows_itself_in_a_notebook(run):
    assert run.digest[:16] in run._repr_html_()
    assert "5 peers" in run._repr_html_()


def test_the_record_says_how_far_the_mean_model_is_from_a_minimizer():
    run = simulate("ring", DATA, "logistic", SHORT)
    mean = run.state.mean()
    total = sum(
        torch.autograd.functional.jacobian(
            lambda p, i=i: run.model.loss(
                p, (DATA.local(i).inputs.double(), DATA.local(i).labels)
            ),
            mean,
        )
        for i in range(DATA.n)
    )
    found = run.record.training_residual
    assert list(found) == [6]
    np.testing.assert_allclose(found[6], float(total.norm()) / DATA.n, rtol=1e-10)
