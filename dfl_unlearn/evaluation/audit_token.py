"""The certifier of a token's walk: the same walk, from the exact minimizer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.evaluation.audit_targets import exact_target
from dfl_unlearn.evaluation.audit_worlds import (
    Replicated,
    Setting,
    claimed,
    in_float64,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.protocols.rr_du import RrDu
from dfl_unlearn.unlearning.rr_du_claim import Claim
from dfl_unlearn.unlearning.token import Token

_PATH_NUMBERS = 48  # of a token's path that a guesser is given


class TokenWorlds(Replicated):
    """A token's walk from the common model against one from the exact minimizer."""

    stacked, single, sources, first = False, False, 1, True

    def __init__(self, setting: Setting, protocol: RrDu) -> None:
        """Solve for the target and carry the protocol out once."""
        self.setting, self.protocol = setting, protocol
        self.target = exact_target(setting.without, setting.kept, stacked=False)
        run = setting.run
        self.scales = torch.ones(run.topology.n, dtype=torch.float64)
        claim = claimed(setting, protocol)
        self._base = setting.view(run.state.params, run.rng)
        route = protocol.route(self._base, setting.request)
        self._claim = Claim.of(protocol, self._base, setting.request, route)
        # The certificate's noise may stand for several releases; the start's is meant.
        self.claim = replace(
            claim,
            noise_std=self._claim.start_noise,
            sensitivity=self._claim.start.sensitivity,
        )
        points = max(2, _PATH_NUMBERS // run.model.size)
        hops = len(route.holders) if protocol.max_visits is None else protocol.hops
        last = (hops or len(route.holders)) - 1
        self._hops = np.unique(np.linspace(0, last, points).round()).astype(np.int64)

    def unlearned(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return what the token carries at some of its hops."""
        view = self.setting.view(params, tree)
        path = _Path(self._hops)
        self.protocol.unlearn(view, self.setting.request, tree, watch=path)
        return path.points()

    def released(
        self, starts: Tensor, noise_std: float, trees: Sequence[RngTree]
    ) -> Tensor:
        """Return what tokens from other starts carry, without the forgotten rows."""
        found = []
        for rows, tree in zip(starts, trees, strict=True):
            view = self.setting.view(rows, tree, seen=False)
            view = replace(view, state=PeerState(params=rows, round=view.state.round))
            route = self.protocol.route(view, self.setting.request)
            claim = self._claim
            if claim.visit_noise > 0:  # calibrated to the number of visits
                claim = Claim.of(self.protocol, self._base, self.setting.request, route)
            claim = replace(claim, start=replace(claim.start, noise_std=noise_std))
            token = _Blind(
                self.protocol, view, self.setting.request, tree, route, claim
            )
            path = _Path(self._hops)
            token.walk(path)
            found.append(path.points())
        return torch.stack(found)

    def bare(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return the noised start before it is put into the public ball."""
        view = in_float64(self.setting).view(params, tree)
        bare = replace(self.protocol, public_radius=None)
        if not self._claim.visit_noise > 0:  # no visit costs anything: skip the walk
            bare = replace(bare, hops=1)
        path = _Path(np.array([0]))
        bare.unlearn(view, self.setting.request, tree, watch=path)
        return path.points().expand(len(params), -1)

    def uncorrected(self, params: Tensor) -> Tensor:
        """Return the common model: the walk's only correction is its start's noise."""
        rows = params.double()
        return rows.mean(1, keepdim=True).expand_as(rows)

    def shift(self, rows: Tensor) -> float:
        """Return the distance of the common start."""
        return float((rows[0] - self.target.rows[0]).norm())


class _Path:
    """Keeps what a token carries at some hops."""

    def __init__(self, hops: NDArray[np.int64]) -> None:
        self._hops = hops.tolist()
        self._kept: list[Tensor] = []
        self._last = torch.empty(0)

    def __call__(self, hop: int, theta: Tensor) -> None:
        """Take what it carries after a hop; until then it carried the same."""
        self._fill(hop)
        self._last = theta

    def points(self) -> Tensor:
        """Return them, shape ``(S, P)``; a walk that ended early stays at its end."""
        self._fill(self._hops[-1] + 1)
        return torch.stack(self._kept)

    def _fill(self, before: int) -> None:
        while len(self._kept) < len(self._hops) and (
            self._hops[len(self._kept)] < before
        ):
            self._kept.append(self._last)


class _Blind(Token):
    """A token that forgotten rows tell nothing: what a visit adds of them is 0."""

    def _forgotten(self, theta: Tensor) -> Tensor:
        return torch.zeros_like(theta)
