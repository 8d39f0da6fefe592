"""What network protocols and local methods take and give, and where they register."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dfl_unlearn.accounting.certificate import Certificate
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.personal import Personal
from dfl_unlearn.engine.run import CarriedOut, TrainedRun
from dfl_unlearn.engine.state import PeerState
from dfl_unlearn.engine.transport import MessageLog
from dfl_unlearn.errors import InsecureNoiseError, RefusedError, UnknownNameError
from dfl_unlearn.registry import JoinedRegistry, Registry
from dfl_unlearn.rng import RngTree
from dfl_unlearn.store.files import to_safetensors, write_file
from dfl_unlearn.unlearning.cost import Cost
from dfl_unlearn.unlearning.local import (
    Budget,
    LocalOutcome,
    LocalTask,
    TaskPart,
    UnlearningMethod,
    methods,
)
from dfl_unlearn.unlearning.noise_modes import simulated_releases
from dfl_unlearn.unlearning.progress import Progress, Residual

__all__ = [
    "Budget",
    "Cost",
    "LocalOutcome",
    "LocalTask",
    "Outcome",
    "OutcomeStatus",
    "TaskPart",
    "UnlearningMethod",
    "UnlearningProtocol",
    "baselines",
    "label_of",
    "methods",
    "protocols",
    "unlearners",
]

OutcomeStatus = Literal["complete", "incomplete", "held_for_review"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a protocol gives back; the run it started from stays as it was.

    Attributes:
        run: The run the protocol read.
        request: The resolved request.
        protocol: The protocol object, its fields being the hyper-parameters.
        state: Every peer's new state.
        certificate: The claim, or None where the protocol makes none.
        cost: What it took.
        ledger: A fork of the run's ledger with this attempt's entries.
        messages: All messages after the request.
        reference: The retrained run, when it was asked for.
        trace: Name -> values per step, e.g. solver residuals.
        info: For readers only; nothing computes from it.
        notes: Sentences for the report.
        status: ``held_for_review`` where it cost more accuracy than the screening
            allows; it is not committed unasked then. ``incomplete`` where ``pending``
            names peers.
        pending: Peers that have not taken the corrected model and hold influence of
            the forgotten data: those that were down for too long, and those that left.
        residual_influence: Norm of that influence, or None where it is not known, and
            how it was got, by peer; for every peer that has not taken the model.
        progress: How far the request came, in a network with faults; else None.
        keep_checkpoints: Whether a commit leaves states from before the request on
            disk; the certificate is ``certified_conditional`` at most then.
        personal: What peers keep beside the models afterwards, by peer and name; never
            mixed with anybody's. It replaces the run's: what a protocol does not hand
            on is gone.
    """

    run: TrainedRun
    request: ForgetRequest
    protocol: "UnlearningProtocol"
    state: PeerState
    certificate: Certificate | None
    cost: Cost
    ledger: PrivacyLedger
    messages: MessageLog
    reference: TrainedRun | None = None
    trace: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    info: Mapping[str, float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    status: OutcomeStatus = "complete"
    pending: tuple[int, ...] = ()
    residual_influence: Mapping[int, Residual] = field(default_factory=dict)
    progress: Progress | None = None
    keep_checkpoints: bool = False
    personal: Personal = field(default_factory=dict)

    @property
    def protocol_name(self) -> str:
        """The registered name of the protocol or baseline."""
        return unlearners.name_of(self.protocol)

    @property
    def label(self) -> str:
        """What tables and plots call it: ``at-peer.<method>`` for a local method."""
        return label_of(self.protocol)

    def export(self, path: str | Path, *, secure: bool = False) -> Path:
        """Write every peer's model as safetensors, named ``peer<i>/<parameter>``.

        What is written is ``state``, in the run's dtype; changes that a peer keeps to
        itself (``personal``) are not added. With secure noise that is
        post-processing of the numbers on the grid that were released: cast to the
        dtype, and trained on retained rows where the protocol goes on after its
        release. A peer that was not corrected is named ``peer<i>.pending/...``.

        Args:
            path: The file to write.
            secure: Whether the file is meant for deployment.

        Returns:
            Where it was written.

        Raises:
            InsecureNoiseError: If ``secure`` and the models carry simulated noise,
                which whoever knows the seed can subtract, or may carry that of an
                earlier release in the ledger.
        """
        claim = self.certificate
        carried = [*simulated_releases(self.ledger)]
        if claim is not None and claim.noise_std > 0:
            carried += [claim.request_id] if claim.noise_mode == "simulated" else []
        if secure and carried:
            raise InsecureNoiseError(
                f"secure: must be False for request {self.request.request_id}, got "
                f"True; the noise of request {carried[0]} is simulated (drawn from the "
                "seed) and not for deployment: unlearn with noise_mode='secure' in a "
                "run without simulated noise"
            )
        tensors = {
            f"peer{i}{'.pending' if i in self.still_holding else ''}/{name}": value
            for i, row in enumerate(self.state.params)
            for name, value in self.run.model.state_dict(row).items()
        }
        path = Path(path)
        write_file(path, to_safetensors(path.name, tensors), private=True)
        return path

    def _repr_html_(self) -> str:
        """Return protocol, request and certificate for notebooks."""
        title = html.escape(
            f"{self.label} on request {self.request.request_id}"
            + ("" if self.status == "complete" else f": {self.status}")
        )
        claim = "no claim" if self.certificate is None else self.certificate
        shown = claim if isinstance(claim, str) else claim._repr_html_()
        return f"<h4>{title}</h4>{shown}"

    def as_run(self) -> TrainedRun:
        """Return a run that goes on from the new state, without the forgotten data.

        The training record stays behind, since it was made with that data. Where
        nothing was asked for it is the run itself. A peer that left for good with
        influence of the data is remembered in ``carried_out``.

        Raises:
            RefusedError: If a peer that has not left still lacks the corrected model.
        """
        if self.request.is_nothing:
            return self.run
        left = {} if self.progress is None else self.progress.left
        waiting = [peer for peer in self.pending if peer not in left]
        if waiting:
            raise RefusedError(
                f"outcome: must have reached every peer that has not left, got "
                f"{', '.join(map(str, waiting))} still pending on request "
                f"{self.request.request_id}; unlearn with a larger patience of the "
                "fault plan"
            )
        ahead = self.run.ahead
        if self.progress is not None:
            ahead = self.progress.end - self.state.round
        return self.run.replaced(
            data=self.run.data.without(self.request),
            state=self.state,
            ahead=ahead,
            ledger=self.ledger,
            info={**self.run.info, "requests": self.run.requests + 1},
            carried_out=(*self.run.carried_out, self.carried_out),
            personal=self.personal,
        )

    @property
    def still_holding(self) -> frozenset[int]:
        """Peers whose model was not corrected, now or on an earlier request."""
        earlier = {i for past in self.run.carried_out for i in past.pending}
        return frozenset(earlier | set(self.pending))

    @property
    def carried_out(self) -> CarriedOut:
        """What the new state will say of this request."""
        data, gone = self.run.data, self.request.mask(self.run.data)
        return CarriedOut(
            request_id=self.request.request_id,
            round=self.run.state.round,
            rows={i: int(gone[data.rows(i)].sum()) for i in self.request.peers},
            pending={i: self.residual_influence[i][0] for i in self.pending},
        )


class UnlearningProtocol(Protocol):
    """Acts on the network: reads a run, returns every peer's new state.

    A protocol may also have the class attributes ``needs`` (parts of the record),
    ``kinds`` (requests it serves), ``serves_faults`` (whether it is made for networks
    with faults; it is refused there otherwise), ``claim`` (what its certificate can be
    at best), ``noised_only`` (no message before a noised release of the request: the
    transport sees to it, and no claim about all messages stands without), a method
    ``check(run, request)`` that raises before anything changes,
    ``predicted_shift(run, request)``, the shift that its release is calibrated to,
    ``held(run, request)``, parts of ``needs`` that something else stands in for,
    ``check_model(model, num_classes)`` and ``check_network(topology, request)``, which
    raise before training where the model or the network lacks something,
    ``why_not(kind)``, what to do about a kind that it does not serve, and ``label``,
    what tables call it.
    """

    def unlearn(self, run: TrainedRun, request: ForgetRequest, rng: RngTree) -> Outcome:
        """Carry out a resolved request."""
        ...


def label_of(protocol: UnlearningProtocol) -> str:
    """Return what tables call a protocol: ``at-peer.<method>`` for a local method."""
    label: str | None = getattr(protocol, "label", None)
    return unlearners.name_of(protocol) if label is None else label


protocols: Registry[UnlearningProtocol] = Registry(
    "protocols", packages=("dfl_unlearn.unlearning.protocols",)
)
baselines: Registry[UnlearningProtocol] = Registry(
    "baselines", packages=("dfl_unlearn.baselines",)
)


class _Unlearners(JoinedRegistry[UnlearningProtocol]):
    """Protocols and baselines; knows where methods for one model belong."""

    def elsewhere(self, name: str) -> str:
        """Say how a method for one model runs, if ``name`` is one or its label."""
        method, _, reentry = name.removeprefix("at-peer.").partition(".")
        if method not in methods:
            return ""
        more = f", reentry={reentry!r}" if reentry else ""
        words = f" reentry={reentry}" if reentry else ""
        return (
            f"{method} is a method for one model, wrap it: AtPeer(method={method!r}"
            f"{more}), or --protocol at-peer method.use={method}{words}"
        )

    def name_of(self, entry: object) -> str:
        """Return the name under which a protocol is filed."""
        kind = entry if isinstance(entry, type) else type(entry)
        if any(methods.get(name) is kind for name in methods):
            raise UnknownNameError(
                f"protocol: must act on the network, got {kind.__name__}, a method for "
                f"one model; wrap it: AtPeer(method={kind.__name__}(...))"
            )
        return super().name_of(entry)


unlearners: Registry[UnlearningProtocol] = _Unlearners(
    "protocols and baselines", protocols, baselines
)
"""Everything that can be asked to forget, by name."""
