"""The network's objective on what is kept, and its exact minimizer."""

from dfl_unlearn.curvature.newton import NewtonPath, newton_minimize
from dfl_unlearn.curvature.operators import Objective
from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.engine.objective import network_objective as objective_of
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.threads import limited_threads
from dfl_unlearn.errors import UnsupportedRequestError


def network_objective(run: TrainedRun, data: PeerData | None = None) -> Objective:
    """Return F = sum_i p_i f_i over the rows that are kept.

    Args:
        run: Gives the model and how peers are weighted.
        data: What the peers hold; None is the run's own data. A peer without rows
            has p_i = 0.

    Returns:
        The objective: row r of peer i weighs ``p_i / n_i``, where n_i is the divisor
        of the peer's mean (see ``PeerData.counted``).
    """
    data = run.data if data is None else data
    return objective_of(run.model, data, run.config.peer_weighting)


def exact_minimizer(
    run: TrainedRun, data: PeerData | None = None, *, gradient_norm: float = 1e-10
) -> NewtonPath:
    """Return the minimizer of the network's objective, solved in float64.

    Args:
        run: Gives model, weighting and a starting point.
        data: What the peers hold; None is the run's own data.
        gradient_norm: Solve until the gradient is at most this long.

    Returns:
        Newton's path; ``theta`` is the minimizer up to ``residuals[-1]``, which may
        stay above ``gradient_norm`` where float64 does not reach it.

    Raises:
        UnsupportedRequestError: If the objective is not strongly convex.
    """
    if not (run.model.convex and run.model.l2 > 0):
        raise UnsupportedRequestError(
            "exact_minimizer: needs a strongly convex objective (a linear or logistic "
            f"model with l2 > 0), got convex={run.model.convex}, l2={run.model.l2}; "
            "compare with retraining instead"
        )
    with limited_threads(run.config.threads):
        return newton_minimize(
            network_objective(run, data),
            run.state.mean(),
            target=gradient_norm,
            most_steps=50,
        )
