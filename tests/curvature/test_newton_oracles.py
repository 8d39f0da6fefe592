"""decentralized-certified 7, items 1 and 5: minimizers, Newton steps, bounds."""

import numpy as np
import pytest
import torch
from networks import full_batch, l6_data, logistic4, path4, r4_data, r4_request, ridge

from dfl_unlearn.curvature.newton import newton_minimize, newton_step
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.engine.run import TrainedRun
from dfl_unlearn.engine.simulator import simulate
from dfl_unlearn.topology.files import load_topology
from dfl_unlearn.unlearning.retained import exact_minimizer, network_objective

FULL = [-0.1700389253, -0.2287810290]
RETAINED = {
    "fixed": [-0.1847117050, -0.1304721982],
    "local_mean": [-0.2469457954, -0.1887760448],
}


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    return simulate(path4(), r4_data(), ridge(), full_batch(rounds=2))


@pytest.fixture(scope="module")
def logistic_run() -> TrainedRun:
    topology = load_topology("ring", n=6)
    return simulate(topology, l6_data(), logistic4(), full_batch(rounds=2))


def distance(a, b):
    return float((a - torch.as_tensor(b, dtype=torch.float64)).norm())


def test_the_full_minimizer(run):
    assert distance(exact_minimizer(run).theta, FULL) < 1e-10


@pytest.mark.parametrize("normalization", ["fixed", "local_mean"])
def test_the_retained_minimizers(run, normalization):
    data = run.data.without(r4_request(normalization))
    assert distance(exact_minimizer(run, data).theta, RETAINED[normalization]) < 1e-10


def test_the_minimizer_without_a_peer(run):
    data = run.data.without(ForgetRequest.whole_peer(2))
    expected = [-0.1325204395, -0.0791834861]
    assert distance(exact_minimizer(run, data).theta, expected) < 1e-10


@pytest.mark.parametrize(
    ("normalization", "gradient", "full_error", "diagonal_error", "bound"),
    [
        (
            "fixed",
            [0.0007425253, -0.0535059334],
            0.0075037429,
            0.0134930571,
            0.0730321115,
        ),
        (
            "local_mean",
            [0.0459261060, -0.0107163218],
            0.0103078398,
            0.0275178039,
            0.1467529043,
        ),
    ],
)
def test_one_step_on_ridge(
    run, normalization, gradient, full_error, diagonal_error, bound
):
    start = exact_minimizer(run).theta
    data = run.data.without(r4_request(normalization))
    kept, whole = network_objective(run, data), network_objective(run)
    target = exact_minimizer(run, data).theta
    g = kept.gradient(start)
    np.testing.assert_allclose(g, gradient, atol=5e-11)
    step, _ = newton_step(
        kept, start, g, damping=0.0, tolerance=1e-14, max_iterations=50
    )
    assert distance(start + step, target) < 1e-14
    # The full curvature is a different approximation (classical influence function).
    step, _ = newton_step(
        whole, start, g, damping=0.0, tolerance=1e-14, max_iterations=50
    )
    assert distance(start + step, target) == pytest.approx(full_error, abs=5e-11)
    diagonal = start - g / kept.hessian(start).diagonal()
    assert distance(diagonal, target) == pytest.approx(diagonal_error, abs=5e-11)
    post = float(kept.gradient(diagonal).norm()) / 0.1
    assert post == pytest.approx(bound, abs=5e-11)


def test_newton_on_logistic_regression(logistic_run):
    run = logistic_run
    request = ForgetRequest.samples(peer=1, indices=[0, 1, 2])
    data = run.data.without(request)
    kept = network_objective(run, data)
    start = exact_minimizer(run, gradient_norm=1e-15).theta
    target = exact_minimizer(run, data, gradient_norm=1e-15).theta
    full = [0.60672222, -0.22349632, -0.38105973, 0.60824936]
    retained = [0.61523801, -0.28202075, -0.33048385, 0.61570772]
    np.testing.assert_allclose(start, full, atol=5e-9)
    np.testing.assert_allclose(target, retained, atol=5e-9)
    assert distance(start, target) == pytest.approx(0.0781740, abs=5e-8)
    g = kept.gradient(start)
    assert float(g.norm()) / 0.05 == pytest.approx(0.2403507, abs=5e-8)
    theta = start
    for expected, tolerance in ((2.32708e-4, 5e-10), (6.65e-9, 5e-12)):
        step, _ = newton_step(
            kept,
            theta,
            kept.gradient(theta),
            damping=0.0,
            tolerance=1e-14,
            max_iterations=100,
        )
        theta = theta + step
        assert distance(theta, target) == pytest.approx(expected, abs=tolerance)
        if expected > 1e-5:
            post = float(kept.gradient(theta).norm()) / 0.05
            assert post == pytest.approx(7.72949e-4, abs=5e-9)
            assert post >= distance(theta, target)
    diagonal = start - g / kept.hessian(start).diagonal()
    assert distance(diagonal, target) == pytest.approx(0.0279849, abs=5e-8)
    post = float(kept.gradient(diagonal).norm()) / 0.05
    assert post == pytest.approx(0.0858093, abs=5e-8)


def test_the_a_priori_bound_of_logistic_regression(logistic_run):
    """M / (2 lambda^3) g_max^2 with g_max = 2 m L / (N (n_u - m)): 15.396."""
    constants = logistic_run.model.constants(1.0)
    m, n, n_u = 3, 6, 8
    gradient = 2 * m * float(constants["gradient_bound"].value) / (n * (n_u - m))
    lipschitz = float(constants["hessian_lipschitz"].value)
    assert lipschitz / (2 * 0.05**3) * gradient**2 == pytest.approx(15.396, abs=5e-4)


def test_newton_minimize_stops_at_the_target_and_reports_it(logistic_run):
    objective = network_objective(logistic_run)
    path = newton_minimize(objective, torch.zeros(4), target=1e-6)
    assert path.residuals[-1] <= 1e-6
    assert path.residuals[-1] == pytest.approx(
        float(objective.gradient(path.theta).norm())
    )
    assert len(path.solver_residuals) == path.solver_iterations
