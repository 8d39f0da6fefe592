r"""Unlearning by differential privacy: training hid the data, so nothing is done.

A run trained by ``dp-gossip`` is, with any m records of its peers and without them, the
same up to :math:`(\varepsilon, \delta)` (group privacy; decentralized-certified 5,
item 4). So the deployed models, with the data forgotten by doing nothing, are as close
to those of training without the data, and so are all messages of training: this is the
one claim here that covers what peers saw before the request. What it costs is paid in
advance by every record, in accuracy, and it grows fast with m.

The relation ``add_remove`` for m records becomes ``unlearn`` with the identity as the
algorithm. The world compared with is the same training on the retained rows, with the
same public divisors: every peer divides by its rate times the rows it *stored*, as
``dp-gossip`` does in both worlds and in retraining too, whatever the request's
``normalization`` says.

Not served: the whole of a peer's data. Without rows a peer takes no steps and adds no
noise, and the others' weights change: that needs clipping of whole peers.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn._assumption import Assumption
from dfl_unlearn.accounting.certificate import Certificate, certify
from dfl_unlearn.accounting.entries import EVERYONE
from dfl_unlearn.accounting.groups import group_curve
from dfl_unlearn.accounting.mechanisms import SampledGaussianMechanism
from dfl_unlearn.accounting.rdp import RdpCurve
from dfl_unlearn.data.forget import ForgetKind, ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.trainers.dp_gossip import DpGossip
from dfl_unlearn.errors import (
    GroupPrivacyError,
    InvalidPrivacyParameterError,
    SensitivityUnprovenError,
    UnsupportedRequestError,
)
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.contracts import Cost, Outcome, baselines


@baselines.register("dp-gossip")
@dataclass(frozen=True, kw_only=True)
class DpGossipBaseline:
    """Do nothing: training with ``dp-gossip`` has hidden the data already.

    Attributes:
        delta: Failure probability of the claim; epsilon follows from training, the
            number of forgotten records and this.
    """

    delta: float = 1e-5

    kinds: ClassVar[frozenset[ForgetKind]] = frozenset({"samples", "class"})
    claim: ClassVar[Literal["certified"]] = "certified"
    noised_only: ClassVar[bool] = True  # no message at all after the request

    def __post_init__(self) -> None:
        """Check the field."""
        _validate.number(
            delta=self.delta, above=0, below=1, error=InvalidPrivacyParameterError
        )

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse runs and requests that group privacy says nothing about.

        Args:
            run: The trained network.
            request: The resolved request.

        Raises:
            UnsupportedRequestError: If the request leaves an owner without rows.
        """
        _steps_of(run)
        left = run.data.without(request).retained
        emptied = [i for i in request.peers if left[i] == 0]
        if emptied:
            raise UnsupportedRequestError(
                f"request: must leave every owner a row for dp-gossip, got all rows of "
                f"peer {emptied[0]}; the noise hides records, not whole peers: use "
                "retrain"
            )
        self._epsilon(self._curve(run, request), request, run)

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Return the state as it is, with what group privacy says of it.

        Args:
            run: The trained network.
            request: The resolved request.
            rng: Not used.

        Returns:
            The outcome; nothing was sent or charged.
        """
        self.check(run, request)
        return Outcome(
            run=run,
            request=request,
            protocol=self,
            state=run.state,
            certificate=self._certificate(run, request),
            cost=Cost(),
            ledger=run.ledger,
            messages=run.transport().log,
        )

    def _curve(self, run: TrainedRun, request: ForgetRequest) -> RdpCurve:
        """Return the cost of all owners' records; peers have noises of their own."""
        total = RdpCurve.zero(adjacency="add_remove")
        for size in _sizes(run, request).values():
            for steps in _steps_of(run):
                total = total + group_curve(steps, size)
        return total.to_adjacency("unlearn")

    def _epsilon(
        self, curve: RdpCurve, request: ForgetRequest, run: TrainedRun
    ) -> float:
        """Return epsilon at delta.

        Raises:
            GroupPrivacyError: If nothing finite is proven.
        """
        epsilon = curve.to_epsilon(self.delta).epsilon
        if not np.isfinite(epsilon):
            raise GroupPrivacyError(
                f"request: must be few enough records for the noise of training, got "
                f"{request.size(run.data)}, for which no finite epsilon is proven at "
                f"delta={self.delta:g}; forget fewer, train with more noise or a "
                "smaller rate, or retrain"
            )
        return epsilon

    def _certificate(self, run: TrainedRun, request: ForgetRequest) -> Certificate:
        trainer = run.config.trainer
        assert isinstance(trainer, DpGossip)
        curve = self._curve(run, request)
        epsilon = self._epsilon(curve, request, run)
        finite = [v < np.inf for v in curve.values]
        curve = curve.restrict(
            [o for o, fits in zip(curve.orders, finite, strict=True) if fits]
        )
        sizes = _sizes(run, request)
        rounds = sum(steps.steps for steps in _steps_of(run))
        return certify(
            method="dp-gossip",
            request_id=request.request_id,
            group_size=sum(sizes.values()),
            scope="view_joint",
            epsilon=epsilon,
            delta=self.delta,
            sensitivity=max(sizes.values()) * trainer.clip_norm,
            bound="a_priori",
            noise_std=trainer.noise_multiplier * trainer.clip_norm,
            accountant="rdp",
            assumptions=[
                *_assumptions(trainer, rounds, sizes),
                *([] if run.data.extractor is None else [run.data.extractor]),
            ],
            observers=("public",),
            curve=curve,
            exposure=(
                "losses, gradient norms and accuracies that the simulator writes down "
                "carry no noise; nobody in the network sees them",
            ),
            notes=(
                "compares with the same training on the retained rows, every peer "
                "dividing by its rate times the rows it stored",
                "all messages of training are covered: the noise is in them",
                "for whoever sees everything: a single peer h hops away has seen the "
                "owner's rounds but the last "
                + ("h - 1" if trainer.form == "atc" else "h"),
                "epsilon says how many records go: group_size is not hidden",
            ),
            adaptive=request.adaptive,
        )


def _sizes(run: TrainedRun, request: ForgetRequest) -> dict[int, int]:
    """Return owner -> records that go."""
    gone = request.mask(run.data)
    return {i: int(gone[run.data.rows(i)].sum()) for i in request.peers}


def _steps_of(run: TrainedRun) -> list[SampledGaussianMechanism]:
    """Return what the run's ledger was charged for all of its rounds.

    Raises:
        SensitivityUnprovenError: If the state does not come from private rounds alone.
    """
    trainer, record = run.config.trainer, run.record
    if type(trainer) is not DpGossip:
        raise SensitivityUnprovenError(
            f"run: must be trained by dp-gossip, got {type(trainer).__name__}; a mean "
            "over the rows that happen to be in a batch, without noise, hides nothing: "
            "train with trainer=DpGossip() or use another protocol"
        )
    if record is None:
        raise SensitivityUnprovenError(
            "run: must be as training left it, got a state that was brought in or that "
            "an earlier request changed; ask for all rows in one request on the "
            "trained run"
        )
    found = [
        entry.mechanism
        for entry in run.ledger.entries
        if entry.owner == EVERYONE
        and isinstance(entry.mechanism, SampledGaussianMechanism)
        and entry.noise_purpose == "train-noise"
        and entry.noise_drawn
    ]
    same = [
        steps.steps
        for steps in found
        if (steps.rate, steps.noise_multiplier)
        == (trainer.rate, trainer.noise_multiplier)
    ]
    if len(found) != len(run.ledger.entries) or sum(same) < record.rounds:
        raise SensitivityUnprovenError(
            f"ledger: must hold the run's {record.rounds} private rounds and nothing "
            f"else, got {sum(same)} of them in {len(run.ledger.entries)} entries; it "
            "belongs to another run or to other releases"
        )
    return found


def _assumptions(
    trainer: DpGossip, rounds: int, sizes: dict[int, int]
) -> list[Assumption]:
    return [
        Assumption(
            name="clipping norm (C)",
            value=trainer.clip_norm,
            source="clipped",
            note="every row's gradient, one by one, in every step",
        ),
        Assumption(
            name="noise multiplier",
            value=trainer.noise_multiplier,
            source="proven",
            note="Gaussian noise of this times C on every peer's sum of gradients, in "
            "every round, empty batches included",
        ),
        Assumption(
            name="sampling rate",
            value=trainer.rate,
            source="proven",
            note="Poisson: a coin of its own for every stored row in every round; who "
            "joined is never sent",
        ),
        Assumption(
            name="divisor",
            value="rate times stored rows",
            source="proven",
            note="public and the same in both worlds; never the size of the batch",
        ),
        Assumption(
            name="private rounds",
            value=rounds,
            source="proven",
            note="all rounds that the models come from; in the ledger under owner '*'",
        ),
        Assumption(
            name="records per owner",
            value=max(sizes.values()),
            source="proven",
            note=f"the most of {len(sizes)} owners; the cost of a group is derived, "
            "not m times that of one record. add_remove of these records is unlearn "
            "with the identity",
        ),
    ]
