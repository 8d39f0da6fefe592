"""How the requester's data spread while the network was trained, and on what network.

They describe training and not forgetting, so they are measured in the world ``before``
and the same for every protocol, and only where they are named. All but the spectral gap
read the most exact trace of the whole data of the request's ``requester`` that is worth
its time (``engine.influence.best_influence``): the derivative of training by replay for
small convex models, else a bound from recorded gradient norms, else the powers of W.
"""

from collections import OrderedDict

import torch
from torch import Tensor

from dfl_unlearn.engine.influence import best_influence
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.errors import MissingInputError, UnsupportedRequestError
from dfl_unlearn.evaluation.metrics import measures, metrics
from dfl_unlearn.evaluation.view import EvaluationView
from dfl_unlearn.record.influence import InfluenceTrace

FRONT = 0.5
"""Share of the even share 1/N at which a peer counts as reached by ``front-time``."""

_KEPT = 4  # traces; the protocols tried on one run are measured one after another
_traces: OrderedDict[tuple[str, int], InfluenceTrace] = OrderedDict()


@metrics.register("spectral-gap")
@measures(unit="", worlds=("before",), default=False)
def spectral_gap(view: EvaluationView) -> Tensor:
    """One minus the second largest absolute eigenvalue of the mixing matrix W.

    Of the intact network, where peers or messages failed.

    Returns:
        In [0, 1], shape ``()``.

    Raises:
        UnsupportedRequestError: If every round has a network of its own.
    """
    if view.outcome.run.config.schedule is not None:
        raise UnsupportedRequestError(
            "spectral-gap: must be of a network that does not change, got a schedule; "
            "leave the metric out, or measure schedule.at(t).spectral_gap yourself"
        )
    return torch.tensor(view.topology.spectral_gap, dtype=torch.float64)


@metrics.register("front-time")
@measures(unit="rounds", worlds=("before",), default=False, network="max")
def front_time(view: EvaluationView) -> Tensor:
    """First round in which each peer holds half its even share of the influence.

    The network's value is that of the peer reached last: how long the requester's data
    took to cross the network.

    Returns:
        Rounds from 1, shape ``(N,)``; inf where the rounds trained did not suffice.
    """
    return _per_peer(view, torch.from_numpy(_trace(view).front(FRONT)))


@metrics.register("effective-spread")
@measures(unit="peers", worlds=("before",), default=False)
def effective_spread(view: EvaluationView) -> Tensor:
    """Among how many peers the influence is spread at the end of training.

    The exponential of the entropy of the shares.

    Returns:
        Peers, in [1, N], shape ``()``.
    """
    return torch.tensor(float(_trace(view).effective_spread()[-1]), dtype=torch.float64)


@metrics.register("influence-share")
@measures(worlds=("before",), default=False)
def influence_share(view: EvaluationView) -> Tensor:
    """Every peer's share of the influence at the end of training; they sum to 1."""
    return _per_peer(view, torch.from_numpy(_trace(view).shares()[-1]))


def _trace(view: EvaluationView) -> InfluenceTrace:
    """Return the requester's trace, made once for all protocols tried on a run.

    Raises:
        MissingInputError: If nobody asks for anything.
    """
    if view.request.is_nothing:
        raise MissingInputError(
            "request: must have a requester, whose influence is measured, got a "
            "request for nothing; leave the influence metrics out"
        )
    run: TrainedRun = view.outcome.run
    key = (run.digest, view.request.requester)
    if key not in _traces:
        _traces[key] = best_influence(run, view.request.requester)
        while len(_traces) > _KEPT:
            _traces.popitem(last=False)
    return _traces[key]


def _per_peer(view: EvaluationView, values: Tensor) -> Tensor:
    """Return the values of the peers that the view looks at."""
    return values if view.peer is None else values[view.peer : view.peer + 1]
