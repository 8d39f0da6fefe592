"""Several forget requests as one, so that one correction and one release serve all."""

from collections.abc import Sequence

import numpy as np

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.errors import InvalidForgetSetError


def coalesce(requests: Sequence[ForgetRequest], data: PeerData) -> ForgetRequest:
    """Put several requests together as one, to be corrected and released once.

    Each is resolved against the same data; rows that several of them name go once. A
    request for a whole peer brings all rows it still holds.

    Args:
        requests: At least one; of one owner or several, of any kinds.
        data: What the peers hold.

    Returns:
        One resolved request of kind ``samples`` without an id. Its ``coalesced`` names
        each request, by its place (1, 2, ...) where it has no id; it is ``adaptive`` if
        any of them is, and gives each reason once.

    Raises:
        InvalidForgetSetError: If retraining would mean different things for them, an
            id occurs twice, or one does not fit the data.
    """
    if not requests:
        raise InvalidForgetSetError(
            "requests: must be at least one to be coalesced, got none"
        )
    meanings = {one.normalization for one in requests}
    if len(meanings) > 1:
        raise InvalidForgetSetError(
            "requests: must have one normalization to be coalesced, got "
            f"{' and '.join(sorted(meanings))}, which mean different retrainings; "
            "send them one after the other"
        )
    names = [one.request_id or str(at + 1) for at, one in enumerate(requests)]
    if len(set(names)) < len(names):
        raise InvalidForgetSetError(
            f"request_id: must be each one's own, got {_validate.show(names)}; leave "
            "it out or choose others"
        )
    chosen = np.zeros(len(data.store), dtype=np.bool_)
    for one in requests:
        chosen |= one.resolve(data).mask(data)
    owners = tuple(np.unique(data.owner[chosen]).tolist())
    return ForgetRequest(
        kind="samples",
        peers=owners,
        items=tuple(
            tuple(np.flatnonzero(chosen[data.rows(peer)]).tolist()) for peer in owners
        ),
        normalization=requests[0].normalization,
        adaptive=any(one.adaptive for one in requests),
        reason="; ".join(dict.fromkeys(one.reason for one in requests if one.reason)),
        coalesced=tuple(names),
    ).resolve(data)
