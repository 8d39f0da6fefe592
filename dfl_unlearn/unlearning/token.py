"""The token itself: a model on its way, and what its holders do to it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from dfl_unlearn._arrays import as_features
from dfl_unlearn.accounting.certificate import status_of
from dfl_unlearn.accounting.release import GaussianRelease, clip_rows, project_ball_
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.alignment import visit_direction
from dfl_unlearn.unlearning.claims import observers_of, owners_of
from dfl_unlearn.unlearning.membership import status_at_release
from dfl_unlearn.unlearning.rr_du_claim import Claim
from dfl_unlearn.unlearning.token_walk import Route

if TYPE_CHECKING:
    from dfl_unlearn.unlearning.protocols.rr_du import RrDu

Watch = Callable[[int, Tensor], None]


class Token:
    """The model on its way, in float64, and what its holders do to it."""

    def __init__(
        self,
        protocol: "RrDu",
        run: TrainedRun,
        request: ForgetRequest,
        rng: RngTree,
        route: Route,
        claim: Claim,
    ) -> None:
        """Prepare the token at its start.

        Args:
            protocol: Its fields.
            run: The trained network, with this attempt's ledger.
            request: The resolved request.
            rng: The run's draws.
            route: Where it will go.
            claim: What it is charged for.
        """
        self._protocol, self._run, self._request = protocol, run, request
        self._rng, self._route, self._claim = rng, route, claim
        self._data = run.data.without(request)
        self._local = LocalGradients(
            run.model,
            self._data,
            batches=protocol.local_batches,
            batch_size=run.config.local.batch_size,
            rng=rng,
            request_id=request.request_id,
        )
        self._scale = claim.scale
        self._moments = torch.zeros(2, run.model.size, dtype=torch.float64)
        self._steps = 0
        self._edge: list[bool] = []
        self.gradients = 0
        self.work = np.zeros(len(route.holders))
        self.start_norm = 0.0

    def walk(self, watch: Watch | None = None) -> Tensor:
        """Return the model at the end of the route.

        Args:
            watch: Called with the hop and the model that the token carries after it;
                hop 0 is the start.
        """
        protocol, route = self._protocol, self._route
        theta = self._run.state.mean()
        if self._claim.start_noise > 0:
            theta = self._released(theta, self._claim.start, visit=0)
            if protocol.public_radius is not None:
                project_ball_(theta, protocol.public_radius)
        self.start_norm = float(theta.norm())
        centre = theta.clone()
        visit = 0
        if watch is not None:
            watch(0, theta)
        kept = frozenset() if route.faulty is None else route.faulty.kept
        copies = {0: self._copy(theta)}
        for hop, holder in enumerate(route.holders.tolist()):
            taken = self.gradients
            if hop and route.parent(hop) != hop - 1:
                theta = self._back_to(copies[route.parent(hop)])
            if hop == 0 or not route.acts[hop]:
                pass
            elif holder == route.source:
                visit += 1
                theta = theta - self._step(self._at_source(theta, hop, visit))
                if protocol.radius is not None:
                    before = float((theta - centre).norm())
                    project_ball_(theta, protocol.radius, centre)
                    self._edge.append(before >= protocol.radius)
            else:
                theta = theta - self._step(self._elsewhere(theta, holder, hop))
            self.work[hop] = self.gradients - taken
            if watch is not None and hop and route.acts[hop]:
                watch(hop, theta)
            if hop in kept:
                copies[hop] = self._copy(theta)
        return theta if route.faulty is None else copies[route.last][0]

    def _copy(self, theta: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return what a holder keeps of the token before it sends it on."""
        return theta.clone(), self._moments.clone(), self._steps

    def _back_to(self, copy: tuple[Tensor, Tensor, int]) -> Tensor:
        """Go on from a holder's copy; returns its model."""
        theta, self._moments, self._steps = copy[0], copy[1].clone(), copy[2]
        return theta.clone()

    def notes(self) -> tuple[str, ...]:
        """Return what a reader should know of this walk."""
        last = self._edge[len(self._edge) // 2 :]
        if last and np.mean(last) > 0.5:
            return (
                "more than half of the last visits ended on the edge of the trust "
                "region: only the region holds the token; lower learning_rate or use "
                "alignment='exact'",
            )
        return ()

    def _elsewhere(self, theta: Tensor, holder: int, hop: int) -> Tensor:
        """Return the weighted gradient of another holder's objective."""
        if self._data.retained[holder] == 0:
            return torch.zeros_like(theta)
        gradient = self._data_term(theta, holder, hop) + self._run.model.l2 * theta
        gradient = self._clip(gradient * float(self._scale[holder]))
        return gradient * float(self._route.weights[holder])

    def _at_source(self, theta: Tensor, hop: int, visit: int) -> Tensor:
        """Return the noised direction of a visit, to be subtracted."""
        protocol, source = self._protocol, self._route.source
        stored = int(self._run.data.retained[source])
        zero = torch.zeros_like(theta)
        retained = forgotten = zero
        if protocol.alignment == "lightweight":
            if self._takes_part(hop):
                forgotten = self._forgotten(theta)
        else:
            retained = self._data_term(theta, source, hop)
        direction = -visit_direction(
            protocol.alignment,
            retained,
            forgotten,
            forgotten=stored - int(self._data.retained[source]),
            samples=stored,
            regularizer=self._run.model.l2 * theta,
        )
        direction = direction * float(self._scale[source])
        if protocol.alignment != "lightweight":
            direction = self._clip(direction)
        direction = direction * float(self._route.weights[source])
        if self._claim.visit_noise > 0:
            direction = self._released(direction, self._claim.visit, visit=visit)
        return direction

    def _takes_part(self, hop: int) -> bool:
        """Toss the hidden coin of a visit."""
        rate = self._protocol.segment_subsampling
        if rate is None:
            return True
        coin = self._rng.numpy(
            "method",
            who=self._route.source,
            request=self._request.request_id,
            round=hop,
            draw=1,
        )
        return bool(coin.random() < rate)

    def _forgotten(self, theta: Tensor) -> Tensor:
        """Return the mean of the forgotten rows' clipped gradients."""
        rows = torch.from_numpy(np.flatnonzero(self._request.mask(self._run.data)))
        store, clip_norm = self._run.data.store, self._protocol.clip_norm
        assert clip_norm is not None
        self.gradients += len(rows)
        total = clipped_sum(
            self._run.model, store.inputs[rows], store.labels[rows], theta, clip_norm
        )
        return total / len(rows)

    def _data_term(self, theta: Tensor, peer: int, hop: int) -> Tensor:
        """Return a peer's retained gradient on its mini-batches, without l2."""
        kept = int(self._data.retained[peer])
        size = self._run.config.local.batch_size
        self.gradients += (
            kept if size is None else min(kept, size * self._protocol.local_batches)
        )
        return self._local.data_term(theta, peer, hop)

    def _clip(self, gradient: Tensor) -> Tensor:
        clip_norm = self._protocol.clip_norm
        if clip_norm is None:
            return gradient
        return gradient * min(1.0, clip_norm / max(float(gradient.norm()), 1e-300))

    def _step(self, direction: Tensor) -> Tensor:
        """Return what is subtracted from the model."""
        rate = self._protocol.learning_rate
        if self._protocol.optimizer == "sgd":
            return rate * direction
        self._steps += 1
        first, second = self._moments
        first.mul_(0.9).add_(direction, alpha=0.1)
        second.mul_(0.999).addcmul_(direction, direction, value=0.001)
        mean = first / (1 - 0.9**self._steps)
        spread = second / (1 - 0.999**self._steps)
        step: Tensor = rate * mean / (spread.sqrt() + 1e-8)
        return step

    def _released(
        self, value: Tensor, release: GaussianRelease, *, visit: int
    ) -> Tensor:
        """Charge the ledger and add noise."""
        claim, run, request = self._claim, self._run, self._request
        return release(
            value,
            ledger=run.ledger,
            request_id=request.request_id,
            owner=owners_of(request),
            observers=observers_of(run, request),
            rng=self._rng,
            scope=claim.scope,
            group_size=request.size(run.data) if self._protocol.disclose_m else None,
            status=status_at_release(
                run, status_of(claim.assumptions, adaptive=request.adaptive)
            ),
            assumptions=tuple(a.name for a in claim.assumptions),
            round=visit,
        )


class LocalGradients:
    """Gradients of single peers' retained data, in float64."""

    def __init__(
        self,
        model: FlatModel,
        data: PeerData,
        *,
        batches: int,
        batch_size: int | None,
        rng: RngTree,
        request_id: str,
    ) -> None:
        """Prepare the draws of mini-batches.

        Args:
            model: The model.
            data: What the peers keep.
            batches: Disjoint mini-batches that a visit averages, as far as rows last.
            batch_size: Rows of each; None takes all rows.
            rng: The run's draws.
            request_id: Names the draws.
        """
        self._model = model
        self._data = data
        self._rows = None if batch_size is None else batches * batch_size
        self._rng = rng
        self._request_id = request_id

    def data_term(self, theta: Tensor, peer: int, hop: int) -> Tensor:
        """Return the mean gradient over a visit's rows, without l2.

        Args:
            theta: Where, shape ``(P,)`` float64.
            peer: The holder.
            hop: Names the draw.

        Returns:
            Shape ``(P,)``; 0 at a peer that keeps nothing.
        """
        rows = np.arange(self._data.offsets[peer], self._data.offsets[peer + 1])
        rows = rows[self._data.keep[rows]]
        if len(rows) == 0:
            return torch.zeros_like(theta)
        if self._rows is not None and self._rows < len(rows):
            generator = self._rng.numpy(
                "method", who=peer, request=self._request_id, round=hop
            )
            rows = generator.permutation(rows)[: self._rows]
        at = torch.from_numpy(rows)
        part = Objective(
            model=self._model,
            inputs=self._data.store.inputs[at],
            labels=self._data.store.labels[at],
            weights=np.full(len(rows), 1.0 / len(rows)),
        )
        return part.gradient(theta) - self._model.l2 * theta


def clipped_sum(
    model: FlatModel, inputs: Tensor, labels: Tensor, theta: Tensor, clip_norm: float
) -> Tensor:
    """Return the sum of per-sample gradients (data term), each clipped, ``(P,)``.

    Args:
        model: The model.
        inputs: Shape ``(m, ...)``.
        labels: Shape ``(m,)``.
        theta: Where, shape ``(P,)`` float64.
        clip_norm: Bound on the norm of every sample's gradient.
    """

    def sample_loss(row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return model.sample_losses(row, (x[None], y[None]))[0]

    total = torch.zeros_like(theta)
    per_sample = vmap(grad(sample_loss), in_dims=(None, 0, 0))
    for x, y in zip(inputs.split(64), labels.split(64), strict=True):
        y = y.double() if y.is_floating_point() else y
        gradients = per_sample(theta, as_features(x, torch.float64), y)
        total += clip_rows(gradients, clip_norm)[0].sum(0)
    return total
