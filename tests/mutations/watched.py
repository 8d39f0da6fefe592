"""Small networks, and what a detector sees of them for one seed."""

import functools
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from mutations import detectors
from networks import (
    blobs,
    full_batch,
    opposed_run,
    path4,
    r4_data,
    r4_request,
    ridge,
)

from dfl_unlearn.accounting import release as release_module
from dfl_unlearn.accounting.gaussian import gaussian_noise_std
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.curvature.newton import newton_step
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData, TensorBatch
from dfl_unlearn.engine.config import LocalSteps, SimulationConfig
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training, simulate
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.errors import MissingRecordError, StaleModelError
from dfl_unlearn.evaluation.audit_noise import audit_noise_std
from dfl_unlearn.models.zoo import models
from dfl_unlearn.record.plan import RecordPlan
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.apply import unlearn
from dfl_unlearn.unlearning.influence_weights import check_weights
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective
from dfl_unlearn.unlearning.shift import Removal
from dfl_unlearn.unlearning.token import Token


@functools.cache
def wide_run():
    """5 peers whose logistic model has 6105 parameters: one release is enough noise."""
    data = blobs([4] * 5, features=1220, classes=5, dtype=np.float64)
    return simulate("ring", data, "logistic", full_batch(rounds=5))


WIDE = ForgetRequest.samples(peer=1, indices=[0], request_id="r0")
SINGLE = NewtonFisher(recovery_rounds=0, newton_steps_max=60)
INDEPENDENT = NewtonFisher(
    recovery_rounds=0, noise_placement="independent", residual_cap=10.0
)


def small_run(seed, momentum=0.0):
    """4 peers with 6 rows of 3 features each, trained with a record."""
    config = SimulationConfig(
        rounds=6,
        local=LocalSteps(batch_size=3, learning_rate=0.02, momentum=momentum),
        dtype="float64",
        seed=seed,
        record=RecordPlan(parts=frozenset({"training_residual", "gradient_norms"})),
    )
    data = blobs([6] * 4, features=3, seed=seed, dtype=np.float64)
    return simulate("ring", data, "logistic", config)


SMALL = ForgetRequest.samples(peer=2, indices=[1, 3], request_id="r0")


@functools.cache
def ridge_run():
    """The R4 network at its minimizer."""
    return simulate(path4(), r4_data(), ridge(), full_batch(rounds=200))


CACHED: list = [None]  # the ridge objective of before the request, for a stale cache


# --- what each seed does -----------------------------------------------------------


def noise_refuted(protocol):
    """The package's own measurement of a protocol's noise refutes the claim."""

    def fires(seed):
        run = wide_run().replaced(rng=RngTree(seed))
        return audit_noise_std(run, WIDE, protocol).verdict == "refuted"

    return fires


def ball_is_left(seed):
    rng = np.random.default_rng(seed)
    size, radius = int(rng.integers(1, 6)), float(rng.uniform(0.1, 3))
    points = torch.from_numpy(rng.normal(size=(2000, size)) * 5)
    shifts = []
    for one, other in zip(points[::2], points[1::2], strict=True):
        pair = [one.clone(), other.clone()]
        claimed = max(release_module.project_ball_(x, radius) for x in pair)
        shifts.append(float((pair[0] - pair[1]).norm()))
    worst = [torch.eye(size, dtype=torch.float64)[0] * sign * 9 for sign in (1, -1)]
    for x in worst:
        release_module.project_ball_(x, radius)
    shifts.append(float((worst[0] - worst[1]).norm()))
    return detectors.sensitivity_check(shifts, claimed)


def opposed(slope, rows):
    """A peer whose kept and forgotten rows pull in opposite directions, fully."""
    ahead, behind = (1.0, slope), (1.0, -slope)
    inputs = torch.tensor([ahead] + [behind] * (rows - 1), dtype=torch.float64)
    labels = torch.tensor([0] + [1] * (rows - 1))
    other = torch.tensor([behind], dtype=torch.float64), torch.tensor([1])
    return PeerData.from_tensors([(inputs, labels), other], test=other, num_classes=2)


def removal_is_more(seed):
    rng = np.random.default_rng(seed)
    model = models.build(
        "logistic", input_shape=(2,), num_classes=2, l2=0.1, bias=False
    )
    rows, slope = int(rng.integers(3, 9)), float(rng.uniform(0.01, 0.1))
    data, length = opposed(slope, rows), (1 + slope**2) ** 0.5
    request = ForgetRequest.samples(peer=0, indices=[0], request_id="r0").resolve(data)
    removal = Removal.of(data, request, "uniform")
    bound = float(model.constants(length)["gradient_bound"].value)
    worst = removal.worst(data, request, bound)
    steep = 1e4 * torch.tensor([0.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    shifts = [removal.norm(model, data, steep)]
    for _ in range(1000):
        inputs = torch.from_numpy(rng.normal(size=(rows + 1, 2)))
        inputs *= length / inputs.norm(dim=1, keepdim=True)
        other = replace(data, store=TensorBatch(inputs, data.store.labels))
        theta = torch.from_numpy(rng.normal(size=4) * 5)
        shifts.append(removal.norm(model, other, theta))
    return detectors.sensitivity_check(shifts, worst)


def rewound_farther(seed):
    """Steps taken again end farther from retraining than the certificate says."""
    run = opposed_run(seed)
    request = ForgetRequest.samples(peer=0, indices=[0, 1], request_id="r0")
    claimed = unlearn(run, request, AtPeer(method=R2d())).certificate.sensitivity
    silent = AtPeer(method=R2d(epsilon=None))
    ends = [unlearn(run, request, how).state.params for how in (silent, "retrain")]
    return detectors.sensitivity_check([float((ends[0] - ends[1]).norm())], claimed)


def farther_than_claimed(seed):
    run = small_run(seed)
    protocol = NewtonFisher(
        recovery_rounds=0,
        noise_placement="independent",
        influence_weights="uniform",
        residual_cap=50.0,
        newton_steps=15,
        newton_steps_max=15,
    )
    outcome = unlearn(run, SMALL, protocol)
    target = exact_minimizer(run, run.data.without(SMALL)).theta
    shifts = [
        float((row - outcome.certificate.noise_std * noise - target).norm())
        for row, noise in zip(
            outcome.state.params,
            (
                run.rng.normal(
                    (run.model.size,),
                    "unlearn-noise",
                    who="peer:2",
                    request="r0",
                    draw=i,
                )
                for i in range(4)
            ),
            strict=True,
        )
    ]
    (claimed,) = (
        a.value
        for a in outcome.certificate.assumptions
        if a.name == "distance to the exact minimizer"
    )
    return detectors.sensitivity_check(shifts, claimed)


def reads_too_often(seed):
    run = small_run(seed)
    rate, taken = 0.3, []
    protocol = RrDu(
        alignment="lightweight",
        clip_norm=1.0,
        segment_subsampling=rate,
        restart_probability=0.5,
        max_visits=16,  # always as many: their noise is calibrated once
        residual_cap=500.0,
    )
    forgotten = Token._forgotten

    def counted(self, theta):
        taken.append(1)
        return forgotten(self, theta)

    with mock.patch.object(Token, "_forgotten", counted):
        outcome = unlearn(run, SMALL, protocol)
    visits = int(outcome.info["visits"]) - 1
    return detectors.participation_check(len(taken), visits, rate)


def state_goes_along(seed):
    """The same released model, with and without the momentum of training."""
    run = small_run(seed, momentum=0.9)
    bare = run.replaced(state=PeerState(params=run.state.params, round=run.state.round))
    protocol = NewtonFisher(recovery_rounds=2)
    one, other = (unlearn(r, SMALL, protocol).state.params for r in (run, bare))
    return not detectors.same_bits(one, other)


def record_goes_along(seed):
    """The next request finds no influence that training with the data left behind."""
    outcome = unlearn(small_run(seed), SMALL, NewtonFisher())
    try:
        check_weights("empirical", outcome.as_run(), owner=1)
    except MissingRecordError:
        return False
    return True


def step_misses(seed):
    """One Newton step on a quadratic lands on the minimizer, or was none."""
    rng = np.random.default_rng(seed)
    pairs = [
        (
            torch.from_numpy(rng.normal(size=(5, 2))),
            torch.from_numpy(rng.normal(size=5)),
        )
        for _ in range(4)
    ]
    data = PeerData.from_tensors(pairs, test=pairs[0])
    run = TrainedRun.from_states(
        path4(), data, ridge(), torch.zeros(4, 2), full_batch(rounds=1)
    )
    kept = data.without(SMALL)
    CACHED[0] = network_objective(run)
    objective = network_objective(run, kept)
    theta = torch.zeros(2, dtype=torch.float64)
    move, _ = newton_step(
        objective,
        theta,
        objective.gradient(theta),
        damping=0.0,
        tolerance=1e-12,
        max_iterations=50,
    )
    weights = objective.weights
    x, y = kept.store.inputs.numpy(), kept.store.labels.numpy()
    gram = (x * weights[:, None]).T @ x + 0.1 * np.eye(2)
    exact = np.linalg.solve(gram, (x * weights[:, None]).T @ y)
    return bool(np.abs(move.numpy() - exact).max() > 1e-9)


def transport_objects(seed):
    run = ridge_run().replaced(rng=RngTree(seed))
    try:
        outcome = unlearn(run, r4_request(), NewtonFisher(recovery_rounds=1))
    except StaleModelError:
        return True
    return len(outcome.messages) == 0


def worlds_differ(seed, *, replicas=100):
    """Released networks against the exact minimizer, noised and trained on alike."""
    run, request = ridge_run(), r4_request()
    protocol = NewtonFisher(recovery_rounds=1)
    kept = run.data.without(request)
    target = exact_minimizer(run, kept).theta
    sensitivity = 1.01 * protocol.residual_cap
    noise_std = gaussian_noise_std(protocol.epsilon, protocol.delta, sensitivity)
    worlds: dict[str, list] = {"reference": [], "unlearned": []}
    for i in range(replicas):
        tree = RngTree(f"audit/{seed}/unlearned/{i}")
        outcome = unlearn(run.replaced(rng=tree), request, protocol)
        worlds["unlearned"].append(outcome.state.params.flatten())
        tree = RngTree(f"audit/{seed}/reference/{i}")
        noised = target + noise_std * tree.normal((2,), "audit")
        start = PeerState(params=noised.expand(4, -1).clone(), round=run.state.round)
        state, _ = continue_training(run, kept, start, protocol.recovery_rounds)
        worlds["reference"].append(state.params.flatten())
    return detectors.distinguishing_test(
        torch.stack(worlds["reference"]),
        torch.stack(worlds["unlearned"]),
        (protocol.epsilon, protocol.delta),
    )


def other_rows_forgotten(seed):
    """The corrected model is a stationary point of what a tester keeps by hand."""
    run = small_run(seed)
    outcome = unlearn(run, SMALL, SINGLE)
    noise = run.rng.normal(
        (run.model.size,), "unlearn-noise", who="peer:2", request="r0"
    )
    corrected = outcome.state.params[0] - outcome.certificate.noise_std * noise

    def objective(theta):
        total = 0.0
        for i in range(4):
            batch = run.data.local(i)
            keep = [k for k in range(6) if i != 2 or k not in (1, 3)]
            total += torch.nn.functional.cross_entropy(
                batch.inputs[keep] @ theta[:9].view(3, 3).T + theta[9:],
                batch.labels[keep],
            )
        return total / 4 + 0.005 * theta.square().sum()

    gradient = torch.func.grad(objective)(corrected)
    return float(gradient.norm()) / 0.01 > SINGLE.residual_cap * (1 + 1e-9)


def crash_forgets(seed):
    """A crash after some message left; the ledger is read again from its file."""
    run, sent = ridge_run(), []
    step = Transport._step

    def fails(self, kind, edges, payload_bytes, **more):
        if kind == "noised model" and edges:
            sent.append(edges)
            if len(sent) > seed % 2:
                raise KeyboardInterrupt
        step(self, kind, edges, payload_bytes, **more)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        saved = run.save(folder)
        with mock.patch.object(Transport, "_step", fails), suppress(KeyboardInterrupt):
            unlearn(saved, r4_request(), NewtonFisher(), folder=folder)
        assert sent
        path = folder / "outcomes" / "r0.newton-fisher" / "ledger.jsonl"
        return not (path.exists() and PrivacyLedger.load(path).entries)


def charged_too_little(seed):
    run = wide_run().replaced(rng=RngTree(seed))
    with detectors.drawn_noise() as streams:
        outcome = unlearn(run, WIDE, INDEPENDENT)
    certificate = outcome.certificate
    cheap = detectors.averaging_check(
        outcome.ledger, "peer:1", certificate.noise_std, 10.1, 5, 1e-5
    )
    return cheap or detectors.stream_check(streams, outcome.ledger)
