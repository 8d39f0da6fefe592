"""Local work of one round: fixed blocks of peers, cut into chunks that fit a cache."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn._arrays import contiguous
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.batches import Batches, BatchPlan
from dfl_unlearn.engine.config import SimulationConfig
from dfl_unlearn.engine.kernels.autograd import AutogradKernel
from dfl_unlearn.engine.kernels.contract import Kernel, StepRule
from dfl_unlearn.engine.kernels.stacked import StackedKernel
from dfl_unlearn.errors import UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree

_CHUNK_PEERS = 16  # measured: 8 to 16 peers are best for linear models and MLPs


def peer_scale(data: PeerData, weighting: str) -> NDArray[np.float64]:
    """Return the factor N p_i on each peer's objective, shape ``(N,)``.

    Args:
        data: What the peers hold; a peer whose rows are all forgotten gets 0: it
            relays, and its share goes to the others.
        weighting: ``uniform`` (p_i equal) or ``size`` (p_i proportional to rows).

    Returns:
        Factors with mean 1, float64.
    """
    active = (data.retained > 0).astype(np.float64)
    rows = np.add.reduceat(data.counted, data.offsets[:-1], dtype=np.int64)
    share = rows * active if weighting == "size" else active
    scale: NDArray[np.float64] = share / share.sum() * data.n
    return scale


def resolve_kernel(model: FlatModel, name: str) -> str:
    """Return which kernel runs a model: by its structure, never by timing.

    Args:
        model: The model.
        name: ``auto`` or a kernel's name.

    Returns:
        ``stacked`` for linear models and multilayer perceptrons, else ``loop``, unless
        another one is named.

    Raises:
        UnsupportedModelError: If ``stacked`` is asked of another structure.
    """
    if name == "auto":
        return "stacked" if model.structure is not None else "loop"
    if name == "stacked" and model.structure is None:
        raise UnsupportedModelError(
            "kernel: must be auto, vmap or loop for a model that is not a stack of "
            "linear layers with ReLU between them, got 'stacked'; use auto"
        )
    return name


def resolve_chunk(config: SimulationConfig) -> int:
    """Return how many peers are trained together in cache."""
    return _CHUNK_PEERS if config.chunk_peers == "auto" else config.chunk_peers


@dataclass(frozen=True, kw_only=True)
class LocalData:
    """What local steps read: the rows of some blocks of peers, and how each counts.

    Attributes:
        inputs: Shape ``(R, ...)``.
        labels: Shape ``(R,)``.
        offsets: Peer i of the part has the rows ``offsets[i] .. offsets[i+1]-1``.
        keep: Whether a row is retained, shape ``(R,)``.
        counted: Whether a row counts in its peer's divisor, shape ``(R,)``.
        scale: Factor on each peer's objective, shape ``(n,)``; see ``peer_scale``.
        blocks: Number of each of the part's blocks among all blocks, ascending.
    """

    inputs: Tensor
    labels: Tensor
    offsets: NDArray[np.int64]
    keep: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    scale: NDArray[np.float64]
    blocks: NDArray[np.int64]

    @classmethod
    def of(cls, data: PeerData, config: SimulationConfig) -> "LocalData":
        """Return all blocks of a store; nothing is copied."""
        return cls(
            inputs=data.store.inputs,
            labels=data.store.labels,
            offsets=data.offsets,
            keep=data.keep,
            counted=data.counted,
            scale=peer_scale(data, config.peer_weighting),
            blocks=np.arange(-(-data.n // config.block_peers)),
        )

    def part(self, blocks: NDArray[np.int64], block_peers: int) -> "LocalData":
        """Return what some of all blocks hold: views where their rows lie together.

        Args:
            blocks: Their numbers, ascending.
            block_peers: Peers per block.

        Returns:
            The part, its peers numbered anew.
        """
        n = len(self.offsets) - 1
        sizes = np.diff(self.offsets)
        own = np.concatenate(
            [np.arange(b * block_peers, min((b + 1) * block_peers, n)) for b in blocks]
        )
        rows = np.flatnonzero(np.repeat(np.isin(np.arange(n), own), sizes))
        together = contiguous(rows)
        index = torch.from_numpy(rows) if together is None else together
        return LocalData(
            inputs=self.inputs[index],
            labels=self.labels[index],
            offsets=np.concatenate([[0], np.cumsum(sizes[own])]).astype(np.int64),
            keep=self.keep[rows],
            counted=self.counted[rows],
            scale=self.scale[own],
            blocks=np.asarray(blocks, dtype=np.int64),
        )


def batch_plan(data: LocalData, config: SimulationConfig, rng: RngTree) -> BatchPlan:
    """Return the batches of a part's peers.

    Args:
        data: The part.
        config: Batch size, steps and blocks.
        rng: The run's draws.
    """
    return BatchPlan(
        offsets=data.offsets,
        keep=data.keep,
        counted=data.counted,
        local=config.local,
        rng=rng,
        block_peers=config.block_peers,
        blocks=data.blocks,
    )


class LocalWork:
    """Takes the local steps of any chunk of its peers in any round.

    Peers are numbered within the part, whose blocks are whole.
    """

    def __init__(
        self,
        data: LocalData,
        model: FlatModel,
        config: SimulationConfig,
        rng: RngTree,
    ) -> None:
        """Prepare batches and kernel.

        Args:
            data: What the peers of the part hold.
            model: The model.
            config: Local steps, blocks and kernel.
            rng: The run's draws.
        """
        self.config = config
        self._rng = rng
        self._sizes = np.diff(data.offsets)
        self._block_numbers = data.blocks
        self._block_noise: tuple[int, int, Tensor] | None = None
        self.scale = data.scale
        self.steps = config.local.per_round(self._sizes)
        self.kernel_name = resolve_kernel(model, config.kernel)
        self.chunk_peers = resolve_chunk(config)
        self._plan: Batches = batch_plan(data, config, rng)
        rule = StepRule(
            l2=model.l2,
            weight_decay=config.local.weight_decay,
            momentum=config.local.momentum,
            clip_norm=config.clip_norm,
        )
        self._kernel = self._build_kernel(data, model, rule)

    def _build_kernel(
        self, data: LocalData, model: FlatModel, rule: StepRule
    ) -> Kernel:
        inputs, labels = data.inputs, data.labels
        dtype = self.config.torch_dtype
        if self.kernel_name == "stacked":
            assert model.structure is not None
            return StackedKernel(
                model.structure, rule, inputs=inputs, labels=labels, dtype=dtype
            )
        return AutogradKernel(
            model,
            rule,
            inputs=inputs,
            labels=labels,
            dtype=dtype,
            batched=self.kernel_name == "vmap",
        )

    def chunks(self) -> list[list[NDArray[np.int64]]]:
        """Return the peers of every chunk, block by block.

        Inside a block, peers with more steps per round come first, so that the steps
        that only some of them take run on a prefix.
        """
        blocks = []
        for begin in range(0, len(self.steps), self.config.block_peers):
            block = np.arange(
                begin, min(begin + self.config.block_peers, len(self.steps))
            )
            block = block[np.argsort(-self.steps[block], kind="stable")]
            blocks.append(
                [
                    block[i : i + self.chunk_peers]
                    for i in range(0, len(block), self.chunk_peers)
                ]
            )
        return blocks

    def round(
        self,
        t: int,
        peers: NDArray[np.int64],
        params: Tensor,
        velocity: Tensor | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take one round's local steps of a chunk, in place.

        Args:
            t: Round, counted from 0.
            peers: The chunk, steps per round descending, shape ``(k,)``.
            params: Their rows, shape ``(k, P)``; written to.
            velocity: Their momentum rows or None; written to.

        Returns:
            Loss of the first batch and sum over the steps of the data term's gradient
            norms, shape ``(k,)`` each.
        """
        steps, scale = self.steps[peers], self.scale[peers]
        rates = np.where(scale > 0, self.config.local.rate(t, self.config.rounds), 0.0)
        first_loss = np.zeros(len(peers))
        norms = np.zeros(len(peers))
        for s in range(int(steps.max())):
            k = int((steps > s).sum())
            batch = self._plan.batch(peers[:k], t * steps[:k] + s)
            loss, norm = self._kernel.step(
                params[:k],
                batch,
                rates[:k],
                scale[:k],
                None if velocity is None else velocity[:k],
            )
            if s == 0:
                first_loss[:] = loss
            norms[:k] += norm
        return first_loss, norms

    def private_round(
        self, t: int, peers: NDArray[np.int64], params: Tensor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take a chunk's private step of a round, in place; see ``PrivateSteps``.

        Args:
            t: Round, counted from 0.
            peers: The chunk, shape ``(k,)``.
            params: Their rows, shape ``(k, P)``; written to.

        Returns:
            Sum of the batch's losses over its expected size, and norm of the clipped
            gradient before the noise, shape ``(k,)`` each. Both are what the simulator
            sees; they carry no noise and are no messages.
        """
        private = self.config.private
        assert private is not None
        scale = self.scale[peers]
        rates = np.where(scale > 0, self.config.local.rate(t, self.config.rounds), 0.0)
        batch = self._plan.poisson(peers, t, private.rate)
        found = self._kernel.step(params, batch, rates, scale, None)
        spread = private.noise_multiplier * private.clip_norm
        factor = rates * scale * spread / (private.rate * self._sizes[peers])
        noise = self._noise(peers, t, params.shape[1])
        params.sub_((torch.from_numpy(factor)[:, None] * noise).to(params))
        return found

    def _noise(self, peers: NDArray[np.int64], t: int, size: int) -> Tensor:
        """Return standard normal numbers for peers of one block, ``(k, size)``.

        One key per (block, round) draws those of the whole block.
        """
        block = int(peers[0]) // self.config.block_peers
        first = block * self.config.block_peers
        if self._block_noise is None or self._block_noise[:2] != (block, t):
            count = min(self.config.block_peers, len(self._sizes) - first)
            drawn = self._rng.normal(
                (count, size),
                "train-noise",
                who=f"block:{self._block_numbers[block]}",
                round=t,
            )
            self._block_noise = (block, t, drawn)
        begin = int(peers[0]) - first  # a chunk's peers follow one another
        return self._block_noise[2][begin : begin + len(peers)]

    def gradient(
        self, t: int, peers: NDArray[np.int64], params: Tensor
    ) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64]]:
        """Return the gradients of a chunk's objectives on their batches of round t.

        Args:
            t: Round, counted from 0; a round has one batch here.
            peers: The chunk, shape ``(k,)``.
            params: Where, shape ``(k, P)``; not written to.

        Returns:
            Gradients with l2 and weight decay, ``scale`` applied, shape ``(k, P)``; the
            batch losses and the norms of the data term, shape ``(k,)`` each.
        """
        # A step with momentum leaves its gradient in an empty velocity.
        gradient = torch.zeros_like(params)
        scale = self.scale[peers]
        moving = np.where(scale > 0, 1.0, 0.0)
        batch = self._plan.batch(peers, np.full(len(peers), t))
        loss, norms = self._kernel.step(params.clone(), batch, moving, scale, gradient)
        return gradient, loss, norms
