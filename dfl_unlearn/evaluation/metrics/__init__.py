"""Metrics by name; a metric is a plain function of an evaluation view.

It reads ``view.state``, the network in the world the view looks at, and returns one
value per peer, shape ``(N,)``, or one for the network, shape ``()``. One that compares
with retraining also reads ``view.at("reference").state``, which raises
``MissingInputError`` where no reference was made. What it measures in, and on which
rows, is said by ``measures``::

    @metrics.register("test-accuracy")
    @measures(unit="fraction", set="test")
    def test_accuracy(view: EvaluationView) -> Tensor: ...

A name that starts with ``mia-`` marks a membership attack, as do ``lira`` and
``u-lira``: tables print its values only beside the reference's.

One that fits an attack or trains a model for every peer says ``default=False``, as does
one that mostly repeats another: it is measured where it is named, and left out of the
default table, which stays short and as fast as predictions are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.registry import Registry
from dfl_unlearn.store.table import WORLDS, World

if TYPE_CHECKING:
    from dfl_unlearn.evaluation.view import EvaluationView

Metric = Callable[["EvaluationView"], Tensor]
SetName = Literal["test", "retain", "forget"]
SETS: tuple[SetName, ...] = ("test", "retain", "forget")

M = TypeVar("M", bound=Callable[..., Tensor])

metrics: Registry[Tensor] = Registry(
    "metrics", packages=("dfl_unlearn.evaluation.metrics",)
)


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """What a metric's values are; the defaults hold for a function that says nothing.

    Attributes:
        unit: ``fraction``, ``nats``, ``seconds``, ``bytes``, another unit, or "" for a
            pure number.
        set: Rows it is measured on, or "" where it reads none.
        worlds: Worlds in which it says something: a cost exists only ``after``, and
            the distance of the reference to itself is no news.
        default: Whether it is measured unless others are named.
        network: The network's value of one that has a value per peer.
    """

    unit: str = "fraction"
    set: SetName | Literal[""] = ""
    worlds: tuple[World, ...] = WORLDS
    default: bool = True
    network: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        """Check the fields."""
        _validate.of_type(str, unit=self.unit)
        _validate.of_type(bool, default=self.default)
        _validate.one_of((*SETS, ""), set=self.set)
        _validate.one_of(("mean", "max"), network=self.network)
        for world in self.worlds:
            _validate.one_of(WORLDS, worlds=world)


def measures(
    *,
    unit: str = "fraction",
    set: SetName | Literal[""] = "",
    worlds: tuple[World, ...] = WORLDS,
    default: bool = True,
    network: Literal["mean", "max"] = "mean",
) -> Callable[[M], M]:
    """Return a decorator that says what a metric's values are.

    Args:
        unit: Unit of the values.
        set: Rows it is measured on, or "".
        worlds: Worlds in which it says something.
        default: Whether it is measured unless others are named.
        network: What of the peers' values is the network's.

    Returns:
        The decorator; it returns the metric itself.
    """
    info = MetricInfo(
        unit=unit, set=set, worlds=worlds, default=default, network=network
    )

    def note(metric: M) -> M:
        metric.__dict__["info"] = info
        return metric

    return note


def info_of(metric: Metric) -> MetricInfo:
    """Return what ``measures`` said about a metric, or the defaults."""
    info = getattr(metric, "info", None)
    return info if isinstance(info, MetricInfo) else MetricInfo()
