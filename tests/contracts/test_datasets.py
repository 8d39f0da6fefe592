"""What every registered data set promises."""

import numpy as np
import pytest
import torch

from dfl_unlearn.data.peers import PeerData
from dfl_unlearn.data.sources import Dataset, datasets
from dfl_unlearn.errors import MissingDataError

FROM_FILES = ("mnist", "cifar10", "image-parquet")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """What a data set cannot be built without, by name."""
    path = tmp_path_factory.mktemp("arrays") / "mine.npz"
    inputs = np.linspace(0, 1, 240, dtype=np.float32).reshape(60, 4)
    np.savez(path, inputs=inputs, labels=np.arange(60) % 3)
    return {"arrays": {"file": path}}


def entries():
    return [
        pytest.param(name, marks=pytest.mark.data if name in FROM_FILES else ())
        for name in datasets.names()
    ]


@pytest.fixture(scope="module")
def loaded():
    """Data sets that were built already, by name."""
    return {}


def build(name, loaded, fields) -> Dataset:
    if name not in loaded:
        try:
            loaded[name] = datasets.build(name, **fields.get(name, {}))
        except MissingDataError as error:
            pytest.skip(str(error))
    return loaded[name]


@pytest.mark.parametrize("name", entries())
def test_parts_fit_together_and_are_documented(name, loaded, fields):
    data = build(name, loaded, fields)
    assert isinstance(data, Dataset)
    assert data.name == name
    assert data.source
    assert len(data.sha256) == 64
    assert len(data.train) > len(data.test) > 0
    assert data.train.inputs.shape[1:] == data.test.inputs.shape[1:]
    assert datasets.help(name).endswith(".")
    for part in (data.train, data.test):
        assert part.inputs.dtype in (torch.uint8, torch.float32, torch.float64)
        if data.num_classes:
            assert part.labels.dtype == torch.int64
            present = torch.unique(part.labels)
            assert torch.equal(present, torch.arange(data.num_classes))
        else:
            assert part.is_regression


@pytest.mark.parametrize("name", entries())
def test_peers_share_it_out_without_loss(name, loaded, fields):
    data = build(name, loaded, fields)
    peers = PeerData.load(data, 5, "dirichlet" if data.num_classes else "iid")
    assert peers.n == 5
    assert sorted(peers.origin) == list(range(len(data.train)))
    assert peers.num_classes == data.num_classes
    assert peers.name == name
