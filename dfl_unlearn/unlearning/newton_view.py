r"""A correction that the requester computes alone, before any message is sent.

All that is known without a message are records made before the request: the common
model :math:`\hat\theta` of the last training round and :math:`\tau = \|\nabla
F(\hat\theta)\|`, and at every owner its own part of the removed gradient r
(``unlearning.shift``). With K the inverse of the retained Hessian averaged between
:math:`\hat\theta` and the minimizer :math:`\theta^*_-`,

.. math:: \hat\theta - \theta^*_- = K\,(\kappa\,\nabla F(\hat\theta) + r), \qquad
          0 \prec K \preceq I / \lambda .

So :math:`K r` lies in the ball with centre :math:`r / (2\lambda)` and radius
:math:`\|r\| / (2\lambda)`: a symmetric matrix with eigenvalues in an interval is within
half its width of the interval's middle. Its centre is the best guess there is, and
after :math:`\delta = -r / (2\lambda)`

.. math:: \|\hat\theta + \delta - \theta^*_-\| \le
          (\kappa\tau + \tfrac12 \|r\|) / \lambda ,

half the shift of no correction where training had converged. It is Newton's step with
the curvature :math:`2\lambda`; any other guess, such as one from the requester's own
curvature, is farther off for some data of the others. [derived]

With several owners the requester corrects its own part; the others' parts count in
full. Every owner compares its part with a public share of the cap, so that nobody has
to tell a norm. [derived]
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.data.forget import ForgetRequest
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
    move = -own / (2 * model.l2)
    residual = removal.kappa * record.training_residual[run.state.round]
    rounding = 4 * torch.finfo(torch.float64).eps * float(theta.norm() + move.norm())
    room = _room(removal, parts, own, float(decay.norm()), request, data.owner)
    row = theta + move
    n = run.topology.n
    total = torch.stack([own, *(p for o, p in parts.items() if o != request.requester)])
    return Correction(
        rows=row.expand(n, -1),
        models=theta.expand(n, -1),
        move=move,
        weights=np.ones(n),
        distance=(residual + room) / model.l2 + rounding,
        residuals=(residual + float(total.sum(0).norm()),),
        summed=False,
        solver_residuals=(),
        solver_iterations=0,
        sample_gradients=int(data.retained[list(request.peers)].sum()),
        hvps=0,
    )


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
    own: Tensor,
    decay: float,
    request: ForgetRequest,
    owner: NDArray[np.int64],
) -> float:
    """Return the least bound on the uncorrected part that all owners can vouch for."""
    if len(parts) <= 1:
        return float(own.norm()) / 2
    sizes = np.abs(removal.coefficients)
    counts = {
        o: (0.5 if o == request.requester else 1.0) * float(sizes[owner == o].sum())
        for o in parts
    }
    most = max(
        float(p.norm()) / float(sizes[owner == o].sum()) for o, p in parts.items()
    )
    return most * sum(counts.values()) + decay / 2
