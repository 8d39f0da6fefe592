"""DualOptim: a method with two objectives, and an optimizer for each of them.

Zhong, Luo and Liu (2025), DualOptim: Enhancing efficacy and stability in machine
unlearning with dual optimizers, NeurIPS, arXiv 2504.15827, Algorithm 1. The base method
says what forget and retain steps minimize, and in which order they come; its own
optimizer is not used. Forget steps take AdamW with weight decay 0.05 (the text calls it
Adam), retain steps the optimizer of training, here SGD with momentum 0.9 and weight
decay 5e-4 [code: CityU-MLO/DualOptim].

The paper's claim is a smaller spread over forget sets, where the forget rate is tuned
per method. It is about optimization, not privacy. On digits with SFRon [computed]:
where the ascent is strong enough to forget, two optimizers have a wide range of rates
with a small spread, one has a narrow range of ``alpha`` with the same; between keeping
and losing a class, the spread of what is left falls to a third. A rate tuned for one
base or setting is wrong for another, as 1e-3 is for random labels.
"""

import difflib
from dataclasses import dataclass, field, replace
from typing import get_args

from dfl_unlearn import _validate
from dfl_unlearn.data.batch import TensorBatch
from dfl_unlearn.data.forget import ForgetKind
from dfl_unlearn.errors import InvalidHyperparameterError, UnknownNameError
from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.dual_optimizer import (
    DecoupledAdam,
    DualOptimizer,
    StateType,
    check_adams,
)
from dfl_unlearn.unlearning.local import (
    LocalOutcome,
    LocalTask,
    TaskPart,
    UnlearningMethod,
    methods,
    unchanged,
    uses_of,
)
from dfl_unlearn.unlearning.local_work import LocalWork
from dfl_unlearn.unlearning.optimizers import LocalOptimizer
from dfl_unlearn.unlearning.two_objectives import (
    Steppers,
    TwoObjectiveMethod,
    alternate,
)

ROUNDING = 17


def _adamw() -> LocalOptimizer:
    return LocalOptimizer(kind="adamw", learning_rate=1e-3, weight_decay=0.05)


def _sgd() -> LocalOptimizer:
    return LocalOptimizer(learning_rate=0.01, momentum=0.9, weight_decay=5e-4)


@methods.register("dual-optim")
@dataclass(frozen=True, kw_only=True)
class DualOptim:
    """Give each objective of a method its own optimizer; claims no more than that does.

    Example:
        >>> method = DualOptim(base="salun")
        >>> method == DualOptim(base=methods.build("salun"))
        True

    Attributes:
        base: A method with two objectives, or its name; its fields ``optimizer`` and
            ``forget_learning_rate`` have no effect here. Both terms of a joint step
            become steps of their own.
        forget_optimizer: Takes forget steps. Its learning rate is what to tune.
        retain_optimizer: Takes retain steps. Weight decay of both adds up.
        decouple_m: False shares Adam's first moment between two Adams (ablation).
        decouple_v: False shares the second moment.
        state_dtype: Of two Adams' moments; ``params`` is the parameters' type.
    """

    base: UnlearningMethod[TensorBatch] | str = "sfron"
    forget_optimizer: LocalOptimizer = field(default_factory=_adamw)
    retain_optimizer: LocalOptimizer = field(default_factory=_sgd)
    decouple_m: bool = True
    decouple_v: bool = True
    state_dtype: StateType = "params"

    def __post_init__(self) -> None:
        """Check the fields; a name becomes the method with its defaults.

        Raises:
            UnknownNameError: If ``base`` is a name that is not registered.
            InvalidHyperparameterError: If ``base`` has not two objectives.
        """
        able = [n for n in methods if hasattr(methods.get(n), "objectives")]
        if isinstance(self.base, str):
            if self.base not in methods:
                near = difflib.get_close_matches(self.base, able, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UnknownNameError(
                    f"base: {_validate.show(self.base)} is not registered; {hint}"
                    f"methods with two objectives: {', '.join(able)}"
                )
            object.__setattr__(self, "base", methods.build(self.base))
        if not isinstance(self.base, TwoObjectiveMethod):
            raise InvalidHyperparameterError(
                f"base: must be a method with two objectives ({', '.join(able)}), got "
                f"{methods.name_of(self.base)!r}; choose one of them"
            )
        _validate.of_type(
            LocalOptimizer,
            forget_optimizer=self.forget_optimizer,
            retain_optimizer=self.retain_optimizer,
        )
        _validate.of_type(bool, decouple_m=self.decouple_m, decouple_v=self.decouple_v)
        _validate.one_of(get_args(StateType), state_dtype=self.state_dtype)
        if self._ablates:
            check_adams(
                self.forget_optimizer,
                self.retain_optimizer,
                decouple_m=self.decouple_m,
                decouple_v=self.decouple_v,
            )

    @property
    def uses(self) -> frozenset[TaskPart]:
        """What the base reads."""
        return uses_of(self.base)

    @property
    def kinds(self) -> frozenset[ForgetKind]:
        """What the base serves."""
        every: frozenset[ForgetKind] = frozenset(get_args(ForgetKind))
        served: frozenset[ForgetKind] = getattr(self.base, "kinds", every)
        return served

    def unlearn(self, task: LocalTask[TensorBatch], rng: RngTree) -> LocalOutcome:
        """Return the parameters after the base's steps."""
        same = unchanged(self, task)
        if same is not None:
            return same
        assert isinstance(self.base, TwoObjectiveMethod)
        work = LocalWork(task, rng)
        aims = replace(self.base.objectives(work), joint=False)
        dual = self._optimizer(work)
        steppers = Steppers(
            forget=dual.forget,
            retain=dual.retain,
            forget_rate=self.forget_optimizer.learning_rate,
            retain_rate=self.retain_optimizer.learning_rate,
        )
        return alternate(work, aims, steppers)

    @property
    def _ablates(self) -> bool:
        own = self.decouple_m and self.decouple_v
        return not own or self.state_dtype != "params"

    def _optimizer(self, work: LocalWork) -> DualOptimizer:
        forget, retain = self.forget_optimizer, self.retain_optimizer
        if not self._ablates:
            return DualOptimizer(
                [work.flat], work.optimizer(forget), work.optimizer(retain)
            )
        decoupled = DecoupledAdam(
            [work.flat],
            forget,
            retain,
            decouple_m=self.decouple_m,
            decouple_v=self.decouple_v,
            state_dtype=self.state_dtype,
            generator=work.generator(draw=ROUNDING),
        )
        work.optimizer_floats += decoupled.optimizer_floats
        return decoupled
