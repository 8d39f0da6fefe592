"""Both worlds of a certificate, as experiments that can be repeated many times.

*Unlearned*: train on all data, run the protocol's own code, look at what the scope
shows. *Reference*: the certifier of the claim, which never saw the forgotten rows: the
exact target plus noise of the certified size plus the same post-processing, written
here a second time and stacked over replicas; only a token's walk after its noised
start, which is the same randomized map in both worlds, is the protocol's own, on data
whose forgotten rows are overwritten. The worlds share nothing but the data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.objective import network_objective
from dfl_unlearn.engine.replicas import train_replicas
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.errors import UnsupportedRequestError
from dfl_unlearn.evaluation.audit_result import AuditClaim
from dfl_unlearn.evaluation.audit_targets import (
    ExactTarget,
    blanked,
    exact_target,
    kept_data,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import UnlearningProtocol


class SilentTree(RngTree):
    """A tree whose normal numbers are all 0: a release without its noise."""

    def normal(self, shape: tuple[int, ...], purpose: str, **key: Any) -> Tensor:
        """Return zeros."""
        return torch.zeros(tuple(shape), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What is audited.

    Attributes:
        run: The trained network; its state is what the certificate was given for.
        request: The resolved request.
        kept: What the request leaves.
        without: The run with nothing of the forgotten rows left in its store.
    """

    run: TrainedRun
    request: ForgetRequest
    kept: PeerData
    without: TrainedRun

    @classmethod
    def of(cls, run: TrainedRun, request: ForgetRequest) -> "Setting":
        """Return the setting of a request that is resolved."""
        return cls(
            run=run,
            request=request,
            kept=kept_data(run, request),
            without=blanked(run, request),
        )

    def view(self, params: Tensor, tree: RngTree, *, seen: bool = True) -> TrainedRun:
        """Return a replica as a run of its own, with an empty ledger in memory.

        Args:
            params: Its models, shape ``(N, P)``.
            tree: Its draws.
            seen: Whether it has the forgotten rows.

        Returns:
            The run; its recorded training residual is that of these models.
        """
        run = self.run if seen else self.without
        state = PeerState(
            params=params.to(run.config.torch_dtype), round=run.config.rounds
        )
        record = run.record
        if record is not None and "training_residual" in record.plan.parts:
            objective = network_objective(
                run.model, run.data, run.config.peer_weighting
            )
            residual = float(objective.gradient(state.mean()).norm())
            record = replace(record, training_residual={state.round: residual})
        return replace(
            run,
            state=state,
            rng=tree,
            record=record,
            ledger=PrivacyLedger(run.config.privacy_budget),
            history=None,
            folder=None,
            digest="",
        )


class Worlds(Protocol):
    """What the observer of a claim sees in both worlds.

    Attributes:
        setting: What is audited.
        claim: What is put to the test.
        target: Where the certifier starts.
        stacked: Whether every peer has a target of its own.
        single: Whether the observer sees only one of the vectors, not all.
        sources: Rows of a release that carry noise of their own; 1 if all share one.
        scales: Multiple of the noise on every row, shape ``(N,)``.
        first: Whether the vectors are those of a path, its start the first.
    """

    setting: Setting
    claim: AuditClaim
    target: ExactTarget
    stacked: bool
    single: bool
    sources: int
    scales: Tensor
    first: bool

    def trained(
        self,
        trees: Sequence[RngTree],
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the trained models of replicas, shape ``(R, N, P)``.

        Args:
            trees: The draws of every replica.
            progress: Called with the number of replicas that were finished just now.
        """
        ...

    def before(self) -> Tensor:
        """Return where training with the forgotten rows ends, ``(N, P)`` float64."""
        ...

    def unlearned(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return what the protocol's own code releases, shape ``(S, P)`` float64.

        Args:
            params: A replica's trained models, shape ``(N, P)``.
            tree: Its draws.
        """
        ...

    def released(
        self, starts: Tensor, noise_std: float, trees: Sequence[RngTree]
    ) -> Tensor:
        """Return what is seen where models without more correction are released.

        Args:
            starts: Models before the noise, shape ``(R, N, P)`` float64.
            noise_std: Noise on each number.
            trees: The draws of every replica.

        Returns:
            Shape ``(R, S, P)`` float64.
        """
        ...

    def bare(self, params: Tensor, tree: RngTree) -> Tensor:
        """Return the protocol's own release before anything is done with it.

        Args:
            params: A replica's trained models, shape ``(N, P)``.
            tree: Its draws; a ``SilentTree`` leaves the noise out.

        Returns:
            Shape ``(N, P)`` float64, in float64 arithmetic.
        """
        ...

    def uncorrected(self, params: Tensor) -> Tensor:
        """Return what would be released without the correction, ``(R, N, P)``."""
        ...

    def shift(self, rows: Tensor) -> float:
        """Return how far models are from the target, as the sensitivity counts it.

        Args:
            rows: Models before the noise, shape ``(N, P)`` float64.
        """
        ...


class Replicated:
    """Worlds whose replicas train with draws of their own, towards an exact target."""

    setting: Setting
    stacked: bool

    def trained(
        self,
        trees: Sequence[RngTree],
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the trained models of replicas, shape ``(R, N, P)``."""
        return train_replicas(self.setting.run, trees, progress=progress).params

    def before(self) -> Tensor:
        """Return the exact target of all rows, shape ``(N, P)`` float64."""
        run = self.setting.run
        return exact_target(run, run.data, stacked=self.stacked).rows


def claimed(setting: Setting, protocol: UnlearningProtocol) -> AuditClaim:
    """Carry the protocol out once and return what its certificate says.

    Args:
        setting: The network and the request.
        protocol: What is audited.

    Returns:
        The claim.

    Raises:
        UnsupportedRequestError: If nothing is claimed, or the network has faults: who
            took the model then differs from replica to replica, and the certifier's
            worlds know nothing of it.
    """
    if setting.run.config.faults:
        raise UnsupportedRequestError(
            "audit: must be of a network without faults, got a plan with "
            f"{len(setting.run.config.faults.models)} fault models; audit the same "
            "setting without training.faults"
        )
    view = setting.view(setting.run.state.params, setting.run.rng)
    check = getattr(protocol, "check", None)
    if check is not None:
        check(view, setting.request)
    outcome = protocol.unlearn(view, setting.request, view.rng)
    if outcome.certificate is None:
        raise UnsupportedRequestError(
            f"protocol: must make a claim to be audited, got {protocol!r} without a "
            "certificate; state the epsilon or the noise that it should have"
        )
    return AuditClaim.of(outcome.certificate)


def in_float64(setting: Setting) -> Setting:
    """Return the setting with float64 arithmetic."""
    config = replace(setting.run.config, dtype="float64")
    return replace(
        setting,
        run=replace(setting.run, config=config),
        without=replace(setting.without, config=config),
    )


def certifier_noise(
    shape: tuple[int, ...], noise_std: float, trees: Sequence[RngTree], request_id: str
) -> Tensor:
    """Return the certifier's own noise, one draw per replica, ``(R, *shape)``."""
    drawn = [tree.normal(shape, "audit", request=request_id) for tree in trees]
    return noise_std * torch.stack(drawn)
