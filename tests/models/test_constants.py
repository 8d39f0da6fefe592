"""Constants of convex losses: formulas, and a search for counterexamples."""

import numpy as np
import pytest
import torch
from torch.func import grad, jacrev

from dfl_unlearn.errors import InvalidArgumentError
from dfl_unlearn.models.zoo import models

RADIUS = 1.7


def build(name, count, bias=False):
    return models.build(name, input_shape=(3,), num_classes=count, l2=0.2, bias=bias)


def values(model, *args, **fields):
    return {k: a.value for k, a in model.constants(*args, **fields).items()}


def test_formulas_are_those_of_the_specification():
    b = RADIUS
    assert values(build("logistic", 2), b) == pytest.approx(
        {
            "strong_convexity": 0.2,
            "smoothness": b**2 / 4 + 0.2,
            "gradient_bound": b,
            "hessian_lipschitz": b**3 / (6 * 3**0.5),
        }
    )
    assert values(build("logistic", 5), b) == pytest.approx(
        {
            "strong_convexity": 0.2,
            "smoothness": b**2 / 2 + 0.2,
            "gradient_bound": 2**0.5 * b,
            "hessian_lipschitz": 2**0.5 * b**3 / (3 * 3**0.5),
        }
    )
    assert values(build("linear", 0), b, param_norm=2.0, label_bound=3.0) == (
        pytest.approx(
            {
                "strong_convexity": 0.2,
                "smoothness": b**2 + 0.2,
                "gradient_bound": b * (b * 2 + 3),
                "hessian_lipschitz": 0.0,
            }
        )
    )


def test_what_is_not_known_is_absent():
    ridge = build("linear", 0)
    assert "gradient_bound" not in ridge.constants(RADIUS)
    free = models.build("logistic", input_shape=(3,), num_classes=2, l2=0.0)
    assert "strong_convexity" not in free.constants(RADIUS)
    assert models.build("mlp", input_shape=(3,), num_classes=2).constants(1.0) == {}


def test_sources_say_where_a_constant_comes_from():
    logistic = build("logistic", 2)
    assert {a.source for a in logistic.constants(RADIUS).values()} == {"proven"}
    assert logistic.constants(RADIUS, clip_norm=1.0)["gradient_bound"].source == (
        "clipped"
    )
    bounded = build("linear", 0).constants(1.0, param_norm=1.0, label_bound=1.0)
    assert bounded["gradient_bound"].source == "assumed"


def test_clipping_below_the_bound_costs_what_it_breaks():
    clipped = values(build("logistic", 2), RADIUS, clip_norm=1.0)
    assert clipped == pytest.approx(
        {
            "strong_convexity": 0.2,
            "smoothness": RADIUS**2 / 4 + 0.2,
            "gradient_bound": 1,
        }
    )
    assert values(build("logistic", 5), RADIUS, clip_norm=1.0) == {"gradient_bound": 1}
    for count in (2, 5):  # a norm that no gradient reaches changes nothing
        model = build("logistic", count)
        assert model.constants(RADIUS, clip_norm=9.0) == model.constants(RADIUS)
    mlp = models.build("mlp", input_shape=(3,), num_classes=2)
    assert values(mlp, 1.0, clip_norm=0.5) == {"gradient_bound": 0.5}


@pytest.mark.parametrize(
    ("name", "count", "bias"),
    [("logistic", 2, False), ("logistic", 2, True), ("logistic", 3, True)],
)
def test_no_random_point_beats_a_bound_and_some_come_near(name, count, bias):
    model = build(name, count, bias)
    bound = values(model, RADIUS)
    rng = np.random.default_rng(0)
    worst = dict.fromkeys(bound, 0.0)
    least = np.inf
    for scale in np.tile([0.5, 2.0, 8.0], 50):
        x = rng.normal(size=(1, 3))
        length = np.sqrt(RADIUS**2 - 1) if bias else RADIUS
        x = torch.from_numpy(x / np.linalg.norm(x) * length)
        y = torch.from_numpy(rng.integers(count, size=1))
        start = torch.from_numpy(rng.normal(size=model.size) * scale / RADIUS)
        step = torch.from_numpy(rng.normal(size=model.size)) * 1e-4

        def data_term(p, batch=(x, y)):
            return model.sample_losses(p, batch)[0]

        def objective(p, batch=(x, y)):
            return model.loss(p, batch)

        hessian = jacrev(jacrev(objective))
        before, after = hessian(start), hessian(start + step)
        change = torch.linalg.matrix_norm(after - before, 2) / step.norm()
        eigenvalues = torch.linalg.eigvalsh(before)
        found = {
            "gradient_bound": grad(data_term)(start).norm().item(),
            "smoothness": eigenvalues[-1].item(),
            "hessian_lipschitz": change.item(),
        }
        least = min(least, eigenvalues[0].item())
        for key, value in found.items():
            assert value <= bound[key] * (1 + 1e-6)
            worst[key] = max(worst[key], value)
    assert least == pytest.approx(bound["strong_convexity"], abs=1e-9)
    assert worst["gradient_bound"] > 0.9 * bound["gradient_bound"]
    assert worst["smoothness"] > 0.8 * bound["smoothness"]
    # The direction of a random step is rarely the worst one: nearness is tested below.
    assert worst["hessian_lipschitz"] > 0.1 * bound["hessian_lipschitz"]


@pytest.mark.parametrize("count", [2, 4])
def test_the_hessian_lipschitz_constant_is_reached(count):
    # p (1 - p) changes fastest where p = (1 +- 1/sqrt 3)/2; for softmax the other
    # classes are switched off by a large negative logit.
    model = build("logistic", count)
    logit = np.log((1 + 3**-0.5) / (1 - 3**-0.5))
    x = torch.tensor([[RADIUS, 0, 0]], dtype=torch.float64)
    if count == 2:
        start = torch.tensor([logit / RADIUS, 0, 0], dtype=torch.float64)
        way = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    else:
        rows = torch.zeros(count, 3, dtype=torch.float64)
        rows[:, 0] = torch.tensor([logit, 0, -60, -60]) / RADIUS
        start = rows.flatten()
        way = torch.zeros(count, 3, dtype=torch.float64)
        way[:2, 0] = torch.tensor([1.0, -1.0]) / 2**0.5
        way = way.flatten()
    hessian = jacrev(jacrev(lambda p: model.loss(p, (x, torch.tensor([0])))))
    h = 1e-5
    slope = (hessian(start + h * way) - hessian(start - h * way)) / (2 * h)
    reached = torch.linalg.matrix_norm(slope, 2).item()
    bound = values(model, RADIUS)["hessian_lipschitz"]
    assert reached == pytest.approx(bound, rel=1e-6)


def test_impossible_bounds_are_refused():
    model = build("linear", 0)
    for fields in (
        {"radius": 0.0},
        {"radius": float("inf")},
        {"radius": 1.0, "clip_norm": 0.0},
        {"radius": 1.0, "param_norm": -1.0},
        {"radius": 1.0, "label_bound": float("nan")},
    ):
        name, value = list(fields.items())[-1]
        with pytest.raises(InvalidArgumentError, match=f"{name}: .*got {value}"):
            model.constants(**fields)
