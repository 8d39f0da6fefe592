"""Which claim has which certifier; those of Newton's correction and fine-tuning."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.replicas import continue_replicas
from dfl_unlearn.engine.transport import multiples
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.evaluation.audit_rewind import RewindWorlds
from dfl_unlearn.evaluation.audit_targets import exact_target
from dfl_unlearn.evaluation.audit_token import TokenWorlds
from dfl_unlearn.evaluation.audit_worlds import (
    Replicated,
    Setting,
    Worlds,
    certifier_noise,
    claimed,
    in_float64,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import UnlearningProtocol
from dfl_unlearn.unlearning.influence_weights import correction_weights
from dfl_unlearn.unlearning.methods.r2d import R2d
from dfl_unlearn.unlearning.protocols.at_peer import AtPeer
from dfl_unlearn.unlearning.protocols.fine_tune import FineTune
from dfl_unlearn.unlearning.protocols.newton_fisher import NewtonFisher
from dfl_unlearn.unlearning.protocols.rr_du import RrDu


def worlds_of(setting: Setting, protocol: UnlearningProtocol) -> Worlds:
    """Return both worlds of a protocol's claim.

    Args:
        setting: What is audited.
        protocol: The protocol.

    Returns:
        The worlds.

    Raises:
        UnsupportedRequestError: If no certifier is written for it, or its noise cannot
            be drawn again.
    """
    if getattr(protocol, "noise_mode", "simulated") != "simulated":
        raise UnsupportedRequestError(
            "noise_mode: must be 'simulated' for an audit, which has to be repeatable, "
            "got 'secure'; audit the same protocol with noise_mode='simulated' and "
            "note that the noise of the operating system was not looked at"
        )
    if isinstance(protocol, NewtonFisher):
        return NewtonWorlds(setting, protocol)
    if isinstance(protocol, FineTune) and protocol.epsilon is not None:
        return FineTuneWorlds(setting, protocol)
    if isinstance(protocol, RrDu) and protocol.certify == "retrain":
        return TokenWorlds(setting, protocol)
    if isinstance(protocol, AtPeer) and isinstance(protocol.method, R2d):
        return RewindWorlds(setting, protocol)
    raise UnsupportedRequestError(
        "protocol: must make a claim that an audit knows the certifier of "
        "(newton-fisher, fine-tune with epsilon, rr-du with certify='retrain', at-peer "
        "with method r2d), got "
        f"{protocol!r}; exact results need no audit, others claim nothing"
    )


class NewtonWorlds(Replicated):
    """Newton's correction against the exact target with the same noise."""

    first = False

    def __init__(self, setting: Setting, protocol: NewtonFisher) -> None:
        """Solve for the target and carry the protocol out once."""
        self.setting, self.protocol = setting, protocol
        self.target = exact_target(
            setting.without, setting.kept, stacked=protocol.stacked
        )
        self.claim = claimed(setting, protocol)
        self.stacked = protocol.stacked
        self.single = protocol.scope == "release"
        own = protocol.noise_placement == "independent"
        self.sources = setting.run.topology.n if own else 1
        self.scales = torch.ones(setting.run.topology.n, dtype=torch.float64)
        # Gossip averages leave every peer with a public multiple of one model.
        self._held = torch.ones_like(self.scales)
        if protocol.noise_placement == "broadcast_model":
            held = multiples(
                setting.run.topology, setting.request.requester, protocol.dissemination
            )
            self._held = torch.from_numpy(held)
        if protocol.noise_placement == "broadcast_correction":
            run = setting.run
            kept = network_objective(run.model, setting.kept, run.config.peer_weighting)
            how = protocol.influence_weights
            found = correction_weights(
                how, run, setting.request, kept, run.state.mean(), run.rng
            )
            self.scales = torch.from_numpy(found)

    def unlearned(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return all peers' models at the release, and after the recovery rounds."""
        final = self._carried_out(self.setting, self.protocol, params, tree)
        if self.protocol.recovery_rounds == 0:
            return final
        # What a recovery round reads is covered too; its batches would hide it.
        bare = replace(self.protocol, recovery_rounds=0)
        return torch.cat([self._carried_out(self.setting, bare, params, tree), final])

    def released(
        self, starts: Tensor, noise_std: float, trees: Sequence[RngTree]
    ) -> Tensor:
        """Return noised models, and what recovery rounds make of them."""
        setting, protocol = self.setting, self.protocol
        _, n, p = starts.shape
        common = protocol.noise_placement != "independent"
        noise = certifier_noise(
            (1 if common else n, p), noise_std, trees, setting.request.request_id
        )
        rows = self._held[:, None] * (starts + self.scales[:, None] * noise)
        rows = rows.to(setting.run.config.torch_dtype)
        if protocol.recovery_rounds == 0:
            return rows.double()
        after = continue_replicas(
            setting.without,
            setting.kept,
            rows,
            protocol.recovery_rounds,
            trees,
            begin=setting.run.config.rounds,
        )
        return torch.cat([rows, after.params], dim=1).double()

    def bare(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return all peers' models before the recovery rounds."""
        bare = replace(self.protocol, recovery_rounds=0)
        rows = self._carried_out(in_float64(self.setting), bare, params, tree)
        return rows / self._held[:, None]

    def _carried_out(
        self, setting: Setting, protocol: NewtonFisher, params: Tensor, tree: RngTree
    ) -> Tensor:
        view = setting.view(params, tree)
        outcome = protocol.unlearn(view, setting.request, tree)
        return outcome.state.params.double()

    def uncorrected(self, params: Tensor) -> Tensor:
        """Return the mean model, or the peers' own where they keep them."""
        own = self.protocol.noise_placement != "broadcast_model"
        rows = params.double()
        return rows if own else rows.mean(1, keepdim=True).expand_as(rows)

    def shift(self, rows: Tensor) -> float:
        """Return the distance of all rows, or of the farthest where one is seen."""
        away = (rows - self.target.rows).norm(dim=1) / self.scales
        together = self.sources > 1 and not self.single
        return float(away.norm() if together else away.max())


class FineTuneWorlds(Replicated):
    """More rounds of training against the point where they would come to rest."""

    stacked, single, first = True, False, False

    def __init__(self, setting: Setting, protocol: FineTune) -> None:
        """Solve for the target and carry the protocol out once."""
        self.sources = setting.run.topology.n
        self.scales = torch.ones(self.sources, dtype=torch.float64)
        self.setting, self.protocol = setting, protocol
        self.target = exact_target(setting.without, setting.kept, stacked=True)
        self.claim = claimed(setting, protocol)

    def unlearned(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return all peers' models after the protocol."""
        view = self.setting.view(params, tree)
        outcome = self.protocol.unlearn(view, self.setting.request, tree)
        return outcome.state.params.double()

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
        """Return all peers' models after the protocol, in float64."""
        view = in_float64(self.setting).view(params, tree)
        return self.protocol.unlearn(view, self.setting.request, tree).state.params

    def uncorrected(self, params: Tensor) -> Tensor:
        """Return the trained models."""
        return params.double()

    def shift(self, rows: Tensor) -> float:
        """Return the distance of all rows together."""
        return float((rows - self.target.rows).norm())
