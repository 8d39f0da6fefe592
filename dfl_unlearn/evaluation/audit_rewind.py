"""The certifier of rewinding: retraining from the same start, plus noise.

One model at the only peer, or all models of a network that goes back together. The
claim compares two trainings that begin at the same parameters and take full-batch
steps, so nothing in either is drawn but the noise, and a guesser may know start,
steps and data. Both trainings are therefore run once, anew, by the simulator: on all
rows for the world that unlearns, whose past states the method then gets instead of
those that the audited run kept; and on a store in which the forgotten rows are
overwritten for the reference. Only the releases are repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.evaluation.audit_targets import ExactTarget, kept_data
from dfl_unlearn.evaluation.audit_worlds import (
    Setting,
    certifier_noise,
    claimed,
    in_float64,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer


class RewindWorlds:
    """Models that were rewound against retrained ones, with the same noise."""

    stacked, single, first = True, False, False

    def __init__(self, setting: Setting, protocol: AtPeer) -> None:
        """Train both worlds and carry the protocol out once.

        Raises:
            UnsupportedRequestError: If training draws batches, the run carries earlier
                requests, peers or rounds take part that the claim is not about, or
                nothing is noised.
        """
        _check(setting, protocol)
        self.setting, self.protocol = setting, protocol
        self.sources = setting.run.topology.n
        self.scales = torch.ones(self.sources, dtype=torch.float64)
        self.claim = claimed(setting, protocol)
        if not self.claim.noise_std:
            raise UnsupportedRequestError(
                "protocol: must add noise to be audited, got noise of size "
                f"{self.claim.noise_std or 0:g}; retraining (rewind=1) needs no audit, "
                "and rewinding without noise claims nothing"
            )
        # Arithmetic of the audited run, and float64 for targets and measurements.
        self._exact = in_float64(setting)
        runs = {one.run.config.dtype: one.run for one in (setting, self._exact)}
        self._seen = {dtype: _trained(run) for dtype, run in runs.items()}
        without = self._exact.without
        unseen = kept_data(without, setting.request)
        self._never = _trained(replace(without, data=unseen))
        self.target = ExactTarget(rows=self._never.state.params, slack=0.0)

    def trained(
        self,
        trees: Sequence[RngTree],
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the trained models once per replica: training draws nothing."""
        params = self._seen[self.setting.run.config.dtype].state.params
        if progress is not None:
            progress(len(trees))
        return params.expand(len(trees), *params.shape)

    def before(self) -> Tensor:
        """Return where training on all rows ends, ``(N, P)`` float64."""
        return self._seen["float64"].state.params

    def unlearned(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return all models after the protocol."""
        return self._carried_out(self.setting, params, tree)

    def released(
        self, starts: Tensor, noise_std: float, trees: Sequence[RngTree]
    ) -> Tensor:
        """Return noised models."""
        shape = tuple(starts.shape[1:])
        rows = starts + certifier_noise(
            shape, noise_std, trees, self.setting.request.request_id
        )
        return rows.to(self.setting.run.config.torch_dtype).double()

    def bare(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return all models after the protocol, in float64.

        A state at the target has retraining's past: the steps that are taken again
        then end at the target as well, and what is left is the noise.
        """
        return self._carried_out(self._exact, params, tree)

    def uncorrected(self, params: Tensor) -> Tensor:
        """Return the trained models."""
        return params.double()

    def shift(self, rows: Tensor) -> float:
        """Return the distance of all rows together to retraining."""
        return float((rows - self.target.rows).norm())

    def _carried_out(self, setting: Setting, params: Tensor, tree: RngTree) -> Tensor:
        view = setting.view(params, tree)
        past = self._seen[setting.run.config.dtype]
        if torch.equal(params.double(), self.target.rows):
            past = self._never
        view = replace(view, record=past.record)
        outcome = self.protocol.unlearn(view, setting.request, tree)
        return outcome.state.params.double()


def _check(setting: Setting, protocol: AtPeer) -> None:
    run, together = setting.run, protocol.reentry == "rewind_network"
    alone = run.topology.n == 1 and protocol.reentry == "requester"
    if not together and (not alone or protocol.gossip_rounds):
        needed = "be of one peer without further rounds, or of reentry='rewind_network'"
        got = f"{run.topology.n} peers, reentry={protocol.reentry!r} and gossip_rounds="
        got += f"{protocol.gossip_rounds}"
        remedy = "elsewhere the claim is heuristic"
    elif run.config.local.batch_size is not None:
        needed = "train on full batches"
        got = f"batch_size={run.config.local.batch_size}"
        remedy = "the claim is about full batches; set batch_size to None"
    elif not run.data.keep.all():
        needed = "be of a run from which no rows were taken before"
        got = f"{int((~run.data.keep).sum())} rows taken"
        remedy = "audit one request for all of them, and not with one run of canaries"
    elif run.record is None:
        needed, got = "be of a run with a record", "none"
        remedy = "train it with record=RecordPlan.for_protocols(method)"
    else:
        return
    raise UnsupportedRequestError(f"audit: must {needed}, got {got}; {remedy}")


def _trained(run: TrainedRun) -> TrainedRun:
    """Return the same training done again, on the data that the run now has."""
    config = replace(run.config, evaluate_every=0)
    return simulate(run.topology, run.data, run.model, config)
