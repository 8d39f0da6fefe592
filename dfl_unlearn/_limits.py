"""Caps on what one run may ask for: each has a name, and one error that says it.

They stop a slip of the keyboard, or a hostile file, before memory is taken. Memory
itself is estimated apart, before training, against what is free.
"""

from typing import NamedTuple

from dfl_unlearn.errors import ResourceError


class Cap(NamedTuple):
    """A limit that no run may pass.

    Attributes:
        name: What is counted, as messages call it.
        most: The largest allowed value.
        remedy: What to do instead.
    """

    name: str
    most: int
    remedy: str


MAX_ROUNDS = 10_000_000  # of training or recovery; an InvalidArgumentError above

PEERS = Cap("peers", 100_000, "use a smaller or sparser network")
EDGES = Cap("edges", 5_000_000, "use a smaller or sparser network")
PARAMETERS = Cap("parameters", 500_000_000, "use a smaller model")
REPLICAS = Cap("replicas", 1_000_000, "ask for fewer")
MESSAGES = Cap(
    "messages in flight", 1_000_000, "use dissemination='tree' or fewer edges"
)
LOAD_BYTES = Cap("bytes of arrays", 4 * 2**30, "use fewer or smaller ones")
DENSE_PEERS = Cap(
    "peers for a dense N x N matrix", 2000, "use a smaller network or a sparse method"
)


def check_cap(cap: Cap, value: float, where: str) -> None:
    """Refuse a value beyond a cap.

    Args:
        cap: The limit.
        value: What is asked for, exact or expected.
        where: What the message calls the thing that asks.

    Raises:
        ResourceError: If the value is larger, or is no number.
    """
    if not value <= cap.most:
        raise ResourceError(
            f"{where}: must have at most {cap.most} {cap.name}, got {value:.0f}; "
            f"{cap.remedy}"
        )
