"""What forgetting took: messages, bytes, gradients, time, privacy."""

import math

import torch
from torch import Tensor

from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView


@metrics.register("cost-messages")
@measures(unit="messages", worlds=("after",))
def cost_messages(view: EvaluationView) -> Tensor:
    """Messages that the protocol sent over edges."""
    return _number(view.outcome.cost.messages)


@metrics.register("cost-payload-bytes")
@measures(unit="bytes", worlds=("after",))
def cost_payload_bytes(view: EvaluationView) -> Tensor:
    """Bytes of all messages of the protocol, headers included."""
    return _number(view.outcome.cost.payload_bytes)


@metrics.register("cost-gradient-evaluations")
@measures(unit="gradients", worlds=("after",))
def cost_gradient_evaluations(view: EvaluationView) -> Tensor:
    """Per-sample gradients; a Hessian-vector product counts as two."""
    return _number(view.outcome.cost.gradient_evaluations)


@metrics.register("cost-sample-gradients")
@measures(unit="gradients", worlds=("after",))
def cost_sample_gradients(view: EvaluationView) -> Tensor:
    """Per-sample gradients, preprocessing included, without Hessian products."""
    return _number(view.outcome.cost.sample_gradients)


@metrics.register("cost-steps-forget")
@measures(unit="steps", worlds=("after",))
def cost_steps_forget(view: EvaluationView) -> Tensor:
    """Optimizer steps of a local method on forgotten rows, all owners together."""
    return _number(view.outcome.cost.steps_forget)


@metrics.register("cost-steps-retain")
@measures(unit="steps", worlds=("after",))
def cost_steps_retain(view: EvaluationView) -> Tensor:
    """Optimizer steps of a local method on retained rows, all owners together."""
    return _number(view.outcome.cost.steps_retain)


@metrics.register("cost-optimizer-floats")
@measures(unit="numbers", worlds=("after",))
def cost_optimizer_floats(view: EvaluationView) -> Tensor:
    """Most numbers that an owner's optimizers held beside the parameters."""
    return _number(view.outcome.cost.optimizer_floats)


@metrics.register("cost-rounds")
@measures(unit="rounds", worlds=("after",))
def cost_rounds(view: EvaluationView) -> Tensor:
    """Gossip rounds of training that the protocol ran."""
    return _number(view.outcome.cost.rounds)


@metrics.register("cost-hops")
@measures(unit="hops", worlds=("after",))
def cost_hops(view: EvaluationView) -> Tensor:
    """Hops of the token that the protocol sent on a walk."""
    return _number(view.outcome.cost.hops)


@metrics.register("cost-wall-seconds")
@measures(unit="seconds", worlds=("after",))
def cost_wall_seconds(view: EvaluationView) -> Tensor:
    """Elapsed time of the protocol."""
    return _number(view.outcome.cost.wall_seconds)


@metrics.register("cost-simulated-seconds")
@measures(unit="seconds", worlds=("after",))
def cost_simulated_seconds(view: EvaluationView) -> Tensor:
    """What the protocol would take on the peers' own machines and lines."""
    return _number(view.outcome.cost.simulated_seconds)


@metrics.register("epsilon-spent")
@measures(unit="", worlds=("after",))
def epsilon_spent(view: EvaluationView) -> Tensor:
    """Epsilon of the certificate; NaN where nothing is claimed."""
    certificate = view.outcome.certificate
    if certificate is None or certificate.epsilon is None:
        return _number(math.nan)
    return _number(certificate.epsilon)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
