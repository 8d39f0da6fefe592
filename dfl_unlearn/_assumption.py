"""A constant behind a guarantee: its value, where it comes from, whether it holds."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["proven", "clipped", "set", "measured", "estimated", "assumed"]
State = Literal["held", "violated", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """One constant or condition that a certificate rests on.

    Attributes:
        name: What it is, e.g. ``"strong convexity (lambda)"``.
        value: Its value, or a word such as ``"convex"``.
        source: ``proven`` (from a registered type, enforced by the algorithm, or
            computed from public quantities), ``clipped``, ``set`` (a public cap that
            is checked), ``measured`` (an a-posteriori bound checked against a cap),
            ``estimated`` or ``assumed``.
        state: ``held``, ``violated`` or ``unknown``.
        note: How it was obtained, in one sentence.
    """

    name: str
    value: float | str
    source: Source
    state: State = "held"
    note: str = ""
