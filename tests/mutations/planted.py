"""Planted bugs: each has a switch that changes the real code path, and a detector.

``BUGS`` is the list of the accounting text, section 5.6. ``bug.fires(seed)`` builds a
small network, carries the request out and asks the detector; inside ``bug.plant()`` the
package is broken. What no detector finds, or finds only by another road, is said in
``test_mutations``.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
from mutations import watched, watched_training

from dfl_unlearn.accounting import release as release_module
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.rdp import RdpCurve
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.batches import BatchPlan
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning import dissemination, r2d_claim
from dfl_unlearn.unlearning.protocols import newton_fisher
from dfl_unlearn.unlearning.shift import Removal
from dfl_unlearn.unlearning.token import Token


@dataclass(frozen=True, kw_only=True)
class Bug:
    """One planted bug.

    Attributes:
        name: What is wrong.
        detector: What has to notice it.
        fires: Whether the detector fires, for one seed.
        plant: Switches the bug on.
    """

    name: str
    detector: str
    fires: Callable[[int], bool]
    plant: Callable[[], AbstractContextManager]


# --- switches ----------------------------------------------------------------------


def changed_noise(change, purpose_of="unlearn-noise"):
    """All noise of one purpose passes through ``change(draw_again, key)``."""
    normal = RngTree.normal

    def broken(self, shape, purpose, *, who=None, request=None, round=0, draw=0):
        key = {"who": who, "request": request, "round": round, "draw": draw}

        def drawn(**other):
            return normal(self, shape, purpose, **{**key, **other})

        return change(drawn, key) if purpose == purpose_of else drawn()

    return mock.patch.object(RngTree, "normal", broken)


def divided_noise(factor):
    return changed_noise(lambda drawn, key: drawn() / factor)


def halved_training_noise():
    return changed_noise(lambda drawn, key: drawn() / 2, "train-noise")


def noise_omitted_once():
    """The third of the independent noise vectors is never added."""
    return changed_noise(lambda drawn, key: drawn() * (key["draw"] != 2))


def noise_reused():
    """The key forgets the request: two releases share their noise."""
    return changed_noise(lambda drawn, key: drawn(request="r0"))


def stream_shared():
    """The key forgets the last bit of the count: peers share noise in pairs."""
    return changed_noise(lambda drawn, key: drawn(draw=key["draw"] // 2))


def ball_without_factor():
    """The shift inside a ball is taken as its radius instead of its diameter."""
    project = release_module.project_ball_

    def broken(vector, radius, centre=None):
        return project(vector, radius, centre) / 2

    return mock.patch.object(release_module, "project_ball_", broken)


def exchange_without_factor():
    """An exchanged record is taken to cost what a removed one does."""

    def broken(self, adjacency, *, group_size=1):
        return replace(self, adjacency=adjacency)

    return mock.patch.object(RdpCurve, "to_adjacency", broken)


def removal_without_factor():
    """Only the forgotten rows count, not those whose weight rises in their place."""

    def broken(self, data, request, gradient_bound):
        forgotten = request.mask(data)
        return float(gradient_bound * np.abs(self.coefficients[forgotten]).sum())

    return mock.patch.object(Removal, "worst", broken)


def rewinding_without_factor():
    """Gradients of length G are taken to differ by G at most, instead of 2 G."""
    right = r2d_claim.trajectory_sensitivity

    def broken(**numbers):
        return right(**numbers) / 2

    return mock.patch.object(r2d_claim, "trajectory_sensitivity", broken)


def mean_distance():
    """The bound covers the mean peer instead of the farthest one."""
    correct = newton_fisher.correct_mean

    def broken(protocol, run, *others):
        found = correct(protocol, run, *others)
        centre = run.state.mean() + found.move
        spread = (found.rows - centre).norm(dim=1)
        return replace(
            found, distance=found.distance - float(spread.max() - spread.mean())
        )

    return mock.patch.object(newton_fisher, "correct_mean", broken)


def always_part():
    """Every visit reads forgotten rows, though a hidden coin is credited."""
    return mock.patch.object(Token, "_takes_part", return_value=True)


def full_batches():
    """Every row joins every batch of private training."""
    poisson = BatchPlan.poisson

    def broken(self, peers, t, rate):
        batch = poisson(self, peers, t, 1.0)
        return replace(batch, weights=batch.weights / rate)

    return mock.patch.object(BatchPlan, "poisson", broken)


def realized_size():
    """Private training divides by the rows that were taken instead of the expected."""
    poisson = BatchPlan.poisson

    def broken(self, peers, t, rate):
        batch = poisson(self, peers, t, rate)
        taken = np.maximum((batch.weights > 0).sum(axis=1, keepdims=True), 1)
        return replace(batch, weights=(batch.weights > 0) / taken)

    return mock.patch.object(BatchPlan, "poisson", broken)


def momentum_kept():
    """Recovery goes on with the momentum of training."""

    def broken(run, data, state, rounds):
        return continue_training(
            run, data, replace(state, slots=run.state.slots), rounds
        )

    return mock.patch.object(dissemination, "continue_training", broken)


def record_kept():
    """The training record goes along to the next request."""
    replaced = TrainedRun.replaced

    def broken(self, **changes):
        return replaced(self, **{"record": self.record, **changes})

    return mock.patch.object(TrainedRun, "replaced", broken)


@contextmanager
def stale_curvature():
    """Curvature is cached from the objective with the forgotten rows."""
    hessian = Objective.hessian

    def broken(self, theta, *, damping=0.0):
        return hessian(watched.CACHED[0], theta, damping=damping)

    with mock.patch.object(Objective, "hessian", broken):
        yield


def straggler(honest):
    """Peer 0 mixes its model of before the request again, after the correction.

    An honest straggler's messages say how old its state is; another's do not.
    """
    exchange = Transport.exchange

    def old_model(run, data, state, rounds):
        params = state.params.clone()
        params[0] = run.state.params[0]
        return continue_training(run, data, replace(state, params=params), rounds)

    def old_stamp(self, kind, *others):
        if kind == "recovery" and honest:
            self.carried[0] = self.required - 1
        exchange(self, kind, *others)

    @contextmanager
    def planted():
        with (
            mock.patch.object(dissemination, "continue_training", old_model),
            mock.patch.object(Transport, "exchange", old_stamp),
        ):
            yield

    return planted()


def rejoined(honest):
    """Peer 3 was away, comes back with its old model and is averaged in at the end."""

    def averaged(run, data, state, rounds):
        state, gradients = continue_training(run, data, state, rounds)
        params = state.params.clone()
        (near,) = run.topology.graph.neighbors(3)
        params[near] = (params[near] + run.state.params[3]) / 2
        return replace(state, params=params), gradients

    correct = Transport.correct

    def away(self, peers=None):
        correct(self, [i for i in range(self.topology.n) if not honest or i != 3])

    @contextmanager
    def planted():
        with (
            mock.patch.object(dissemination, "continue_training", averaged),
            mock.patch.object(Transport, "correct", away),
        ):
            yield

    return planted()


def off_by_one():
    """The row after each forgotten one goes instead."""
    mask = ForgetRequest.mask

    def broken(self, data):
        return np.roll(mask(self, data), 1)

    return mock.patch.object(ForgetRequest, "mask", broken)


@contextmanager
def charged_late():
    """Charges wait in memory until the request is committed."""
    waiting = []
    write, commit = PrivacyLedger._write, PrivacyLedger.commit

    def held(self, entries):
        waiting.append(list(entries))

    def settled(self, request_id):
        for entries in waiting:
            write(self, entries)
        waiting.clear()
        with mock.patch.object(PrivacyLedger, "_write", write):
            return commit(self, request_id)

    with (
        mock.patch.object(PrivacyLedger, "_write", held),
        mock.patch.object(PrivacyLedger, "commit", settled),
    ):
        yield


@contextmanager
def charged_once():
    """Of several independent releases of a request only the first is charged."""
    charge = PrivacyLedger.charge_owners

    def broken(self, request_id, owners, observers, mechanism, **fields):
        known = vars(self).setdefault("charged_once", {})
        if request_id in known:
            entries = tuple(replace(e, draw=e.draw + 1) for e in known[request_id])
        else:
            entries = charge(self, request_id, owners, observers, mechanism, **fields)
        known[request_id] = entries
        return entries

    with mock.patch.object(PrivacyLedger, "charge_owners", broken):
        yield


NOISE, SHIFT, LEDGER = "noise check", "sensitivity self-check", "ledger check"
EXACT, WIRE, GUESS, COUNT = (
    "exact oracle",
    "transport check",
    "distinguishing test",
    "participation count",
)

BUGS = [
    Bug(name=name, detector=detector, fires=fires, plant=plant)
    for name, detector, fires, plant in (
        (
            "noise / 20",
            NOISE,
            watched.noise_refuted(watched.SINGLE),
            lambda: divided_noise(20),
        ),
        (
            "noise / 2",
            NOISE,
            watched.noise_refuted(watched.SINGLE),
            lambda: divided_noise(2),
        ),
        (
            "training noise / 2",
            NOISE,
            watched_training.odd_training_noise,
            halved_training_noise,
        ),
        (
            "noise omitted at one peer",
            NOISE,
            watched.noise_refuted(watched.INDEPENDENT),
            noise_omitted_once,
        ),
        (
            "noise reused in two releases",
            NOISE,
            watched.noise_refuted(watched.SINGLE),
            noise_reused,
        ),
        (
            "one stream for two peers",
            NOISE,
            watched.noise_refuted(watched.INDEPENDENT),
            stream_shared,
        ),
        ("ball without factor 2", SHIFT, watched.ball_is_left, ball_without_factor),
        (
            "removal without factor 2",
            SHIFT,
            watched.removal_is_more,
            removal_without_factor,
        ),
        (
            "rewinding without factor 2",
            SHIFT,
            watched.rewound_farther,
            rewinding_without_factor,
        ),
        ("mean instead of max", SHIFT, watched.farther_than_claimed, mean_distance),
        (
            "exchange without factor 2",
            SHIFT,
            watched_training.exchange_costs_more,
            exchange_without_factor,
        ),
        (
            "divided by the realized batch",
            SHIFT,
            watched_training.row_moves_more,
            realized_size,
        ),
        (
            "every visit reads S, a coin credited",
            COUNT,
            watched.reads_too_often,
            always_part,
        ),
        (
            "full batch, subsampling credited",
            COUNT,
            watched_training.batch_is_too_full,
            full_batches,
        ),
        ("momentum still has S", EXACT, watched.state_goes_along, momentum_kept),
        ("curvature still has S", EXACT, watched.step_misses, stale_curvature),
        ("influence record still has S", EXACT, watched.record_goes_along, record_kept),
        ("straggler", WIRE, watched.transport_objects, lambda: straggler(honest=True)),
        (
            "straggler, wrong stamp",
            GUESS,
            watched.worlds_differ,
            lambda: straggler(False),
        ),
        (
            "rejoined with its old model",
            WIRE,
            watched.transport_objects,
            lambda: rejoined(True),
        ),
        (
            "rejoined, wrong stamp",
            GUESS,
            watched.worlds_differ,
            lambda: rejoined(False),
        ),
        ("forget set off by one", EXACT, watched.other_rows_forgotten, off_by_one),
        ("charged after the send", LEDGER, watched.crash_forgets, charged_late),
        ("m releases charged once", LEDGER, watched.charged_too_little, charged_once),
    )
]
