r"""A correction that the requester computes alone, before any message is sent.

All that is known without a message are records made before the request: the common
model :math:`\hat\theta` of the last training round and :math:`\tau = \|\nabla
F(\hat\theta)\|`, and at every owner its own part of the removed gradient r
(``unlearning.shift``). With K the inverse of the retained Hessian averaged between
:math:`\hat\theta` and the minimizer :math:`\theta^*_-`,

.. math:: \hat\theta - \theta^*_- = K\,(\kappa\,\nabla F(\hat\theta) + r), \qquad
          0 \prec K \preceq I / \lambda .

The requester u can tell more of K from its own retained rows. Along the way the
curvature of its data term, weighted :math:`p_u`, stays above s times what it is at
:math:`\hat\theta`, with :math:`s = (1 - e^{-cD}) / (cD)`, D the bound
:math:`(\kappa\tau + \|r\|) / \lambda` on the way's length, and c = 0 for squared
errors, B for binary logistic and :math:`\sqrt 2 B` for softmax, B the largest norm of
its rows: a third central moment is at most the range times the variance. So

.. math:: 0 \prec K \preceq A^{-1}, \qquad A = \lambda I + s\,p_u H_u(\hat\theta),

and :math:`K r` is :math:`A^{-1/2} S A^{-1/2} r` with :math:`0 \prec S \preceq I`,
which lies around its middle :math:`A^{-1} r / 2` within
:math:`\tfrac12 \|A^{-1/2}\| \|A^{-1/2} r\|`. After :math:`\delta = -A^{-1} r / 2`

.. math:: \|\hat\theta + \delta - \theta^*_-\| \le \frac{\kappa\tau}{\lambda}
          + \frac12 \sqrt{\frac{r^T A^{-1} r}{\lambda}}
          \le \frac{\kappa\tau + \tfrac12 \|r\|}{\lambda} ,

at most half the shift of no correction where training had converged. [derived]

With several owners the requester corrects its own part, with A = lambda I but for
squared errors, since it does not know D; the others' parts count in full. Every owner
compares its part with a public share of the cap, so that nobody has to tell a norm.
[derived]
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import as_features
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.curvature.solve import conjugate_gradient
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.objective import row_weights
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import MissingRecordError, UnsupportedRequestError
from dfl_unlearn.unlearning.newton_correction import Correction
from dfl_unlearn.unlearning.shift import Removal

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher


def correct_alone(
    protocol: "NewtonFisher", run: TrainedRun, request: ForgetRequest
) -> Correction:
    """Correct the common model with what the owners know, without a message.

    Args:
        protocol: Its fields.
        run: The trained network; its record holds ``training_residual``.
        request: The resolved request.

    Returns:
        The correction, the same row for all peers; its distance is the least cap that
        the owners can vouch for.
    """
    del protocol  # every field that could matter is fixed by this scope
    model, data, record = run.model, run.data, run.record
    assert record is not None
    theta = run.state.mean()
    removal = Removal.of(data, request, run.config.peer_weighting)
    parts = removal.owner_parts(model, data, theta)
    decay = removal.decay(model, theta)
    own = parts.get(request.requester, torch.zeros_like(theta)) + decay
    residual = removal.kappa * record.training_residual[run.state.round]
    way = (residual + float(own.norm())) / model.l2 if len(parts) == 1 else math.inf
    guess = _guess(run, request, theta, own, way)
    others = [p for o, p in parts.items() if o != request.requester]
    rounding = 4 * torch.finfo(torch.float64).eps
    rounding *= float(theta.norm() + guess.move.norm())
    room = guess.error
    if others:
        room = _room(removal, parts, room, float(decay.norm()), request, data.owner)
    n, total = run.topology.n, torch.stack([own, *others]).sum(0)
    return Correction(
        rows=(theta + guess.move).expand(n, -1),
        models=theta.expand(n, -1),
        move=guess.move,
        weights=np.ones(n),
        distance=(residual + room) / model.l2 + rounding,
        residuals=(residual + float(total.norm()),),
        summed=False,
        solver_residuals=guess.residuals,
        solver_iterations=len(guess.residuals),
        sample_gradients=int(data.retained[list(request.peers)].sum()),
        hvps=len(guess.residuals) * guess.rows,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Guess:
    """The requester's correction; ``error`` bounds lambda times what it is off by."""

    move: Tensor
    error: float
    residuals: tuple[float, ...]
    rows: int


def _guess(
    run: TrainedRun, request: ForgetRequest, theta: Tensor, own: Tensor, way: float
) -> _Guess:
    """Return -A^-1 r / 2 and its error, from rows of the requester alone."""
    model, data = run.model, run.data.without(request)
    size = float(own.norm())
    mine = (data.owner == request.requester) & data.keep
    share = _least_share(run, mine, way) if mine.any() and size > 0 else 0.0
    if share == 0:
        return _Guess(move=-own / (2 * model.l2), error=size / 2, residuals=(), rows=0)
    weights = row_weights(data, run.config.peer_weighting)
    objective = Objective(
        model=model,
        inputs=data.store.inputs,
        labels=data.store.labels,
        weights=np.where(mine, share * weights, 0.0),
    )
    operator = objective.hessian(theta)
    solved = conjugate_gradient(
        operator, own, tolerance=1e-8, preconditioner=operator.diagonal()
    )
    left = float((own - operator @ solved.x).norm())
    energy = max(float(own @ solved.x), 0.0) + size * left / model.l2
    return _Guess(
        move=-solved.x / 2,
        error=(math.sqrt(model.l2 * energy) + left) / 2,
        residuals=solved.residuals,
        rows=objective.rows,
    )


def _least_share(run: TrainedRun, mine: NDArray[np.bool_], way: float) -> float:
    """Return s: what is left at least of the requester's curvature along the way."""
    model = run.model
    if model.loss_name == "squared-error":
        return 1.0
    if way == math.inf:
        return 0.0
    x = run.data.store.inputs[torch.from_numpy(np.flatnonzero(mine))]
    norms = as_features(x, torch.float64).flatten(1).square().sum(1)
    bias = any(name.endswith("bias") for name in model.segments)
    steepness = math.sqrt(float(norms.max()) + bias)
    if model.loss_name == "cross-entropy":
        steepness *= math.sqrt(2)
    change = steepness * way
    return -math.expm1(-change) / change if change > 0 else 1.0


def check_alone(run: TrainedRun) -> None:
    """Refuse a run whose owners could not bound their correction alone.

    Args:
        run: The trained network.

    Raises:
        UnsupportedRequestError: If the objective is not strongly convex.
        MissingRecordError: If training did not record its last residual.
    """
    if not (run.model.convex and run.model.l2 > 0):
        raise UnsupportedRequestError(
            "scope: must be 'joint' or 'release' for a model that is not strongly "
            f"convex, got a view with convex={run.model.convex}, l2={run.model.l2:g}; "
            "nothing bounds a correction there that no message may check"
        )
    if run.record is None or run.state.round not in run.record.training_residual:
        raise MissingRecordError(
            "record: must hold training_residual of the last round for a view, got "
            "none (after another request there is none any more); use scope='joint', "
            "or retrain"
        )


def _room(
    removal: Removal,
    parts: dict[int, Tensor],
    error: float,
    decay: float,
    request: ForgetRequest,
    owner: NDArray[np.int64],
) -> float:
    """Return the least bound on the uncorrected part that all owners can vouch for.

    The requester's error counts half its share, what it knows of the others' in full.
    """
    sizes = np.abs(removal.coefficients)
    shares = {o: float(sizes[owner == o].sum()) for o in parts}
    half = shares.pop(request.requester) / 2
    most = max(error - decay / 2, 0.0) / half
    for o, share in shares.items():
        most = max(most, float(parts[o].norm()) / share)
    return most * (half + sum(shares.values())) + decay / 2
