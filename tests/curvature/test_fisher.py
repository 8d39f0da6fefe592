"""Fisher information as diagonal, blocks and Kronecker factors, against hand-made."""

import numpy as np
import pytest
import torch
from networks import blobs
from oracles import curvature as oracle
from torch import nn

from dfl_unlearn.curvature.blocks import (
    BlockFisher,
    check_blocks,
    layer_blocks,
    whole_block,
)
from dfl_unlearn.curvature.kfac import KfacFisher
from dfl_unlearn.curvature.operators import DiagonalFisher, Objective
from dfl_unlearn.curvature.samples import PerSample, label_law
from dfl_unlearn.errors import NonPositiveCurvatureError, UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree

DATA = blobs([9, 5], dtype=np.float64)
ROWS, LABELS = DATA.store.inputs, DATA.store.labels
SHIFT = 0.03 + 0.2  # l2 and damping


def mlp(hidden=(4, 5), l2=0.03):
    return models.build("mlp", input_shape=(6,), num_classes=3, hidden=hidden, l2=l2)


def weights(seed=1):
    found = np.random.default_rng(seed).random(len(LABELS))
    found[::4] = 0.0
    return found / found.sum()


def objective_of(model, row_weights=None):
    return Objective(
        model=model,
        inputs=ROWS,
        labels=LABELS,
        weights=weights() if row_weights is None else row_weights,
    )


def start(model):
    return model.init(RngTree(0)).double()


def network_of(model, theta):
    """The layers as the oracle wants them."""
    named = [part.numpy() for part in model.named(theta).values()]
    return list(zip(named[::2], named[1::2], strict=True))


def matrix_of(operator, size):
    basis = torch.eye(size, dtype=torch.float64)
    return torch.stack([operator @ e for e in basis]).numpy()


def inverse_of(operator, size):
    basis = torch.eye(size, dtype=torch.float64)
    return torch.stack([operator.solve(e) for e in basis]).numpy()


# --- whole and by layers ---------------------------------------------------------


@pytest.mark.parametrize("law", ["data", "model"])
def test_the_dense_fisher_is_the_sum_of_outer_products(law):
    model = mlp()
    theta = start(model)
    found = BlockFisher.at(
        objective_of(model), theta, damping=0.2, labels=law, blocks=whole_block(model)
    )
    expected = oracle.fisher(
        network_of(model, theta), ROWS.numpy(), LABELS.tolist(), weights(), law
    ) + SHIFT * np.eye(model.size)
    np.testing.assert_allclose(matrix_of(found, model.size), expected, atol=1e-13)
    inverse = np.linalg.inv(expected)
    np.testing.assert_allclose(inverse_of(found, model.size), inverse, rtol=1e-9)
    assert found.floats == model.size**2
    kept = int((weights() > 0).sum())
    assert found.rows == kept * (1 if law == "data" else 3)


def test_a_block_per_layer_keeps_the_layers_and_drops_what_is_between():
    model = mlp()
    theta = start(model)
    blocks = layer_blocks(model)
    assert [(b.begin, b.end) for b in blocks] == [(0, 28), (28, 53), (53, 71)]
    found = BlockFisher.at(objective_of(model), theta, damping=0.2)
    whole = oracle.fisher(
        network_of(model, theta), ROWS.numpy(), LABELS.tolist(), weights(), "model"
    ) + SHIFT * np.eye(model.size)
    expected = np.zeros_like(whole)
    for b in blocks:
        expected[b.begin : b.end, b.begin : b.end] = whole[
            b.begin : b.end, b.begin : b.end
        ]
    np.testing.assert_allclose(matrix_of(found, model.size), expected, atol=1e-13)
    inverse = np.linalg.inv(expected)
    np.testing.assert_allclose(inverse_of(found, model.size), inverse, rtol=1e-9)
    assert found.floats == 28**2 + 25**2 + 18**2


@pytest.mark.parametrize("kind", ["logistic", "binary", "ridge"])
def test_the_true_fisher_of_a_linear_model_is_its_hessian(kind):
    labels = {"logistic": LABELS, "binary": LABELS % 2, "ridge": LABELS.double()}[kind]
    classes = {"logistic": 3, "binary": 2, "ridge": 0}[kind]
    name = "linear" if kind == "ridge" else "logistic"
    model = models.build(name, input_shape=(6,), num_classes=classes, l2=0.03)
    objective = Objective(model=model, inputs=ROWS, labels=labels, weights=weights())
    theta = start(model)
    found = BlockFisher.at(objective, theta, damping=0.2)
    hessian = matrix_of(objective.hessian(theta, damping=0.2), model.size)
    np.testing.assert_allclose(matrix_of(found, model.size), hessian, atol=1e-13)


@pytest.mark.parametrize("kind", ["mlp", "logistic", "binary", "ridge"])
def test_the_empirical_diagonal_is_that_of_the_dense_one(kind):
    labels = {"binary": LABELS % 2, "ridge": LABELS.double()}.get(kind, LABELS)
    classes = {"binary": 2, "ridge": 0}.get(kind, 3)
    name = {"mlp": "mlp", "ridge": "linear"}.get(kind, "logistic")
    model = models.build(name, input_shape=(6,), num_classes=classes, l2=0.03)
    objective = Objective(model=model, inputs=ROWS, labels=labels, weights=weights())
    theta = start(model)
    found = DiagonalFisher.at(
        objective, theta, damping=0.2, rng=RngTree(0), request="r0", labels="data"
    )

    def loss(p, x, y):
        return model.sample_losses(p, (x[None], y[None]))[0]

    jacobian = torch.stack(
        [torch.func.grad(loss)(theta, x, y) for x, y in zip(ROWS, labels, strict=True)]
    )
    expected = torch.from_numpy(weights()) @ jacobian.square() + SHIFT
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


def test_the_labels_of_a_row_share_its_weight():
    model = mlp()
    pairs = label_law(model, model.predict(start(model), ROWS))
    np.testing.assert_allclose(sum(share for _, share in pairs), 1.0, rtol=1e-14)


def test_a_block_that_is_too_large_names_the_layer():
    model = mlp(hidden=(600,))
    with pytest.raises(UnsupportedModelError, match=r"layer '1' .* got 4200; use"):
        check_blocks(layer_blocks(model))
    with pytest.raises(UnsupportedModelError, match=r"a dense block .* got 6003"):
        BlockFisher.at(
            objective_of(model),
            start(model),
            damping=0.1,
            labels="data",
            blocks=whole_block(model),
        )


def test_a_singular_block_without_damping_is_refused():
    with pytest.raises(NonPositiveCurvatureError, match="set damping > 0"):
        BlockFisher.at(objective_of(mlp(l2=0.0)), start(mlp()), damping=0.0)


def test_a_loss_of_ones_own_has_no_labels_to_draw():
    model = FlatModel.from_module(
        nn.Linear(6, 3), lambda z, y: z.square().sum(1), l2=0.1
    )
    objective = objective_of(model)
    with pytest.raises(UnsupportedModelError, match="got 'custom'"):
        BlockFisher.at(objective, start(model), damping=0.0)
    with pytest.raises(UnsupportedModelError, match="got 'custom'"):
        KfacFisher.at(objective, start(model), damping=0.0)
    assert BlockFisher.at(objective, start(model), damping=0.0, labels="data").rows


# --- Kronecker factors -----------------------------------------------------------


def test_kronecker_factors_are_the_moments_of_inputs_and_derivatives():
    model = mlp()
    theta = start(model)
    found = KfacFisher.at(objective_of(model), theta, damping=0.2)
    blocks = []
    for a, g in oracle.kronecker(network_of(model, theta), ROWS.numpy(), weights()):
        blocks.append(oracle.product(*oracle.damped(a, g, SHIFT)))
    expected = np.zeros((model.size,) * 2)
    begin = 0
    for block in blocks:
        end = begin + len(block)
        expected[begin:end, begin:end] = block
        begin = end
    np.testing.assert_allclose(matrix_of(found, model.size), expected, atol=1e-12)
    inverse = np.linalg.inv(expected)
    np.testing.assert_allclose(
        inverse_of(found, model.size), inverse, rtol=1e-8, atol=1e-12
    )
    assert found.floats == (7**2 + 4**2) + (5**2 + 5**2) + (6**2 + 3**2)
    assert found.rows == 3 * int((weights() > 0).sum())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["cross-entropy", "binary-logistic", "squared-error"])
def test_one_layer_and_one_row_are_exact(bias, loss):
    """Up to the damping's cross terms, which vanish with it."""
    outputs = 3 if loss == "cross-entropy" else 1
    labels = {"binary-logistic": LABELS % 2, "squared-error": LABELS.double()}
    model = FlatModel.from_module(nn.Linear(6, outputs, bias=bias), loss)
    one = np.zeros(len(LABELS))
    one[3] = 0.7
    objective = Objective(
        model=model, inputs=ROWS, labels=labels.get(loss, LABELS), weights=one
    )
    theta, tiny = start(model), 1e-13
    found = matrix_of(KfacFisher.at(objective, theta, damping=tiny), model.size)
    hessian = matrix_of(objective.hessian(theta), model.size)
    np.testing.assert_allclose(found, hessian, atol=1e-5)


def test_several_rows_are_not_exact():
    model = FlatModel.from_module(nn.Linear(6, 3), "cross-entropy")
    objective, theta = objective_of(model), start(model)
    found = matrix_of(KfacFisher.at(objective, theta, damping=1e-13), model.size)
    hessian = matrix_of(objective.hessian(theta), model.size)
    assert np.abs(found - hessian).max() > 1e-2


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_convolutions_add_up_positions_in_a_and_average_them_in_g(stride, padding):
    images = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 2, 5, 5)))
    labels = torch.tensor([0, 2, 1, 2])
    conv = nn.Conv2d(2, 3, 3, stride=stride, padding=padding)
    side = (5 + 2 * padding - 3) // stride + 1
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(3 * side * side, 3))
    model = FlatModel.from_module(net, "cross-entropy", l2=0.03)
    theta = start(model)
    row_weights = np.array([0.1, 0.4, 0.0, 0.3])
    objective = Objective(
        model=model, inputs=images, labels=labels, weights=row_weights
    )
    found = KfacFisher.at(objective, theta, damping=0.2)

    named = {k: v.numpy() for k, v in model.named(theta).items()}
    kernel = named["0.weight"].reshape(3, -1)
    a, g, positions = np.zeros((19, 19)), np.zeros((3, 3)), side * side
    for image, w in zip(images.numpy(), row_weights, strict=True):
        read = oracle.patches(image, 3, stride, padding)
        written = read @ kernel.T + named["0.bias"]
        p = oracle.softmax(named["2.weight"] @ written.T.ravel() + named["2.bias"])
        for t in range(positions):
            one = np.append(read[t], 1.0)
            a += w / row_weights.sum() * np.outer(one, one)
        for label, q in enumerate(p):
            error = p - np.eye(3)[label]
            slope = (named["2.weight"].T @ error).reshape(3, positions)
            g += w * q * slope @ slope.T / positions
    expected = oracle.product(*oracle.damped(a, g, SHIFT))
    first = matrix_of(found, model.size)[: 19 * 3, : 19 * 3]
    np.testing.assert_allclose(first, expected, atol=1e-12)


def test_an_activation_in_place_changes_nothing():
    def of(inplace):
        net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace), nn.Linear(4, 3))
        model = FlatModel.from_module(net, "cross-entropy", l2=0.03)
        return matrix_of(
            KfacFisher.at(objective_of(model), start(model), damping=0.2), model.size
        )

    np.testing.assert_array_equal(of(True), of(False))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.inner(self.inner(x)))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.inner.weight
        self.outer = nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.again(self.inner(x)))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.outer = nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(x)


# --- gradients of single samples ---------------------------------------------------


@pytest.mark.parametrize(
    "net",
    [
        mlp()._module,
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(True), nn.Linear(4, 3, bias=False)),
        nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
        nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 2, 2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.Linear(3, 2), nn.Flatten(), nn.Linear(4, 3)
        ),
        Twice(),
        Shared(),
        Unused(),
    ],
)
def test_layers_at_once_are_one_sample_after_the_other(net):
    model = FlatModel.from_module(net, "cross-entropy")
    theta = start(model)

    def loss(p, x, y):
        return model.sample_losses(p, (x[None], y[None]))[0]

    each = [
        torch.func.grad(loss)(theta, x, y) for x, y in zip(ROWS, LABELS, strict=True)
    ]
    jacobian, w = torch.stack(each), torch.from_numpy(weights())
    found = PerSample(model, theta)
    np.testing.assert_allclose(found.gradients(ROWS, LABELS), jacobian, atol=1e-14)
    squares = w @ jacobian.square()
    np.testing.assert_allclose(found.squares(ROWS, LABELS, w), squares, atol=1e-14)


# --- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3)), "layer '1' .*got LayerNorm;"),
        (Twice(), "layer 'inner' must be used once per call .* got twice"),
        (Unused(), "layer 'inner' must be used once per call .* got never"),
        (Shared(), "layer 'again' .* shares its parameters"),
        (nn.Sequential(nn.Conv2d(2, 4, 1, groups=2)), "Conv2d with groups=2"),
        (
            nn.Sequential(nn.Conv2d(2, 4, 3, padding="same")),
            "Conv2d with padding='same' of zeros",
        ),
        (nn.Linear(5000, 2), "<= 4096 inputs and outputs .* got .5001, 2."),
    ],
)
def test_other_layers_are_refused_by_name(net, message):
    model = FlatModel.from_module(net, "cross-entropy", l2=0.1)
    with pytest.raises(UnsupportedModelError, match=message):
        KfacFisher.at(objective_of(model), start(model), damping=0.1)
