"""What every registered model promises."""

import pytest
import torch

from dfl_unlearn.errors import UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.models.zoo import models
from dfl_unlearn.rng import RngTree

TASKS = (0, 2, 4)


def cases():
    """Yield every registered model with the tasks it takes; at least one."""
    for name in models.names():
        taken = 0
        for count in TASKS:
            try:
                models.build(name, input_shape=(8, 8), num_classes=count)
            except UnsupportedModelError:
                continue
            taken += 1
            yield name, count
        assert taken, name


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 8, 8, generator=generator)


def labels_for(count):
    if count == 0:
        return torch.linspace(-1, 1, 6)
    return torch.arange(6) % count


@pytest.mark.parametrize(("name", "count"), list(cases()))
class TestModel:
    def model(self, name, count) -> FlatModel:
        return models.build(name, input_shape=(8, 8), num_classes=count)

    def test_segments_fill_the_vector_without_gaps(self, name, count):
        model = self.model(name, count)
        assert models.help(name).endswith(".")
        place = 0
        for segment in model.segments.values():
            assert segment.offset == place
            place += segment.size
        assert place == model.size

    def test_init_repeats_and_is_float32(self, name, count):
        model = self.model(name, count)
        params = model.init(RngTree(3))
        assert params.shape == (model.size,)
        assert params.dtype == torch.float32
        assert torch.equal(params, self.model(name, count).init(RngTree(3)))

    def test_outputs_have_the_promised_shapes(self, name, count, rows):
        model = self.model(name, count)
        params = torch.stack([model.init(RngTree(seed)) for seed in range(3)])
        shape = (6, count) if count else (6,)
        together = model.predict_all(params, rows)
        assert together.shape == (3, *shape)
        for one, row in zip(together, params, strict=True):
            assert model.predict(row, rows).shape == shape
            torch.testing.assert_close(
                one, model.predict(row, rows), rtol=1e-6, atol=1e-6
            )

    def test_samples_do_not_influence_each_other(self, name, count, rows):
        model = self.model(name, count)
        params, labels = model.init(RngTree(0)).double(), labels_for(count)
        whole = model.sample_losses(params, (rows, labels))
        assert whole.shape == (6,)
        for i in range(6):
            alone = model.sample_losses(params, (rows[i : i + 1], labels[i : i + 1]))
            torch.testing.assert_close(whole[i], alone[0], rtol=1e-10, atol=1e-12)

    def test_loss_is_the_mean_plus_the_penalty(self, name, count, rows):
        model = self.model(name, count)
        params, batch = model.init(RngTree(0)).double(), (rows, labels_for(count))
        expected = model.sample_losses(params, batch).mean()
        expected = expected + model.l2 / 2 * params.square().sum()
        torch.testing.assert_close(model.loss(params, batch), expected)

    def test_a_gradient_step_lowers_the_loss(self, name, count, rows):
        model = self.model(name, count)
        params = model.init(RngTree(0)).double().requires_grad_()
        batch = rows, labels_for(count)
        before = model.loss(params, batch)
        (gradient,) = torch.autograd.grad(before, params)
        assert gradient.norm() > 0
        after = model.loss(params.detach() - 1e-3 * gradient, batch)
        assert after < before

    def test_convex_models_have_constants(self, name, count):
        model = self.model(name, count)
        if model.convex:
            assert model.l2 > 0
            assert {"strong_convexity", "smoothness"} <= set(model.constants(1.0))
        else:
            assert model.constants(1.0) == {}

    def test_the_state_goes_there_and_back(self, name, count):
        model = self.model(name, count)
        params = model.init(RngTree(0))
        assert torch.equal(model.from_state_dict(model.state_dict(params)), params)
