r"""How far a model is from the minimizer without some data, as its owners can tell.

With weights :math:`p_i`, data gradients :math:`D_i` of the peers (means over their
rows) and :math:`\kappa` the common factor by which a removal changes the weights of
peers that lose nothing, for any :math:`\theta`

.. math:: \nabla F^-(\theta) = \kappa \nabla F(\theta) + r(\theta), \qquad
          r = \sum_{o\ \mathrm{owners}} (p_o^- D_o^- - \kappa p_o D_o)
              - (\kappa - 1) \lambda \theta,

and for a :math:`\lambda`-strongly convex :math:`F^-` its minimizer lies within
:math:`(\kappa \|\nabla F(\theta)\| + \|r(\theta)\|) / \lambda`. Everything in r is at
the owners; :math:`\|\nabla F\|` was recorded in training. So nothing has to be sent
after a request to know it. [derived]

Several owners each know their own part of r only. The room under a public cap is shared
out among them by public numbers, and everybody compares its own part with its share: if
all parts fit, their sum is within the cap, and nobody had to tell a norm. [derived]

In the worst case every per-sample gradient is as long as its bound L: with :math:`c_z`
the coefficient of sample z in r, its data part is at most :math:`L \sum_z |c_z|`.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._assumption import Assumption
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.objective import row_weights
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import InvalidHyperparameterError, ResidualExceedsCapError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.unlearning.claims import convexity

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.rr_du import RrDu


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a request takes out of the network's gradient.

    Attributes:
        kappa: Factor on the gradient of before, >= 1.
        coefficients: Coefficient of every stored row in r, shape ``(R,)``; 0 but at the
            owners. Sizes and requests being public, so are these.
    """

    kappa: float
    coefficients: NDArray[np.float64]

    @classmethod
    def of(cls, data: PeerData, request: ForgetRequest, weighting: str) -> "Removal":
        """Return what a request takes out.

        Args:
            data: What the peers hold before the request.
            request: The resolved request.
            weighting: ``uniform`` or ``size``.
        """
        owners = np.isin(data.owner, request.peers)
        before = row_weights(data, weighting)
        after = row_weights(data.without(request), weighting)
        others = ~owners & data.keep
        kappa = float((after[others] / before[others]).max(initial=1.0))
        coefficients = np.where(owners, after - kappa * before, 0.0)
        return cls(kappa=kappa, coefficients=coefficients)

    def norm(self, model: FlatModel, data: PeerData, theta: Tensor) -> float:
        """Return ``|r(theta)|`` in float64; only rows of the owners are read.

        Args:
            model: The model.
            data: What the peers hold before the request.
            theta: The point, shape ``(P,)``.
        """
        theta = theta.double()
        decay = -(self.kappa - 1) * model.l2 * theta
        vector = decay + self._data_part(model, data, theta, self.coefficients)
        return float(torch.linalg.vector_norm(vector))

    def least_cap(self, model: FlatModel, data: PeerData, theta: Tensor) -> float:
        r"""Return the least ``|r|`` that the owners can vouch for without a message.

        One owner knows its r. Of several, owner o is given the share :math:`w_o` of the
        room for data, by the public sizes of its coefficients, and all
        :math:`\lVert r_o\rVert \le w_o R` hold for
        :math:`R = \max_o \lVert r_o\rVert / w_o`, never below the sum of the norms.

        Args:
            model: The model.
            data: What the peers hold before the request.
            theta: The point, shape ``(P,)``; public.

        Returns:
            At least ``norm``, and equal to it for one owner.
        """
        owners = np.unique(data.owner[self.coefficients != 0])
        if len(owners) <= 1:
            return self.norm(model, data, theta)
        theta = theta.double()
        total = np.abs(self.coefficients).sum()
        room = 0.0
        for owner in owners:
            mine = np.where(data.owner == owner, self.coefficients, 0.0)
            taken = self._data_part(model, data, theta, mine)
            length = float(torch.linalg.vector_norm(taken))
            room = max(room, length * float(total / np.abs(mine).sum()))
        return room + (self.kappa - 1) * model.l2 * float(theta.norm())

    def owner_parts(
        self, model: FlatModel, data: PeerData, theta: Tensor
    ) -> dict[int, Tensor]:
        """Return each owner's part of r, without the l2 term, by owner.

        Args:
            model: The model.
            data: What the peers hold before the request.
            theta: The point, shape ``(P,)`` float64.

        Returns:
            Vectors of shape ``(P,)``; each reads rows of its owner only.
        """
        return {
            int(owner): self._data_part(
                model, data, theta, np.where(data.owner == owner, self.coefficients, 0)
            )
            for owner in np.unique(data.owner[self.coefficients != 0])
        }

    def decay(self, model: FlatModel, theta: Tensor) -> Tensor:
        """Return the l2 term of r at a public point, known to everybody, ``(P,)``.

        Args:
            model: The model.
            theta: The point, shape ``(P,)`` float64.
        """
        return -(self.kappa - 1) * model.l2 * theta

    @staticmethod
    def _data_part(
        model: FlatModel,
        data: PeerData,
        theta: Tensor,
        coefficients: NDArray[np.float64],
    ) -> Tensor:
        """Return the sum of the data term's gradients with these coefficients."""
        vector = torch.zeros_like(theta)
        for sign in (1.0, -1.0):
            part = Objective(
                model=model,
                inputs=data.store.inputs,
                labels=data.store.labels,
                weights=np.clip(sign * coefficients, 0, None),
            )
            if part.rows:
                vector += sign * (part.gradient(theta) - model.l2 * theta)
        return vector

    def worst(
        self, data: PeerData, request: ForgetRequest, gradient_bound: float
    ) -> float:
        """Return how long r can be by public numbers, the l2 term left out.

        For samples under ``local_mean`` the sum of coefficients, 2 m / (N n_u), is
        taken as 2 m / (N (n_u - m)), which leaves room for the recorded gradient.

        Args:
            data: Gives the sizes.
            request: The resolved request.
            gradient_bound: L, on every per-sample gradient of the data term.
        """
        owners = list(request.peers)
        left = data.without(request).retained[owners]
        room = np.divide(
            data.retained[owners], left, out=np.ones(len(owners)), where=left > 0
        ).max()
        return float(room * gradient_bound * np.abs(self.coefficients).sum())


def start_shift(
    protocol: "RrDu", run: TrainedRun, request: ForgetRequest
) -> tuple[float, list[Assumption]]:
    """Return the public cap on a token's start, and what it rests on.

    Args:
        protocol: Its fields.
        run: The trained network.
        request: The resolved request.

    Returns:
        Delta_0, 0 for a transcript claim, and the constants behind it.

    Raises:
        ResidualExceedsCapError: If the cap does not hold; nothing was sent then.
        InvalidHyperparameterError: If no cap follows and none was given.
    """
    model = run.model
    if protocol.certify == "transcript":
        return 0.0, [
            Assumption(
                name="likeness to a network that never had the data",
                value="not claimed",
                source="set",
                state="violated",
                note="both worlds start from the same trained model",
            )
        ]
    if protocol.delta0 == "assumed":
        assert protocol.residual_cap is not None
        return protocol.residual_cap, [
            Assumption(
                name="distance of the start (Delta_0)",
                value=protocol.residual_cap,
                source="assumed",
                note="taken on trust, not checked",
            )
        ]
    provable = model.convex and model.l2 > 0
    removal = Removal.of(run.data, request, run.config.peer_weighting)
    constants: list[Assumption] = []
    cap = protocol.residual_cap
    if cap is None:
        bound, source = _gradient_bound(run)
        constants += source
        cap = removal.worst(run.data, request, bound) / model.l2
    constants = [
        *convexity(model),
        *constants,
        Assumption(
            name="residual cap (Delta_0)",
            value=cap,
            source="set",
            note="public; the start's noise comes from it and from nothing measured",
        ),
    ]
    if not provable:
        return cap, [
            *constants,
            Assumption(
                name="distance of the start",
                value="no bound",
                source="estimated",
                note="assumed within the cap; no bound is known for this model",
            ),
        ]
    assert run.record is not None
    residual = run.record.training_residual.get(run.state.round, math.inf)
    mean = run.state.mean()
    rounding = 4 * torch.finfo(torch.float64).eps * float(mean.norm())
    taken = removal.least_cap(model, run.data, mean)
    measured = (removal.kappa * residual + taken) / model.l2 + rounding
    if not measured <= cap:
        raise ResidualExceedsCapError(
            f"residual_cap: the start is only known to lie within {measured:.3g} of "
            f"the minimizer without the data (recorded residual {residual:.3g}, "
            f"removed gradient {taken:.3g}, l2 {model.l2:g}), above the cap "
            f"{cap:.3g}; nothing was sent: train for more rounds or with a falling "
            "learning rate, set a larger residual_cap, or retrain"
        )
    return cap, [
        *constants,
        Assumption(
            name="distance of the start",
            value=measured,
            source="measured",
            note="(kappa tau + |removed gradient|) / lambda at the common model: tau "
            "was recorded before the request, the rest is at the owners"
            + (", each of whom checks a public share" if len(request.peers) > 1 else "")
            + "; at most the cap",
        ),
    ]


def _gradient_bound(run: TrainedRun) -> tuple[float, list[Assumption]]:
    """Return L from public constants, and where it comes from.

    Raises:
        InvalidHyperparameterError: If the model has no such bound.
    """
    bias = any(name.endswith("bias") for name in run.model.segments)
    radius, public = run.data.input_radius(bias=bias)
    found = dict(run.model.constants(radius)).get("gradient_bound")
    if found is None or run.model.l2 == 0:
        raise InvalidHyperparameterError(
            "residual_cap: must be given for a model without a proven bound on its "
            f"gradients and l2 > 0 (loss {run.model.loss_name}, l2 {run.model.l2:g}), "
            "got None; state how far the common model may be from the minimizer"
        )
    radius_source = Assumption(
        name="input radius (B)",
        value=radius,
        source="proven" if public else "assumed",
        note="from the public range of the features"
        if public
        else "largest norm among the stored rows, taken as public; state "
        "feature_bound for the data, or residual_cap",
    )
    return float(found.value), [radius_source, found]
