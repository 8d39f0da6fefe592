"""The index-free max-pool equals torch's, derivatives and ties included."""

import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, vmap

from dfl_unlearn.models.pooling import MaxPool2x2


def images(*shape, ties):
    generator = torch.Generator().manual_seed(0)
    if ties:
        return torch.randint(0, 3, shape, generator=generator).double()
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 7, 5), (1, 1, 2, 3)])
@pytest.mark.parametrize("ties", [False, True])
def test_values_and_gradients_are_those_of_max_pool2d(shape, ties):
    x = images(*shape, ties=ties).requires_grad_()
    ours, theirs = MaxPool2x2()(x), nn.MaxPool2d(2)(x)
    assert torch.equal(ours, theirs)
    weights = images(*ours.shape, ties=False)
    (a,) = torch.autograd.grad(ours, x, weights)
    (b,) = torch.autograd.grad(theirs, x, weights)
    assert torch.equal(a, b)


def test_it_can_be_differentiated_twice():
    x = images(1, 4, 6, ties=False).requires_grad_()
    assert torch.autograd.gradcheck(MaxPool2x2(), (x,))
    assert torch.autograd.gradgradcheck(lambda x: MaxPool2x2()(x) ** 2, (x,))


def test_functional_transforms_agree_with_loops():
    x = images(3, 4, 4, ties=False)
    pool, torchs = MaxPool2x2(), nn.MaxPool2d(2)

    def total(f, x):
        return (f(x[None]) ** 2).sum()

    ours = vmap(grad(lambda x: total(pool, x)))(x)
    theirs = torch.stack([grad(lambda x: total(torchs, x))(one) for one in x])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(jacrev(pool)(x), jacrev(lambda x: torchs(x[None])[0])(x))
