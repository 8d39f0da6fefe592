"""Keyed, order-independent random draws: the package's only source of randomness.

A draw is addressed by what is drawn and where, so it depends neither on the order of
calls nor on the number of workers nor on what else was added to the program. The key
is the first 16 bytes of SHA-256 over
``dfl-unlearn/1|<seed>|<purpose>|<who>|<request>|<round>|<draw>``.
"""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn.errors import InvalidArgumentError

PURPOSES = frozenset(
    {
        "init",
        "topology",
        "schedule",
        "data-split",
        "batch",
        "dropout",
        "train-noise",
        "unlearn-noise",
        "walk",
        "churn",
        "loss",
        "delay",
        "forget",
        "method",
        "attack",
        "audit",
        "sweep",
    }
)


@dataclass(frozen=True)
class RngTree:
    """Independent random draws addressed by purpose, peer, request and round.

    Attributes:
        seed: The run's seed; a child's is a label below its parent's.

    Example:
        >>> RngTree(0).numpy("batch", who=3).integers(100)
        np.int64(44)
    """

    seed: int | str

    def key(
        self,
        purpose: str,
        *,
        who: int | str | None = None,
        request: str | None = None,
        round: int = 0,
        draw: int = 0,
    ) -> int:
        """Return the 128-bit key of one draw.

        Args:
            purpose: One of ``PURPOSES``.
            who: A peer (index ``i`` or ``"peer:<i>"``, the same key), ``"block:<k>"``,
                or None.
            request: A forget request's id, or None.
            round: Round, step or epoch of the draw.
            draw: Counts repeated draws of the same kind.

        Returns:
            An integer below 2**128.

        Raises:
            InvalidArgumentError: If ``purpose`` is not in the fixed list.
        """
        if purpose not in PURPOSES:
            raise InvalidArgumentError(
                f"purpose: must be one of {', '.join(sorted(PURPOSES))}, "
                f"got {purpose!r}; use the nearest or add it to rng.PURPOSES"
            )
        name = f"peer:{who}" if isinstance(who, int | np.integer) else who
        fields = (self.seed, purpose, name, request, round, draw)
        text = "|".join("-" if field is None else str(field) for field in fields)
        digest = sha256(f"dfl-unlearn/1|{text}".encode()).digest()
        return int.from_bytes(digest[:16])

    def numpy(
        self,
        purpose: str,
        *,
        who: int | str | None = None,
        request: str | None = None,
        round: int = 0,
        draw: int = 0,
        skip: int = 0,
    ) -> np.random.Generator:
        """Return a fresh Philox generator for exactly this key.

        Args:
            purpose: One of ``PURPOSES``.
            who: A peer, ``"block:<k>"``, or None.
            request: A forget request's id, or None.
            round: Round, step or epoch of the draw.
            draw: Counts repeated draws of the same kind.
            skip: Uniform draws to jump over: ``skip=k`` followed by ``random(n)`` gives
                entries ``k .. k+n-1`` of what ``random(k + n)`` would have given.

        Returns:
            The generator; two calls with equal arguments give equal streams.
        """
        bits = np.random.Philox(
            key=self.key(purpose, who=who, request=request, round=round, draw=draw)
        )
        if skip:
            bits.advance(skip // 4)  # one Philox counter step gives four 64-bit words
        generator = np.random.Generator(bits)
        if skip % 4:
            generator.random(skip % 4)
        return generator

    def normal(
        self,
        shape: tuple[int, ...],
        purpose: str,
        *,
        who: int | str | None = None,
        request: str | None = None,
        round: int = 0,
        draw: int = 0,
    ) -> Tensor:
        """Return standard normal numbers, float64 on the CPU, of the given shape."""
        generator = self.numpy(
            purpose, who=who, request=request, round=round, draw=draw
        )
        return torch.from_numpy(generator.standard_normal(tuple(shape)))

    def torch(
        self,
        purpose: str,
        *,
        who: int | str | None = None,
        request: str | None = None,
        round: int = 0,
        draw: int = 0,
    ) -> torch.Generator:
        """Return a CPU ``torch.Generator`` seeded from the key; not for privacy noise.

        Its stream may change with the version of torch, unlike ``numpy``'s.
        """
        key = self.key(purpose, who=who, request=request, round=round, draw=draw)
        generator = torch.Generator()
        generator.manual_seed(key % 2**63)
        return generator

    def uniform_at(
        self,
        places: NDArray[np.int64],
        purpose: str,
        *,
        who: int | str | None = None,
        request: str | None = None,
        round: int = 0,
        draw: int = 0,
    ) -> NDArray[np.float64]:
        """Return the uniforms at some places of one key's sequence, in any order.

        The sequence is SplitMix64 [recalled: Steele, Lea and Flood 2014] started at the
        key's low 64 bits, which can be entered anywhere; for coins of the simulated
        network, never for privacy noise.

        Args:
            places: Non-negative integers, any shape.
            purpose: One of ``PURPOSES``.
            who: What the sequence belongs to.
            request: A forget request's id, or None.
            round: Round of the draw.
            draw: Counts repeated draws of the same kind.

        Returns:
            Numbers in [0, 1) with 53 bits, one per place.
        """
        key = self.key(purpose, who=who, request=request, round=round, draw=draw)
        start = np.uint64(key % 2**64)
        step = np.asarray(places).astype(np.uint64) + np.uint64(1)
        with np.errstate(over="ignore"):  # arithmetic modulo 2**64
            z = start + step * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        uniforms: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2**-53
        return uniforms

    def child(self, label: str) -> "RngTree":
        """Return an independent tree, e.g. one per replica of an audit."""
        return RngTree(f"{self.seed}/{label}")


def noise_self_check() -> tuple[str, ...]:
    """Return the first four normals of a fixed key as hex floats.

    A manifest keeps them: if they differ on another machine or NumPy version, noise
    would not be the noise that was certified.
    """
    values = RngTree(0).numpy("unlearn-noise", who=0, request="self-check")
    return tuple(float(x).hex() for x in values.standard_normal(4))
