"""Modules that cannot be a function of one sample are refused with a remedy."""

import pytest
import torch
from torch import nn

from dfl_unlearn.errors import UnsupportedModelError
from dfl_unlearn.models.flat import FlatModel
from dfl_unlearn.rng import RngTree


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layer.bias.requires_grad_(False)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(2), r"'1' must treat every sample .* BatchNorm1d; .*GroupNorm"),
        (nn.BatchNorm2d(2), r"batch_norm='freeze'"),
        (nn.SyncBatchNorm(2), r"SyncBatchNorm"),
        (nn.BatchNorm1d(2, track_running_stats=False), r"no statistics to freeze"),
        (nn.InstanceNorm1d(2, track_running_stats=True), r"track_running_stats=False"),
        (nn.Dropout(0.5), r"'1' must draw no random numbers, got Dropout; remove it"),
        (nn.Dropout2d(), r"Dropout2d"),
        (nn.AlphaDropout(), r"AlphaDropout"),
        (nn.RReLU(), r"RReLU"),
        (nn.MultiheadAttention(2, 1, dropout=0.1), r"MultiheadAttention"),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), r"LSTM"),
        (
            nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
            r"keep no state between calls, got _SpectralNorm",
        ),
        (nn.LazyLinear(2), r"'1.weight' must have a size, got a lazy parameter"),
        (Frozen(), r"'1.layer.bias' must be trained, .*buffer"),
        (Complex(), r"'1.phase' must be floating point, got torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_layer_that_does_not_fit_is_named(layer, message):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        FlatModel.from_module(nn.Sequential(nn.Linear(2, 2), layer), "cross-entropy")
    assert caught.value.exit_code == 2


def test_a_module_without_parameters_is_refused():
    with pytest.raises(UnsupportedModelError, match="must have parameters, got none"):
        FlatModel.from_module(nn.ReLU(), "cross-entropy")


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(1, 4),
        nn.InstanceNorm1d(4),
        nn.LayerNorm(4),
        nn.MultiheadAttention(4, 1),
        nn.LSTM(4, 4),
    ],
)
def test_layers_that_treat_samples_apart_are_taken(layer):
    model = FlatModel.from_module(
        nn.Sequential(nn.Linear(4, 4), layer), "cross-entropy"
    )
    assert model.init(RngTree(0)).isfinite().all()


def test_frozen_batch_normalization_uses_its_running_statistics():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[1].running_mean += torch.arange(4.0)
    module[1].running_var *= 9
    model = FlatModel.from_module(module, "cross-entropy", batch_norm="freeze")
    params = model.init(RngTree(0))
    x = torch.linspace(-1, 1, 15).view(5, 3)
    whole = model.predict(params, x)
    apart = torch.cat([model.predict(params, row[None]) for row in x])
    torch.testing.assert_close(whole, apart)
    named = model.named(params)
    z = x @ named["0.weight"].T + named["0.bias"]
    scaled = (z - torch.arange(4.0)) / (9 + 1e-5) ** 0.5
    torch.testing.assert_close(whole, scaled)
