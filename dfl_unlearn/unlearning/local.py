"""What a method for one model takes and gives, and the registry it joins.

The same call serves a peer of a network and a single model; see ``protocols/at_peer``
for the first and ``local_tasks`` for both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfl_unlearn import _validate
from dfl_unlearn.accounting.certificate import Assumption, Certificate, certify
from dfl_unlearn.accounting.ledger import PrivacyLedger
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetKind, ForgetRequest
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingInputError,
    UnknownNameError,
    UnsupportedRequestError,
)
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.record.local import LocalHistory
from dfl_unlearn.registry import Registry
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.cost import Cost

TaskPart = Literal[
    "forget_inputs",
    "forget_labels",
    "retain_inputs",
    "retain_labels",
    "fresh_start",
    "features",
    "class_count",
    "history",
]
PARTS: frozenset[TaskPart] = frozenset(get_args(TaskPart))

_RETAINED: frozenset[TaskPart] = frozenset({"retain_inputs", "retain_labels"})

Data = TypeVar("Data")
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits on what a method may do; the first one that is hit stops it.

    A method stops after the step that reaches a limit, and returns what it has.

    Attributes:
        max_steps: Optimizer steps.
        max_epochs: Passes of the method's outer loop.
        max_seconds: Elapsed time; makes a result depend on the machine.
        max_sample_gradients: Per-sample gradients, preprocessing included.
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    max_seconds: float | None = None
    max_sample_gradients: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("max_steps", "max_epochs", "max_sample_gradients"):
            if getattr(self, name) is not None:
                _validate.integer(at_least=0, **{name: getattr(self, name)})
        if self.max_seconds is not None:
            _validate.number(max_seconds=self.max_seconds, above=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalTask(Generic[Data]):
    """One model and what is to be forgotten of its data; nothing in it is written to.

    Attributes:
        model: The model.
        params: Its parameters, shape ``(P,)``.
        forget: Rows that go, or None where they may not be seen.
        retain: Rows that stay, or None where they may not be seen; may be empty.
        forget_rows: Places of the first in the data of training, ascending, ``(m,)``.
        retain_rows: Places of the second, shape ``(n - m,)``.
        request: What was asked for.
        peer: Whose model it is.
        num_classes: 0 for a regression.
        history: What training left, or None.
        fresh: Draws new initial parameters ``(P,)``, or None.
        budget: Limits.
        companions: Personal state from earlier outcomes, by name.
        ledger: Where a method that adds noise writes it down first.
        conditions: What every claim about this data rests on, whatever the method.
        allowed: Parts that the method may look at; see ``only``.
        elsewhere: Whether the rows that go are another peer's, so that a method works
            though none of its peer's own go.
    """

    model: FlatModel
    params: Tensor
    forget: Data | None
    retain: Data | None
    forget_rows: NDArray[np.int64]
    retain_rows: NDArray[np.int64]
    request: ForgetRequest
    peer: int = 0
    num_classes: int
    history: LocalHistory | None = None
    fresh: Callable[[RngTree], Tensor] | None = None
    budget: Budget = field(default_factory=Budget)
    companions: Mapping[str, Tensor] = field(default_factory=dict)
    ledger: PrivacyLedger = field(default_factory=PrivacyLedger)
    conditions: tuple[Assumption, ...] = ()
    allowed: frozenset[TaskPart] = PARTS
    elsewhere: bool = False

    @property
    def forget_size(self) -> int:
        """Number m of rows that go."""
        return len(self.forget_rows)

    @property
    def retain_size(self) -> int:
        """Number of rows that stay."""
        return len(self.retain_rows)

    def parts(self) -> frozenset[TaskPart]:
        """Return what the task has to offer, of the allowed parts."""
        there: set[TaskPart] = {"class_count"} if self.num_classes else set()
        if self.forget is not None:
            there |= {"forget_inputs", "forget_labels"}
        if self.retain is not None and self.retain_size:
            there |= {"retain_inputs", "retain_labels"}
        if self.fresh is not None:
            there.add("fresh_start")
        if self.history is not None:
            there.add("history")
        if self.model.feature_layer is not None:
            there.add("features")
        return frozenset(there) & self.allowed


def only(
    task: LocalTask[TensorBatch], uses: frozenset[TaskPart]
) -> LocalTask[TensorBatch]:
    """Return the task as a method that says what it uses may see it.

    Args:
        task: The task.
        uses: The method's ``uses``.

    Returns:
        A task without other parts; labels that are not to be seen are -1 (NaN in a
        regression).
    """
    allowed = task.allowed & uses

    def shown(batch: TensorBatch | None, name: str) -> TensorBatch | None:
        if batch is None or f"{name}_inputs" not in allowed:
            return None
        if f"{name}_labels" in allowed:
            return batch
        hidden = torch.nan if batch.is_regression else -1
        return TensorBatch(batch.inputs, torch.full_like(batch.labels, hidden))

    return replace(
        task,
        forget=shown(task.forget, "forget"),
        retain=shown(task.retain, "retain"),
        history=task.history if "history" in allowed else None,
        fresh=task.fresh if "fresh_start" in allowed else None,
        allowed=allowed,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalOutcome:
    """What a method gives back.

    Attributes:
        params: New parameters, shape ``(P,)``, of the task's type.
        certificate: The claim, or None where the method makes none.
        cost: What it took.
        model: The task's model, or another one where layers were added; None is the
            task's.
        personal: Tensors that stay with the peer, by name.
        trace: Name -> values per step or epoch.
        info: For readers only.
        notes: Sentences for the report.
    """

    params: Tensor
    certificate: Certificate | None
    cost: Cost
    model: FlatModel | None = None
    personal: Mapping[str, Tensor] = field(default_factory=dict)
    trace: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    info: Mapping[str, float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class UnlearningMethod(Protocol[Data]):
    """Acts on one model: the same call for a single model and at a peer.

    A method may also have the class attributes ``needs`` (parts of the training
    record), ``uses`` (parts of the task that it reads), ``kinds`` (requests it serves;
    all by default), ``data_types`` (``TensorBatch`` by default), ``claim`` (what its
    certificate can be at best) and ``keeps`` (names of the personal state that stands
    in for ``needs`` at later requests). Where fields decide, they are properties.
    """

    def unlearn(self, task: LocalTask[Data], rng: RngTree) -> LocalOutcome:
        """Return new parameters for a task whose needs are met."""
        ...


methods: Registry[UnlearningMethod[TensorBatch]] = Registry(
    "methods", packages=("dfl_unlearn.unlearning.methods",)
)


def uses_of(method: object) -> frozenset[TaskPart]:
    """Return the parts of a task that a method says it reads."""
    uses: frozenset[TaskPart] = getattr(method, "uses", frozenset())
    return uses


def kinds_of(method: object) -> frozenset[ForgetKind]:
    """Return the requests that a method can serve at a peer.

    A peer that gives up all its rows has no retained ones, so that a method which reads
    those serves no whole peer.
    """
    every: frozenset[ForgetKind] = frozenset(get_args(ForgetKind))
    said: frozenset[ForgetKind] = getattr(method, "kinds", every)
    return said - {"peer"} if _RETAINED & uses_of(method) else said


def why_not(method: object, kind: ForgetKind) -> str:
    """Return why a method does not serve a kind of request, and what to do."""
    name, others = methods.name_of(method), "such as fine-tune"
    if kind == "peer":
        others = "such as gradient-ascent, or retrain the network"
    if kind not in getattr(method, "kinds", get_args(ForgetKind)):
        if kinds_of(method) == {"class"}:
            return (
                f"{name} unlearns a class: ask for one (--class C, "
                f"ForgetRequest.class_), or use a method that serves {kind}, {others}"
            )
        return f"use a method that serves {kind}, {others}"
    return (
        f"{name} needs retained rows and a peer that gives up all has none: use a "
        f"method that needs none, {others}"
    )


def named(method: M | str, field: str) -> "M | UnlearningMethod[TensorBatch]":
    """Return a method; a registered name becomes the method with its defaults.

    Args:
        method: A method or a name.
        field: The field that holds it, for the message.

    Returns:
        The method.

    Raises:
        UnknownNameError: If nothing is registered under the name.
    """
    if not isinstance(method, str):
        return method
    try:
        return methods.build(method)
    except UnknownNameError as error:
        message = str(error).partition(": ")[2]
        raise UnknownNameError(f"{field}: {message}") from error


def check_model(method: object, model: FlatModel, num_classes: int) -> None:
    """Refuse a model that lacks what a method uses, whatever training gives.

    Args:
        method: The method.
        model: The model.
        num_classes: 0 for a regression.

    Raises:
        MissingInputError: Naming what is missing.
    """
    there: set[TaskPart] = {"class_count"} if num_classes else set()
    if model.feature_layer is not None:
        there.add("features")
    missing = (uses_of(method) & {"features", "class_count"}) - there
    if missing:
        raise MissingInputError(
            f"model: must have {', '.join(sorted(missing))} for "
            f"{methods.name_of(method)}, got "
            f"{', '.join(sorted(there)) or 'neither classes nor features'}; "
            f"{_remedy(missing)}"
        )


def check_task(method: object, task: LocalTask[TensorBatch]) -> None:
    """Refuse a task that lacks what a method uses, before anything is computed.

    Args:
        method: The method.
        task: The task.

    Raises:
        MissingInputError: Naming what is missing.
        UnsupportedRequestError: If the method does not serve the kind of request, or
            the request keeps the old divisor.
        InvalidArgumentError: If parameters and model do not fit.
    """
    name = methods.name_of(method)
    if task.params.shape != (task.model.size,):
        raise InvalidArgumentError(
            f"params: must have the shape ({task.model.size},), got "
            f"{tuple(task.params.shape)}; pass one peer's row"
        )
    kinds = getattr(method, "kinds", None)
    if kinds is not None and task.request.kind not in kinds:
        raise UnsupportedRequestError(
            f"request: {name} serves {', '.join(sorted(kinds))}, got kind "
            f"{task.request.kind!r}; {why_not(method, task.request.kind)}"
        )
    if task.request.normalization != "local_mean":
        raise UnsupportedRequestError(
            f"normalization: must be 'local_mean' for {name}, got "
            f"{task.request.normalization!r}; methods for one model train on the mean "
            "over what is left"
        )
    missing = uses_of(method) - task.parts()
    if missing:
        raise MissingInputError(
            f"task: must have {', '.join(sorted(missing))} for {name}, got "
            f"{', '.join(sorted(task.parts())) or 'nothing'} at peer {task.peer}; "
            f"{_remedy(missing)}"
        )


def _remedy(missing: frozenset[TaskPart]) -> str:
    """Return what to do about the first missing part."""
    remedies: dict[TaskPart, str] = {
        "retain_inputs": "use a method that needs no retained data, such as "
        "gradient-ascent, or retrain the network",
        "forget_inputs": "use a method that needs retained data only, such as "
        "fine-tune",
        "history": "train the model here, with record=RecordPlan.for_protocols(method)",
        "features": "name a layer by FlatModel.from_module(..., feature_layer=...), or "
        "use a model with a hidden layer",
        "class_count": "use a method that serves a regression",
        "fresh_start": "give the task fresh=model.init",
    }
    for part, remedy in remedies.items():
        if part in missing:
            return remedy
    return "use another method"


def unchanged(method: object, task: LocalTask[TensorBatch]) -> LocalOutcome | None:
    """Check a task; return a method's outcome where there is nothing to forget.

    Args:
        method: The method; its task is checked unless there is nothing to forget.
        task: The task.

    Returns:
        An exact copy at no cost, certificate ``exact``; None where there is work.
    """
    if task.forget_size or task.elsewhere:
        check_task(method, task)
        return None
    return LocalOutcome(
        params=task.params.detach().clone(),
        certificate=exact_certificate(
            methods.name_of(method),
            task,
            Assumption(
                name="forgotten rows",
                value="none at this peer",
                source="proven",
                note="the model is the one that was there before",
            ),
        ),
        cost=Cost(),
    )


def exact_certificate(
    name: str, task: LocalTask[TensorBatch], *assumptions: Assumption
) -> Certificate:
    """Return the certificate of a model that equals retraining.

    Args:
        name: Registered name of the method.
        task: The task.
        *assumptions: What it rests on, beside the task's conditions.

    Returns:
        ``exact`` where all of them hold.
    """
    return certify(
        method=name,
        request_id=task.request.request_id,
        group_size=None,
        scope="release",
        epsilon=0.0,
        delta=0.0,
        sensitivity=0.0,
        bound="none",
        noise_std=0.0,
        accountant="none",
        assumptions=(*assumptions, *task.conditions),
        observers=("public",),
        adaptive=task.request.adaptive,
        exact=True,
    )
