"""FlatModel against the plain module it was made of."""

import numpy as np
import pytest
import torch
from oracles.convex_sets import (
    L6_L2,
    R4_L2,
    l6,
    logistic_minimizer,
    r4,
    ridge_minimizer,
)
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F

from dfl_unlearn import simulate
from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.data.peers import PeerData, TensorBatch
from dfl_unlearn.errors import InvalidArgumentError, UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel, LinearStack, Segment
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def classes(rows, count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(count, size=rows))


def plain_binary(outputs, labels):
    return F.binary_cross_entropy_with_logits(
        outputs[:, 0], labels.to(outputs), reduction="none"
    )


def plain_square(outputs, labels):
    return 0.5 * (outputs[:, 0] - labels) ** 2


def plain_cross(outputs, labels):
    return F.cross_entropy(outputs, labels, reduction="none")


CASES = [
    (nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), "cross-entropy", plain_cross, 3),
    (
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 4)),
        "cross-entropy",
        plain_cross,
        4,
    ),
    (nn.Linear(6, 1), "binary-logistic", plain_binary, 2),
    (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)),
        "squared-error",
        plain_square,
        0,
    ),
    (
        nn.Sequential(nn.Linear(6, 4, bias=False), nn.GELU(), nn.Linear(4, 3)),
        lambda z, y: F.mse_loss(z, F.one_hot(y, 3).to(z), reduction="none").sum(1),
        lambda z, y: ((z - F.one_hot(y, 3)) ** 2).sum(1),
        3,
    ),
]


@pytest.mark.parametrize(("module", "loss", "plain", "count"), CASES)
def test_loss_and_gradient_are_those_of_the_plain_module(module, loss, plain, count):
    model = FlatModel.from_module(module, loss, l2=0.3)
    params = draw(model.size, seed=1).requires_grad_()
    x = draw(9, 6)
    y = classes(9, count) if count else draw(9, seed=2)
    weights = torch.tensor([0, 2, 1, 0, 1, 1, 3, 0.5, 1], dtype=torch.float64)
    ours = model.loss(params, (x, y), weights=weights)
    (gradient,) = torch.autograd.grad(ours, params)

    twin = nn.Sequential(module).double()
    nn.utils.vector_to_parameters(params.detach(), twin.parameters())
    losses = plain(twin(x), y)
    theirs = (weights * losses).sum() / weights.sum() + 0.15 * sum(
        p.square().sum() for p in twin.parameters()
    )
    parts = torch.autograd.grad(theirs, list(twin.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradient, torch.cat([p.reshape(-1) for p in parts]), rtol=1e-11, atol=1e-12
    )
    torch.testing.assert_close(
        model.sample_losses(params, (x, y)), losses, rtol=1e-12, atol=1e-12
    )
    mean = losses.mean() + 0.15 * params.square().sum()
    torch.testing.assert_close(model.loss(params, TensorBatch(x, y)), mean)


def test_without_weight_only_the_l2_term_is_left():
    model = FlatModel.from_module(nn.Linear(6, 3), "cross-entropy", l2=0.5)
    params = draw(model.size).requires_grad_()
    batch = draw(4, 6), classes(4, 3)
    empty = batch[0][:0], batch[1][:0]
    for loss in (
        model.loss(params, batch, weights=torch.zeros(4)),
        model.loss(params, empty),
    ):
        (gradient,) = torch.autograd.grad(loss, params)
        torch.testing.assert_close(loss, 0.25 * params.square().sum())
        torch.testing.assert_close(gradient, 0.5 * params)


def test_extreme_logits_lose_no_precision():
    model = FlatModel.from_module(nn.Linear(1, 1, bias=False), "binary-logistic")
    x = torch.tensor([[30.0], [-30.0], [800.0]], dtype=torch.float64)
    y = torch.tensor([1, 1, 0])
    losses = model.sample_losses(torch.ones(1, dtype=torch.float64), (x, y))
    expected = [np.log1p(np.exp(-30.0)), 30 + np.log1p(np.exp(-30.0)), 800.0]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_predictions_have_one_column_per_class():
    x = draw(5, 6)
    binary = FlatModel.from_module(nn.Linear(6, 1), "binary-logistic")
    params = draw(binary.size)
    logits = binary.predict(params, x)
    torch.testing.assert_close(logits[:, 1], x @ params[:6] + params[6])
    assert torch.equal(logits[:, 0], torch.zeros(5, dtype=torch.float64))
    y = classes(5, 2)
    torch.testing.assert_close(
        binary.sample_losses(params, (x, y)), plain_cross(logits, y)
    )
    ridge = FlatModel.from_module(nn.Linear(6, 1), "squared-error")
    assert ridge.predict(params, x).shape == (5,)


@pytest.mark.parametrize(
    ("name", "shape", "count", "fields"),
    [
        ("linear", (6,), 0, {}),
        ("logistic", (2, 3), 2, {"bias": False}),
        ("logistic", (6,), 5, {}),
        ("mlp", (6,), 3, {"hidden": [7, 4]}),
        ("mlp", (2, 3), 0, {"bias": False}),
        ("small-cnn", (8, 9), 4, {"channels": (3, 2)}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_peers_at_once_predict_what_each_predicts(
    name, shape, count, fields, dtype
):
    model = models.build(name, input_shape=shape, num_classes=count, **fields)
    params = draw(5, model.size, dtype=dtype)
    x = draw(11, *shape, seed=3)
    together = model.predict_all(params, x)
    loop = torch.stack([model.predict(row, x) for row in params])
    assert together.dtype == dtype
    assert together.shape == (5, 11, count) if count else (5, 11)
    torch.testing.assert_close(together, loop, rtol=1e-6, atol=2e-6)


def test_chunks_of_rows_and_peers_join_to_the_whole(monkeypatch):
    monkeypatch.setattr("dfl_unlearn.models.flat._CHUNK_FLOATS", 20)
    monkeypatch.setattr("dfl_unlearn.models.flat._CHUNK_ROWS", 3)
    x = draw(7, 16)
    for name in ("mlp", "small-cnn"):
        model = models.build(name, input_shape=(16,), num_classes=3)
        params = draw(4, model.size)
        loop = torch.stack([model.predict(row, x) for row in params])
        torch.testing.assert_close(model.predict_all(params, x), loop)


def test_images_become_fractions_of_255():
    model = models.build("logistic", input_shape=(4, 4), num_classes=3)
    params = model.init(RngTree(0))
    images = torch.from_numpy(
        np.random.default_rng(0).integers(256, size=(5, 4, 4), dtype=np.uint8)
    )
    for predict in (model.predict, lambda p, x: model.predict_all(p[None], x)[0]):
        torch.testing.assert_close(
            predict(params, images), predict(params, images.float() / 255)
        )


@pytest.mark.parametrize("name", ["logistic", "mlp", "small-cnn"])
def test_functional_transforms_agree_with_loops(name):
    model = models.build(name, input_shape=(6, 6), num_classes=3)
    params, x, y = draw(2, model.size), draw(4, 6, 6), classes(4, 3)

    def one(p, x, y):
        return model.sample_losses(p, (x[None], y[None]))[0]

    batched = vmap(grad(one), in_dims=(None, 0, 0))(params[0], x, y)
    for i in range(4):
        torch.testing.assert_close(batched[i], grad(one)(params[0], x[i], y[i]))
    both = vmap(grad(lambda p: model.loss(p, (x, y))))(params)
    torch.testing.assert_close(
        both[1], grad(lambda p: model.loss(p, (x, y)))(params[1])
    )


def test_second_derivatives_of_logistic_regression_are_exact():
    model = models.build("logistic", input_shape=(4,), num_classes=2, bias=False)
    params, x, y = draw(4), draw(9, 4), classes(9, 2)
    hessian = jacrev(jacrev(lambda p: model.loss(p, (x, y))))(params)
    p = torch.sigmoid(x @ params)
    exact = (x.T * (p * (1 - p))) @ x / 9 + 0.01 * torch.eye(4, dtype=p.dtype)
    torch.testing.assert_close(hessian, exact, rtol=1e-10, atol=1e-12)


def newton(model, objective, steps):
    params = torch.zeros(model.size, dtype=torch.float64)
    for _ in range(steps):
        hessian = jacrev(jacrev(objective))(params)
        params = params - torch.linalg.solve(hessian, grad(objective)(params))
    return params.numpy()


def objective(model, data, divisors=None):
    """Mean over peers with data of their objective; a divisor overrides the mean."""

    def value(params):
        losses = []
        for i in range(data.n):
            local = data.local(i)
            scale = 1.0 if divisors is None else len(local) / divisors[i]
            data_term = model.loss(params, local) - penalty(params)
            losses.append(scale * data_term + penalty(params))
        return torch.stack(losses).mean()

    def penalty(params):
        return model.l2 / 2 * params.square().sum()

    return value


def test_r4_minimizers_are_the_published_ones():
    peers = r4()
    data = PeerData.from_tensors(peers, peers[0])
    assert data.store.inputs.dtype == torch.float64
    model = models.build("linear", input_shape=(2,), l2=R4_L2, bias=False)
    kept = data.without(ForgetRequest.samples(2, indices=[0, 1]))
    rest = [peers[0], peers[1], (peers[2][0][2:], peers[2][1][2:]), peers[3]]
    three = [peers[0], peers[1], peers[3]]
    cases = [
        (objective(model, data), (peers, [3] * 4), (-0.1700389253, -0.2287810290)),
        (
            objective(model, kept, [3] * 4),
            (rest, [3] * 4),
            (-0.1847117050, -0.1304721982),
        ),
        (
            objective(model, kept),
            (rest, [3, 3, 1, 3]),
            (-0.2469457954, -0.1887760448),
        ),
        (
            objective(model, PeerData.from_tensors(three, peers[0])),
            (three, [3] * 3),
            (-0.1325204395, -0.0791834861),
        ),
    ]
    for value, oracle, published in cases:
        ours = newton(model, value, 1)
        np.testing.assert_allclose(ours, published, rtol=0, atol=5.1e-11)
        np.testing.assert_allclose(ours, ridge_minimizer(*oracle, R4_L2), rtol=1e-12)


def test_l6_minimizers_are_the_published_ones():
    peers = l6()
    data = PeerData.from_tensors(peers, peers[0])
    assert data.num_classes == 2
    model = models.build(
        "logistic", input_shape=(4,), num_classes=2, l2=0.05, bias=False
    )
    kept = data.without(ForgetRequest.samples(1, indices=range(3)))
    rest = [(x[3:], y[3:]) if i == 1 else (x, y) for i, (x, y) in enumerate(peers)]
    for who, oracle, published in (
        (data, peers, (0.60672222, -0.22349632, -0.38105973, 0.60824936)),
        (kept, rest, (0.61523801, -0.28202075, -0.33048385, 0.61570772)),
    ):
        ours = newton(model, objective(model, who), 12)
        np.testing.assert_allclose(ours, published, rtol=0, atol=5.1e-9)
        np.testing.assert_allclose(ours, logistic_minimizer(oracle, L6_L2), rtol=1e-10)


def test_init_depends_on_the_seed_only_and_leaves_the_global_state_alone():
    model = models.build("small-cnn", input_shape=(8, 8), num_classes=3)
    before = torch.get_rng_state()
    first = model.init(RngTree(0))
    torch.rand(3)
    assert torch.equal(first, model.init(RngTree(0)))
    assert first.dtype == torch.float32
    assert first.shape == (model.size,)
    assert not torch.equal(first, model.init(RngTree(1)))
    torch.set_rng_state(before)
    model.init(RngTree(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_init_draws_what_the_layers_draw():
    module = nn.Sequential(nn.Linear(100, 50), nn.LayerNorm(50), nn.Linear(50, 3))
    for p in module.parameters():
        nn.init.constant_(p, 7.0)
    model = FlatModel.from_module(module, "cross-entropy")
    named = model.named(model.init(RngTree(0)))
    assert named["0.weight"].abs().max() <= 0.1  # Kaiming: uniform on 1 / sqrt(100)
    assert named["0.weight"].std() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert torch.equal(named["1.weight"], torch.ones(50))
    assert torch.equal(named["1.bias"], torch.zeros(50))


def test_parameters_without_a_rule_keep_their_values():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.scale * self.layer(x)

    model = FlatModel.from_module(Scaled(), "cross-entropy")
    assert list(model.segments) == ["scale", "layer.weight", "layer.bias"]
    assert model.segments["scale"] == Segment(0, ())
    assert model.named(model.init(RngTree(0)))["scale"] == 3.0


def test_the_state_of_the_module_goes_there_and_back():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module(draw(20, 3, dtype=torch.float32))  # statistics that are not the default
    model = FlatModel.from_module(module, "cross-entropy", batch_norm="freeze")
    params = model.init(RngTree(0))
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict(params))
    x = draw(5, 3, dtype=torch.float32)
    torch.testing.assert_close(model.predict(params, x), twin.eval()(x))
    assert torch.equal(model.from_state_dict(twin.state_dict()), params)
    view = model.state_dict(params)["0.weight"]
    assert view.data_ptr() == params.data_ptr()


def test_a_state_of_another_model_is_refused():
    model = FlatModel.from_module(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        "cross-entropy",
        batch_norm="freeze",
    )
    state = model.state_dict(model.init(RngTree(0)))
    with pytest.raises(InvalidArgumentError, match=r"missing \['0.bias'\]"):
        model.from_state_dict({k: v for k, v in state.items() if k != "0.bias"})
    with pytest.raises(InvalidArgumentError, match=r"unknown \['extra'\]"):
        model.from_state_dict({**state, "extra": torch.zeros(1)})
    with pytest.raises(
        InvalidArgumentError, match=r"0\.weight .*\(4, 3\), got \(3, 4\)"
    ):
        model.from_state_dict({**state, "0.weight": torch.zeros(3, 4)})
    with pytest.raises(InvalidArgumentError, match=r"1\.running_mean must equal"):
        model.from_state_dict({**state, "1.running_mean": torch.ones(4)})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.relu(self.encode(x)))


def test_shared_parameters_are_one_segment():
    model = FlatModel.from_module(Tied(), "cross-entropy")
    assert list(model.segments) == ["encode.weight", "encode.bias", "decode.bias"]
    params, x = draw(model.size), draw(3, 4)
    twin = Tied().double()
    twin.load_state_dict(model.state_dict(params))
    torch.testing.assert_close(model.predict(params, x), twin(x))
    assert torch.equal(model.from_state_dict(twin.state_dict()), params)
    state = model.state_dict(params)
    with pytest.raises(InvalidArgumentError, match=r"decode\.weight must equal"):
        model.from_state_dict({**state, "decode.weight": torch.zeros(4, 4)})


def test_a_module_is_copied_and_its_constants_follow_the_type():
    plain = nn.Sequential(nn.Linear(2, 2))
    model = FlatModel.from_module(plain, "cross-entropy")
    params = model.init(RngTree(0))
    with torch.no_grad():
        plain[0].weight.zero_()
    assert not torch.equal(
        model.named(model.init(RngTree(0)))["0.weight"], torch.zeros(2)
    )
    assert model.predict(params.double(), draw(3, 2)).dtype == torch.float64

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("shift", torch.tensor([1.0, 2.0]), persistent=False)

        def forward(self, x):
            return self.layer(x) + self.shift

    shifted = FlatModel.from_module(Shifted(), "cross-entropy")
    p, x = draw(shifted.size), draw(3, 2)
    expected = functional_call(
        nn.Linear(2, 2), {"weight": p[:4].view(2, 2), "bias": p[4:]}, x
    )
    torch.testing.assert_close(
        shifted.predict(p, x), expected + torch.tensor([1.0, 2.0])
    )


STACKS = [
    (nn.Linear(3, 2), "cross-entropy", [((2, 3), (2,), "none")]),
    (nn.Linear(3, 1, bias=False), "binary-logistic", [((1, 3), None, "none")]),
    (
        nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
        "squared-error",
        [((4, 3), (4,), "relu"), ((1, 4), (1,), "none")],
    ),
]


@pytest.mark.parametrize(("module", "loss", "layers"), STACKS)
def test_linear_stacks_are_recognized(module, loss, layers):
    stack = FlatModel.from_module(module, loss).structure
    assert isinstance(stack, LinearStack)
    assert stack.loss == loss
    assert [
        (x.weight.shape, x.bias and x.bias.shape, x.activation) for x in stack.layers
    ] == layers


def hooked():
    layer = nn.Linear(3, 2)
    layer.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return layer


def repeated():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("module", "loss"),
    [
        (nn.Linear(3, 2), plain_cross),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "cross-entropy"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), "cross-entropy"),
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), "cross-entropy"),
        (nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2)), "cross-entropy"),
        (nn.utils.parametrizations.orthogonal(nn.Linear(3, 2)), "cross-entropy"),
        (hooked(), "cross-entropy"),
        (repeated(), "cross-entropy"),
        (nn.Linear(3, 2), "squared-error"),
        (nn.Sequential(nn.Conv1d(1, 1, 1)), "cross-entropy"),
    ],
)
def test_anything_else_is_not_taken_for_a_linear_stack(module, loss):
    model = FlatModel.from_module(module, loss)
    assert model.structure is None
    assert not model.convex


def test_only_one_linear_layer_counts_as_convex():
    convex = {
        name: models.build(name, input_shape=(4, 4), num_classes=count).convex
        for name, count in (
            ("linear", 0),
            ("logistic", 3),
            ("mlp", 3),
            ("small-cnn", 3),
        )
    }
    assert convex == {
        "linear": True,
        "logistic": True,
        "mlp": False,
        "small-cnn": False,
    }


def test_wrong_shapes_and_losses_are_explained():
    model = FlatModel.from_module(nn.Linear(3, 2), "cross-entropy")
    params = model.init(RngTree(0))
    x = torch.zeros(4, 3)
    with pytest.raises(InvalidArgumentError, match=r"params: .*\(8,\), got \(9,\)"):
        model.predict(torch.zeros(9), x)
    with pytest.raises(UnsupportedModelError, match=r"\(B, C\).*got \(4, 5, 2\)"):
        model.predict(params, torch.zeros(4, 5, 3))
    two = FlatModel.from_module(nn.Linear(3, 2), "squared-error")
    with pytest.raises(
        UnsupportedModelError, match=r"\(B, 1\) or \(B,\).*got \(4, 2\)"
    ):
        two.predict(params, x)
    mean = FlatModel.from_module(nn.Linear(3, 2), F.cross_entropy)
    with pytest.raises(InvalidArgumentError, match=r"\(4,\), got \(\).*reduction"):
        mean.loss(params, (x, classes(4, 2)))
    with pytest.raises(InvalidArgumentError, match=r"loss: must be one of .*'hinge'"):
        FlatModel.from_module(nn.Linear(3, 2), "hinge")
    with pytest.raises(InvalidArgumentError, match=r"l2: .*got -1"):
        FlatModel.from_module(nn.Linear(3, 2), "cross-entropy", l2=-1)
    with pytest.raises(InvalidArgumentError, match=r"batch_norm: .*got 'train'"):
        FlatModel.from_module(nn.Linear(3, 2), "cross-entropy", batch_norm="train")


def test_rows_of_another_shape_are_refused_before_training():
    data = PeerData.load("gaussian-classes", peers=4, dataset_options={"dim": 3})
    model = models.build("logistic", input_shape=(5,), num_classes=3)
    with pytest.raises(InvalidArgumentError, match=r"model: must take .* shape \(3,\)"):
        simulate("ring", data, model)
