"""A module and its loss as pure functions of one flat parameter vector.

``(P,)`` is one peer's parameters in torch's parameter order; the parameters of all
peers are one ``(N, P)`` tensor. The module is only a recipe: it holds no state that
training changes.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dfl_unlearn import _validate
from dfl_unlearn._arrays import as_features
from dfl_unlearn._assumption import Assumption
from dfl_unlearn.errors import (
    InvalidArgumentError,
    MissingInputError,
    UnsupportedModelError,
)
from dfl_unlearn.models.constants import clipped, convex_constants
from dfl_unlearn.models.initial import reset_parameters
from dfl_unlearn.models.refuse import BatchNorm, check_module
from dfl_unlearn.models.structure import (
    LinearLayer,
    LinearStack,
    LossName,
    Segment,
    linear_stack,
    stack_outputs,
)
from dfl_unlearn.rng import RngTree

__all__ = ["FlatModel", "LinearLayer", "LinearStack", "Loss", "Segment"]

Loss = Callable[[Tensor, Tensor], Tensor]
KnownLoss = Literal["cross-entropy", "binary-logistic", "squared-error"]

_CHUNK_FLOATS = 2**22  # activations of one chunk of predict_all: 16 MB in float32
_CHUNK_ROWS = 1024


class Rows(Protocol):
    """Anything with inputs and labels, such as a peer's ``TensorBatch``."""

    @property
    def inputs(self) -> Tensor:
        """Shape ``(B, ...)``."""

    @property
    def labels(self) -> Tensor:
        """Shape ``(B,)``."""


Batch = tuple[Tensor, Tensor] | Rows


class FlatModel:
    """A model as pure functions of a flat vector; made by ``from_module`` or the zoo.

    Every function follows the type and device of the parameters it is given; uint8
    inputs become floats in [0, 1].

    Attributes:
        size: P, the number of parameters.
        segments: Parameter name to its place, in torch's order.
        l2: Weight lambda of the term ``(lambda/2) ||params||^2`` in ``loss``.
        loss_name: ``cross-entropy``, ``binary-logistic`` (one logit z, labels 0 and
            1), ``squared-error`` (``(z - y)^2 / 2``) or ``custom``.
        recipe: How the zoo made it, so that a stored run can make it again; None for
            modules of your own.
        structure: The layers, where the module is a stack of linear layers with ReLU
            between them and the loss a known one; else None.
        feature_layer: Name of the layer that reads the model's features, or None.
        zero_start: Whether ``init`` gives zeros; for models that need no symmetry
            broken, such as linear ones.

    Example:
        >>> model = FlatModel.from_module(nn.Linear(4, 3), "cross-entropy", l2=0.01)
        >>> model.size, model.segments["bias"]
        (15, Segment(offset=12, shape=(3,)))
    """

    def __init__(
        self,
        module: nn.Module,
        loss: KnownLoss | Loss,
        *,
        l2: float = 0.0,
        batch_norm: BatchNorm = "refuse",
        feature_layer: str | None = None,
        zero_start: bool = False,
    ) -> None:
        """Take a module apart; see ``from_module``."""
        _validate.of_type(nn.Module, module=module)
        _validate.of_type(bool, zero_start=zero_start)
        _validate.number(l2=l2, at_least=0)
        _validate.one_of(get_args(BatchNorm), batch_norm=batch_norm)
        if not callable(loss):
            _validate.one_of(get_args(KnownLoss), loss=loss)
        check_module(module, batch_norm)
        self._module = copy.deepcopy(module).eval()
        self._loss: Loss | None = loss if callable(loss) else None
        self.loss_name: LossName = "custom" if callable(loss) else loss
        self.l2 = float(l2)
        self.zero_start = zero_start
        self.recipe: Mapping[str, Any] | None = None
        self.segments: dict[str, Segment] = {}
        self.size = 0
        for name, parameter in self._module.named_parameters():
            self.segments[name] = Segment(self.size, tuple(parameter.shape))
            self.size += parameter.numel()
        # Buffers are constants; running statistics are so by batch_norm="freeze".
        self._buffers = {
            name: buffer.detach() for name, buffer in self._module.named_buffers()
        }
        self.structure = linear_stack(self._module, self.segments, self.loss_name)
        self.feature_layer = _feature_layer(self._module, feature_layer)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        loss: KnownLoss | Loss,
        *,
        l2: float = 0.0,
        batch_norm: BatchNorm = "refuse",
        feature_layer: str | None = None,
    ) -> "FlatModel":
        """Make a model of any module whose samples do not influence each other.

        Args:
            module: It is copied; it must draw no random numbers when it is called.
            loss: A name (see ``loss_name``), or a function of outputs and labels that
                returns one value per sample, shape ``(B,)``.
            l2: lambda >= 0.
            batch_norm: ``refuse``, or ``freeze``: running statistics become constants.
            feature_layer: Name of the layer whose input is the features. None is the
                last layer of a sequence that ends in a linear one and has another
                layer with parameters before; other models have no features.

        Returns:
            The model.
        """
        return cls(
            module, loss, l2=l2, batch_norm=batch_norm, feature_layer=feature_layer
        )

    @property
    def convex(self) -> bool:
        """Whether the data term is convex: one linear layer with a known loss."""
        return self.structure is not None and len(self.structure.layers) == 1

    def init(self, rng: RngTree) -> Tensor:
        """Draw fresh parameters as the module's layers draw theirs.

        Args:
            rng: The run's draws; the purpose is ``init``.

        Returns:
            Shape ``(P,)``, float32. Parameters of modules without
            ``reset_parameters`` keep the values they came with. With ``zero_start``
            nothing is drawn and all of them are 0.
        """
        if self.zero_start:
            return torch.zeros(self.size)
        module = copy.deepcopy(self._module)
        reset_parameters(module, rng.torch("init"))
        parts = [p.detach().reshape(-1).float() for p in module.parameters()]
        return torch.cat(parts)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the module's parts with their names, as torch names them."""
        yield from self._module.named_modules()

    def named(self, params: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name, as views.

        Args:
            params: Shape ``(..., P)``.

        Returns:
            Name to a view of shape ``(..., *shape)``, in the order of ``segments``.
        """
        return {name: segment.view(params) for name, segment in self.segments.items()}

    def fast_named(self, row: Tensor) -> dict[str, Tensor]:
        """Return one row's parameters in the memory layout that is fastest on a CPU.

        Convolution and pooling run about 1.5 times faster on channels-last tensors,
        which outputs become where the weights are (28 x 28 pixels, batch 32, torch
        2.15). Not for ``vmap``, which does not know that layout.

        Args:
            row: Shape ``(P,)``.

        Returns:
            Name to a copy (4-D weights) or a view, without gradient history.
        """
        return {
            name: part.detach().contiguous(memory_format=torch.channels_last)
            if part.ndim == 4
            else part.detach()
            for name, part in self.named(row).items()
        }

    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Return the model's outputs for one parameter vector.

        Args:
            params: Shape ``(P,)``.
            inputs: Shape ``(B, ...)``, uint8 or floating point.

        Returns:
            Logits ``(B, C)`` (``[0, z]`` for one logit), or ``(B,)`` for a regression.
        """
        self._check_params(params)
        features = as_features(inputs.to(params.device), params.dtype)
        return self._finish(self._outputs(self.named(params), features))

    def named_logits(self, named: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return what ``predict`` returns, for parameters given by name.

        Args:
            named: Name to parameter; see ``named``.
            inputs: Shape ``(B, ...)``, uint8 or floating point.

        Returns:
            Logits ``(B, C)``, or ``(B,)`` for a regression.
        """
        like = next(iter(named.values()))
        features = as_features(inputs.to(like.device), like.dtype)
        return self._finish(self._outputs(named, features))

    def named_sample_losses(self, named: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return what ``sample_losses`` returns, for parameters given by name."""
        like = next(iter(named.values()))
        inputs, labels = _pair(batch)
        features = as_features(inputs.to(like.device), like.dtype)
        return self.named_losses(named, features, labels.to(like.device))

    def features(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Return what the feature layer reads, one vector per sample.

        Args:
            params: Shape ``(P,)``.
            inputs: Shape ``(B, ...)``, uint8 or floating point.

        Returns:
            Shape ``(B, d)``, part of the graph of ``params``.
        """
        self._check_params(params)
        return self.named_features(self.named(params), inputs)

    def named_features(self, named: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return what ``features`` returns, for parameters given by name.

        Args:
            named: Name to parameter; see ``named``.
            inputs: Shape ``(B, ...)``, uint8 or floating point.

        Returns:
            Shape ``(B, d)``.

        Raises:
            MissingInputError: If the model has no feature layer.
        """
        if self.feature_layer is None:
            raise MissingInputError(
                "model: must have a feature layer, got none; name one by "
                "FlatModel.from_module(..., feature_layer=...), or use a model with a "
                "hidden layer"
            )
        read: list[Tensor] = []
        layer = self._module.get_submodule(self.feature_layer)
        handle = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            self.named_logits(named, inputs)
        finally:
            handle.remove()
        return read[0].flatten(1)

    @torch.no_grad()
    def check_inputs(self, inputs: Tensor) -> None:
        """Refuse rows that the model cannot take, before anything is trained on them.

        Args:
            inputs: Shape ``(R, ...)``; the first row is tried.

        Raises:
            InvalidArgumentError: If it does not fit.
        """
        try:
            self.predict(torch.zeros(self.size), inputs[:1])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InvalidArgumentError(
                f"model: must take inputs of shape {tuple(inputs.shape[1:])}, got one "
                f"made for others ({_validate.clean(str(error).splitlines()[0])}); "
                "build it for the data's shape"
            ) from error

    @torch.no_grad()
    def predict_all(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Return every peer's outputs for the same inputs, without gradients.

        Args:
            params: Shape ``(N, P)``.
            inputs: Shape ``(B, ...)``, uint8 or floating point.

        Returns:
            Shape ``(N, B, C)``, or ``(N, B)`` for a regression.
        """
        features = as_features(inputs.to(params.device), params.dtype)
        if self.structure is not None:
            return self._predict_stack(self.structure, params, features)
        # Convolutions do not batch over peers on a CPU: a loop is the faster one.
        chunks = torch.split(features, _CHUNK_ROWS)
        outputs = []
        for row in params:
            named = self.fast_named(row)
            parts = [self._outputs(named, x) for x in chunks]
            outputs.append(self._finish(torch.cat(parts)))
        return torch.stack(outputs)

    def sample_losses(self, params: Tensor, batch: Batch) -> Tensor:
        """Return the data term of each sample.

        Args:
            params: Shape ``(P,)``.
            batch: A pair (inputs, labels), or rows that have both.

        Returns:
            Shape ``(B,)``.
        """
        self._check_params(params)
        inputs, labels = _pair(batch)
        features = as_features(inputs.to(params.device), params.dtype)
        return self.named_losses(self.named(params), features, labels.to(params.device))

    def loss(
        self, params: Tensor, batch: Batch, *, weights: Tensor | None = None
    ) -> Tensor:
        """Return the objective: weighted mean of the data term plus the l2 term.

        ``sum_r w_r loss_r / sum_r w_r + (lambda/2) ||params||^2``; the data term is 0
        where the weights sum to 0.

        Args:
            params: Shape ``(P,)``.
            batch: A pair (inputs, labels), or rows that have both.
            weights: Weight >= 0 of each sample, shape ``(B,)``; None counts all alike.

        Returns:
            Shape ``()``.
        """
        losses = self.sample_losses(params, batch)
        w = torch.ones_like(losses) if weights is None else weights.to(losses)
        total = w.sum()
        mean = (w * losses).sum() / torch.where(total > 0, total, 1.0)
        return mean + self.l2 / 2 * params.square().sum()

    def named_losses(
        self, named: Mapping[str, Tensor], features: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the data term of each sample for parameters given by name.

        Args:
            named: Name to parameter; see ``named``.
            features: Floating-point inputs, shape ``(B, ...)``.
            labels: Shape ``(B,)``.

        Returns:
            Shape ``(B,)``.

        Raises:
            InvalidArgumentError: If a loss of your own does not give ``(B,)``.
        """
        return self._losses(self._outputs(named, features), labels)

    def losses_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the data term of each sample from what ``named_logits`` returned.

        For objectives that read the same logits twice, which need one pass only.

        Args:
            logits: ``(B, C)``, or ``(B,)`` for a regression, with their graph.
            labels: Shape ``(B,)``.

        Returns:
            Shape ``(B,)``, what ``named_sample_losses`` gives.
        """
        single = self.loss_name == "binary-logistic"
        outputs = logits[..., 1] if single else logits  # the first one is 0
        return self._losses(outputs, labels.to(outputs.device))

    def _losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.loss_name == "cross-entropy":
            return F.cross_entropy(outputs, labels, reduction="none")
        if self.loss_name == "binary-logistic":
            return -F.logsigmoid((2 * labels - 1).to(outputs) * outputs)
        if self.loss_name == "squared-error":
            return 0.5 * (outputs - labels.to(outputs)) ** 2
        assert self._loss is not None
        losses = self._loss(outputs, labels)
        if losses.shape != labels.shape[:1]:
            raise InvalidArgumentError(
                f"loss: must return one value per sample, shape "
                f"{tuple(labels.shape[:1])}, got {tuple(losses.shape)}; leave out the "
                "mean or sum over the batch (reduction='none')"
            )
        return losses

    def constants(
        self,
        radius: float,
        clip_norm: float | None = None,
        *,
        param_norm: float | None = None,
        label_bound: float | None = None,
    ) -> Mapping[str, Assumption]:
        """Return the constants that bounds and certificates use.

        Args:
            radius: B > 0, bound on ``||x||`` over all records, or on ``||(x, 1)||`` if
                the model has a bias.
            clip_norm: Norm to which training clips per-sample gradients, or None.
            param_norm: R, bound on ``||params||``: squared error only.
            label_bound: Y, bound on ``|y|``: squared error only.

        Returns:
            ``strong_convexity``, ``smoothness``, ``gradient_bound`` and
            ``hessian_lipschitz`` as far as they hold (``models/constants.py`` has the
            formulas); for a model that is not convex at most ``gradient_bound``, by
            clipping.
        """
        _validate.number(radius=radius, above=0)
        if clip_norm is not None:
            _validate.number(clip_norm=clip_norm, above=0)
        if param_norm is not None:
            _validate.number(param_norm=param_norm, above=0)
        if label_bound is not None:
            _validate.number(label_bound=label_bound, above=0)
        if self.convex:
            return convex_constants(
                self.loss_name,
                self.l2,
                radius,
                clip_norm=clip_norm,
                param_norm=param_norm,
                label_bound=label_bound,
            )
        return {} if clip_norm is None else {"gradient_bound": clipped(clip_norm)}

    def state_dict(self, params: Tensor) -> dict[str, Tensor]:
        """Return what the module's ``load_state_dict`` takes.

        Args:
            params: Shape ``(P,)``.

        Returns:
            Name to a view of ``params``, shared parameters under each of their names,
            and to the constants that the module keeps as buffers.
        """
        self._check_params(params)
        shared = {id(p): name for name, p in self._module.named_parameters()}
        views = self.named(params)
        own = {
            name: views[shared[id(p)]]
            for name, p in self._module.named_parameters(remove_duplicate=False)
        }
        return {
            name: own.get(name, value)
            for name, value in self._module.state_dict().items()
        }

    def from_state_dict(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the flat vector of a module's ``state_dict``.

        Args:
            state: Name to tensor, as the module names them.

        Returns:
            A copy, shape ``(P,)``, type and device of the tensors.

        Raises:
            InvalidArgumentError: If a name is missing or unknown, a shape differs, or
                shared parameters or buffers differ from the model's.
        """
        expected = self._module.state_dict()
        if set(state) != set(expected):
            missing = sorted(set(expected) - set(state))
            unknown = sorted(set(state) - set(expected))
            raise InvalidArgumentError(
                f"state: must have the names of the model's parameters, got missing "
                f"{_validate.show(missing)} and unknown {_validate.show(unknown)}; "
                "take the state of the same module"
            )
        for name, segment in self.segments.items():
            if tuple(state[name].shape) != segment.shape:
                raise InvalidArgumentError(
                    f"state: {name} must have the shape {segment.shape}, got "
                    f"{tuple(state[name].shape)}; take the state of the same module"
                )
        flat = torch.cat([state[name].detach().reshape(-1) for name in self.segments])
        for name, value in self.state_dict(flat).items():
            if not torch.equal(value, state[name].to(value)):
                raise InvalidArgumentError(
                    f"state: {name} must equal the model's constant or the parameter "
                    "it is shared with, got other values; make the model from the "
                    "module that has them"
                )
        return flat

    def _outputs(self, named: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the module's outputs, ``(B,)`` where the loss takes one number."""
        buffers = {
            name: buffer.to(features) if buffer.is_floating_point() else buffer
            for name, buffer in self._buffers.items()
        }
        outputs: Tensor = functional_call(self._module, {**named, **buffers}, features)
        return self._squeeze(outputs)

    def _squeeze(self, outputs: Tensor) -> Tensor:
        """Check the outputs' shape; drop the last dimension of single outputs."""
        if self.loss_name in ("binary-logistic", "squared-error"):
            if outputs.ndim == 2 and outputs.shape[1] == 1:
                return outputs[:, 0]
            fits = outputs.ndim == 1
        else:
            fits = self.loss_name == "custom" or outputs.ndim == 2
        if not fits:
            needed = "(B, C)" if self.loss_name == "cross-entropy" else "(B, 1) or (B,)"
            raise UnsupportedModelError(
                f"module: must return outputs of shape {needed} for {self.loss_name}, "
                f"got {tuple(outputs.shape)}; flatten its input or change its last "
                "layer"
            )
        return outputs

    def _finish(self, outputs: Tensor) -> Tensor:
        """Return logits ``[0, z]`` for a single logit, other outputs as they are."""
        if self.loss_name == "binary-logistic":
            return torch.stack([torch.zeros_like(outputs), outputs], dim=-1)
        return outputs

    def _predict_stack(
        self, stack: LinearStack, params: Tensor, features: Tensor
    ) -> Tensor:
        """Return ``predict_all`` by products batched over chunks of peers."""
        x = features.reshape(len(features), -1)
        width = max(layer.weight.shape[0] for layer in stack.layers)
        chunk = max(1, _CHUNK_FLOATS // max(1, len(x) * width))
        single = self.loss_name != "cross-entropy"
        parts = []
        for rows in torch.split(params, chunk):
            outputs = stack_outputs(stack, rows, x)
            parts.append(self._finish(outputs[..., 0] if single else outputs))
        return torch.cat(parts)

    def _check_params(self, params: Tensor) -> None:
        if params.shape != (self.size,):
            raise InvalidArgumentError(
                f"params: must have the shape ({self.size},), got "
                f"{tuple(params.shape)}; pass one peer's row of (N, P)"
            )


def _feature_layer(module: nn.Module, name: str | None) -> str | None:
    """Return the layer whose input is the features; see ``FlatModel.from_module``.

    Raises:
        InvalidArgumentError: If the module has no layer of that name.
    """
    if name is not None:
        known = [key for key, _ in module.named_modules() if key]
        if name not in known:
            raise InvalidArgumentError(
                f"feature_layer: must be one of {', '.join(known)}, got "
                f"{_validate.show(name)}"
            )
        return name
    children = list(module.named_children())
    if type(module) is not nn.Sequential or type(children[-1][1]) is not nn.Linear:
        return None
    before = any(next(c.parameters(), None) is not None for _, c in children[:-1])
    return children[-1][0] if before else None


def _pair(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch if isinstance(batch, tuple) else (batch.inputs, batch.labels)
