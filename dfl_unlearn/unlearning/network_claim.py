r"""What a network that was rewound may claim: r2d's bound for all models together.

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

Rounding moves the stack too, in every step of every peer and in every mixing; the noise
covers it as for one model (``r2d_rounding``).

Nothing is claimed about messages: those before the request, and the replayed rounds',
carry no noise. With K = T the result is retraining itself, ``exact`` and noiseless.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.accounting.certificate import (
    Assumption,
    Certificate,
    certify,
    status_of,
)
from dfl_unlearn.accounting.gaussian import gaussian_epsilon, gaussian_noise_std
from dfl_unlearn.accounting.release import GaussianRelease
from dfl_unlearn.accounting.trajectory import Regime, trajectory_sensitivity
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.local_history import known_constants
from dfl_unlearn.engine.loop import initial_state
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import SensitivityUnprovenError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.unlearning.claims import (
    earlier_releases,
    exposure_of,
    extractor_of,
    observers_of,
)
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.noise_modes import spent_together
from dfl_unlearn.unlearning.r2d_constants import (
    Constants,
    nonconvex_by_type,
    stated,
)
from dfl_unlearn.unlearning.r2d_rounding import Rounding, rounding_of_training

_DENSE = 2000
_SLACK = 1e-12
_FIELDS = ("smoothness", "gradient_bound", "strong_convexity")


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


@dataclass(frozen=True, kw_only=True)
class NetworkBound:
    """How far the rewound network is from a retrained one, and why.

    Attributes:
        sensitivity: On the stack of all models, rounding included.
        rounding: What rounding does to the stack.
        assumptions: Every constant and condition.
    """

    sensitivity: float
    rounding: Rounding
    assumptions: tuple[Assumption, ...]


def network_bound(
    method: R2d, run: TrainedRun, request: ForgetRequest, rewind: int
) -> NetworkBound:
    """Return the bound, from fields, run and request alone; nothing is trained.

    Raises:
        SensitivityUnprovenError: If a constant is unknown or the bound infinite.
    """
    constants = _constants(method, run, request)
    smooth, slope = constants.smoothness, constants.gradient_bound
    assert smooth is not None
    assert slope is not None
    convex = constants.strong_convexity
    mu = None if convex is None else float(convex.value)
    local, trainer = run.config.local, run.config.trainer
    form = trainer.form if isinstance(trainer, DSgd) else "atc"
    possible: dict[Regime, bool] = {
        "nonconvex": True,
        "convex": mu is not None,
        "strongly_convex": mu is not None and mu > 0,
    }
    if constants.nonconvex and method.regime == "auto":
        possible = {"nonconvex": True}
    asked = [r for r in possible if method.regime in ("auto", r) and possible[r]]
    found: dict[Regime, float] = {}
    for regime in asked:
        try:
            found[regime] = network_sensitivity(
                topology=run.topology,
                form=form,
                local_steps=int(local.per_round(run.data.sizes).max()),
                rewind_rounds=rewind,
                rounds=run.config.rounds,
                learning_rate=local.learning_rate,
                smoothness=float(smooth.value),
                gradient_bound=float(slope.value),
                forgotten=_shares(run, request),
                regime=regime,
                strong_convexity=mu or 0.0,
            )
        except SensitivityUnprovenError:
            if method.regime != "auto":
                raise
    if not found or not math.isfinite(min(found.values())):
        known = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
        raise SensitivityUnprovenError(
            f"regime: must give a finite bound, got {method.regime!r} with "
            f"{known or 'none for this model'}; rewind more, all {run.config.rounds} "
            "rounds in the end, or use epsilon=None"
        )
    regime = min(found, key=lambda name: found[name])
    rounding = _rounding(run, constants, regime)
    sensitivity, rounded = rounding.covered(found[regime])
    return NetworkBound(
        sensitivity=sensitivity,
        rounding=rounding,
        assumptions=(
            *constants.assumptions(regime),
            *_conditions(run, request, form),
            *rounded,
            *extractor_of(run),
        ),
    )


def _rounding(run: TrainedRun, constants: Constants, regime: Regime) -> Rounding:
    """Return what rounding may do to the stack of a rewound and a retrained network."""
    config, local = run.config, run.config.local
    smooth, slope = constants.smoothness, constants.gradient_bound
    assert smooth is not None
    assert slope is not None
    slopes = [float(slope.value)]  # other peers' states move too
    for peer in range(run.topology.n):
        known = known_constants(run, peer)
        if "gradient_bound" in known:
            slopes.append(float(known["gradient_bound"].value))
    convex = constants.strong_convexity
    start = initial_state(run.model, run.topology.n, config, run.rng).params
    return rounding_of_training(
        model=run.model,
        dtype=run.state.params.dtype,
        start_norm=float(start.double().norm(dim=1).max()),
        steps=config.rounds * int(local.per_round(run.data.sizes).max()),
        learning_rate=local.learning_rate,
        smoothness=float(smooth.value),
        gradient_bound=max(slopes),
        rows=int(run.data.sizes.max()),
        decay=run.model.l2 + local.weight_decay,
        clipped=config.clip_norm is not None,
        regime=regime,
        strong_convexity=0.0
        if convex is None or regime != "strongly_convex"
        else float(convex.value),
        peers=run.topology.n,
        mixed=int((run.topology.weights != 0).sum(axis=1).max()),
    )


def _shares(run: TrainedRun, request: ForgetRequest) -> NDArray[np.float64]:
    """Return the share of its rows that each peer lacks, all requests together."""
    kept = run.data.without(request).retained
    shares: NDArray[np.float64] = 1 - kept / np.maximum(run.data.sizes, 1)
    return shares


def lacking_owners(run: TrainedRun, request: ForgetRequest) -> tuple[str, ...]:
    """Return the ledger's names of all whose data a rewound release depends on.

    Every request starts from the same state, which the rows of earlier requests went
    into as well: their owners pay again.
    """
    lacking = np.flatnonzero(_shares(run, request) > 0)
    return tuple(f"peer:{i}" for i in lacking)


def _constants(method: R2d, run: TrainedRun, request: ForgetRequest) -> Constants:
    """Return L of all peers, G of those who lack rows, and mu of convex losses.

    Raises:
        SensitivityUnprovenError: If L or G is not known.
    """
    known = [known_constants(run, peer) for peer in range(run.topology.n)]
    lacking = np.flatnonzero(_shares(run, request) > 0)
    everyone = range(run.topology.n)
    found: dict[str, Assumption | None] = dict.fromkeys(_FIELDS)
    for field in _FIELDS:
        peers = lacking.tolist() if field == "gradient_bound" else everyone
        given: float | None = getattr(method, field)
        if given is not None:
            decay = run.model.l2 + run.config.local.weight_decay
            found[field] = stated(field, given, run.model, decay)
        elif all(field in known[peer] for peer in peers):
            each = [known[peer][field] for peer in peers]
            each.sort(key=lambda constant: float(constant.value))
            found[field] = each[0 if field == "strong_convexity" else -1]
        elif field != "strong_convexity":
            raise SensitivityUnprovenError(
                f"{field}: must be known for a claim about the network, got none for "
                f"this model; give {field} to r2d, train with clip_norm or on a linear "
                "model, or use epsilon=None"
            )
    # Of a linear model whose rows are clipped nothing convex may be left.
    unproven = any("strong_convexity" not in each for each in known)
    return Constants(
        **found,
        nonconvex=nonconvex_by_type(run.model) or (run.model.convex and unproven),
    )


def _conditions(run: TrainedRun, request: ForgetRequest, form: str) -> list[Assumption]:
    """Return the conditions of the bound, each held or violated."""
    config, local = run.config, run.config.local
    steps = local.per_round(run.data.sizes)
    kept = run.data.without(request).retained
    checks = (
        ("training iteration", type(config.trainer) is DSgd, f"d-sgd, {form}"),
        ("mixing", run.topology.stochastic == "doubly", f"{run.topology.stochastic}"),
        ("network", config.schedule is None, "the same in every round"),
        (
            "batches",
            local.batch_size is None or local.batch_size >= run.data.sizes.max(),
            f"{'all' if local.batch_size is None else local.batch_size} rows",
        ),
        ("learning rate", local.lr_schedule == "constant", local.lr_schedule),
        ("momentum", local.momentum == 0, f"{local.momentum:g}"),
        ("local steps", steps.min() == steps.max(), f"at most {steps.max()} a round"),
        ("weights of peers", config.peer_weighting == "uniform", config.peer_weighting),
        ("rows left at owners", bool((kept > 0).all()), f"at least {kept.min()}"),
    )
    return [
        Assumption(
            name=name,
            value=value,
            source="proven",
            state="held" if fits else "violated",
            note="the bound is about full-batch D-SGD with steps of one size",
        )
        for name, fits, value in checks
    ]


def exact_certificate(run: TrainedRun, request: ForgetRequest) -> Certificate:
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


def released(
    method: R2d,
    run: TrainedRun,
    request: ForgetRequest,
    rng: RngTree,
    state: PeerState,
    rewind: int,
) -> tuple[PeerState, Certificate]:
    """Charge, add noise to every peer's model and certify the joint release."""
    bound = network_bound(method, run, request, rewind)
    owners = lacking_owners(run, request)
    earlier = earlier_releases(run, request, owners)
    assumptions = [*bound.assumptions, *([] if earlier is None else [earlier])]
    noise_std = method.noise_std
    if noise_std is None:
        assert method.epsilon is not None
        noise_std = gaussian_noise_std(
            method.epsilon, method.delta, bound.sensitivity, method.calibration
        )
        epsilon = method.epsilon
    else:
        epsilon = gaussian_epsilon(bound.sensitivity / noise_std, method.delta)
    assumptions += bound.rounding.beside(noise_std)
    size = request.size(run.data)
    release = GaussianRelease(sensitivity=bound.sensitivity, noise_std=noise_std)
    rows = release(
        state.params.double(),
        ledger=run.ledger,
        request_id=request.request_id,
        owner=owners,
        observers=observers_of(run, request),
        rng=rng,
        group_size=size,
        scope="joint",
        status=status_of(assumptions, adaptive=request.adaptive),
        assumptions=tuple(a.name for a in assumptions),
    )
    run.ledger.commit(request.request_id)
    composed, curve = spent_together(run, request, method.delta, owners)
    certificate = certify(
        method="at-peer",
        request_id=request.request_id,
        group_size=size,
        scope="joint",
        epsilon=epsilon if earlier is None else max(composed, epsilon),
        delta=method.delta,
        sensitivity=bound.sensitivity,
        bound="trajectory",
        noise_std=noise_std,
        accountant="exact_gaussian" if curve is None else "rdp",
        curve=curve,
        assumptions=assumptions,
        observers=("public",),
        exposure=(
            *exposure_of(run, request),
            f"models that neighbours exchange in the {rewind} replayed rounds carry no "
            "noise: scope joint covers final models",
            "the state that training was taken up from, which the forgotten rows went "
            "into, stays with every peer as secret state, for later requests",
        ),
        notes=(
            "compares with a network that was trained without the data, plus the same "
            "noise; the number of forgotten rows is taken as public",
        ),
        adaptive=request.adaptive,
    )
    noised = PeerState(params=rows.to(state.params.dtype), round=state.round)
    return noised, certificate
