"""How far the network is from agreement, and from the network retrained without.

Distances to retraining mean something because both runs share their draws: what the
forgotten rows did not touch is equal. How far two retrained networks with other draws
are from each other is what the line ``retrain-2`` of a comparison says.
"""

import math

import torch
from torch import Tensor

from dfl_unlearn.evaluation.attacks import jensen_shannon, softmax
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView

_FLOOR = 1e-12  # of every probability, so that one zero does not make KL infinite
_PEERS = 64  # rows converted to float64 at a time


@metrics.register("consensus-distance")
@measures(unit="")
def consensus_distance(view: EvaluationView) -> Tensor:
    r"""Mean over peers of the squared distance to their average parameters.

    :math:`\frac{1}{N} \sum_i \|x_i - \bar x\|^2`.

    Args:
        view: The network in one world.

    Returns:
        One value for the network, shape ``()``.
    """
    return torch.tensor(view.state.consensus_distance(), dtype=torch.float64)


@metrics.register("parameter-distance")
@measures(unit="", worlds=("before", "after"))
def parameter_distance(view: EvaluationView) -> Tensor:
    r"""Distance of a peer's parameters to its retrained ones, relative to their norm.

    :math:`\|x_i - x_i^{rt}\| / \|x_i^{rt}\|`.

    Args:
        view: The network in one world, with a reference.

    Returns:
        One value per peer, shape ``(N,)``.
    """
    ours, theirs = view.state.params, view.at("reference").state.params
    parts = []
    for start in range(0, view.n, _PEERS):
        x, y = (p[start : start + _PEERS].double() for p in (ours, theirs))
        parts.append((x - y).norm(dim=1) / y.norm(dim=1))
    return torch.cat(parts)


@metrics.register("prediction-kl")
@measures(unit="nats", set="test", worlds=("before", "after"))
def prediction_kl(view: EvaluationView) -> Tensor:
    r"""Mean divergence of a peer's predictions from its retrained ones.

    :math:`\frac{1}{B} \sum_z \mathrm{KL}(p^{rt}(\cdot|z) \,\|\, p(\cdot|z))` over the
    test rows, with probabilities floored at 1e-12 inside the logarithms.

    Args:
        view: The network in one world, with a reference.

    Returns:
        One value per peer, shape ``(N,)``, in nats.
    """
    view.check_task("prediction-kl", classes=True)
    return view.average("test", _divergence, "reference", view.world)


@metrics.register("agreement")
@measures(set="test", worlds=("before", "after"))
def agreement(view: EvaluationView) -> Tensor:
    """Share of test rows to which a peer gives the class its retrained self gives."""
    view.check_task("agreement", classes=True)
    return view.average(
        "test",
        lambda theirs, ours, labels: theirs.argmax(-1) == ours.argmax(-1),
        "reference",
        view.world,
    )


@metrics.register("prediction-js")
@measures(unit="nats", set="forget", worlds=("before", "after"))
def prediction_js(view: EvaluationView) -> Tensor:
    r"""Mean Jensen-Shannon divergence from the retrained peer, on forgotten rows.

    :math:`\frac12 \mathrm{KL}(p^{rt} \| m) + \frac12 \mathrm{KL}(p \| m)` with m the
    mean of both [code: SFRon].

    Args:
        view: The network in one world, with a reference.

    Returns:
        One value per peer, shape ``(N,)``, in [0, ln 2] nats.
    """
    view.check_task("prediction-js", classes=True)
    return view.average("forget", _jensen_shannon, "reference", view.world)


@metrics.register("activation-distance")
@measures(unit="", set="forget", worlds=("before", "after"))
def activation_distance(view: EvaluationView) -> Tensor:
    """Mean Euclidean distance of probabilities to the retrained peer's, forgotten rows.

    Args:
        view: The network in one world, with a reference.

    Returns:
        One value per peer, shape ``(N,)``, in [0, sqrt 2].
    """
    view.check_task("activation-distance", classes=True)
    return view.average("forget", _activation, "reference", view.world)


@metrics.register("zrf")
@measures(unit="", set="forget")
def zrf(view: EvaluationView) -> Tensor:
    """One minus the mean divergence from a random network, on forgotten rows.

    "Zero retrain forgetting" [recalled: Chundawat et al. 2023]: the Jensen-Shannon
    divergence, in nats, between a peer's predictions and those of fresh parameters
    of the same model, drawn once per request. 1 means predictions like chance; the
    target is Retrain's value.

    Args:
        view: The network in one world.

    Returns:
        One value per peer, shape ``(N,)``, in [1 - ln 2, 1].
    """
    view.check_task("zrf", classes=True)
    rng = view.outcome.run.rng.child(f"zrf/{view.request.request_id}")
    fresh = view.model.init(rng).to(view.state.params)[None]
    total = torch.zeros(view.n, dtype=torch.float64)
    for batch, (ours,) in view.blocks("forget"):
        chance = view.model.predict_all(fresh, batch.inputs).expand_as(ours)
        total += _jensen_shannon(chance, ours, batch.labels).sum(1)
    return 1 - total / len(view.rows("forget"))


def _jensen_shannon(theirs: Tensor, ours: Tensor, labels: Tensor) -> Tensor:
    p, q = (softmax(x.double().cpu().numpy()) for x in (theirs, ours))
    return torch.from_numpy(jensen_shannon(p, q))


def _activation(theirs: Tensor, ours: Tensor, labels: Tensor) -> Tensor:
    difference = theirs.double().softmax(-1) - ours.double().softmax(-1)
    distance: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return distance


def _divergence(theirs: Tensor, ours: Tensor, labels: Tensor) -> Tensor:
    """Return KL(theirs || ours) of the softmax over the last axis, float64."""
    log_p, log_q = (x.double().log_softmax(-1) for x in (theirs, ours))
    floor = math.log(_FLOOR)
    return (log_p.exp() * (log_p.clamp(min=floor) - log_q.clamp(min=floor))).sum(-1)
