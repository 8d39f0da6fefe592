"""Personal state: tensors that stay with one peer beside the models, never mixed.

A method may keep some for the next request of its peer. One name has a meaning of its
own: ``PINNED`` is a change that a peer adds to the shared model wherever it uses it.
"""

import hashlib
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dfl_unlearn.errors import StoreCorruptError

PINNED = "pinned-change"

Personal = Mapping[int, Mapping[str, Tensor]]

_PLACE = re.compile(r"(0|[1-9][0-9]{0,6})/(.+)", re.DOTALL)


def used_params(params: Tensor, personal: Personal) -> Tensor:
    """Return the models that peers use: shared ones, with the pinned changes added.

    Args:
        params: Shared models, one row per peer, shape ``(N, P)``.
        personal: Personal state by peer and name.

    Returns:
        Shape ``(N, P)``; ``params`` itself where nothing is pinned.
    """
    pinned = {peer: own[PINNED] for peer, own in personal.items() if PINNED in own}
    if not pinned:
        return params
    used = params.clone()
    for peer, change in pinned.items():
        used[peer] += change.to(used)
    return used


def personal_to(personal: Personal) -> dict[str, Tensor]:
    """Return personal state as named tensors for a file, ``<peer>/<name>`` each."""
    return {
        f"{peer}/{name}": value
        for peer in sorted(personal)
        for name, value in personal[peer].items()
    }


def personal_from(
    tensors: Mapping[str, Tensor], peers: int, size: int
) -> dict[int, dict[str, Tensor]]:
    """Return the personal state that ``personal_to`` named.

    Args:
        tensors: As read from a file.
        peers: Number of peers N.
        size: Number of parameters P.

    Returns:
        Tensors by peer and name.

    Raises:
        StoreCorruptError: If a name, or a pinned change, is not of this network.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        place = _PLACE.fullmatch(key)
        if place is None or int(place[1]) >= peers:
            raise StoreCorruptError(
                f"personal state: must be named <peer>/<name> with peers below {peers},"
                f" got {key[:80]!r}; the file was changed, unlearn again"
            )
        if place[2] == PINNED and not (
            value.shape == (size,)
            and value.is_floating_point()
            and bool(value.isfinite().all())
        ):
            raise StoreCorruptError(
                f"personal state: {key} must be {size} finite numbers, got shape "
                f"{tuple(value.shape)} of {value.dtype}; the file was changed, unlearn "
                "again"
            )
        found.setdefault(int(place[1]), {})[place[2]] = value
    return found


def personal_digest(personal: Personal) -> str | None:
    """Return the SHA-256 of personal state; None where there is none."""
    return tensors_digest(personal_to(personal))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the SHA-256 of named tensors; None where there is none."""
    if not tensors:
        return None
    total = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().contiguous().cpu()
        form = f"{key}|{value.dtype}|{tuple(value.shape)}|"
        total.update(form.encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
