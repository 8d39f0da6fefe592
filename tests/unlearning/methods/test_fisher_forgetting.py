"""Fisher forgetting: mean and variance of every weight by a second implementation."""

import numpy as np
import pytest
import torch
from one_peer import WIDTHS, a_class, act, mlp, samples, trained
from oracles import soft_labels as oracle

from dfl_unlearn.rng import RngTree
from dfl_unlearn.unlearning.local import only, uses_of
from dfl_unlearn.unlearning.methods.fisher_forgetting import FisherForgetting


def law(task, alpha, class_id=None):
    """Mean and standard deviation, one weight after the other."""
    flat = task.params.numpy()
    fisher = oracle.expected_squared(flat, WIDTHS, task.retain.inputs.numpy())
    mean, deviation = flat.copy(), np.zeros_like(flat)
    names = oracle.layers(np.arange(len(flat)), WIDTHS)
    for depth, (weight, offset) in enumerate(names):
        last = depth == len(names) - 1
        cap = 1e2 if last else 1e3
        for row, places in enumerate(weight):
            variances = [alpha * min(1 / (fisher[i] + 1e-8), cap) for i in places]
            shared = np.mean(variances)
            if last and row == class_id:
                shared = 1e-4
                mean[places] = 0
            deviation[places] = np.sqrt(shared * (10 if last else 1))
        for row, i in enumerate(offset):
            variance = alpha * min(1 / (fisher[i] + 1e-8), cap)
            if last and row == class_id:
                variance = 1e-4
                mean[i] = 0
            deviation[i] = np.sqrt(10 * variance)
    return mean, deviation


@pytest.mark.parametrize("class_id", [None, 1])
def test_noise_is_that_of_the_second_implementation(class_id):
    run = trained()
    task = samples(run) if class_id is None else a_class(run, class_id)
    alpha = 1e-3
    outcome = act(FisherForgetting(alpha=alpha), task)
    mean, deviation = law(task, alpha, class_id)
    noise = RngTree(0).normal(
        (task.model.size,), "method", who=0, request="r0", draw=16
    )
    expected = mean + deviation * noise.numpy()
    np.testing.assert_allclose(outcome.params, expected, rtol=1e-9, atol=1e-12)
    assert outcome.cost.sample_gradients == 3 * task.retain_size


def test_labels_are_the_models_own():
    seen = only(samples(trained()), uses_of(FisherForgetting()))
    assert (seen.retain.labels == -1).all()
    assert seen.forget is None


def test_one_logit_for_two_classes_has_no_row_to_clear():
    from networks import blobs

    from dfl_unlearn.models.zoo import models

    model = models.build("logistic", input_shape=(6,), num_classes=2)
    data = blobs([30], classes=2, dtype=np.float64)
    task = a_class(trained(model, data=data), 1)
    outcome = act(FisherForgetting(alpha=1e-12), task)
    torch.testing.assert_close(outcome.params, task.params, rtol=1e-3, atol=1e-3)


def test_models_of_any_layers_are_served():
    from dfl_unlearn.models.zoo import models

    model = models.build("small-cnn", input_shape=(36,), num_classes=3, channels=(2, 3))
    generator = torch.Generator().manual_seed(0)
    from dfl_unlearn.data.peers import PeerData

    x = torch.rand(20, 36, generator=generator, dtype=torch.float64)
    y = torch.arange(20) % 3
    data = PeerData.from_tensors([(x, y)], test=(x, y), num_classes=3)
    task = samples(trained(model, data=data), rows=(0, 4))
    outcome = act(FisherForgetting(), task)
    assert outcome.params.isfinite().all()
    assert (outcome.params != task.params).all()


def test_regressions_are_refused():
    from networks import ridge

    from dfl_unlearn.errors import MissingInputError

    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)).double()
    from dfl_unlearn.data.peers import PeerData

    data = PeerData.from_tensors([(x, x[:, 0])], test=(x, x[:, 0]))
    with pytest.raises(MissingInputError, match="class_count"):
        act(FisherForgetting(), samples(trained(ridge(), data=data), rows=(0,)))


def test_a_hidden_layer_less_model_is_served():
    from dfl_unlearn.models.zoo import models

    model = models.build("logistic", input_shape=(6,), num_classes=3)
    outcome = act(FisherForgetting(), samples(trained(model)))
    assert outcome.params.shape == (21,)
    assert mlp().size != 21


def test_a_loss_of_your_own_has_no_labels_to_draw():
    from torch import nn
    from torch.nn import functional

    from dfl_unlearn.errors import UnsupportedModelError
    from dfl_unlearn.models.flat import FlatModel

    def loss(outputs, labels):
        return functional.cross_entropy(outputs, labels, reduction="none")

    model = FlatModel.from_module(nn.Sequential(nn.Linear(6, 3)), loss)
    with pytest.raises(UnsupportedModelError, match="ssd"):
        act(FisherForgetting(), samples(trained(model)))
