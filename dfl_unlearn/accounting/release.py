"""Bound a value, write its release into the ledger, and only then add noise.

Whoever bounds a value also says which sensitivity it has afterwards, and noise cannot
be drawn here without a durable ledger entry.
"""

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.accounting.entries import LedgerEntry, NoiseMode, Observer, Scope
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.accounting.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    Mechanism,
    SampledGaussianMechanism,
    check_scale,
)
from dfl_unlearn.accounting.secure_noise import (
    MOST_STEPS_PER_STD,
    STEPS_PER_STD,
    from_grid,
    grid_noise,
    grid_of,
    grid_sensitivity,
    to_grid,
)
from dfl_unlearn.errors import (
    InvalidPrivacyParameterError,
    InvalidTypeError,
    NumericalError,
)
from dfl_unlearn.rng import RngTree


def clip_rows(values: Tensor, clip_norm: float) -> tuple[Tensor, float]:
    """Shorten every row to an L2 norm of at most ``clip_norm``.

    Args:
        values: One contribution per row, floating point, shape ``(M, P)``.
        clip_norm: Norm bound C, above 0.

    Returns:
        The rows, same shape and dtype, and the sensitivity of their *sum* when one row
        is added or removed, C; exchanging one row moves the sum by up to 2 C, and a
        mean over M rows by 1/M of it.

    Raises:
        NumericalError: If a row is not finite: it has no direction to keep.

    Example:
        >>> rows, sensitivity = clip_rows(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        >>> sensitivity, bool((rows[1] == torch.tensor([0.3, 0.4])).all())
        (1.0, True)
    """
    _validate.number(above=0, clip_norm=clip_norm)
    _check_float(values=values)
    norms = torch.linalg.vector_norm(values.double(), dim=-1, keepdim=True)
    if not torch.isfinite(norms).all():
        bad = int(torch.isfinite(norms).flatten().int().argmin())
        raise NumericalError(
            f"values: must be finite, got a row {bad} that is not; nothing was sent"
        )
    # Rounding to the dtype must not carry a shortened row over the bound again.
    shrink = clip_norm * (1 - 2 * torch.finfo(values.dtype).eps) / norms
    short = torch.where(norms > clip_norm, values.double() * shrink, values.double())
    return short.to(values.dtype), float(clip_norm)


def project_ball_(vector: Tensor, radius: float, centre: Tensor | None = None) -> float:
    """Move a vector into a public ball, in place.

    Args:
        vector: Floating point, shape ``(P,)``; overwritten.
        radius: Radius of the ball, above 0.
        centre: Its public centre, shape ``(P,)``; None is the origin.

    Returns:
        The sensitivity it leaves: the largest distance between two vectors so treated,
        twice the radius plus the rounding of the vector's dtype.

    Raises:
        NumericalError: If the vector or the centre is not finite.
    """
    _validate.number(above=0, radius=radius)
    _check_float(vector=vector)
    middle = torch.zeros_like(vector) if centre is None else centre.to(vector)
    offset = vector.double() - middle.double()
    distance = float(torch.linalg.vector_norm(offset))
    reach = float(torch.linalg.vector_norm(middle.double())) + radius
    check_scale(distance=distance, reach=reach)
    # Sum of squares, root, quotient and product err by at most this share together.
    slack = (vector.numel() + 8) * 2.0**-53
    if distance * (1 + slack) > radius:
        shrink = min(1.0, radius / distance * (1 - 2 * slack))
        vector.copy_(middle.double() + offset * shrink)
    return 2 * (radius + torch.finfo(vector.dtype).eps * reach)


@dataclass(frozen=True, kw_only=True)
class GaussianRelease:
    """Writes a release into the ledger, then adds its Gaussian noise.

    *Simulated* noise comes from the run's keyed generator: it can be drawn again by
    whoever knows the seed, as a simulation needs and a deployment must not. *Secure*
    noise comes from the operating system and lies, like the value that it is added to,
    on a grid, exactly: see ``secure_noise``. A run with it cannot be repeated.

    Attributes:
        sensitivity: L2 sensitivity of the value between a world with the forgotten data
            unlearned and one that never had them. What rounding to the grid adds is
            not part of it: the ledger is charged with both.
        noise_std: Standard deviation of the noise, in the value's units.
        mode: ``simulated`` or ``secure``.
        grid: Step of the grid in secure mode, a power of two that is at most a 1024th
            of the noise; None takes the largest.
        rate: Probability, by a coin that nobody sees, with which the value depends on
            the forgotten data at all; the noise is added either way. Below 1 only in
            simulated mode.
    """

    sensitivity: float
    noise_std: float
    mode: NoiseMode = "simulated"
    grid: float | None = None
    rate: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is not a finite, non-negative scale, or no grid for the noise.

        Raises:
            InvalidPrivacyParameterError: If the grid does not go with mode and noise.
        """
        check_scale(sensitivity=self.sensitivity, noise_std=self.noise_std)
        _validate.one_of(get_args(NoiseMode), mode=self.mode)
        _validate.number(
            error=InvalidPrivacyParameterError,
            above=0,
            at_most=1,
            rate=self.rate,
        )
        if self.rate < 1 and self.mode == "secure":
            raise InvalidPrivacyParameterError(
                f"rate: must be 1 in secure mode, got {self.rate:g}; the bound for "
                "hidden coins is one of real Gaussian noise"
            )
        if self.grid is None:
            if self.mode == "secure" and self.noise_std > 0:
                object.__setattr__(self, "grid", grid_of(self.noise_std))
            return
        check_scale(grid=self.grid)
        least, most = STEPS_PER_STD * self.grid, MOST_STEPS_PER_STD * self.grid
        fits = self.mode == "secure" and least <= self.noise_std <= most
        if not fits or math.frexp(self.grid)[0] != 0.5:
            raise InvalidPrivacyParameterError(
                "grid: must be a power of two between 2**-40 and 2**-10 of the noise "
                f"in secure mode, None in simulated mode, got {self.grid!r} in "
                f"{self.mode} mode with noise_std {self.noise_std!r}"
            )

    @classmethod
    def on_grid(
        cls, *, sensitivity: float, noise_multiplier: float, coordinates: int
    ) -> "GaussianRelease":
        """Return a secure release whose noise covers the rounding to its grid too.

        The grid is the one for the noise that the sensitivity alone asks for.

        Args:
            sensitivity: As in the class, without rounding.
            noise_multiplier: Noise over shift that the budget asks for.
            coordinates: Numbers in the value.

        Returns:
            The release; without noise, and so without a grid, where either is 0.
        """
        if sensitivity * noise_multiplier == 0:
            return cls(sensitivity=sensitivity, noise_std=0.0, mode="secure")
        grid = grid_of(sensitivity * noise_multiplier)
        shift = grid_sensitivity(sensitivity, grid, coordinates)
        noise_std = math.nextafter(shift * noise_multiplier, math.inf)
        return cls(
            sensitivity=sensitivity, noise_std=noise_std, mode="secure", grid=grid
        )

    def shift(self, coordinates: int) -> float:
        """Return the sensitivity with what rounding so many numbers to a grid adds."""
        if self.grid is None:
            return self.sensitivity
        return grid_sensitivity(self.sensitivity, self.grid, coordinates)

    def mechanism(self, coordinates: int) -> Mechanism:
        """Return what one release of so many numbers costs.

        Args:
            coordinates: Numbers in the value.

        Returns:
            The mechanism that the ledger is charged with; its sensitivity in secure
            mode includes the rounding.
        """
        if self.grid is not None:
            return DiscreteGaussianMechanism(
                noise_std=self.noise_std,
                grid=self.grid,
                sensitivity=self.shift(coordinates),
            )
        if self.rate < 1 and self.sensitivity > 0:
            multiplier = self.noise_std / self.sensitivity
            return SampledGaussianMechanism(
                rate=self.rate,
                noise_multiplier=math.nextafter(multiplier, 0.0),
                adjacency="unlearn",
            )
        return GaussianMechanism(noise_std=self.noise_std, sensitivity=self.sensitivity)

    def __call__(
        self,
        value: Tensor,
        *,
        ledger: PrivacyLedger,
        request_id: str,
        owner: str | tuple[str, ...],
        observers: tuple[Observer, ...],
        rng: RngTree,
        group_size: int | None = None,
        scope: Scope = "joint",
        status: str = "",
        assumptions: tuple[str, ...] = (),
        round: int = 0,
    ) -> Tensor:
        """Return ``value`` plus fresh noise, shape, dtype and device unchanged.

        Each call is a new release with noise of its own. The entries stay ``reserved``
        until the caller says ``ledger.commit(request_id)`` after the last message.

        Args:
            value: What is released, floating point, any shape.
            ledger: Charged, durably, before anything is drawn.
            request_id: The forget request.
            owner: Whose data it depends on, ``"peer:<i>"``; several owners get one
                entry each and share one draw, named after the first.
            observers: Who will receive it.
            rng: The run's tree; secure noise has nothing of it.
            group_size: Forgotten records, or None if not disclosed.
            scope: What the claim covers.
            status: Status of the certificate that goes with it.
            assumptions: What the sensitivity rests on.
            round: Training round.

        Returns:
            The noised value; noise and sum are float64, then cast. In secure mode the
            float64 sum is a multiple of the grid, exactly; a cast to fewer bits is
            post-processing of it, and leaves the grid.

        Raises:
            NumericalError: If the value is not finite, or too large for the grid
                (nothing is charged then), or the sum does not fit its dtype.
            InvalidPrivacyParameterError: If secure noise is asked for and there is
                none.
        """
        _check_float(value=value)
        if not torch.isfinite(value).all():
            raise NumericalError(
                f"value: must be finite, got {int((~torch.isfinite(value)).sum())} "
                f"entries that are not in the release for request {request_id}; "
                "nothing was charged or sent"
            )
        if self.mode == "secure" and self.grid is None:
            raise InvalidPrivacyParameterError(
                "noise_std: must be above 0 in secure mode, got 0; a value without "
                "noise is not a release"
            )
        steps = None if self.grid is None else to_grid(_array(value), self.grid)
        entry = ledger.charge_owners(
            request_id,
            (owner,) if isinstance(owner, str) else owner,
            observers,
            self.mechanism(value.numel()),
            group_size=group_size,
            scope=scope,
            status=status,
            assumptions=assumptions,
            round=round,
        )[0]
        outbox = ledger.outbox
        if outbox is not None and self.mode == "secure":
            sent = outbox.kept(entry)
            if sent is not None:  # by an attempt that was interrupted
                return sent.to(value)
        if self.grid is None or steps is None:
            noise = self._keyed(tuple(value.shape), entry, rng).to(value.device)
            noised = (value.double() + self.noise_std * noise).to(value)
        else:
            steps += grid_noise(steps.shape, self.noise_std, self.grid)
            noised = torch.from_numpy(from_grid(steps, self.grid)).to(value)
        if not torch.isfinite(noised).all():
            raise NumericalError(
                f"value: must fit {value.dtype} with noise of std {self.noise_std:g}, "
                "got infinity; nothing was sent, though it is charged"
            )
        if outbox is not None:
            outbox.keep(entry, noised)
        return noised

    def _keyed(
        self, shape: tuple[int, ...], entry: LedgerEntry, rng: RngTree
    ) -> Tensor:
        return rng.normal(
            shape,
            "unlearn-noise",
            who=entry.noise_owner,
            request=entry.request_id,
            round=entry.round,
            draw=entry.draw,
        )


def _array(value: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = value.detach().double().cpu().numpy()
    return array


def _check_float(**named: Tensor) -> None:
    for name, value in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InvalidTypeError(
                f"{name}: must be a floating-point tensor, got {kind}; convert it first"
            )
