r"""RR-DU: a token with restarts unlearns on a random walk.

After Lamri and Maniatakos, *Fully Decentralized Certified Unlearning* (arXiv
2512.08443, 2025). Neither its proofs nor its listing were available: the algorithm is
[notes] (read in public summaries), the certificate is ours ([derived],
decentralized-certified 4.5), since one step of the published claim, as summarized, does
not hold in general (4.7 there).

==============================  ==================================================
symbol                          name here
==============================  ==================================================
:math:`\theta_{ref}`            mean of the models after the last training round
:math:`\pi_r`                   ``restart_probability``
:math:`T_u`, :math:`K`          ``hops``, realized visits of the requester u
:math:`\Delta_0`                ``residual_cap``, or its public worst case
:math:`s_0`, :math:`\sigma`     ``release_noise_std``, ``visit_noise_std``
:math:`S`                       sensitivity of one visit
:math:`\varrho`                 ``radius``
==============================  ==================================================

The token starts at u with a noised copy of the common model. At each hop it restarts at
u with probability :math:`\pi_r`, else it moves to a neighbour. Elsewhere its holder
takes a step of descent on its own data; at u the step follows ``alignment``. At the end
every peer takes the token's model.

Deviations. The start is the common model of the last training round instead of u's own:
how far that is from the minimizer without the data can be told without a message. The
mini-batches of a visit are disjoint. With several owners the token restarts at the
requester only; the others are ordinary holders, whose retained data the exact and
corrected steps follow. There is no ball :math:`\Theta` around all iterates.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import status_of
from dfl_unlearn.accounting.entries import NoiseMode
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.transport import Dissemination, multiples
from dfl_unlearn.errors import (
    InvalidHyperparameterError,
    InvalidPrivacyParameterError,
    TopologyError,
    UnsupportedRequestError,
)
from dfl_unlearn.record.plan import RecordPart
from dfl_unlearn.rng import RngTree
from dfl_unlearn.topology.graph import Topology
from dfl_unlearn.topology.walks import Walk, refuse_dead_ends
from dfl_unlearn.unlearning.alignment import ALIGNMENTS, Alignment
from dfl_unlearn.unlearning.claims import refuse_single
from dfl_unlearn.unlearning.contracts import Cost, Outcome, protocols
from dfl_unlearn.unlearning.dissemination import recover
from dfl_unlearn.unlearning.membership import (
    as_trained,
    start_round,
    start_when_there,
    status_at_end,
)
from dfl_unlearn.unlearning.noise_modes import refuse_mixed_noise
from dfl_unlearn.unlearning.progress import progress_of
from dfl_unlearn.unlearning.rr_du_claim import Claim
from dfl_unlearn.unlearning.token import Token, Watch
from dfl_unlearn.unlearning.token_walk import NaturalVisit, Route, draw_route

_LEAST_HOPS, _HOPS_PER_PEER = 500, 60


@protocols.register("rr-du")
@dataclass(frozen=True, kw_only=True)
class RrDu:
    """Random walk of a token that starts at the requester as a noised model.

    Certified for strongly convex models (linear and logistic with l2 > 0) in a network
    that recorded its training residual. At epsilon 1 the start is mostly noise, and the
    walk learns again from the retained data.

    Attributes:
        epsilon: Privacy loss of everything after the request.
        delta: Failure probability of the claim.
        scope: ``view_joint``: an observer of all messages to all peers but the owners,
            together. For an observer of the last model alone see
            ``accounting.network.final_model_rdp``.
        certify: ``retrain`` compares with a network that never had the data;
            ``transcript`` says only what the walk itself gives away and is no claim of
            unlearning.
        restart_probability: Chance of a restart at each hop; None is 1/N.
        hops: Hops of the token; None is max(500, 60 N).
        local_batches: Mini-batches that a visit averages.
        walk: ``uniform`` or ``mh`` (uniform in the long run); ``auto`` is ``uniform``
            on complete graphs, else ``mh``.
        lazy: Chance of staying before the walk is asked.
        natural_visit: What other moves do about the requester: ``exclude`` it,
            ``relay`` without a step, or ``noisy``, a visit like any other.
        visit_correction: ``importance`` weights steps against uneven visits; ``auto``
            does so unless the graph is complete.
        max_visit_weight: Largest such weight.
        alignment: Step at the requester: ``exact`` descends on its retained data,
            ``corrected`` the same by subtraction (retraining with ``fixed``
            normalization), ``lightweight`` ascends on the forgotten data, noised.
        optimizer: ``sgd``, or ``adam`` whose state travels with the token.
        learning_rate: Step size.
        clip_norm: Bound on every forgotten sample's gradient (``lightweight``) and on
            other steps' gradients; None only where no forgotten row is read.
        radius: Trust region around the start, after steps at the requester; None none.
        public_radius: Ball around the origin into which the noised start is put; None
            none. Public, so it costs nothing.
        residual_cap: Public cap on the distance of the common model to the exact
            minimizer without the data; None is the worst case of public constants.
        delta0: ``proven`` checks the cap; ``assumed`` takes it on trust (networks).
        release_noise_std: Noise of the start; None calibrates it.
        visit_noise_std: Noise of each visit; None calibrates it, 0 where a visit reads
            no forgotten row.
        segment_subsampling: Hidden probability with which a ``lightweight`` visit reads
            forgotten rows at all; it adds its noise either way. None is always.
        calibration: ``derived``, or ``lamri_view``: the published noise, with no noise
            at the start; heuristic.
        max_visits: The walk ends before a visit more than this; None has no limit.
        dissemination: How the result is sent: ``tree``, ``flood``, ``push`` or
            ``gossip_average``; see ``engine.transport``.
        noise_mode: ``simulated``: drawn from the seed, repeatable, not for deployment;
            ``secure``: from the operating system, exactly on a grid, never the same
            twice, and calibrated by Rényi's measure: a tenth more noise, and more in
            large models (see ``NewtonFisher``).
        disclose_m: Whether the certificate names the number of forgotten rows.
    """

    epsilon: float = 1.0
    delta: float = 1e-5
    scope: Literal["view_joint"] = "view_joint"
    certify: Literal["retrain", "transcript"] = "retrain"
    restart_probability: float | None = None
    hops: int | None = None
    local_batches: int = 4
    walk: Literal["auto", "uniform", "mh"] = "auto"
    lazy: float = 0.0
    natural_visit: NaturalVisit = "exclude"
    visit_correction: Literal["auto", "none", "importance"] = "auto"
    max_visit_weight: float = 10.0
    alignment: Alignment = "exact"
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    clip_norm: float | None = None
    radius: float | None = None
    public_radius: float | None = 5.0
    residual_cap: float | None = None
    delta0: Literal["proven", "assumed"] = "proven"
    release_noise_std: float | None = None
    visit_noise_std: float | None = None
    segment_subsampling: float | None = None
    calibration: Literal["derived", "lamri_view"] = "derived"
    max_visits: int | None = None
    dissemination: Dissemination = "tree"
    noise_mode: NoiseMode = "simulated"
    disclose_m: bool = False

    needs: ClassVar[frozenset[RecordPart]] = frozenset({"training_residual"})
    claim: ClassVar[Literal["certified"]] = "certified"
    serves_faults: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InvalidHyperparameterError: If fields do not go together.
        """
        wrong = InvalidHyperparameterError
        private = InvalidPrivacyParameterError
        _validate.number(epsilon=self.epsilon, above=0, error=private)
        _validate.number(delta=self.delta, above=0, below=1, error=private)
        _validate.one_of(("view_joint",), scope=self.scope)
        _validate.one_of(("retrain", "transcript"), certify=self.certify)
        _validate.one_of(("auto", "uniform", "mh"), walk=self.walk)
        _validate.one_of(
            ("exclude", "relay", "noisy"), natural_visit=self.natural_visit
        )
        _validate.one_of(
            ("auto", "none", "importance"), visit_correction=self.visit_correction
        )
        _validate.one_of(ALIGNMENTS, alignment=self.alignment)
        _validate.one_of(("sgd", "adam"), optimizer=self.optimizer)
        _validate.one_of(("proven", "assumed"), delta0=self.delta0)
        _validate.one_of(("derived", "lamri_view"), calibration=self.calibration)
        _validate.one_of(get_args(Dissemination), dissemination=self.dissemination)
        _validate.one_of(get_args(NoiseMode), noise_mode=self.noise_mode)
        _validate.of_type(bool, disclose_m=self.disclose_m)
        if self.restart_probability is not None:
            _validate.number(
                restart_probability=self.restart_probability,
                above=0,
                at_most=1,
                error=wrong,
            )
        _validate.integer(
            local_batches=self.local_batches, at_least=1, at_most=100_000, error=wrong
        )
        for name in ("hops", "max_visits"):
            if getattr(self, name) is not None:
                _validate.integer(
                    at_least=1,
                    at_most=1_000_000,
                    error=wrong,
                    **{name: getattr(self, name)},
                )
        _validate.number(lazy=self.lazy, at_least=0, below=1, error=wrong)
        for name in ("max_visit_weight", "learning_rate"):
            _validate.number(above=0, error=wrong, **{name: getattr(self, name)})
        for name in ("clip_norm", "radius", "public_radius", "residual_cap"):
            if getattr(self, name) is not None:
                _validate.number(above=0, error=wrong, **{name: getattr(self, name)})
        for name in ("release_noise_std", "visit_noise_std"):
            if getattr(self, name) is not None:
                _validate.number(at_least=0, error=wrong, **{name: getattr(self, name)})
        self._check_together()

    def _check_together(self) -> None:
        if self.alignment == "lightweight" and self.clip_norm is None:
            raise InvalidHyperparameterError(
                "clip_norm: must be given with alignment='lightweight', whose steps "
                "read forgotten rows, got None; e.g. clip_norm=1.0"
            )
        if self.segment_subsampling is not None:
            _validate.number(
                segment_subsampling=self.segment_subsampling,
                above=0,
                below=1,
                error=InvalidHyperparameterError,
            )
            if self.alignment != "lightweight" or self.calibration != "derived":
                raise InvalidHyperparameterError(
                    "segment_subsampling: must be None unless visits read forgotten "
                    "rows (alignment='lightweight', calibration='derived'), got "
                    f"{self.segment_subsampling:g} with {self.alignment}, "
                    f"{self.calibration}"
                )
        if self.delta0 == "assumed" and self.residual_cap is None:
            raise InvalidHyperparameterError(
                "residual_cap: must be given with delta0='assumed', got None; it is "
                "the distance that is taken on trust"
            )
        if self.calibration == "lamri_view" and self.clip_norm is None:
            raise InvalidHyperparameterError(
                "clip_norm: must be given with calibration='lamri_view', got None; it "
                "is the L of the published noise"
            )
        if self.noise_mode == "secure" and (
            self.segment_subsampling is not None or self.calibration != "derived"
        ):
            raise InvalidHyperparameterError(
                "noise_mode: must be 'simulated' with segment_subsampling, whose coin "
                "the seed gives away, and with calibration='lamri_view', got 'secure'; "
                "leave those out"
            )

    @property
    def noised_only(self) -> bool:
        """Whether nothing may be sent before the noised start."""
        return (
            self.certify == "retrain"
            and self.calibration == "derived"
            and self.release_noise_std != 0
        )

    @classmethod
    def preset(cls, name: str) -> "RrDu":
        """Return a named choice of fields.

        Args:
            name: ``rigorous`` (the defaults), or ``lamri2026``: the source's 100 hops,
                rate, clipping, radius and noise, which gives a heuristic result.

        Returns:
            The protocol.
        """
        _validate.one_of(("rigorous", "lamri2026"), preset=name)
        if name == "rigorous":
            return cls()
        return cls(
            hops=100,
            learning_rate=0.01,
            clip_norm=1.0,
            radius=10.0,
            public_radius=None,
            alignment="lightweight",
            calibration="lamri_view",
        )

    def check_network(self, topology: Topology, request: ForgetRequest) -> None:
        """Refuse a network that no token can walk.

        Args:
            topology: The network.
            request: Who asks, if that is known yet.

        Raises:
            TopologyError: If it is directed or has one peer, or if the token is to
                avoid a requester that is somebody's only neighbour.
        """
        refuse_single(topology, "rr-du")
        if topology.directed:
            raise TopologyError(
                "rr-du: needs an undirected network, over whose edges a token can go "
                f"back, got a directed one ({_validate.show(topology.name)}); give "
                "every arc its way back, or leave rr-du out"
            )
        if self.natural_visit == "exclude" and request.peers:
            refuse_dead_ends(topology, request.requester)

    def check(self, run: TrainedRun, request: ForgetRequest) -> None:
        """Refuse what cannot be walked, proven or paid, before anything is sent.

        Args:
            run: The trained network.
            request: The resolved request.

        Raises:
            UnsupportedRequestError: If ``lightweight`` is asked for several owners, or
                a gossip average in a network with faults.
        """
        self.check_network(run.topology, request)
        if run.config.faults and self.dissemination == "gossip_average":
            raise UnsupportedRequestError(
                "dissemination: must be 'tree', 'flood' or 'push' in a network with "
                "faults, got 'gossip_average'; set dissemination='tree'"
            )
        if self.noise_mode == "secure":
            refuse_mixed_noise(run, request)
        if self.alignment == "lightweight" and len(request.peers) > 1:
            raise UnsupportedRequestError(
                f"request: must have one owner with alignment='lightweight', got "
                f"{len(request.peers)}; use alignment='exact'"
            )
        multiples(run.topology, request.requester, self.dissemination)
        claim = Claim.of(self, as_trained(run), request, self.route(run, request))
        claim.check_budget(run, request)

    def predicted_shift(self, run: TrainedRun, request: ForgetRequest) -> float:
        """Return the public shift that the noise of the start is calibrated to."""
        claim = Claim.of(self, as_trained(run), request, self.route(run, request))
        return claim.start.sensitivity

    def route(self, run: TrainedRun, request: ForgetRequest) -> Route:
        """Return where the token will go; it depends on no data.

        Args:
            run: Gives the network and the draws.
            request: The resolved request, for its requester and its id.

        Returns:
            The route, ended early by ``max_visits``.
        """
        n = run.topology.n
        complete = len(run.topology.edges) == n * (n - 1) // 2
        auto: Walk = "uniform" if complete else "mh"
        route = draw_route(
            run.topology,
            request.requester,
            restart=self.restart_probability or 1 / n,
            hops=self.hops or max(_LEAST_HOPS, _HOPS_PER_PEER * n),
            walk=auto if self.walk == "auto" else self.walk,
            lazy=self.lazy,
            natural_visit=self.natural_visit,
            importance=self.visit_correction == "importance"
            or (self.visit_correction == "auto" and not complete),
            max_weight=self.max_visit_weight,
            rng=run.rng,
            request_id=request.request_id,
            draws=run.faults(),
            clock=start_round(run, request),
            max_visits=self.max_visits,
        )
        return route if self.max_visits is None else route.cut(self.max_visits)

    def unlearn(
        self,
        run: TrainedRun,
        request: ForgetRequest,
        rng: RngTree,
        *,
        watch: Watch | None = None,
    ) -> Outcome:
        """Walk the token and let every peer take its model.

        Args:
            run: The trained network.
            request: The resolved request.
            rng: The run's draws.
            watch: Sees what the token carries after every hop, for audits.

        Returns:
            The outcome; its certificate lists every constant and its origin.
        """
        route, whole, transport = self.route(run, request), run, run.transport()
        start_when_there(run, request, transport)
        run = as_trained(run)
        claim = Claim.of(self, run, request, route)
        token = Token(self, run, request, rng, route, claim)
        transport.mark("computed")
        theta = token.walk(watch)
        transport.mark("charged")
        tensors = 3 if self.optimizer == "adam" else 1
        sent = route.send(transport, 8 * run.model.size * tensors, token.work)
        transport.mark("released")
        row = theta.to(run.state.params.dtype)
        last = int(route.holders[route.last])
        held = multiples(run.topology, last, self.dissemination)
        transport.broadcast(
            last,
            "final model",
            run.model.size * row.element_size(),
            self.dissemination,
            rng.numpy("walk", who=last, request=request.request_id, draw=1),
        )
        transport.correct()
        rows = (torch.from_numpy(held)[:, None] * theta).to(row.dtype)
        state, _ = recover(whole, run.data, rows, 0, transport)
        if claim.charges:
            status = status_of(claim.assumptions, adaptive=request.adaptive)
            ended = status_at_end(transport, status)
            run.ledger.commit(request.request_id, status=ended)
        return Outcome(
            run=whole,
            request=request,
            protocol=self,
            state=state,
            certificate=claim.certificate(run, request),
            cost=Cost(
                hops=len(route.holders),
                sample_gradients=token.gradients + claim.gradients,
            ),
            ledger=run.ledger,
            messages=transport.log,
            trace={
                "holder": route.holders.astype(np.float64),
                "gap": np.diff(route.visits).astype(np.float64),
                "messages": sent.astype(np.float64),
            },
            info={
                "visits": len(route.visits),
                "start_noise_std": claim.start_noise,
                "visit_noise_std": claim.visit_noise,
                "noised_start_norm": token.start_norm,
                "model_norm": float(theta.norm()),
            },
            notes=token.notes(),
            progress=progress_of(
                transport,
                generations=0 if route.faulty is None else route.faulty.generations,
                dropped=0 if route.faulty is None else route.faulty.dropped,
            ),
        )
