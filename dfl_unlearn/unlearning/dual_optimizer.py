"""Two optimizers of the same parameters, one per objective, each with its own state.

Zhong, Luo and Liu (2025), DualOptim: Enhancing efficacy and stability in machine
unlearning with dual optimizers, NeurIPS, arXiv 2504.15827 [paper; code:
CityU-MLO/DualOptim]. Plain composition of two optimizers is the method;
``DecoupledAdam`` is for the ablation of its Table 17, in which either moment of Adam is
shared or not.

Deviation: the public ablation optimizer reads the forget buffers in retain steps, too,
so that its rows with one decoupled moment are not decoupled [code]. Here a shared
moment sees all gradients and is corrected by the joint count of steps, a decoupled one
sees its own and is corrected by its own count.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from dfl_unlearn import _validate
from dfl_unlearn.errors import InvalidArgumentError, InvalidHyperparameterError
from dfl_unlearn.unlearning.optimizers import LocalOptimizer

StateType = Literal["params", "float32", "bfloat16"]


class DualOptimizer:
    """One optimizer for forget steps, one for retain steps, of the same parameters.

    Both decay the weights if both have a weight decay: twice per pair of steps.

    Attributes:
        forget: Takes forget steps.
        retain: Takes retain steps.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> dual = DualOptimizer([w], torch.optim.Adam([w]), torch.optim.SGD([w]))
        >>> w.sum().backward()
        >>> dual.forget_step()
        >>> dual.zero_grad()
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        forget: torch.optim.Optimizer,
        retain: torch.optim.Optimizer,
        *,
        forget_scheduler: LRScheduler | None = None,
        retain_scheduler: LRScheduler | None = None,
    ) -> None:
        """Put two optimizers together.

        Args:
            params: The parameters.
            forget: Made for them.
            retain: Made for them, not the same object.
            forget_scheduler: Steps after every forget step.
            retain_scheduler: Steps after every retain step.

        Raises:
            InvalidArgumentError: If an optimizer has other parameters, both are one, or
                a scheduler belongs to another optimizer.
        """
        self.params = list(params)
        self.forget = forget
        self.retain = retain
        self._schedulers = {"forget": forget_scheduler, "retain": retain_scheduler}
        wanted = {id(p) for p in self.params}
        if forget is retain:
            raise InvalidArgumentError(
                "retain: must be another optimizer than forget, got the same object; "
                "make one each, or use the method without dual-optim"
            )
        for name, optimizer in (("forget", forget), ("retain", retain)):
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if held != wanted:
                raise InvalidArgumentError(
                    f"{name}: must hold the {len(wanted)} tensors of params, got "
                    f"{len(held)} of which {len(held & wanted)} are the same objects; "
                    "make both optimizers from the same list"
                )
            scheduler = self._schedulers[name]
            if scheduler is not None and scheduler.optimizer is not optimizer:
                raise InvalidArgumentError(
                    f"{name}_scheduler: must schedule the {name} optimizer, got one of "
                    f"another {type(scheduler.optimizer).__name__}; make it from that"
                )

    def forget_step(self) -> None:
        """Take a forget step from the gradients in ``.grad``."""
        self._step("forget", self.forget)

    def retain_step(self) -> None:
        """Take a retain step from the gradients in ``.grad``."""
        self._step("retain", self.retain)

    def _step(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        scheduler = self._schedulers[name]
        if scheduler is not None:
            scheduler.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for p in self.params:
            p.grad = None

    @property
    def optimizer_floats(self) -> int:
        """Numbers in buffers of the parameters' shapes; a shared one counts once."""
        held = {
            id(value): value.numel()
            for optimizer in (self.forget, self.retain)
            for p in self.params
            for value in optimizer.state.get(p, {}).values()
            if isinstance(value, Tensor) and value.shape == p.shape and value.ndim
        }
        return sum(held.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers and their schedulers, by name."""
        state = {
            "forget": self.forget.state_dict(),
            "retain": self.retain.state_dict(),
        }
        for name, scheduler in self._schedulers.items():
            if scheduler is not None:
                state[f"{name}_scheduler"] = scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.forget.load_state_dict(state["forget"])
        self.retain.load_state_dict(state["retain"])
        for name, scheduler in self._schedulers.items():
            if scheduler is not None:
                scheduler.load_state_dict(state[f"{name}_scheduler"])


class DecoupledAdam(DualOptimizer):
    """Two Adams that share the first moment, the second, both or none.

    With both shared it is ``torch.optim.Adam`` on the alternating sequence of
    gradients, with none two of them, bit for bit (AdamW alike).

    A state in bfloat16 is rounded at random to one of its two neighbours, without bias:
    a second moment changes by 1 - beta2 = 0.1 % a step, less than bfloat16 resolves
    (0.4 %), and would stall if it were rounded to the nearest.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        forget: LocalOptimizer,
        retain: LocalOptimizer,
        *,
        decouple_m: bool = True,
        decouple_v: bool = True,
        state_dtype: StateType = "params",
        generator: torch.Generator | None = None,
    ) -> None:
        """Start with moments of zero.

        Args:
            params: The parameters.
            forget: ``adam`` or ``adamw``, with the rate and decay of forget steps.
            retain: The same for retain steps; a shared moment has one beta.
            decouple_m: Whether each objective has its own first moment.
            decouple_v: Whether each objective has its own second moment.
            state_dtype: Of the moments; ``params`` is that of each parameter.
            generator: Draws of the rounding to bfloat16, on the CPU.

        Raises:
            InvalidHyperparameterError: If the two do not fit, or bfloat16 has no draws.
        """
        check_adams(forget, retain, decouple_m=decouple_m, decouple_v=decouple_v)
        _validate.one_of(get_args(StateType), state_dtype=state_dtype)
        if state_dtype == "bfloat16" and generator is None:
            raise InvalidHyperparameterError(
                "generator: must be given with state_dtype='bfloat16', got None; its "
                "rounding is random, see RngTree.torch"
            )
        listed = list(params)
        halves = [
            _HalfAdam(listed, spec, state_dtype, generator) for spec in (forget, retain)
        ]
        super().__init__(listed, *halves)
        self._shared = [
            name for name, own in (("m", decouple_m), ("v", decouple_v)) if not own
        ]
        self._tie()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; shared moments stay shared."""
        super().load_state_dict(state)
        self._tie()

    def _tie(self) -> None:
        """Let both halves hold the same tensors where a moment is shared."""
        for p in self.params:
            for name in self._shared:
                for key in (name, f"{name}_steps"):
                    self.retain.state[p][key] = self.forget.state[p][key]


class _HalfAdam(torch.optim.Optimizer):
    """Adam or AdamW, each of whose moments has its own count of steps."""

    def __init__(
        self,
        params: list[Tensor],
        spec: LocalOptimizer,
        state_dtype: StateType,
        generator: torch.Generator | None,
    ) -> None:
        defaults = {
            "lr": spec.learning_rate,
            "betas": spec.betas,
            "eps": spec.eps,
            "weight_decay": spec.weight_decay,
        }
        super().__init__(params, defaults)
        self._decays_params = spec.kind == "adamw"
        self._dtype = None if state_dtype == "params" else getattr(torch, state_dtype)
        self._generator = generator
        for p in params:
            for name in ("m", "v"):
                self.state[p][name] = torch.zeros_like(p, dtype=self._dtype)
                self.state[p][f"{name}_steps"] = torch.tensor(0.0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # torch casts what it loads to the parameters' type.
        for state in self.state.values():
            for name in ("m", "v"):
                state[name] = state[name].to(self._dtype or state[name].dtype)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; the order of operations is torch's, for equal bits."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, rate, (beta1, beta2) = self.state[p], group["lr"], group["betas"]
        if group["weight_decay"] and self._decays_params:
            p.mul_(1 - rate * group["weight_decay"])
        elif group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        m = state["m"].to(p).lerp(gradient, 1 - beta1)
        v = (state["v"].to(p) * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        for name, value in (("m", m), ("v", v)):
            state[f"{name}_steps"] += 1
            state[name].copy_(self._stored(value))
        correction1 = 1 - beta1 ** state["m_steps"].item()
        correction2 = 1 - beta2 ** state["v_steps"].item()
        scale = (v.sqrt() / correction2**0.5).add_(group["eps"])
        p.addcdiv_(m, scale, value=-rate / correction1)

    def _stored(self, moment: Tensor) -> Tensor:
        if self._dtype == torch.bfloat16:
            assert self._generator is not None
            return rounded_at_random(moment, self._generator)
        return moment


def check_adams(
    forget: LocalOptimizer,
    retain: LocalOptimizer,
    *,
    decouple_m: bool,
    decouple_v: bool,
) -> None:
    """Refuse two optimizers whose moments cannot be kept as asked for.

    Args:
        forget: Of forget steps.
        retain: Of retain steps.
        decouple_m: Whether each has its own first moment.
        decouple_v: Whether each has its own second moment.

    Raises:
        InvalidHyperparameterError: If one is not of Adam's kind, or a moment with two
            betas is to be shared.
    """
    _validate.of_type(LocalOptimizer, forget_optimizer=forget, retain_optimizer=retain)
    _validate.of_type(bool, decouple_m=decouple_m, decouple_v=decouple_v)
    for name, spec in (("forget_optimizer", forget), ("retain_optimizer", retain)):
        if spec.kind == "sgd":
            raise InvalidHyperparameterError(
                f"{name}: must be of kind adam or adamw where moments are shared or "
                "kept in another type, got 'sgd'; decouple both and keep them in the "
                "parameters' type"
            )
    for own, k in ((decouple_m, 0), (decouple_v, 1)):
        if not own and forget.betas[k] != retain.betas[k]:
            raise InvalidHyperparameterError(
                f"betas: must be equal for a shared moment, got {forget.betas[k]} and "
                f"{retain.betas[k]}; decouple it"
            )


def rounded_at_random(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return a tensor in bfloat16, each number one of its two neighbours.

    The chance of the upper one is the share of the way to it, so that the mean is the
    number itself; what bfloat16 has is kept.

    Args:
        value: Finite floating-point numbers.
        generator: The draws, on the CPU.

    Returns:
        Same shape, bfloat16.
    """
    bits = value.float().view(torch.int32)
    noise = torch.randint(2**16, bits.shape, dtype=torch.int32, generator=generator)
    upper = (bits + noise.to(bits.device)) & -(2**16)
    return upper.view(torch.float32).bfloat16()


def shared_variance(momentum: float, iterations: int) -> float:
    r"""Return the variance of a parameter under one momentum buffer [derived].

    Of SGD without dampening after T iterations of a forget and a retain step each, rate
    1, gradients independent with mean 0 and variance 1:
    :math:`\sum_{i=0}^{2T-1} A_i^2` with
    :math:`A_i = (1 - \alpha^{i+1}) / (1 - \alpha)`.

    Args:
        momentum: alpha in [0, 1).
        iterations: T >= 0.

    Returns:
        The variance; never below ``dual_variance``.

    References:
        Zhong, Luo and Liu (2025), Theorem 3.5 (the inequality).
    """
    return _variance(momentum, iterations, steps=2)


def dual_variance(momentum: float, iterations: int) -> float:
    r"""Return the variance of a parameter under two momentum buffers [derived].

    :math:`2 \sum_{i=0}^{T-1} A_i^2`; see ``shared_variance``.

    Args:
        momentum: alpha in [0, 1).
        iterations: T >= 0.

    Returns:
        The variance.
    """
    return 2 * _variance(momentum, iterations, steps=1)


def _variance(momentum: float, iterations: int, *, steps: int) -> float:
    """Return the variance under one buffer that steps so often an iteration."""
    _validate.number(momentum=momentum, at_least=0, below=1)
    _validate.integer(iterations=iterations, at_least=0)
    powers = range(1, steps * iterations + 1)
    return float(sum(((1 - momentum**k) / (1 - momentum)) ** 2 for k in powers))
