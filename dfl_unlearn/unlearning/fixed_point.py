r"""Where D-SGD itself would have come to rest without the data, and the way there.

With full batches, one local step and a constant rate, the cta form moves by
:math:`X \leftarrow X - R(X)`,

.. math:: R(X) = (I - W) X + \eta\,\nabla f(X),

and rests where R is 0: not at consensus unless the peers' data are alike. On what is
kept, Newton's step is :math:`-(I - W + \eta H^-)^{-1} R^-(X)` (decentralized-certified
3.4, [derived]); the removal itself shows in the owners' blocks of :math:`R^-` alone.
For a symmetric W and convex losses the Jacobian is at least
:math:`I - W + \eta\Lambda`, :math:`\Lambda` the peers' strong convexity, with smallest
eigenvalue :math:`\mu` (:math:`\eta\lambda` where all are equal), so for **any** X

.. math:: \|X - X^*_-\|_F \le \|R^-(X)\|_F / \mu,

and R rounds of training from X end within
:math:`q^R \|R^-(X)\|_F / \mu`, :math:`q = \max(1 - \mu, L - 1)`, L the largest
eigenvalue (descent to delete, 5 item 2). Everything is float64.

The linear system is solved by gossip alone: Chebyshev's iteration on
:math:`\delta X \leftarrow W\,\delta X - \eta H^-\,\delta X - R^-`, whose factors are
fixed by :math:`\mu` and L beforehand, so that only neighbours exchange rows.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import as_features
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.derivatives import BatchLoss
from dfl_unlearn.engine.local import peer_scale
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.trainers.d_sgd import DSgd
from dfl_unlearn.errors import InvalidArgumentError, UnsupportedRequestError

_CHUNK_PEERS = 16
_LARGEST_DENSE = 2000


def differing_settings(run: TrainedRun) -> tuple[str, ...]:
    """Return the settings of a run whose training has no such fixed point.

    Args:
        run: The trained run.

    Returns:
        Names of settings that differ from full-batch cta with one local step and a
        constant rate, without momentum and clipping, on one symmetric W, with a
        strongly convex objective; empty if none does.
    """
    config, local, model = run.config, run.config.local, run.model
    weights = run.topology.weights
    wrong = {
        "trainer": type(config.trainer) is not DSgd or config.trainer.form != "cta",
        "local.batch_size": local.batch_size is not None,
        "local.steps": bool((local.per_round(run.data.sizes) != 1).any()),
        "local.lr_schedule": local.lr_schedule != "constant",
        "local.momentum": local.momentum > 0,
        "local.clip_norm": local.clip_norm is not None,
        "schedule": config.schedule is not None,
        "topology": run.topology.directed or abs(weights - weights.T).max() > 0,
        "model": not (model.convex and model.l2 + local.weight_decay > 0),
    }
    return tuple(name for name, applies in wrong.items() if applies)


SETTINGS = (
    "differs from full-batch d-sgd of form 'cta' with one local step and a constant "
    "rate, no momentum or clipping, on one symmetric network, with a strongly convex "
    "model"
)
"""What a refusal says of the settings that ``differing_settings`` names."""


def check_fixed_point(run: TrainedRun) -> None:
    """Refuse runs whose training has no such fixed point.

    Args:
        run: The trained run.

    Raises:
        UnsupportedRequestError: Naming what ``differing_settings`` finds.
    """
    found = differing_settings(run)
    if found:
        raise UnsupportedRequestError(
            "target: must not be 'dsgd_fixed_point' for this run, got a training whose "
            f"{', '.join(found)} {SETTINGS}; use target='consensus'"
        )


class FixedPoint:
    """The equation R(X) = 0 of a run's training on given data.

    Attributes:
        rate: The constant learning rate.
        contraction: mu, a lower bound on the Jacobian's eigenvalues.
        largest: L, an upper bound on them.
    """

    def __init__(self, run: TrainedRun, data: PeerData | None = None) -> None:
        """Prepare the equation.

        Args:
            run: Gives network, model and training; see ``check_fixed_point``.
            data: What the peers hold; None is the run's own data.
        """
        check_fixed_point(run)
        self._run = run
        self._data = run.data if data is None else data
        local = run.config.local
        self.rate = local.learning_rate
        self._scale = peer_scale(self._data, run.config.peer_weighting)
        # A peer without rows only relays: no step, so no decay either.
        self._decay = self._scale * run.model.l2 + np.where(
            self._scale > 0, local.weight_decay, 0.0
        )
        self._loss = BatchLoss(run.model, run.data.store)
        self.contraction, self.largest = self._eigenvalues()

    @property
    def rows(self) -> int:
        """Rows that one evaluation of R takes the gradients of."""
        return int(self._data.keep.sum())

    @property
    def factor(self) -> float:
        """q: each round of training brings the distance down to at most q times it."""
        return max(1 - self.contraction, self.largest - 1)

    def residual(self, state: Tensor) -> Tensor:
        """Return R(X), shape ``(N, P)`` float64.

        Args:
            state: X, shape ``(N, P)``.
        """
        x = state.double()
        return self._laplacian(x) + self.rate * self._gradient(x, None)

    def product(self, state: Tensor, vector: Tensor) -> Tensor:
        """Return the Jacobian at X times V: (I - W) V + rate H V, ``(N, P)``.

        Args:
            state: X, shape ``(N, P)``.
            vector: V, shape ``(N, P)`` float64.
        """
        return self._laplacian(vector) + self.rate * self._gradient(
            state.double(), vector
        )

    def distance_bound(self, state: Tensor, rounds: int = 0) -> float:
        """Return a bound on the distance to the fixed point, Frobenius norm.

        Args:
            state: X, shape ``(N, P)``.
            rounds: Rounds of training taken from X first (descent to delete).

        Returns:
            ``q**rounds |R(X)| / mu``.

        Raises:
            InvalidArgumentError: If the rate is too large for training to contract.
        """
        bound = float(self.residual(state).norm()) / self.contraction
        if rounds == 0:
            return bound
        if not self.factor < 1:
            raise InvalidArgumentError(
                f"rounds: must be 0 where training does not contract, got {rounds} "
                f"with a factor of {self.factor:.6g}; lower learning_rate to at most "
                "(1 + smallest eigenvalue of W) / (smoothness + strong convexity)"
            )
        return self.factor**rounds * bound

    def _laplacian(self, x: Tensor) -> Tensor:
        return x - torch.from_numpy(self._run.topology.weights @ x.numpy())

    def _gradient(self, x: Tensor, along: Tensor | None) -> Tensor:
        """Return every peer's gradient at its row, or Hessian times a direction."""
        found = torch.from_numpy(self._decay)[:, None] * (x if along is None else along)
        zero = torch.zeros_like(x) if along is None else along
        for peers, index, weights in self._batches:
            part = self._loss.at(
                x[peers], zero[peers], index, weights, np.zeros_like(weights)
            )
            data_term = part.gradient if along is None else part.product
            found[peers] += torch.from_numpy(self._scale[peers])[:, None] * data_term
        return found

    @cached_property
    def _batches(
        self,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
        """Peers, rows and weights of every chunk; peers without rows are left out."""
        data, chunks = self._data, []
        counted = np.add.reduceat(data.counted, data.offsets[:-1], dtype=np.int64)
        active = np.flatnonzero(self._scale > 0)
        for begin in range(0, len(active), _CHUNK_PEERS):
            peers = active[begin : begin + _CHUNK_PEERS]
            sizes = data.sizes[peers][:, None]
            slots = np.arange(sizes.max())
            index = data.offsets[peers][:, None] + np.minimum(slots, sizes - 1)
            filled = (slots < sizes) & data.keep[index]
            chunks.append((peers, index, filled / counted[peers][:, None]))
        return chunks

    def _eigenvalues(self) -> tuple[float, float]:
        """Return mu and L."""
        topology, decay = self._run.topology, self.rate * self._decay
        spread = 2.0 - 2.0 * float(topology.weights.diagonal().min())
        least = float(decay.min())
        if topology.n <= _LARGEST_DENSE:
            dense = topology.weights.toarray()
            spread = min(spread, 1 - float(np.linalg.eigvalsh(dense)[0]) + 1e-12)
            low = np.eye(topology.n) - dense + np.diag(decay)
            # Rounding of the eigenvalues is of the order of 1e-16 times the norm.
            least = max(least, float(np.linalg.eigvalsh(low)[0]) * (1 - 1e-9) - 1e-14)
        if not least > 0:
            raise UnsupportedRequestError(
                f"target: must be 'consensus' for a network of {topology.n} peers of "
                "which one holds no rows, got 'dsgd_fixed_point'; the bound is not "
                "known there"
            )
        smooth = float(self._scale.max()) * self._smoothness()
        return least, spread + self.rate * smooth + float(decay.max())

    def _smoothness(self) -> float:
        """Return a bound on the Hessians of the data terms."""
        model, largest = self._run.model, 0.0
        for part in self._data.store.inputs.split(4096):
            x = as_features(part.reshape(len(part), -1), torch.float64)
            largest = max(largest, float(x.square().sum(1).max()))
        bias = any(name.endswith("bias") for name in model.segments)
        constants = model.constants(math.sqrt(largest + bias) or 1.0)
        return float(constants["smoothness"].value) - model.l2


@dataclass(frozen=True, kw_only=True, eq=False)
class StackedPath:
    """Where Newton's steps on the stack of all peers' models went.

    Attributes:
        state: The last point, shape ``(N, P)`` float64.
        residuals: ``|R|`` (Frobenius) at the start and after every step.
        evaluations: Evaluations of R; each takes one exchange with the neighbours.
        gossip_rounds: Rounds of the linear solver; one exchange and one Hessian
            product at every peer each.
    """

    state: Tensor
    residuals: tuple[float, ...]
    evaluations: int
    gossip_rounds: int


def linearized_gossip(
    equation: FixedPoint, state: Tensor, right: Tensor, *, tolerance: float
) -> tuple[Tensor, int]:
    """Solve (I - W + rate H) D = right by exchanges with neighbours alone.

    Args:
        equation: Gives the Jacobian and the bounds on its eigenvalues.
        state: Where, shape ``(N, P)``.
        right: Shape ``(N, P)`` float64.
        tolerance: The error in the energy norm falls by at least this factor.

    Returns:
        D, shape ``(N, P)``, and the number of rounds, which only depends on the
        bounds and the tolerance.
    """
    low, high = equation.contraction, equation.largest
    high = max(high, low * (1 + 1e-9))
    middle, half = (high + low) / 2, (high - low) / 2
    root = math.sqrt(high / low)
    speed = math.log((root + 1) / (root - 1))
    rounds = max(1, math.ceil(math.log(2 / tolerance) / speed))
    ratio = middle / half
    rho = 1 / ratio
    solution = torch.zeros_like(right)
    rest = right.clone()
    step = rest / middle
    for _ in range(rounds):
        solution += step
        rest -= equation.product(state, step)
        rho, old = 1 / (2 * ratio - rho), rho
        step = rho * old * step + 2 * rho / half * rest
    return solution, rounds


def stacked_newton(
    equation: FixedPoint,
    state: Tensor,
    *,
    target: float,
    least_steps: int = 1,
    most_steps: int = 10,
    tolerance: float = 1e-3,
) -> StackedPath:
    """Take Newton steps on R until its norm is at most ``target``.

    A step that would raise the norm is halved (up to 30 times).

    Args:
        equation: R on what is kept.
        state: Start, shape ``(N, P)``.
        target: Norm of R to reach.
        least_steps: Steps taken even where the target is met before.
        most_steps: Steps allowed; the caller compares the last residual to the target.
        tolerance: Of each linear solve; see ``linearized_gossip``.

    Returns:
        The path; its last residual may be above the target.
    """
    x = state.double().clone()
    rest = equation.residual(x)
    norms, evaluations, rounds = [float(rest.norm())], 1, 0
    for step in range(most_steps):
        if norms[-1] == 0.0 or (step >= least_steps and norms[-1] <= target):
            break
        move, taken = linearized_gossip(equation, x, -rest, tolerance=tolerance)
        rounds += taken
        for halving in range(31):
            candidate = x + move * 0.5**halving
            new = equation.residual(candidate)
            evaluations += 1
            norm = float(new.norm())
            if norm < norms[-1] or norm <= target:
                break
        x, rest = candidate, new
        norms.append(norm)
    return StackedPath(
        state=x,
        residuals=tuple(norms),
        evaluations=evaluations,
        gossip_rounds=rounds,
    )
