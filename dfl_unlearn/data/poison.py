"""Rows that training should never have seen: wrong labels, and images with a trigger.

Both come before training and return the data together with the request that forgets
them, so that it is known which rows do the harm. A poisoned set is no longer the plain
one: it has no recipe, so a stored run of it asks for the data again, and its
fingerprint differs because its rows do. Stored rows keep their places.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.errors import DataError, InvalidArgumentError, InvalidForgetSetError
from dfl_unlearn.rng import RngTree

if TYPE_CHECKING:
    from dfl_unlearn.data.peers import PeerData

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
CORNERS: tuple[Corner, ...] = ("top-left", "top-right", "bottom-left", "bottom-right")


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A square patch of one brightness in a corner of every image.

    Inputs of the shape ``(H, W)`` or ``(channels, H, W)`` are images; a flat input of
    s * s features is one of s rows.

    Attributes:
        size: Side of the patch in pixels, >= 1.
        value: Brightness, in [0, 1]; images of bytes have 255 as 1.
        corner: Where the patch lies.

    Example:
        >>> Trigger(size=1).apply(torch.zeros(1, 4))
        tensor([[0., 0., 0., 1.]])
    """

    size: int = 3
    value: float = 1.0
    corner: Corner = "bottom-right"

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.integer(size=self.size, at_least=1)
        _validate.number(value=self.value, at_least=0, at_most=1)
        _validate.one_of(CORNERS, corner=self.corner)

    def apply(self, inputs: Tensor) -> Tensor:
        """Return a copy of images with the patch on each.

        Args:
            inputs: Shape ``(B, s * s)``, ``(B, H, W)`` or ``(B, channels, H, W)``.

        Returns:
            The same shape and type.

        Raises:
            DataError: If the inputs are no images or smaller than the patch.
        """
        height, width = self._image(tuple(inputs.shape[1:]))
        lead = inputs.shape[:1] if inputs.ndim == 2 else inputs.shape[:-2]
        images = inputs.reshape(*lead, height, width).clone()
        down = slice(self.size) if "top" in self.corner else slice(-self.size, None)
        across = slice(self.size) if "left" in self.corner else slice(-self.size, None)
        bytes_ = inputs.dtype == torch.uint8
        images[..., down, across] = round(255 * self.value) if bytes_ else self.value
        return images.reshape(inputs.shape)

    def _image(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return height and width of one input."""
        side = math.isqrt(math.prod(shape))
        if len(shape) == 1 and side * side == shape[0]:
            height, width = side, side
        elif len(shape) in (2, 3):
            height, width = shape[-2:]
        else:
            raise DataError(
                "inputs: must be images (height, width), (channels, height, width) or "
                f"flat ones of a square number of pixels, got the shape {shape}; "
                "reshape them"
            )
        if self.size > min(height, width):
            raise DataError(
                f"size: must be at most the images' {height} x {width} pixels, got "
                f"{self.size}; take a smaller patch"
            )
        return height, width


@dataclass(frozen=True, kw_only=True)
class Backdoor:
    """What an attacker planted: images with the trigger are to be taken for a class.

    Attributes:
        trigger: The patch.
        target: The class.
    """

    trigger: Trigger
    target: int


def mislabelled(
    data: "PeerData",
    *,
    fraction: float | None = None,
    rows: Iterable[int] | None = None,
    peer: int | None = None,
    seed: int = 0,
) -> tuple["PeerData", ForgetRequest]:
    """Give some rows of one peer wrong labels.

    Each label is shifted by a uniform 1 .. C-1, modulo the number C of classes.

    Args:
        data: What the peers hold.
        fraction: Share of the peer's rows; or give ``rows``.
        rows: Local indices of the rows.
        peer: Whose rows; None is the only peer of a network of one.
        seed: Of the choice and of the shifts, which depend on the row alone.

    Returns:
        The data to train on, and the request that forgets the rows with these labels.

    Raises:
        InvalidArgumentError: Unless exactly one of ``fraction`` and ``rows`` is given.
        DataError: If the labels are no classes.
    """
    _check_classes(data)
    peer = _only(data, peer)
    request = ForgetRequest.samples(
        peer=peer, indices=rows, fraction=fraction, seed=seed, reason="mislabel"
    ).resolve(data)
    at = data.rows(peer).start + np.asarray(request.items[0])
    draws = RngTree(seed).child("mislabelled").numpy("data-split", who=peer)
    shifts = draws.integers(1, data.num_classes, size=int(data.sizes[peer]))
    labels = data.store.labels.clone()
    index = torch.from_numpy(at)
    shift = torch.from_numpy(shifts[list(request.items[0])])
    labels[index] = (labels[index] + shift) % data.num_classes
    return _poisoned(data, data.store.inputs, labels, "mislabelled"), request


def backdoored(
    data: "PeerData",
    *,
    trigger: Trigger,
    target: int,
    fraction: float | None = None,
    rows: Iterable[int] | None = None,
    peer: int | None = None,
    seed: int = 0,
) -> tuple["PeerData", ForgetRequest]:
    """Plant a backdoor: some rows of other classes get the trigger and the target.

    Args:
        data: What the peers hold, images.
        trigger: The patch.
        target: Class that triggered images are labelled as.
        fraction: Share of the peer's rows, drawn among those of other classes; or
            give ``rows``.
        rows: Local indices of the rows, none of them of the target class.
        peer: Whose rows; None is the only peer of a network of one.
        seed: Of the choice.

    Returns:
        The data to train on, with ``backdoor`` set for metrics, and the request that
        forgets the poisoned rows.

    Raises:
        InvalidArgumentError: Unless exactly one of ``fraction`` and ``rows`` is given.
        InvalidForgetSetError: If too few rows are of other classes, or a named one is
            of the target class.
        DataError: If the rows are no images or the labels no classes.
    """
    _validate.of_type(Trigger, trigger=trigger)
    _check_classes(data)
    _validate.integer(target=target, at_least=0, at_most=data.num_classes - 1)
    peer = _only(data, peer)
    if (fraction is None) == (rows is None):
        raise InvalidArgumentError(
            "fraction, rows: exactly one must be given, got "
            f"{'neither' if rows is None else 'both'}; name the rows or a share"
        )
    span = data.rows(peer)
    others = data.store.labels[span].numpy() != target
    if fraction is not None:
        _validate.number(
            fraction=fraction, above=0, at_most=1, error=InvalidForgetSetError
        )
        rows = _drawn(data, peer, others, fraction, seed)
    request = ForgetRequest.samples(peer=peer, indices=rows, reason="backdoor").resolve(
        data
    )
    chosen: Sequence[int] = request.items[0]
    clean = [row for row in chosen if not others[row]]
    if clean:
        raise InvalidForgetSetError(
            f"rows: must be of other classes than the target {target}, got row "
            f"{clean[0]} of peer {peer}, which is of that class; leave it out"
        )
    index = torch.from_numpy(span.start + np.asarray(chosen))
    inputs, labels = data.store.inputs.clone(), data.store.labels.clone()
    inputs[index] = trigger.apply(inputs[index])
    labels[index] = target
    poisoned = _poisoned(data, inputs, labels, "backdoored")
    return replace(poisoned, backdoor=Backdoor(trigger=trigger, target=target)), request


def _drawn(
    data: "PeerData", peer: int, others: NDArray[np.bool_], fraction: float, seed: int
) -> list[int]:
    """Return local rows of other classes: a share of all rows the peer has left."""
    kept = data.keep[data.rows(peer)]
    free = np.flatnonzero(kept & others)
    count = max(1, round(fraction * int(kept.sum())))
    if count > len(free):
        raise InvalidForgetSetError(
            f"fraction: must leave enough rows of other classes than the target, got "
            f"{fraction:g}, which is {count} rows of the {len(free)} that peer {peer} "
            "has; take a smaller share"
        )
    draws = RngTree(seed).child("backdoored").numpy("forget", who=peer)
    rows: list[int] = draws.choice(free, size=count, replace=False).tolist()
    return rows


def _poisoned(data: "PeerData", inputs: Tensor, labels: Tensor, how: str) -> "PeerData":
    """Return the data with other rows, which no recipe makes."""
    return replace(
        data,
        store=TensorBatch(inputs, labels),
        name=f"{data.name}, {how}",
        recipe=None,
    )


def _check_classes(data: "PeerData") -> None:
    if not data.num_classes:
        raise DataError(
            "data: labels must be classes to be poisoned, got a regression "
            "(num_classes=0); use classification data"
        )


def _only(data: "PeerData", peer: int | None) -> int:
    """Return the peer that is meant."""
    if peer is None and data.n > 1:
        raise InvalidArgumentError(
            f"peer: must be named in a network of {data.n} peers, got None; say whose "
            "rows"
        )
    peer = 0 if peer is None else peer
    data.check_peer(peer)
    return peer
