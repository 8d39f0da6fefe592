r"""How one round of training carries a small change, forwards and backwards.

Training is a map of the state; give the chosen rows the weight :math:`\omega` and
differentiate it (decentralized-certified 2.1, [derived]). One local step with rate
:math:`\eta`, factor c on the objective, decay d and momentum m is

.. math:: v^+ = m v + c\,\nabla + d\,x, \qquad x^+ = x - \eta v^+,

and its derivative

.. math:: \dot v^+ = m \dot v + c\,(H \dot x + \dot\nabla) + d\,\dot x, \qquad
          \dot x^+ = \dot x - \eta \dot v^+,

with :math:`\dot\nabla` the chosen rows' part of the gradient. ``atc`` mixes the result,
``cta`` adds its change to the mixed rows; gradient tracking is differentiated line by
line. ``backward`` is the transposed map: it takes the derivative of a number in the
state after a round to that in the state before, and adds up what every peer's rows
contribute on the way.

Everything is float64. States at the ends of rounds are the run's own, cast; the points
between local steps of a round are computed again from them in float64.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.engine.derivatives import BatchLoss, Derivatives
from dfl_unlearn.engine.replay import Chosen, LocalStep, Replay
from dfl_unlearn.engine.state import PeerState


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """A small change of the state, or the derivative of a number in the state.

    Attributes:
        params: Shape ``(N, P)``, float64.
        slots: The same for what peers keep beside their parameters.
    """

    params: Tensor
    slots: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def reached(self) -> NDArray[np.bool_]:
        """Which peers' rows are not exactly 0, shape ``(N,)``."""
        found = (self.params != 0).any(dim=1)
        for slot in self.slots.values():
            found |= (slot != 0).any(dim=1)
        return found.numpy()


class DSgdRound:
    """One round of D-SGD, either form."""

    def __init__(self, replay: Replay, chosen: Chosen | None) -> None:
        """Prepare the round.

        Args:
            replay: Gives batches, rates and networks.
            chosen: Whose weight changes; None (backwards only) is every peer's own.
        """
        self._replay = replay
        self._chosen = chosen
        self._loss = BatchLoss(replay.run.model, replay.run.data.store)
        self._atc = replay.config.trainer.form == "atc"
        self._momentum = replay.config.local.momentum

    def start(self, state: PeerState) -> Change:
        """Return the change of the initial state: none."""
        zeros = torch.zeros(state.params.shape, dtype=torch.float64)
        slots = {"momentum": zeros.clone()} if self._momentum else {}
        return Change(params=zeros, slots=slots)

    def forward(
        self, t: int, before: PeerState, after: PeerState, change: Change
    ) -> Change:
        """Carry a change through round t.

        Args:
            t: Round, counted from 0.
            before: State before it.
            after: State after it (not needed here).
            change: Of the state before.

        Returns:
            The change of the state after.
        """
        assert self._chosen is not None
        local = change.params.clone()
        velocity = {k: v.clone() for k, v in change.slots.items()}
        active = change.reached
        active[list(self._chosen.owners)] = True
        active &= self._replay.works(t)
        for steps in self._replay.local_steps(t, active):
            at = torch.from_numpy(steps[0].peers)
            x, v = _rows(before, at, self._momentum)
            moved = local[at]
            dv = velocity["momentum"][at] if velocity else torch.zeros_like(moved)
            for step in steps:
                k = len(step.peers)
                found = self._at(step, x[:k], moved[:k])
                scale, decay, rate, keep = _columns(step, self._momentum)
                rise = scale * (found.product + found.chosen) + decay * moved[:k]
                dv[:k] = torch.where(rate > 0, keep * dv[:k] + rise, dv[:k])
                moved[:k] -= rate * dv[:k]
                _advance(step, found.gradient, x, v, self._momentum)
            local[at] = moved
            if velocity:
                velocity["momentum"][at] = dv
        if velocity:
            self._replay.forget_crashed(t, velocity["momentum"])
        if self._atc:
            return Change(params=self._replay.mix(t, local), slots=velocity)
        mixed = self._replay.mix(t, change.params)
        return Change(params=mixed + (local - change.params), slots=velocity)

    def backward(
        self,
        t: int,
        before: PeerState,
        after: PeerState,
        change: Change,
        credit: NDArray[np.float64],
    ) -> Change:
        """Carry a derivative back through round t.

        Args:
            t: Round, counted from 0.
            before: State before it.
            after: State after it (not needed here).
            change: Derivative of a number in the state after.
            credit: Derivative in each peer's weight so far, shape ``(N,)``; added to.

        Returns:
            The derivative in the state before.
        """
        mixed = self._replay.mix(t, change.params, back=True)
        local = mixed.clone() if self._atc else change.params.clone()
        velocity = {k: v.clone() for k, v in change.slots.items()}
        active = Change(params=local, slots=velocity).reached
        active &= self._replay.works(t)
        for steps in self._replay.local_steps(t, active):
            at = torch.from_numpy(steps[0].peers)
            points = self._points(steps, before, at)
            back = local[at]
            dv = velocity["momentum"][at] if velocity else torch.zeros_like(back)
            for step, x in zip(reversed(steps), reversed(points), strict=True):
                k = len(step.peers)
                scale, decay, rate, keep = _columns(step, self._momentum)
                along = torch.where(rate > 0, dv[:k] - rate * back[:k], 0.0)
                found = self._at(step, x, along)
                credit[step.peers] += (
                    (scale * along * found.gradient).sum(dim=1).numpy()
                )
                back[:k] += scale * found.product + decay * along
                dv[:k] = torch.where(rate > 0, keep * along, dv[:k])
            local[at] = back
            if velocity:
                velocity["momentum"][at] = dv
        if velocity:
            self._replay.forget_crashed(t, velocity["momentum"])
        if not self._atc:
            local = mixed + (local - change.params)
        return Change(params=local, slots=velocity)

    def finish(
        self, state: PeerState, change: Change, credit: NDArray[np.float64]
    ) -> None:
        """Add what the initial state's making contributes: nothing."""

    def _points(
        self, steps: list[LocalStep], before: PeerState, at: Tensor
    ) -> list[Tensor]:
        """Return where each local step of some peers starts."""
        x, v = _rows(before, at, self._momentum)
        points = [x.clone()]
        for step, following in pairwise(steps):
            k = len(step.peers)
            found = self._at(step, x[:k], torch.zeros_like(x[:k]))
            _advance(step, found.gradient, x, v, self._momentum)
            points.append(x[: len(following.peers)].clone())
        return points

    def _at(self, step: LocalStep, x: Tensor, direction: Tensor) -> Derivatives:
        return _derivatives(self._loss, self._chosen, step, x, direction)


class GradientTrackingRound:
    r"""One round of gradient tracking.

    With :math:`G^t` the gradients at :math:`X^t` on the batches of round t,
    :math:`X^+ = W(X - \eta Q)` and :math:`Q^+ = WQ + G^+ - G` give
    :math:`S^+ = W(S - \eta R)` and :math:`R^+ = WR + \dot G^+ - \dot G`,
    :math:`R^0 = \dot G^0`.
    """

    def __init__(self, replay: Replay, chosen: Chosen | None) -> None:
        """Prepare the round; see ``DSgdRound``."""
        self._replay = replay
        self._chosen = chosen
        self._loss = BatchLoss(replay.run.model, replay.run.data.store)

    def start(self, state: PeerState) -> Change:
        """Return the change of the initial state: that of the first gradients."""
        zeros = torch.zeros(state.params.shape, dtype=torch.float64)
        if self._chosen is None:
            return Change(
                params=zeros,
                slots={"tracker": zeros.clone(), "gradient": zeros.clone()},
            )
        rise = self._rise(0, state, zeros)
        return Change(params=zeros, slots={"tracker": rise, "gradient": rise})

    def forward(
        self, t: int, before: PeerState, after: PeerState, change: Change
    ) -> Change:
        """Carry a change through round t; see ``DSgdRound.forward``."""
        old = change.slots
        works = torch.from_numpy(self._replay.works(t))[:, None]
        step = self._replay.rates[t] * old["tracker"]
        moved = change.params - torch.where(works, step, 0.0)
        params = self._replay.mix(t, moved)
        rise = self._rise(t + 1, after, params)
        rise = torch.where(works, rise, old["gradient"])
        tracker = self._replay.mix(t, old["tracker"]) + rise - old["gradient"]
        return Change(params=params, slots={"tracker": tracker, "gradient": rise})

    def backward(
        self,
        t: int,
        before: PeerState,
        after: PeerState,
        change: Change,
        credit: NDArray[np.float64],
    ) -> Change:
        """Carry a derivative back through round t; see ``DSgdRound.backward``."""
        tracker = change.slots["tracker"]
        works = torch.from_numpy(self._replay.works(t))[:, None]
        along = tracker + change.slots["gradient"]
        idle = torch.where(works, 0.0, along)
        fall = self._fall(t + 1, after, along - idle, credit)
        params = self._replay.mix(t, change.params + fall, back=True)
        back = self._replay.mix(t, tracker, back=True)
        return Change(
            params=params,
            slots={
                "tracker": back
                - torch.where(works, self._replay.rates[t] * params, 0.0),
                "gradient": idle - tracker,
            },
        )

    def finish(
        self, state: PeerState, change: Change, credit: NDArray[np.float64]
    ) -> None:
        """Add what the first gradients contribute."""
        self._fall(0, state, change.slots["tracker"] + change.slots["gradient"], credit)

    def _rise(self, t: int, state: PeerState, change: Tensor) -> Tensor:
        """Return the change of the gradients of round t at a state."""
        assert self._chosen is not None
        total = torch.zeros_like(change)
        active = Change(params=change).reached
        active[list(self._chosen.owners)] = True
        for step, at in self._each(t, active):
            found = self._at(step, state.params[at].double(), change[at])
            scale, decay, rate, _ = _columns(step, 0.0)
            rise = scale * (found.product + found.chosen) + decay * change[at]
            total[at] = torch.where(rate > 0, rise, 0.0)
        return total

    def _fall(
        self, t: int, state: PeerState, along: Tensor, credit: NDArray[np.float64]
    ) -> Tensor:
        """Return the gradients' Hessians times a direction; credit the sources."""
        total = torch.zeros_like(along)
        for step, at in self._each(t, Change(params=along).reached):
            found = self._at(step, state.params[at].double(), along[at])
            scale, decay, rate, _ = _columns(step, 0.0)
            moving = torch.where(rate > 0, along[at], 0.0)
            credit[step.peers] += (scale * moving * found.gradient).sum(dim=1).numpy()
            product = torch.where(rate > 0, scale * found.product, 0.0)
            total[at] = product + decay * moving
        return total

    def _each(
        self, t: int, active: NDArray[np.bool_]
    ) -> Iterator[tuple[LocalStep, Tensor]]:
        for steps in self._replay.local_steps(t, active):
            yield steps[0], torch.from_numpy(steps[0].peers)

    def _at(self, step: LocalStep, x: Tensor, direction: Tensor) -> Derivatives:
        return _derivatives(self._loss, self._chosen, step, x, direction)


def round_of(
    replay: Replay, chosen: Chosen | None
) -> DSgdRound | GradientTrackingRound:
    """Return the round that a run's trainer takes."""
    tracking = replay.config.trainer.form == "gradient_tracking"
    kind = GradientTrackingRound if tracking else DSgdRound
    return kind(replay, chosen)


def _derivatives(
    loss: BatchLoss,
    chosen: Chosen | None,
    step: LocalStep,
    x: Tensor,
    direction: Tensor,
) -> Derivatives:
    batch = step.batch
    weights = np.zeros_like(batch.weights) if chosen is None else chosen.weights(batch)
    return loss.at(x, direction, batch.index, batch.weights, weights)


def _rows(state: PeerState, at: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Return copies of some peers' parameters and momentum, float64."""
    x = state.params[at].double()
    if momentum and "momentum" in state.slots:
        return x, state.slots["momentum"][at].double()
    return x, torch.zeros_like(x)


def _columns(step: LocalStep, momentum: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return scale, decay and rate as columns, and the momentum factor."""
    scale, decay, rate = (
        torch.from_numpy(values)[:, None]
        for values in (step.scale, step.decay, step.rates)
    )
    return scale, decay, rate, momentum


def _advance(
    step: LocalStep, gradient: Tensor, x: Tensor, v: Tensor, momentum: float
) -> None:
    """Take the step itself, in place."""
    k = len(step.peers)
    scale, decay, rate, keep = _columns(step, momentum)
    rise = scale * gradient + decay * x[:k]
    v[:k] = torch.where(rate > 0, keep * v[:k] + rise, v[:k])
    x[:k] -= rate * v[:k]
