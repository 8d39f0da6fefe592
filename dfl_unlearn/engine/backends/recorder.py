"""What every backend writes down in the same way, round by round."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import as_features
from dfl_unlearn._assumption import Assumption
from dfl_unlearn.engine.backends.contract import EngineSetup
from dfl_unlearn.engine.local import peer_scale
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import NumericalError
from dfl_unlearn.record.training import Dynamics, TrainingRecord


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What was written down so far, for a run that goes on later.

    Attributes:
        rates: Learning rate of each round, shape ``(t,)``.
        norms: Gradient norms, shape ``(t, N)``, or None where they are not kept.
        checkpoints: Round -> state after it, shape ``(N, P)``.
    """

    rates: NDArray[np.float64]
    norms: NDArray[np.float64] | None
    checkpoints: Mapping[int, Tensor]


class Recorder:
    """Checks the figures of every round and keeps what the plan asks for."""

    def __init__(
        self, setup: EngineSetup, state: PeerState, recorded: Recorded | None = None
    ) -> None:
        """Start a record, or go on with one.

        Args:
            setup: Network, data, model, configuration and draws.
            state: Where training starts, before the first round.
            recorded: What earlier rounds wrote down; None starts an empty record.
        """
        self._setup = setup
        self._initial = state.params
        self._norms: list[NDArray[np.float64]] = []
        self._rates: list[float] = []
        self._checkpoints: dict[int, Tensor] = {}
        if recorded is not None:
            self._rates.extend(recorded.rates.tolist())
            self._norms.extend([] if recorded.norms is None else recorded.norms)
            self._checkpoints.update(recorded.checkpoints)
        config = setup.config
        nbytes = state.n * setup.model.size * config.item_size
        self._keep_at = frozenset(
            config.record.checkpoint_rounds(config.rounds, nbytes)
        )

    def after(
        self,
        t: int,
        loss: NDArray[np.float64],
        norms: NDArray[np.float64],
        params: Callable[[], Tensor],
    ) -> None:
        """Note what round t (from 0) gave.

        Args:
            t: The round that was completed.
            loss: Losses, shape ``(N,)``.
            norms: Gradient norms, shape ``(N,)``.
            params: Gives a copy of the state after the round, shape ``(N, P)``; called
                where it is a checkpoint.

        Raises:
            NumericalError: If a peer's loss or gradient is not finite.
        """
        bad = ~(np.isfinite(loss) & np.isfinite(norms))
        if bad.any():
            peer = int(np.flatnonzero(bad)[0])
            raise NumericalError(
                f"peer {peer} became non-finite in round {t + 1} (loss "
                f"{loss[peer]:g}, gradient norm {norms[peer]:g}); lower learning_rate "
                "or set clip_norm"
            )
        config = self._setup.config
        self._rates.append(config.local.rate(t, config.rounds))
        if "gradient_norms" in config.record.parts:
            self._norms.append(norms)
        if t + 1 in self._keep_at:
            self._checkpoints[t + 1] = params()

    def so_far(self) -> Recorded:
        """Return what was written down until now."""
        return Recorded(
            rates=np.array(self._rates, dtype=np.float64),
            norms=np.array(self._norms) if self._norms else None,
            checkpoints=dict(self._checkpoints),
        )

    def record(self) -> TrainingRecord:
        """Return what was written down."""
        setup, config = self._setup, self._setup.config
        keep = config.record.parts
        return TrainingRecord(
            plan=config.record,
            dynamics=Dynamics(
                form=config.trainer.form,
                local_steps=config.local.per_round(setup.data.sizes),
                scale=peer_scale(setup.data, config.peer_weighting),
                decay=setup.model.l2,
                weight_decay=config.local.weight_decay,
                momentum=config.local.momentum,
                convex=setup.model.convex,
                smoothness=_smoothness(setup),
                clip_norm=config.clip_norm,
                faulty=bool(config.faults),
            ),
            step_sizes=np.array(self._rates),
            initial=self._initial if "initial_state" in keep else None,
            checkpoints=self._checkpoints,
            gradient_norms=np.array(self._norms) if self._norms else None,
        )


def check_finite(state: PeerState) -> PeerState:
    """Return a state all of whose parameters are finite.

    Args:
        state: The state.

    Returns:
        The same.

    Raises:
        NumericalError: If a peer's parameters are not finite.
    """
    finite = state.params.isfinite().all(dim=1)
    if not bool(finite.all()):
        peer = int(torch.nonzero(~finite)[0])
        raise NumericalError(
            f"peer {peer} became non-finite in round {state.round}; lower "
            "learning_rate or set clip_norm"
        )
    return state


def _smoothness(setup: EngineSetup) -> Assumption | None:
    """Return a bound on every batch Hessian of a convex model, l2 included.

    None where clipping makes the steps something else than descent on such a model.
    """
    model = setup.model
    if not model.convex:
        return None
    largest = 0.0
    for part in setup.data.store.inputs.split(4096):
        x = as_features(part.reshape(len(part), -1), torch.float64)
        largest = max(largest, float(x.square().sum(1).max()))
    bias = any(name.endswith("bias") for name in model.segments)
    found = model.constants(
        math.sqrt(largest + bias) or 1.0, clip_norm=setup.config.clip_norm
    )
    return found.get("smoothness")
