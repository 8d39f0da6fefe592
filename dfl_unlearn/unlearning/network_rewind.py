r"""All peers go back some rounds and train again without the data: r2d for a network.

One round of D-SGD, :math:`X^+ = W(X - \eta G(X))` (atc) or
:math:`X^+ = WX - \eta G(X)` (cta) with doubly stochastic W, stretches the distance of
two stacks of all peers' models by at most :math:`1 + \eta L`, since
:math:`\|W\| \le 1`; forgetting :math:`m_u` of the :math:`n_u` rows of peer u moves it
by at most :math:`2\eta m_u G/n_u` (Frobenius norm), several owners by the root of the
sum of squares. So the bound for one model (``accounting.trajectory``) holds for the
stack with n_u in the place of n, and noise of that scale on every peer's model makes
the **joint** release of all of them certified [derived]. With s local steps a round
counts as s steps: for cta the local change of a round is
:math:`((1+\eta L)^s - 1)`-Lipschitz.

A convex loss gives c = 1 for atc with :math:`\eta \le 2/L`, as steps on it do not
stretch and W neither. For cta it does so only with one local step and
:math:`\eta L \le 1 + \lambda_{min}(W)`, where :math:`W - \eta H` has no eigenvalue
below -1; strong convexity is used for atc alone.

Nothing is claimed about messages: those before the request, and the replayed rounds',
carry no noise. With K = T the result is retraining itself, ``exact`` and noiseless.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.accounting.certificate import (
    Assumption,
    Certificate,
    certify,
    status_of,
)
from dfl_unlearn.accounting.gaussian import (
    Calibration,
    gaussian_epsilon,
    gaussian_noise_std,
)
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.accounting.trajectory import Regime, trajectory_sensitivity
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.clock import samples_each
from dfl_unlearn.engine.influence import best_influence
from dfl_unlearn.engine.local_history import history_of
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import continue_training, initial_state
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.engine.transport import Transport
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    MissingRecordError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.claims import (
    earlier_releases,
    exposure_of,
    extractor_of,
    observers_of,
    owners_of,
)
from dfl_unlearn.unlearning.contracts import Cost, Outcome
from dfl_unlearn.unlearning.local import methods
from dfl_unlearn.unlearning.noise_modes import spent_together

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.at_peer import AtPeer

REWINDING = ("original", "r2d")
"""Methods that ``rewind_network`` stands for: the rounds again, with r2d's noise."""

_NOTICE = 16  # bytes: the request's number and the round to go back to
_DENSE = 2000
_SLACK = 1e-12


def network_sensitivity(
    *,
    topology: Topology,
    form: str,
    local_steps: int,
    rewind_rounds: int,
    rounds: int,
    learning_rate: float,
    smoothness: float,
    gradient_bound: float,
    forgotten: NDArray[np.float64],
    regime: Regime = "nonconvex",
    strong_convexity: float = 0.0,
) -> float:
    """Return how far a rewound network ends from a retrained one at most.

    Args:
        topology: Doubly stochastic network.
        form: ``atc`` or ``cta``.
        local_steps: Full-batch steps of a round, s.
        rewind_rounds: K, 0 .. T.
        rounds: T.
        learning_rate: eta.
        smoothness: L of every peer's loss, l2 and weight decay included.
        gradient_bound: G of the owners' samples, data term.
        forgotten: Share m_u / n_u of each owner's rows that go.
        regime: What is known of every peer's loss.
        strong_convexity: mu > 0 with ``strongly_convex``.

    Returns:
        Bound on the Frobenius norm over the stack of all models, rounded up.

    Raises:
        SensitivityUnprovenError: If the regime gives no bound here.
    """
    if regime != "nonconvex" and form == "cta":
        least = smallest_eigenvalue(topology)
        fits = local_steps == 1 and learning_rate * smoothness <= 1 + least
        if regime == "strongly_convex" or not fits:
            raise SensitivityUnprovenError(
                f"regime: must be 'nonconvex' for cta with {local_steps} local steps, "
                f"learning_rate * L = {learning_rate * smoothness:.6g} and "
                f"1 + lambda_min(W) = {1 + least:.6g}, got {regime!r}; train with "
                "form='atc', or with one step and a smaller rate for 'convex'"
            )
    # 2 eta (m/n) G as m = 1 of n = 2 with twice the scaled G: the bound is linear.
    push = math.nextafter(2 * gradient_bound * math.hypot(*forgotten), math.inf)
    return trajectory_sensitivity(
        rewind_steps=rewind_rounds * local_steps,
        steps=rounds * local_steps,
        learning_rate=learning_rate,
        smoothness=smoothness,
        gradient_bound=push,
        forget=1,
        samples=2,
        regime=regime,
        strong_convexity=strong_convexity,
    )


def smallest_eigenvalue(topology: Topology) -> float:
    """Return a lower bound on the eigenvalues of a symmetric W.

    Returns:
        The smallest one less a rounding share up to 2000 peers, Gershgorin's bound
        ``min_i 2 W_ii - 1`` above.

    Raises:
        SensitivityUnprovenError: If W is not symmetric.
    """
    weights = topology.weights
    if abs(weights - weights.T).max() > _SLACK:
        raise SensitivityUnprovenError(
            "topology: must have symmetric weights for a convex bound with cta, got "
            "others; use form='atc' or regime='nonconvex'"
        )
    if topology.n > _DENSE:
        return float(2 * weights.diagonal().min() - 1)
    return float(np.linalg.eigvalsh(weights.toarray())[0]) - _SLACK * topology.n


def check_rewind(
    protocol: "AtPeer",
    run: TrainedRun | None = None,
    request: ForgetRequest | None = None,
) -> None:
    """Refuse what cannot be rewound; by the fields alone, or on a run.

    Args:
        protocol: Its fields.
        run: The network, or None.
        request: The resolved request, or None.

    Raises:
        InvalidHyperparameterError: If fields contradict each other.
        UnsupportedRequestError: If this training cannot be replayed without the data.
    """
    name = methods.name_of(protocol.method)
    if name not in REWINDING:
        raise InvalidHyperparameterError(
            f"method: must be one of {', '.join(REWINDING)} with "
            f"reentry='rewind_network', got {name}, which would not run; use another "
            "reentry"
        )
    if protocol.gossip_rounds:
        raise InvalidHyperparameterError(
            "gossip_rounds: must be 0 with reentry='rewind_network', got "
            f"{protocol.gossip_rounds}; the replayed rounds are gossip already"
        )
    if protocol.influence_threshold and _Noise.of(protocol.method) is not None:
        raise InvalidHyperparameterError(
            "influence_threshold: must be 0 with an epsilon or noise_std, got "
            f"{protocol.influence_threshold}; no bound is known where some peers do "
            "not go back: use epsilon=None"
        )
    if run is None or request is None:
        return
    if request.normalization != "local_mean":
        raise UnsupportedRequestError(
            "normalization: must be 'local_mean' for reentry='rewind_network', got "
            f"{request.normalization!r}; the bound is about the mean over what is left"
        )
    if run.config.private is not None:
        raise UnsupportedRequestError(
            "reentry: must not be 'rewind_network' for a run that was trained "
            "privately, got it; the same noise twice hides nothing from whoever sees "
            "both: use retrain with coupled=False"
        )
    start, _ = _start(protocol, run)
    noise = _Noise.of(protocol.method)
    if start and noise is not None:
        _bound(noise, run, request, run.config.rounds - start)


def rewound(
    protocol: "AtPeer", run: TrainedRun, request: ForgetRequest, rng: RngTree
) -> Outcome:
    """Return the outcome of going back and training again without the data.

    Args:
        protocol: Its fields.
        run: The network, with this attempt's ledger.
        request: The resolved request.
        rng: The run's draws.

    Returns:
        Exact where all peers went back to the start; with noise and a claim where r2d
        has them; else without one.
    """
    rounds = run.config.rounds
    start, params = _start(protocol, run)
    stays = _stays(protocol, run, request)
    transport = run.transport()
    transport.notify(request.requester, "notice", _NOTICE)
    state, gradients = _replayed(run, request, start, params, stays, transport)
    certificate = None
    noise = _Noise.of(protocol.method)
    if start == 0 and not stays.any():
        certificate = _exact(run, request)
    elif noise is not None:
        state, certificate = _released(noise, run, request, rng, state, rounds - start)
    if stays.any():
        notes = [
            f"{int((~stays).sum())} of {run.topology.n} peers went back to round "
            f"{start} of {rounds}; the others kept their models, which neighbours "
            "averaged with in the replayed rounds"
        ]
    else:
        notes = [f"all peers went back to round {start} of {rounds}"]
    if rounds - start > (wanted := _wanted(protocol, run)):
        notes.append(
            f"{wanted} rounds were asked for; the nearest recorded state before that "
            "was used"
        )
    if state.slots and start:
        notes.append("momentum and trackers began afresh at the recorded state")
    return Outcome(
        run=run,
        request=request,
        protocol=protocol,
        state=state,
        certificate=certificate,
        cost=Cost(
            rounds=rounds - start,
            sample_gradients=gradients,
            record_bytes=params.nbytes if start else 0,
            trainable_parameters=run.model.size,
        ),
        ledger=run.ledger,
        messages=transport.log,
        info={"rewind_rounds": float(rounds - start)},
        notes=tuple(notes),
    )


def _wanted(protocol: "AtPeer", run: TrainedRun) -> int:
    """Return K, the rounds to go back.

    Raises:
        InvalidHyperparameterError: If there are not so many.
    """
    rounds = run.config.rounds
    if protocol.rewind_rounds is not None:
        if protocol.rewind_rounds > rounds:
            raise InvalidHyperparameterError(
                f"rewind_rounds: must be at most the {rounds} rounds of training, got "
                f"{protocol.rewind_rounds}; leave it out to go back to the start"
            )
        return protocol.rewind_rounds
    share: float | None = getattr(protocol.method, "rewind", None)
    return rounds if share is None else math.ceil(share * rounds)


def _start(protocol: "AtPeer", run: TrainedRun) -> tuple[int, Tensor]:
    """Return the newest recorded round that is early enough, and its models.

    Raises:
        MissingRecordError: If training kept none; the start is drawn again.
    """
    last = run.config.rounds - _wanted(protocol, run)
    if last > 0 and run.record is None:
        raise MissingRecordError(
            "record: must hold checkpoints for reentry='rewind_network' with fewer "
            f"than all {run.config.rounds} rounds, got nothing; "
            + (
                "the record stayed behind with an earlier request: "
                if run.requests
                else "train here with record=RecordPlan(), or "
            )
            + f"use rewind_rounds={run.config.rounds}, which needs none"
        )
    known = {} if run.record is None else dict(run.record.checkpoints)
    early = [t for t in known if 0 < t <= last]
    if early:
        return max(early), known[max(early)]
    return 0, initial_state(run.model, run.topology.n, run.config, run.rng).params


def _stays(
    protocol: "AtPeer", run: TrainedRun, request: ForgetRequest
) -> NDArray[np.bool_]:
    """Return the peers that the owners' data hardly reached, shape ``(N,)``."""
    if protocol.influence_threshold == 0:
        return np.zeros(run.topology.n, dtype=np.bool_)
    shares = [best_influence(run, owner).shares()[-1] for owner in request.peers]
    stays: NDArray[np.bool_] = np.max(shares, axis=0) <= protocol.influence_threshold
    stays[list(request.peers)] = False
    return stays


def _replayed(
    run: TrainedRun,
    request: ForgetRequest,
    start: int,
    params: Tensor,
    stays: NDArray[np.bool_],
    transport: Transport,
) -> tuple[PeerState, int]:
    """Train again from a recorded round; some peers' models stay what they were.

    Returns:
        The state, and the per-sample gradients of those that trained.
    """
    data, rounds = run.data.without(request), run.config.rounds - start
    payload = run.model.size * params.element_size() * len(run.config.trainer.mixed)
    everyone = samples_each(data, run.config)
    each = everyone * ~stays
    for _ in range(rounds):
        transport.work(each)
        transport.exchange("training", payload)
    if not stays.any():
        begun = PeerState(params=params, round=start)
        return continue_training(run, data, begun, rounds)
    held = torch.from_numpy(stays)[:, None]

    def fixed(state: PeerState) -> PeerState:
        rows = torch.where(held, run.state.params, state.params)
        return PeerState(params=rows, slots=state.slots, round=state.round)

    state, gradients = fixed(PeerState(params=params, round=start)), 0
    for _ in range(rounds):
        state, taken = continue_training(run, data, state, 1)
        state = fixed(state)
        gradients += taken
    return state, int(np.rint(gradients * each.sum() / max(everyone.sum(), 1.0)))


def _exact(run: TrainedRun, request: ForgetRequest) -> Certificate:
    """Return the certificate of a network that never had the data."""
    return certify(
        method="at-peer",
        request_id=request.request_id,
        group_size=None,
        scope="joint",
        epsilon=0.0,
        delta=0.0,
        sensitivity=0.0,
        bound="none",
        noise_std=0.0,
        accountant="none",
        assumptions=(
            Assumption(
                name="training data",
                value="retained rows only",
                source="proven",
                note="all peers started again from the initial parameters; the "
                "forgotten rows have weight 0 in every step",
            ),
            *extractor_of(run),
        ),
        observers=("public",),
        exposure=exposure_of(run, request),
        adaptive=request.adaptive,
        exact=True,
    )


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """What r2d's fields ask for.

    Attributes:
        epsilon: Or None where ``noise_std`` is given.
        delta: Failure probability.
        noise_std: Or None where ``epsilon`` is given.
        calibration: See ``gaussian_noise_std``.
        regime: ``auto`` or what is known of the loss.
    """

    epsilon: float | None
    delta: float
    noise_std: float | None
    calibration: Calibration
    regime: Regime | Literal["auto"]

    @classmethod
    def of(cls, method: object) -> "_Noise | None":
        """Return what a method asks for; None where it adds no noise."""
        fields: Any = method
        epsilon = getattr(method, "epsilon", None)
        noise_std = getattr(method, "noise_std", None)
        if epsilon is None and noise_std is None:
            return None
        return cls(
            epsilon=epsilon,
            delta=fields.delta,
            noise_std=noise_std,
            calibration=fields.calibration,
            regime=fields.regime,
        )


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """How far the rewound network is from a retrained one, and why.

    Attributes:
        sensitivity: On the stack of all models.
        assumptions: Every constant and condition.
    """

    sensitivity: float
    assumptions: tuple[Assumption, ...]


def _bound(
    noise: _Noise, run: TrainedRun, request: ForgetRequest, rewind: int
) -> _Bound:
    """Return the bound, from the fields and the run alone; nothing is computed.

    Raises:
        SensitivityUnprovenError: If a constant is unknown or the bound infinite.
    """
    constants, owners_keep = _constants(run, request)
    local = run.config.local
    steps = local.per_round(run.data.sizes)
    form = run.config.trainer.form if type(run.config.trainer) is DSgd else "atc"
    gone = request.mask(run.data)
    shares = np.array(
        [gone[run.data.rows(u)].mean() for u in request.peers], dtype=np.float64
    )
    found: dict[Regime, float] = {}
    regimes: tuple[Regime, ...] = (
        get_args(Regime) if noise.regime == "auto" else (noise.regime,)
    )
    for regime in regimes:
        if regime != "nonconvex" and not run.model.convex:
            continue
        if regime == "strongly_convex" and "mu" not in constants:
            continue
        try:
            found[regime] = network_sensitivity(
                topology=run.topology,
                form=form,
                local_steps=int(steps.max()),
                rewind_rounds=rewind,
                rounds=run.config.rounds,
                learning_rate=local.learning_rate,
                smoothness=float(constants["L"].value),
                gradient_bound=float(constants["G"].value),
                forgotten=shares,
                regime=regime,
                strong_convexity=float(constants["mu"].value)
                if regime == "strongly_convex"
                else 0.0,
            )
        except SensitivityUnprovenError:
            if noise.regime != "auto":
                raise
    if not found or not math.isfinite(min(found.values())):
        raise SensitivityUnprovenError(
            f"regime: must give a finite bound, got {noise.regime!r} with "
            f"{_listed(found) or 'no bound for this model'}; rewind more, to all "
            f"{run.config.rounds} rounds in the end, or use epsilon=None"
        )
    regime = min(found, key=lambda name: found[name])
    return _Bound(
        sensitivity=found[regime],
        assumptions=(
            *constants.values(),
            *_conditions(run, regime, form, owners_keep=owners_keep),
            *extractor_of(run),
        ),
    )


def _constants(
    run: TrainedRun, request: ForgetRequest
) -> tuple[dict[str, Assumption], bool]:
    """Return L of all peers, G of the owners and mu, and whether owners keep rows.

    Raises:
        SensitivityUnprovenError: If L or G is not known.
    """
    histories = [history_of(run, peer) for peer in range(run.topology.n)]
    known = [history for history in histories if history is not None]
    smooth = [h.smoothness for h in known if h.smoothness is not None]
    owned = [known[u].gradient_bound for u in request.peers if u < len(known)]
    bounds = [bound for bound in owned if bound is not None]
    if len(smooth) < run.topology.n or len(bounds) < len(request.peers):
        raise SensitivityUnprovenError(
            "model: must have known bounds on curvature and gradients for a claim, got "
            "none for this one; give r2d constants, train a linear model with clipped "
            "or bounded gradients, or use epsilon=None"
        )
    found = {
        "L": max(smooth, key=lambda a: float(a.value)),
        "G": max(bounds, key=lambda a: float(a.value)),
    }
    convex = [h.strong_convexity for h in known if h.strong_convexity is not None]
    if len(convex) == run.topology.n:
        found["mu"] = min(convex, key=lambda a: float(a.value))
    kept = run.data.without(request).retained
    return found, bool((kept[list(request.peers)] > 0).all())


def _conditions(
    run: TrainedRun, regime: Regime, form: str, *, owners_keep: bool
) -> list[Assumption]:
    """Return the conditions of the bound, each held or violated."""
    config, local = run.config, run.config.local
    steps = local.per_round(run.data.sizes)
    checks = {
        "training iteration": (
            type(config.trainer) is DSgd,
            f"d-sgd, {form}" if type(config.trainer) is DSgd else "not d-sgd",
        ),
        "mixing": (
            run.topology.stochastic == "doubly" and config.schedule is None,
            "doubly stochastic, the same in every round"
            if config.schedule is None
            else "a schedule",
        ),
        "batches": (
            local.batch_size is None or local.batch_size >= run.data.sizes.max(),
            "all rows" if local.batch_size is None else f"{local.batch_size} rows",
        ),
        "learning rate": (local.lr_schedule == "constant", local.lr_schedule),
        "momentum": (local.momentum == 0, f"{local.momentum:g}"),
        "local steps": (int(steps.min()) == int(steps.max()), f"{steps.max()} a round"),
        "weights of peers": (
            config.peer_weighting == "uniform",
            config.peer_weighting,
        ),
        "rows left at the owners": (owners_keep, "some" if owners_keep else "none"),
        "earlier requests": (not run.requests, f"{run.requests}"),
    }
    return [
        Assumption(
            name="regime",
            value=regime,
            source="proven",
            note="by the model's registered type"
            if regime != "nonconvex"
            else "holds for any smooth loss",
        ),
        *(
            Assumption(
                name=name,
                value=value,
                source="proven",
                state="held" if fits else "violated",
                note="the bound is about full-batch D-SGD of one constant size",
            )
            for name, (fits, value) in checks.items()
        ),
    ]


def _released(
    noise: _Noise,
    run: TrainedRun,
    request: ForgetRequest,
    rng: RngTree,
    state: PeerState,
    rewind: int,
) -> tuple[PeerState, Certificate]:
    """Charge, add noise to every peer's model and certify the joint release."""
    bound = _bound(noise, run, request, rewind)
    earlier = earlier_releases(run, request)
    assumptions = [*bound.assumptions, *([] if earlier is None else [earlier])]
    noise_std = noise.noise_std
    if noise_std is None:
        assert noise.epsilon is not None
        noise_std = gaussian_noise_std(
            noise.epsilon, noise.delta, bound.sensitivity, noise.calibration
        )
    epsilon = noise.epsilon
    if epsilon is None:
        epsilon = gaussian_epsilon(bound.sensitivity / noise_std, noise.delta)
    size = request.size(run.data)
    release = GaussianRelease(sensitivity=bound.sensitivity, noise_std=noise_std)
    rows = release(
        state.params.double(),
        ledger=run.ledger,
        request_id=request.request_id,
        owner=owners_of(request),
        observers=observers_of(run, request),
        rng=rng,
        group_size=size,
        scope="joint",
        status=status_of(assumptions, adaptive=request.adaptive),
        assumptions=tuple(a.name for a in assumptions),
    )
    run.ledger.commit(request.request_id)
    composed, curve = spent_together(run, request, noise.delta)
    certificate = certify(
        method="at-peer",
        request_id=request.request_id,
        group_size=size,
        scope="joint",
        epsilon=epsilon if earlier is None else max(composed, epsilon),
        delta=noise.delta,
        sensitivity=bound.sensitivity,
        bound="a_priori",
        noise_std=noise_std,
        accountant="exact_gaussian" if curve is None else "rdp",
        curve=curve,
        assumptions=assumptions,
        observers=("public",),
        exposure=(
            *exposure_of(run, request),
            f"models that neighbours exchange in the {rewind} replayed rounds carry no "
            "noise: scope joint covers final models",
        ),
        notes=(
            "compares with a network that was trained without the data, plus the same "
            "noise; the number of forgotten rows is taken as public",
        ),
        adaptive=request.adaptive,
    )
    noised = PeerState(params=rows.to(state.params.dtype), round=state.round)
    return noised, certificate


def _listed(found: Mapping[Regime, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items())
